"""PgError and the wire: every field, both directions, and always sendable."""

from __future__ import annotations

import copy
import pickle

import pytest

from protocol import sqlstate
from protocol.backend_messages import ErrorResponse, NoticeResponse
from protocol.errors import (
    ERROR_FIELDS,
    LocalProtocolError,
    PgError,
    ProtocolError,
    RemoteProtocolError,
    pack_error_fields,
)

FULL = PgError(
    "23505",
    "duplicate key value violates unique constraint",
    detail="Key (a)=(1) already exists.",
    hint="h",
    position=3,
    severity="ERROR",
    severity_localized="FEHLER",
    internal_position=4,
    internal_query="select",
    where="PL/pgSQL function f() line 1",
    schema_name="public",
    table_name="t",
    column_name="a",
    data_type_name="int4",
    constraint_name="t_pkey",
    file="nbtinsert.c",
    line=666,
    routine="_bt_check_unique",
    unknown_fields=(("Z", "new"),),
)


def attributes(error: PgError) -> dict[str, object]:
    return {name: getattr(error, name) for _, name in ERROR_FIELDS} | {"unknown": error.unknown_fields}


def test_every_field_survives_the_wire() -> None:
    raw = FULL.to_error_response()
    assert raw[:1] == b"E"
    assert int.from_bytes(raw[1:5], "big") == len(raw) - 1
    assert attributes(PgError.from_body(memoryview(raw)[5:])) == attributes(FULL)
    assert attributes(ErrorResponse.decode(raw[5:]).error) == attributes(FULL)


def test_notice_has_the_same_fields() -> None:
    raw = PgError("00000", "done", severity="NOTICE").to_notice_response()
    notice = NoticeResponse.decode(raw[5:]).notice
    assert raw[:1] == b"N"
    assert (notice.severity, notice.sqlstate, notice.message) == ("NOTICE", "00000", "done")


def test_fields_are_in_the_order_of_postgresql() -> None:
    assert [letter for letter, _ in FULL.to_fields()] == list("SVCMDHPpqWstcdnFLRZ")


def test_absent_fields_are_not_sent() -> None:
    body = b"SERROR\0VERROR\0C42601\0Mm\0\0"
    assert PgError("42601", "m").to_error_response() == b"E" + (len(body) + 4).to_bytes(4, "big") + body


def test_severity_of_an_old_server_is_the_localized_one() -> None:
    error = PgError.from_body(b"SFATAL\0C57P01\0Mbye\0\0")
    assert error.severity == "FATAL"
    assert error.is_fatal
    assert error.sqlstate_class == "57"


def test_severity_is_never_taken_from_the_localized_field_where_both_are_given() -> None:
    error = PgError.from_body(b"SFATAL\0VERROR\0Cx\0M\0\0")
    assert not error.is_fatal
    assert error.severity_localized == "FATAL"


def test_missing_fields_have_defaults() -> None:
    error = PgError.from_body(b"\0")
    assert (error.severity, error.sqlstate, error.message) == ("ERROR", "XX000", "")


@pytest.mark.parametrize("text", ["", "x", "-1", "1e5", "٣", "9" * 30])
def test_position_that_is_no_number_is_ignored(text: str) -> None:
    error = PgError.from_fields((("P", text), ("L", text), ("p", text)))
    assert (error.position, error.line, error.internal_position) == (None, None, None)


@pytest.mark.parametrize("body", [b"", b"SERROR", b"SERROR\0", b"\0\0", b"SERROR\0\0x", b"S"])
def test_broken_field_lists_are_protocol_errors(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        PgError.from_body(body)


def test_error_quoting_hostile_input_can_still_be_sent() -> None:
    error = PgError("42601", 'at or near "\0\ud800\udcff"', detail="a\0b")
    back = PgError.from_body(error.to_error_response()[5:])
    assert back.detail == "ab"
    assert back.sqlstate == "42601"


@pytest.mark.parametrize("fields", [(("S", "a\0b"),), (("", "a"),), (("ab", "c"),), (("\0", "c"),), (("é̄", "c"),)])
def test_typed_fields_are_strict(fields: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(LocalProtocolError):
        pack_error_fields(fields)


def test_errors_can_be_copied_and_pickled() -> None:
    assert attributes(copy.copy(FULL)) == attributes(FULL)
    assert attributes(pickle.loads(pickle.dumps(FULL))) == attributes(FULL)


def test_protocol_error_becomes_what_postgresql_reports() -> None:
    error = RemoteProtocolError("invalid message format", detail="d").to_pg_error()
    assert (error.severity, error.sqlstate, error.message, error.detail) == (
        "FATAL",
        sqlstate.PROTOCOL_VIOLATION,
        "invalid message format",
        "d",
    )
    assert ProtocolError("x", fatal=False).to_pg_error().severity == "ERROR"
