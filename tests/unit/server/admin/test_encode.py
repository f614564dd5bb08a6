"""Admin results on the wire: types, formats, parameters."""

from __future__ import annotations

import datetime as dt
import struct

import pytest

from protocol.backend_messages import CommandComplete, DataRow, RowDescription
from protocol.errors import PgError
from server.admin import encode
from server.admin.console import AdminConsole, BoundCommand
from server.extension.bus import EventBus
from server.extension.commands import (
    ADMIN_ROLE,
    AdminColumn,
    AdminCommand,
    AdminResult,
    ColumnType,
    CommandCall,
    CommandRegistry,
)

COLUMNS = (
    AdminColumn("flag", ColumnType.BOOL),
    AdminColumn("count", ColumnType.INT8),
    AdminColumn("name", ColumnType.TEXT),
    AdminColumn("share", ColumnType.FLOAT8),
    AdminColumn("at", ColumnType.TIMESTAMPTZ),
)
MOMENT = dt.datetime(2026, 11, 22, 13, 0, 0, 250_000, tzinfo=dt.UTC)
ROW = (True, -5, "ä", 1, MOMENT.timestamp())


def bind(text: str, syntax: str = "MARK <x:integer> [ AS <y:string> ] [ BY <z:number> ]") -> BoundCommand:
    def handler(call: CommandCall) -> AdminResult:
        return AdminResult()

    async def is_member(role: str, required: str) -> bool:
        return True

    registry = CommandRegistry([AdminCommand(syntax, ADMIN_ROLE, COLUMNS, handler, "A test.")])
    bound = AdminConsole(registry, is_member, EventBus()).match(text)
    assert bound is not None
    return bound


def body(message: bytes) -> bytes:
    return message[5:]


def test_row_description_has_names_types_and_formats() -> None:
    fields = RowDescription.decode(body(encode.row_description(COLUMNS, (0, 1, 0, 1, 1)))).fields
    assert [(one.name, one.type_oid, one.type_size, one.format) for one in fields] == [
        ("flag", 16, 1, 0),
        ("count", 20, 8, 1),
        ("name", 25, -1, 0),
        ("share", 701, 8, 1),
        ("at", 1184, 8, 1),
    ]
    assert encode.row_description(()) == b""


def test_text_rows_are_as_postgresql_writes_them() -> None:
    (message,) = encode.data_rows(AdminResult([ROW]), COLUMNS)
    assert message[:1] == b"D"
    assert struct.unpack("!i", message[1:5])[0] == len(message) - 1
    assert DataRow.decode(body(message)).values == (b"t", b"-5", "ä".encode(), b"1", b"2026-11-22 13:00:00.25+00")


def test_binary_rows_have_the_width_of_their_types() -> None:
    (message,) = encode.data_rows(AdminResult([ROW]), COLUMNS, (1,))
    flag, count, name, share, at = DataRow.decode(body(message)).values
    assert (flag, count, name, share) == (b"\x01", struct.pack("!q", -5), "ä".encode(), struct.pack("!d", 1.0))
    since_2000 = MOMENT - dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    assert at == struct.pack("!q", round(since_2000.total_seconds() * 1_000_000))


def test_null_is_null_in_every_type_and_format() -> None:
    for formats in ((), (1,)):
        (message,) = encode.data_rows(AdminResult([(None,) * 5]), COLUMNS, formats)
        assert DataRow.decode(body(message)).values == (None,) * 5


@pytest.mark.parametrize(
    ("formats", "sqlstate"), [((0, 1), "08P01"), ((2,), "22023"), ((0, 0, 0, 0, 7), "22023"), ((0,) * 6, "08P01")]
)
def test_formats_that_do_not_fit_are_refused(formats: tuple[int, ...], sqlstate: str) -> None:
    with pytest.raises(PgError) as caught:
        encode.row_description(COLUMNS, formats)
    assert caught.value.sqlstate == sqlstate


def test_a_reply_is_notices_description_rows_and_tag() -> None:
    bound = bind("MARK 1")
    notice = PgError("01000", "careful", severity="WARNING")
    reply = encode.simple_reply(bound, AdminResult([ROW, ROW], notices=(notice,)))
    kinds = []
    at = 0
    while at < len(reply):
        kinds.append(reply[at : at + 1])
        at += 1 + struct.unpack_from("!i", reply, at + 1)[0]
    assert kinds == [b"N", b"T", b"D", b"D", b"C"]
    assert encode.execute_reply(bound, AdminResult(), ()) == CommandComplete("MARK").encode()
    assert encode.command_complete(bound, AdminResult(tag="DONE")) == CommandComplete("DONE").encode()


@pytest.mark.parametrize(
    ("raw", "formats", "expected"),
    [
        ((b"5", b"a", b"1.5"), (), (5, "a", 1.5)),
        ((b" -7 ", None, None), (0,), (-7, None, None)),
        ((struct.pack("!q", 9), b"a", struct.pack("!d", 2.5)), (1,), (9, "a", 2.5)),
        ((struct.pack("!q", 9), b"a", b"3"), (1, 0, 0), (9, "a", 3.0)),
        ((struct.pack("!h", -9), b"a", struct.pack("!f", 0.5)), (1, 0, 1), (-9, "a", 0.5)),
        ((struct.pack("!i", -9), b"a", b"3"), (1, 0, 0), (-9, "a", 3.0)),
    ],
)
def test_parameters_are_decoded(
    raw: tuple[bytes | None, ...], formats: tuple[int, ...], expected: tuple[object, ...]
) -> None:
    bound = bind("MARK $1 AS $2 BY $3")
    assert bound.parameter_oids == (20, 25, 701)
    assert encode.decode_parameters(bound, raw, formats) == expected


@pytest.mark.parametrize(
    ("raw", "formats", "sqlstate"),
    [
        ((b"x", b"a", b"1"), (), "22P02"),
        ((b"", b"a", b"1"), (), "22P02"),
        ((b"+-1", b"a", b"1"), (), "22P02"),
        (("٣".encode(), b"a", b"1"), (), "22P02"),
        ((b"1", b"a", b"x"), (), "22P02"),
        ((b"9" * 5000, b"a", b"1"), (), "22003"),
        ((b"9223372036854775808", b"a", b"1"), (), "22003"),
        ((b"1", b"\xff", b"1"), (), "22021"),
        ((b"123", b"a", b"1"), (1,), "22P03"),
        ((b"1", b"a"), (), "08P01"),
        ((b"1", b"a", b"1"), (0, 0), "08P01"),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    raw: tuple[bytes | None, ...], formats: tuple[int, ...], sqlstate: str
) -> None:
    with pytest.raises(PgError) as caught:
        encode.decode_parameters(bind("MARK $1 AS $2 BY $3"), raw, formats)
    assert caught.value.sqlstate == sqlstate


def test_texts_are_in_the_clients_encoding() -> None:
    result = AdminResult([("ä€",)])
    (message,) = encode.data_rows(result, (AdminColumn("a"),), (), "latin-1")
    assert DataRow.decode(body(message)).values == (b"\xe4?",)
    assert encode.decode_parameters(bind("MARK $1 AS $2"), (b"1", b"\xe4"), (), "latin-1") == (1, "ä")


@pytest.mark.parametrize("count", [0, 1, 250])
async def test_a_reply_in_turns_is_the_same_reply(count: int) -> None:
    bound = bind("MARK 1")
    result = AdminResult([ROW] * count, notices=(PgError("01000", "careful", severity="WARNING"),))
    assert await encode.reply_in_turns(bound, result, is_simple=True) == encode.simple_reply(bound, result)
    assert await encode.reply_in_turns(bound, result, is_simple=False, formats=(1,)) == encode.execute_reply(
        bound, result, (1,)
    )
