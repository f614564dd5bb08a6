"""Pitfalls of pooled sessions: settings, roles and what else a session leaves behind or must find again.

Every session of the first server has the same backend, one after the other, so nothing here passes by luck.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.integration.sessions.conftest import Login
from tests.support.wire_client import WireClient, WireError, bind, execute, message, parse, sync

pytestmark = pytest.mark.integration
Script = Callable[..., None]


def sqlstate(client: WireClient, sql: str) -> str:
    """The SQLSTATE that a statement fails with; "" where it succeeds."""
    try:
        client.simple(sql)
    except WireError as error:
        return error.sqlstate
    return ""


def call(client: WireClient, sql: str, *values: str) -> list[bytes | None]:
    """One statement by the extended protocol; the last row."""
    client.send(parse(sql), bind(values=values), execute(), sync())
    rows = [found.values for found in client.recv_until("Z") if found.kind == "D"]
    return rows[-1] if rows else []


@pytest.mark.parametrize(
    ("statement", "setting"),
    [
        ("SET statement_timeout = '77s'", "statement_timeout"),
        ("SET default_transaction_read_only = on", "default_transaction_read_only"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE", "default_transaction_isolation"),
        ("SET search_path = pg_catalog", "search_path"),
        ("SET TIME ZONE 'Asia/Tokyo'", "TimeZone"),
        ("SET datestyle = 'German, DMY'", "DateStyle"),
        ("SET application_name = 'somebody'", "application_name"),
        ("SET my.tenant = '7'", "my.tenant"),
    ],
)
def test_pitfall_13_settings_do_not_leak_to_the_next_client(login: Login, statement: str, setting: str) -> None:
    first, second = login(), login()
    before = second.value(f"SELECT current_setting('{setting}', true)")
    first.simple(statement)
    changed = first.value(f"SELECT current_setting('{setting}', true)")
    assert changed != before
    assert (second.value(f"SELECT current_setting('{setting}', true)") or "") == (before or "")
    assert first.value(f"SELECT current_setting('{setting}', true)") == changed
    first.close()
    assert (login().value(f"SELECT current_setting('{setting}', true)") or "") == (before or "")


def test_pitfall_13_read_only_default_of_one_client_does_not_stop_the_writes_of_another(
    login: Login, script: Script
) -> None:
    script("DROP TABLE IF EXISTS written", "CREATE TABLE written (x int)")
    first, second = login(), login()
    first.simple("SET default_transaction_read_only = on")
    assert sqlstate(first, "INSERT INTO written VALUES (1)") == "25006"
    second.simple("INSERT INTO written VALUES (2)")
    assert sqlstate(first, "INSERT INTO written VALUES (3)") == "25006"
    assert second.value("SELECT count(*) FROM written") == "1"


def test_pitfall_13_prepared_statements_belong_to_their_session(login: Login) -> None:
    first, second = login(), login()
    first.simple("PREPARE mine AS SELECT 'first'")
    first.simple("DISCARD ALL")
    first.send(parse("SELECT 'by protocol'", "mine"), sync())
    first.recv_until("Z")
    assert sqlstate(second, "EXECUTE mine") == "26000"
    second.simple("DISCARD ALL")
    second.send(bind("mine"), execute(), sync())
    assert second.recv_match("E", "Z")[0].fields["C"] == "26000"


def test_the_unnamed_statement_of_another_session_cannot_be_used(login: Login) -> None:
    first, second = login(), login()
    first.send(parse("SELECT 'a secret of the first'"), sync())
    first.recv_until("Z")
    second.send(bind(), execute(), sync())
    assert second.recv_match("E", "Z")[0].fields["C"] == "26000"
    first.send(bind(), execute(), sync())
    assert first.recv_match("2", "D", "C", "Z")[1].values == [b"a secret of the first"]


def test_the_unnamed_statement_of_another_session_is_not_taken_for_one_that_was_skipped(login: Login) -> None:
    first, second = login(), login()
    first.send(parse("SELECT 'a secret of the first'"), sync())
    first.recv_until("Z")
    second.send(bind("missing"), parse("SELECT 'own'"), sync())
    assert second.recv_match("E", "Z")[0].fields["C"] == "26000"
    second.send(bind(), execute(), sync())
    assert second.recv_match("E", "Z")[0].fields["C"] == "26000"


def test_pitfall_14_a_role_does_not_outlive_its_session(login: Login, script: Script) -> None:
    script("DROP ROLE IF EXISTS borrowed", "CREATE ROLE borrowed", "GRANT borrowed TO CURRENT_USER")
    first, second = login(), login()
    own = second.value("SELECT current_user")
    first.simple("SET ROLE borrowed")
    assert second.value("SELECT current_user") == own
    assert first.value("SELECT current_user") == "borrowed"
    first.simple("RESET ALL")  # does not touch the role, in PostgreSQL either
    assert second.value("SELECT current_user") == own
    assert first.value("SELECT current_user") == "borrowed"
    first.close()
    assert login().value("SELECT current_user || session_user") == f"{own}{own}"


def test_a_role_ends_with_set_session_authorization_default(login: Login, script: Script) -> None:
    script("DROP ROLE IF EXISTS borrowed_too", "CREATE ROLE borrowed_too", "GRANT borrowed_too TO CURRENT_USER")
    first = login()
    first.simple("SET ROLE borrowed_too")
    first.simple("SET SESSION AUTHORIZATION DEFAULT")
    first.simple("DISCARD ALL")
    second = login()
    assert first.value("SELECT current_user") == second.value("SELECT current_user")


def test_pitfall_14_reset_all_and_discard_all_go_back_to_the_startup_settings(login: Login) -> None:
    first, second = login(options="-c work_mem=8MB -c my.level=3", DateStyle="German"), login()
    for statement in ("RESET ALL", "DISCARD ALL"):
        first.simple("SET work_mem = '9MB'")
        first.simple("SET my.level = '4'")
        first.simple("SET datestyle = 'SQL'")
        first.simple(statement)
        assert second.value("SHOW work_mem") not in ("8MB", "9MB")
        assert first.value("SHOW work_mem") == "8MB"
        assert first.value("SHOW my.level") == "3"
        assert (first.value("SHOW datestyle") or "").startswith("German")


def test_reset_of_a_setting_that_had_the_servers_value_goes_back_to_the_startup_setting(login: Login) -> None:
    second = login()
    default = second.value("SHOW work_mem")
    first = login(options="-c work_mem=8MB")
    first.simple(f"SET work_mem = '{default}'")
    first.simple("RESET work_mem")
    second.simple("SELECT 1")
    assert first.value("SHOW work_mem") == "8MB"


@pytest.mark.parametrize("how", ["bind", "cte", "function", "do", "values"])
def test_pitfall_15_set_config_by_any_way_stays_in_its_session(login: Login, script: Script, how: str) -> None:
    script(
        "CREATE OR REPLACE FUNCTION hide(v text) RETURNS text LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('my.hidden', v, false); EXECUTE 'SET work_mem = ''9MB'''; RETURN v; END $$"
    )
    first, second = login(), login()
    if how == "bind":
        call(first, "SELECT set_config($1, $2, false)", "my.hidden", "x")
    elif how == "cte":
        first.simple("WITH a AS MATERIALIZED (SELECT set_config('my.hidden', 'x', false)) SELECT * FROM a")
    elif how == "function":
        first.simple("SELECT hide('x')")
    elif how == "do":
        first.simple("DO $$ BEGIN PERFORM set_config('my.hidden', 'x', false); END $$")
    else:
        first.simple("SELECT set_config(n, 'x', false) FROM (VALUES ('my.hidden')) AS v(n)")
    assert first.value("SHOW my.hidden") == "x"
    if how == "bind":  # the others keep their backend until they end
        assert not second.value("SELECT current_setting('my.hidden', true)")
        assert first.value("SHOW my.hidden") == "x"
    first.close()
    third = login()
    assert not third.value("SELECT current_setting('my.hidden', true)")
    assert third.value("SHOW work_mem") != "9MB"


@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("verb", ["EXECUTE hidden_set", "EXPLAIN ANALYZE EXECUTE hidden_set"])
def test_pitfall_15_a_setting_by_execute_of_a_protocols_statement_stays(
    login: Login, verb: str, *, comes_first: bool
) -> None:
    first = login()
    if not comes_first:
        first.simple("PREPARE other AS SELECT 1")
    first.send(parse("SELECT set_config('my.executed', 'x', false)", "hidden_set"), sync())
    first.recv_until("Z")
    first.simple(verb)
    first.simple("DEALLOCATE ALL")
    assert first.value("SHOW my.executed") == "x"
    first.close()
    assert not login().value("SELECT current_setting('my.executed', true)")


def test_pitfall_34_currval_knows_what_execute_of_a_protocols_statement_did(login: Login, script: Script) -> None:
    script("DROP SEQUENCE IF EXISTS executed_numbers", "CREATE SEQUENCE executed_numbers")
    first = login()
    first.send(parse("SELECT nextval('executed_numbers')", "next"), sync())
    first.recv_until("Z")
    assert first.value("EXECUTE next") == first.value("SELECT lastval()") == "1"


def test_pitfall_15_set_config_with_a_bound_local_flag_ends_with_the_transaction(login: Login) -> None:
    first = login()
    first.simple("SET my.bound = 'before'")
    first.simple("BEGIN")
    call(first, "SELECT set_config('my.bound', $1, $2)", "inside", "t")
    assert first.value("SHOW my.bound") == "inside"
    first.simple("COMMIT")
    login().simple("SELECT 1")
    assert first.value("SHOW my.bound") == "before"


@pytest.mark.parametrize("path", ['"$user", public', '"Mixed Case"', '"with""quote", public', "", '"schéma"'])
def test_pitfall_25_search_path_is_quoted_as_it_came(login: Login, path: str) -> None:
    """Also under LATIN1 on the same backend: what we replay must not depend on the client's encoding."""
    first, second = login(), login(client_encoding="LATIN1")
    call(first, "SELECT set_config('search_path', $1, false)", path)
    shown = first.value("SHOW search_path")
    for _ in range(2):
        second.simple("SELECT 1")
        assert first.value("SHOW search_path") == shown == path


def test_pitfall_25_search_path_of_a_latin1_client_survives(login: Login, script: Script) -> None:
    script('CREATE SCHEMA IF NOT EXISTS "schéma"', 'CREATE TABLE IF NOT EXISTS "schéma".only_there (x int)')
    first, second = login(client_encoding="LATIN1"), login()
    first.send(message("Q", 'SET search_path = "schéma"'.encode("latin-1") + b"\0"))
    first.recv_until("Z")
    second.simple("SELECT 1")
    assert first.value("SELECT count(*) FROM only_there") == "0"


def test_pitfall_25_startup_settings_hold_on_every_backend(login: Login) -> None:
    first = login(extra_float_digits="1", options="-c statement_timeout=61s -c geqo=off")
    second = login()
    for _ in range(2):
        second.simple("SELECT 1")
        row = first.simple(
            "SELECT current_setting('extra_float_digits'), current_setting('statement_timeout'), "
            "current_setting('geqo')"
        )
        assert row == [["1", "61s", "off"]]
    assert second.value("SHOW statement_timeout") == "0"


def test_pitfall_29_a_change_of_backend_context_is_not_told_to_the_client(login: Login) -> None:
    first, second = login(application_name="one"), login(application_name="two")
    second.simple("SET datestyle = 'German'")
    second.simple("SET search_path = pg_catalog")
    for _ in range(3):
        for client in (first, second):
            client.send(parse("SELECT 1"), bind(), execute(), sync())
            assert "S" not in [found.kind for found in client.recv_until("Z")]


def test_pitfall_29_a_real_change_is_told_once(login: Login) -> None:
    first, second = login(), login()
    first.send(parse("SET datestyle = 'German, DMY'"), bind(), execute(), sync())
    told = [found.text for found in first.recv_until("Z") if found.kind == "S"]
    assert told == ["DateStyle\0German, DMY"]
    assert second.parameters["DateStyle"] == "ISO, MDY"
    second.send(parse("SELECT 1"), bind(), execute(), sync())
    assert "S" not in [found.kind for found in second.recv_until("Z")]


def test_notifications_come_in_the_clients_encoding(login: Login) -> None:
    first, second = login(client_encoding="LATIN1"), login()
    first.simple("LISTEN letters")
    second.simple("NOTIFY letters, 'é'")
    assert first.recv_match("A")[0].body[4:] == b"letters\0\xe9\0"


def test_pitfall_33_defaults_of_a_role_and_a_database_reach_new_sessions_at_once(login: Login, script: Script) -> None:
    script("DROP ROLE IF EXISTS tuned", "CREATE ROLE tuned LOGIN PASSWORD 'tuned-password'")
    role = ("tuned", "tuned-password")
    before = login(role=role)
    assert before.value("SHOW work_mem") != "11MB"
    before.close()
    script("ALTER ROLE tuned SET work_mem = '11MB'")
    after = login(role=role)
    assert after.value("SHOW work_mem") == "11MB"
    after.close()
    script("ALTER ROLE tuned RESET work_mem", "ALTER DATABASE postgres SET statement_timeout = '62s'")
    last = login(role=role)
    assert last.value("SHOW work_mem") != "11MB"
    assert last.value("SHOW statement_timeout") == "62s"
    last.close()
    script("ALTER DATABASE postgres RESET statement_timeout")
    assert login().value("SHOW statement_timeout") == "0"


def test_pitfall_34_session_scoped_answers_stay_with_the_session(login_pair: Login, script_pair: Script) -> None:
    script_pair("DROP SEQUENCE IF EXISTS numbers", "CREATE SEQUENCE numbers")
    first, second = login_pair(), login_pair()
    assert int(first.value("SELECT pg_backend_pid()") or 0) == first.pid != second.pid
    assert int(second.value("SELECT pg_backend_pid()") or 0) == second.pid
    assert sqlstate(second, "SELECT lastval()") == "55000"
    mine = first.value("SELECT nextval('numbers')")
    theirs = second.value("SELECT nextval('numbers')")
    assert (first.value("SELECT currval('numbers')"), second.value("SELECT lastval()")) == (mine, theirs)
    first.simple("DISCARD ALL")
    assert sqlstate(first, "SELECT lastval()") == "55000"


def test_pitfall_34_cancel_and_terminate_by_sql_reach_the_session_that_is_meant(login_pair: Login) -> None:
    first, second = login_pair(), login_pair()
    first.send(parse("SELECT pg_sleep(20)"), bind(), execute(), sync())
    time.sleep(0.2)
    assert second.value(f"SELECT pg_cancel_backend({first.pid})") == "t"
    assert first.recv_match("1", "2", "E", "Z")[2].fields["C"] == "57014"
    assert second.value(f"SELECT pg_terminate_backend({first.pid})") == "t"
    assert first.is_at_end()
    assert second.value("SELECT 1") == "1"


def test_pitfall_34_listening_channels_are_the_sessions_own(login: Login) -> None:
    first, second = login(), login()
    first.simple("LISTEN mine")
    assert second.simple("SELECT * FROM pg_listening_channels()") == []
    second.simple("DISCARD ALL")
    assert first.simple("SELECT * FROM pg_listening_channels()") == [["mine"]]


def test_pitfall_36_an_aborted_transaction_is_over_before_the_next_client(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS half", "CREATE TABLE half (x int)")
    first = login()
    first.simple("BEGIN")
    first.simple("INSERT INTO half VALUES (1)")
    assert sqlstate(first, "SELECT 1/0") == "22012"
    assert first.status == "E"
    first.abort()
    second = login()
    assert second.value("SELECT count(*) FROM half") == "0"
    assert second.status == "I"


def test_pitfall_36_commit_of_an_aborted_transaction_takes_its_settings_back(login: Login) -> None:
    first, second = login(), login()
    first.simple("SET my.kept = 'before'")
    first.simple("BEGIN")
    first.simple("SET my.kept = 'inside'")
    first.simple("SET datestyle = 'German'")
    sqlstate(first, "SELECT 1/0")
    first.send(parse("COMMIT"), bind(), execute(), sync())
    assert first.recv_match("1", "2", "C", "Z")[2].text == "ROLLBACK"
    second.simple("SELECT 1")
    assert first.value("SHOW my.kept") == "before"
    assert first.value("SHOW datestyle") == "ISO, MDY"


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_settings_follow_savepoints(login: Login, ending: str) -> None:
    first, second = login(), login()
    first.simple("SET my.v = '0'")
    for statement in (
        "BEGIN", "SET my.v = '1'", "SAVEPOINT a", "SET my.v = '2'", "SET LOCAL my.w = '9'", "SAVEPOINT b",
        "SET my.v = '3'", "RESET my.v", "ROLLBACK TO b", "RELEASE b", "ROLLBACK TO a", ending,
    ):  # fmt: skip
        first.simple(statement)
    second.simple("SELECT 1")
    assert first.value("SHOW my.v") == ("1" if ending == "COMMIT" else "0")
    assert not first.value("SELECT current_setting('my.w', true)")


def test_listen_behind_a_savepoint_that_was_rolled_back_did_not_happen(login: Login) -> None:
    first, second = login(), login()
    for statement in (
        "BEGIN", "LISTEN stays", "SAVEPOINT a", "LISTEN goes", "ROLLBACK TO a", "COMMIT",
        "BEGIN", "LISTEN goes", "ROLLBACK AND CHAIN", "COMMIT",
    ):  # fmt: skip
        first.simple(statement)
    second.simple("NOTIFY goes")
    second.simple("NOTIFY stays")
    assert first.recv_match("A")[0].body[4:] == b"stays\0\0"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_lock_of_a_statement_that_failed_does_not_stay_in_the_pool(login: Login, *, leaves: bool) -> None:
    first = login()
    assert sqlstate(first, "SELECT pg_advisory_lock(77), 1 / (x - 1) FROM generate_series(1, 1) AS x") == "22012"
    if leaves:
        first.close()
    else:
        assert first.value("SELECT pg_advisory_unlock(77)") == "t"  # as in PostgreSQL, it outlives the error
    assert login().value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


def test_a_lock_of_a_statement_whose_client_went_away_does_not_stay_in_the_pool(login: Login) -> None:
    first = login()
    first.send(parse("SELECT pg_advisory_lock(78), pg_sleep(20)"), bind(), execute(), sync())
    time.sleep(0.2)
    first.abort()
    assert login().value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
