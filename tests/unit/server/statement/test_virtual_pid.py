"""Statements with virtual process ids: what is changed, what is left alone, and where positions went."""

from __future__ import annotations

import pytest

from server import sql_parser
from server.virtual_pid import PidRewriter, depends_on_mapping

REWRITER = PidRewriter({"pg_stat_activity": ("datid", "pid", "leader_pid", "state"), "pg_locks": ("locktype", "pid")})
OWN, MAPPING = 900, [(11, 901)]
OWN_CALL = "(SELECT 900 AS pg_backend_pid)"


def rewrite(text: str) -> str:
    result = REWRITER.rewrite(text.encode(), OWN, MAPPING).text
    if sql_parser.parse(text.encode()) is not None:
        assert sql_parser.parse(result) is not None, result
    return result.decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select pg_backend_pid()", f"select {OWN_CALL}"),
        ("select 'é', pg_backend_pid ( ) as x", f"select 'é', {OWN_CALL} as x"),
        ('select Pg_Catalog . "pg_backend_pid" /* ) */ ( -- )\n) + 1', f"select {OWN_CALL} + 1"),
        ("select * from pg_backend_pid()", "select * from pg_catalog.abs(900) AS pg_backend_pid"),
        ("select * from pg_backend_pid() p", "select * from pg_catalog.abs(900) p"),
        ("call p(pg_backend_pid())", "call p(900)"),
        ("select f(pg_backend_pid(), $1); select pg_backend_pid()", f"select f({OWN_CALL}, $1); select {OWN_CALL}"),
        ("select pg_cancel_backend()", "select pg_cancel_backend()"),
    ],
)
def test_own_pid(text: str, expected: str) -> None:
    assert rewrite(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "select 'pg_backend_pid()'",
        "select mine.pg_backend_pid()",
        "with pg_locks as (select 1) select * from pg_locks",
        "select * from mine.pg_locks",
        "create table t (a int default pg_backend_pid())",
        "do $$ begin perform pg_backend_pid(); end $$",
        "select * from only pg_locks",
        "select ((( pg_backend_pid()",
    ],
)
def test_left_alone(text: str) -> None:
    assert rewrite(text) == text


def test_views_become_sub_selects_under_their_own_name() -> None:
    result = rewrite("select a.pid from pg_stat_activity a, pg_catalog . pg_locks where a.pid = pg_locks.pid")
    case = 'CASE "pid" WHEN pg_catalog.pg_backend_pid() THEN 900 WHEN 11 THEN 901 ELSE "pid" END'
    assert case in result
    assert 'FROM pg_catalog.pg_stat_activity) a, (SELECT "locktype"' in result
    assert "FROM pg_catalog.pg_locks) AS pg_locks where" in result
    assert rewrite("table pg_locks").startswith("SELECT * FROM (SELECT")


@pytest.mark.parametrize("argument", ["901", "$1", "a.pid", "a.pid + 1", "f(',)', pg_backend_pid())", "(select ')')"])
def test_arguments_are_translated_back(argument: str) -> None:
    result = rewrite(f"select pg_terminate_backend({argument}, 5) from t a")
    assert "WHEN 900 THEN pg_catalog.pg_backend_pid() WHEN 901 THEN 11 ELSE" in result
    assert result.endswith(", 5) from t a")


def test_blocking_pids_are_translated_both_ways() -> None:
    result = rewrite("select pg_blocking_pids(901)")
    assert "AS pg_blocking_pids FROM pg_catalog.unnest(pg_blocking_pids(CASE (901)::int4" in result
    assert "CASE u.p WHEN pg_catalog.pg_backend_pid() THEN 900 WHEN 11 THEN 901" in result


def test_positions_lead_back_to_the_original() -> None:
    text = b"select pg_backend_pid(), pg_backend_pid(), oops"
    result = REWRITER.rewrite(text, OWN, MAPPING)
    assert result.original_position(result.text.index(b"oops")) == text.index(b"oops")
    assert result.original_position(result.text.index(b"900")) == text.index(b"pg_backend_pid")
    assert result.original_position(0) == 0


def test_what_holds_other_sessions_pids_goes_out_of_date() -> None:
    assert not depends_on_mapping({("", "pg_backend_pid")}, ())
    assert depends_on_mapping({("", "pg_cancel_backend")}, ())
    assert depends_on_mapping((), {("pg_catalog", "pg_locks")})


def test_an_error_position_counts_characters_of_the_text_the_client_sent() -> None:
    original = "select pg_backend_pid(), 'é', nope".encode()
    rewritten = PidRewriter({}).rewrite(original, 10_000_000)
    seen = rewritten.text.decode().index("nope") + 1
    assert rewritten.original_character(original, seen) == original.decode().index("nope") + 1
