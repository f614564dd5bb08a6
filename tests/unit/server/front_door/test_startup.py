"""server.startup: what the startup packet asks for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import PgError
from protocol.startup import NegotiateProtocolVersion, StartupMessage
from server.startup import (
    StartupRequest,
    check_client_encoding,
    error_in_form_of,
    parse_options,
    parse_replication,
    read_request,
    refused_encoding,
    split_options,
)


def read(minor: int = 0, **parameters: str) -> StartupRequest:
    return read_request(StartupMessage(3, minor, parameters))


def error_of(call: Any, *args: Any, **kwargs: Any) -> PgError:
    with pytest.raises(PgError) as caught:
        call(*args, **kwargs)
    assert caught.value.severity == "FATAL"
    return caught.value


def test_the_database_is_the_users_by_default() -> None:
    assert read(user="alice").database == "alice"
    assert read(user="alice", database="").database == "alice"
    assert read(user="alice", database="app").database == "app"


def test_no_user_is_28000() -> None:
    for parameters in ({}, {"user": ""}, {"database": "app"}):
        error = error_of(read, **parameters)
        assert (error.sqlstate, error.message) == (
            "28000",
            "no PostgreSQL user name specified in startup packet",
        )


def test_names_are_cut_as_postgresql_cuts_them() -> None:
    assert read(user="a" * 100).role == "a" * 63
    assert read(user="alice", database="é" * 40).database == "é" * 31


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", []),
        ("   ", []),
        ("-c a=b", ["-c", "a=b"]),
        (" -c\ta=b\n", ["-c", "a=b"]),
        (r"-c a=b\ c", ["-c", "a=b c"]),
        (r"a\\b", ["a\\b"]),
        (r"a\ ", ["a "]),
        ("a\\", ["a"]),
        (r"\ ", [" "]),
        ("\\", [""]),
    ],
)
def test_options_are_split_as_in_postgresql(options: str, words: list[str]) -> None:
    assert split_options(options) == words


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("-c work_mem=1MB", {"work_mem": "1MB"}),
        ("-cwork_mem=1MB", {"work_mem": "1MB"}),
        ("--work_mem=1MB", {"work_mem": "1MB"}),
        ("--work-mem=1MB", {"work_mem": "1MB"}),
        ("-c search-path=a,b", {"search_path": "a,b"}),
        (r"-c search_path=a,\ b -c timezone=UTC", {"search_path": "a, b", "timezone": "UTC"}),
        ("-c a.b=x=y", {"a.b": "x=y"}),
        ("-c a=", {"a": ""}),
        ("-c TimeZone=UTC -c timezone=CET", {"timezone": "CET"}),
        ("-e", {"datestyle": "euro"}),
        ("-S 100 -d1", {"work_mem": "100", "log_min_messages": "1"}),
    ],
)
def test_options_are_settings(options: str, settings: dict[str, str]) -> None:
    assert parse_options(options) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("foo", "invalid command-line argument for server process: foo"),
        ("-c", "invalid command-line argument for server process: -c"),
        ("-", "invalid command-line argument for server process: -"),
        ("-x", "invalid command-line argument for server process: -x"),
        ("-c a", "-c a requires a value"),
        ("--a", "--a requires a value"),
        ("-c a=b c=d", "invalid command-line argument for server process: c=d"),
        ("-D /etc", "invalid command-line argument for server process: -D"),
    ],
)
def test_options_that_are_no_settings_are_42601(options: str, message: str) -> None:
    error = error_of(parse_options, options)
    assert (error.sqlstate, error.message) == ("42601", message)


def test_a_parameter_of_its_own_wins_over_options_whatever_the_order() -> None:
    for names in (("options", "TimeZone"), ("TimeZone", "options")):
        values = {"options": "-c timezone=CET -c work_mem=1MB", "TimeZone": "UTC"}
        settings = read(user="alice", **{name: values[name] for name in names}).settings
        assert settings == {"work_mem": "1MB", "TimeZone": "UTC"}


def test_what_is_no_setting_is_not_among_the_settings() -> None:
    request = read(user="alice", database="app", replication="database", client_encoding="UTF8", **{"_pq_.x": "1"})
    assert request.settings == {"client_encoding": "UTF8"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((word, "true") for word in ("true", "on", "YES", "1", "t")),
        ("database", "database"),
        *((word, None) for word in ("false", "off", "no", "0", "of")),
    ],
)
def test_replication(value: str, expected: str | None) -> None:
    assert parse_replication(value) == expected


@pytest.mark.parametrize("value", ["", "o", "maybe", "2", "DATABASE", "truee"])
def test_replication_that_is_neither_is_22023(value: str) -> None:
    error = error_of(read, user="alice", replication=value)
    assert error.sqlstate == "22023"
    assert error.message == f'invalid value for parameter "replication": "{value}"'
    assert error.hint == 'Valid values are: "false", 0, "true", 1, "database".'


def test_physical_replication_has_no_database() -> None:
    assert read(user="alice", database="app", replication="true").database == ""
    assert read(user="alice", database="app", replication="database").database == "app"


@pytest.mark.parametrize(
    ("minor", "options", "version", "told"),
    [
        (0, {}, (3, 0), None),
        (1, {}, (3, 0), None),
        (2, {}, (3, 2), None),
        (9999, {}, (3, 2), (0x30002, ())),
        (0, {"_pq_.a": "1", "_pq_.b": ""}, (3, 0), (0x30000, ("_pq_.a", "_pq_.b"))),
        (3, {"_pq_.a": "1"}, (3, 2), (0x30002, ("_pq_.a",))),
    ],
)
def test_versions_are_negotiated(
    minor: int, options: dict[str, str], version: tuple[int, int], told: tuple[int, tuple[str, ...]] | None
) -> None:
    request = read(minor, user="alice", **options)
    assert request.version == version
    assert request.reply == (NegotiateProtocolVersion(*told).encode() if told else b"")


@pytest.mark.parametrize(
    "name",
    (
        "SJIS sjis Shift_JIS mskanji win932 Windows-932 SHIFT_JIS_2004 BIG5 Big-5 win950 "
        "GBK windows936 UHC win949 GB18030 gb-18030 JOHAB j-o-h-a-b"
    ).split(),
)
def test_encodings_that_hide_quotes_are_refused_by_every_name(name: str) -> None:
    assert refused_encoding(name)
    error = error_of(check_client_encoding, {"Client_Encoding": name})
    assert error.sqlstate == "22023"
    assert error.hint


@pytest.mark.parametrize("name", ["UTF8", "utf-8", "LATIN1", "SQL_ASCII", "EUC_JP", "EUC_KR", "WIN1252", "auto", ""])
def test_other_encodings_are_left_to_the_engine(name: str) -> None:
    check_client_encoding({"client_encoding": name, "application_name": "SJIS"})


def test_application_name_is_cleaned_and_other_values_must_be_utf8() -> None:
    assert read(user="alice", application_name="x\udce9é\n").settings["application_name"] == r"x\xe9\xc3\xa9\x0a"
    assert read(user="alice", search_path="é").settings["search_path"] == "é"
    error = error_of(read, user="alice", search_path="a\udce9")
    assert (error.sqlstate, error.message) == ("22021", 'invalid byte sequence for encoding "UTF8": 0xe9')


def test_a_client_older_than_protocol_3_gets_a_text() -> None:
    error = PgError("0A000", "no", severity="FATAL")
    assert error_in_form_of(b"\0\2\0\0", error) == b"EFATAL:  no\n\0"
    assert error_in_form_of(b"\0\3\0\0", error) == error.to_error_response()
    assert error_in_form_of(b"", error) == error.to_error_response()


@given(st.text(alphabet=st.sampled_from("-c ab=\\\t-eS1"), max_size=40))
def test_any_options_are_settings_or_a_pg_error(options: str) -> None:
    try:
        settings = parse_options(options)
    except PgError as error:
        if error.sqlstate != "42601":
            raise
    else:
        assert len({name.lower() for name in settings}) == len(settings)
