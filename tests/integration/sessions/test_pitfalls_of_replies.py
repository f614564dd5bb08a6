"""Pitfalls of pooled sessions: who gets which reply, when a backend may go to another client, and what ends with what.

Every session of the first server has the same backend, one after the other, so nothing here passes by luck.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.integration.sessions.conftest import Login
from tests.support.rustydb_process import RustyServer
from tests.support.wire_client import (
    ConnectionEnded,
    Message,
    WireClient,
    bind,
    close,
    copy_data,
    copy_done,
    describe,
    execute,
    flush,
    parse,
    query,
    sync,
)

pytestmark = pytest.mark.integration
Script = Callable[..., None]


def kinds(messages: list[Message]) -> str:
    """Types of messages but for notices and settings, which may come at any time."""
    return "".join(found.kind for found in messages if found.kind not in "NSA")


def one(sql: str) -> bytes:
    return parse(sql) + bind() + execute() + sync()


def must_fail(client: WireClient) -> None:
    """The statement under way ends in an error, or with the connection."""
    try:
        assert "E" in kinds(client.recv_until("Z"))
    except ConnectionEnded:
        pass


def first_value(messages: list[Message]) -> bytes | None:
    return next(found.values[0] for found in messages if found.kind == "D")


# -- 16 to 19: pipelines ---------------------------------------------------------------------------------------------


def test_pitfall_16_every_sync_in_flight_is_answered_to_who_sent_it(login: Login) -> None:
    clients = [login() for _ in range(4)]
    for round_ in range(5):
        for number, client in enumerate(clients):
            client.send(*(one(f"SELECT '{number}-{round_}-{index}'") for index in range(20)))
        for number, client in enumerate(clients):
            for index in range(20):
                assert first_value(client.recv_until("Z")) == f"{number}-{round_}-{index}".encode()


def test_pitfall_16_a_transaction_in_a_pipeline_is_nobody_elses(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS owned", "CREATE TABLE owned (who text)")
    first, second = login(), login()
    first.send(one("BEGIN"), one("INSERT INTO owned VALUES ('first')"), one("SELECT 1"))
    second.send(one("INSERT INTO owned VALUES ('second')"))
    for _ in range(3):
        first.recv_until("Z")
    first.simple("ROLLBACK")
    assert kinds(second.recv_until("Z")) == "12CZ"
    assert second.simple("SELECT who FROM owned") == [["second"]]


def test_pitfall_17_a_portal_outlives_a_flush(login: Login) -> None:
    first, second = login(), login()
    first.send(parse("SELECT g FROM generate_series(1, 5) AS g"), bind(portal="c"), execute("c", 2), flush())
    assert kinds(first.recv_until("s")) == "12DDs"
    second.send(query("SELECT 'waits for the portal'"))
    first.send(execute("c", 2), flush())
    assert kinds(first.recv_until("s")) == "DDs"
    first.send(execute("c", 2), sync())
    assert kinds(first.recv_until("Z")) == "DCZ"
    assert first_value(second.recv_until("Z")) == b"waits for the portal"


def test_pitfall_17_messages_go_on_as_they_come(login: Login) -> None:
    """Nothing is held back until a Sync: an error is told, and a statement runs, where PostgreSQL would."""
    first = login()
    first.send(parse("SELECT 1 FROM missing_relation"))
    assert first.recv_match("E")[0].fields["C"] == "42P01"
    first.send(bind(), execute(), sync())
    assert kinds(first.recv_until("Z")) == "Z"


def test_pitfall_17_a_pipeline_in_two_packets_that_waits_for_a_backend_goes_on(login: Login) -> None:
    first, second = login(), login()
    first.simple("BEGIN")
    second.send(parse("SELECT 5"), bind())
    time.sleep(0.1)
    second.send(execute(), sync())
    time.sleep(0.1)
    first.simple("COMMIT")
    assert first_value(second.recv_until("Z")) == b"5"


def test_pitfall_17_a_pipeline_in_two_packets_on_a_backend_that_must_be_reset_goes_on(login: Login) -> None:
    first = login()
    first.simple("BEGIN")
    first.simple("SET LOCAL role = 'pg_monitor'")
    first.abort()
    second = login()
    second.send(parse("SELECT 5"), bind(), execute(), query("SELECT 6"))
    assert first_value(second.recv_until("Z")) == b"5"


def test_pitfall_17_statements_of_ours_in_the_middle_of_a_pipeline_are_refused(login: Login) -> None:
    """What needs a conversation of its own with the engine cannot be had while replies are under way."""
    for statement in ("LISTEN x", "SHOW POOLS", "EXECUTE nothing"):
        first = login()
        first.send(parse("SELECT 5"), bind(), execute(), query(statement))
        replies = first.recv_until("Z")
        assert kinds(replies) == "12DCEZ"
        assert replies[-2].fields["C"] == "0A000"
        assert first.value("SELECT 7") == "7"
        first.close()


def test_pitfall_18_without_a_backend_there_is_one_ready_for_query_where_the_sync_was(login: Login) -> None:
    first, second = login(), login()
    first.simple("BEGIN")
    second.send(parse("SELECT 5"), bind(), describe("P"), execute())
    second.send(sync(), query("SELECT 6"))
    replies = second.recv_until("Z")
    assert kinds(replies) == "EZ"
    assert replies[0].fields["C"] == "53300"
    first.simple("COMMIT")
    assert kinds(second.recv_until("Z")) == "TDCZ"


def test_pitfall_18_errors_skip_to_the_sync_outside_transactions_too(login: Login) -> None:
    first = login()
    first.send(bind("unknown"), execute(), parse("SELECT 1", "s"), describe("S", "s"), sync(), one("SELECT 2"))
    assert kinds(first.recv_until("Z")) == "EZ"
    assert first_value(first.recv_until("Z")) == b"2"
    first.send(bind("s"), sync())
    assert first.recv_until("Z")[0].fields["C"] == "26000"  # its Parse was skipped


def test_pitfall_19_a_batch_is_one_transaction_whatever_is_injected(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS batch", "CREATE TABLE batch (x int PRIMARY KEY)")
    first, second = login(), login()
    for number in range(3):
        first.send(parse("INSERT INTO batch VALUES ($1)", f"i{number}"), sync())
        first.recv_until("Z")
    for number in range(6):
        second.send(parse(f"SELECT {number}", f"n{number}"), sync())  # pushes the others out of the backend
        second.recv_until("Z")
    first.send(*(bind(f"i{number}", [str(number)]) + execute() for number in (0, 1, 2)), bind("i0", ["2"]), execute())
    first.send(sync())
    assert kinds(first.recv_until("Z")) == "2C2C2C2EZ"
    assert second.value("SELECT count(*) FROM batch") == "0"


# -- 20: COPY --------------------------------------------------------------------------------------------------------


def test_pitfall_20_sync_behind_a_copy_is_ignored_until_it_ends(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS copied", "CREATE TABLE copied (x int)")
    first, second = login(), login()
    first.send(parse("COPY copied FROM STDIN"), bind(), execute(), sync())
    assert kinds(first.recv_until("G")) == "12G"
    second.send(query("SELECT 'later'"))
    first.send(copy_data(b"1\n"), flush(), copy_data(b"2\n"), copy_done(), sync())
    assert kinds(first.recv_until("Z")) == "CZ"
    assert first_value(second.recv_until("Z")) == b"later"
    assert first.value("SELECT sum(x) FROM copied") == "3"


def test_pitfall_20_copy_data_behind_an_error_is_dropped(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS copied_too", "CREATE TABLE copied_too (x int)")
    first, second = login(), login()
    first.send(query("COPY copied_too FROM STDIN"))
    first.recv_until("G")
    first.send(copy_data(b"no number\n"))
    assert kinds(first.recv_until("Z")) == "EZ"
    first.send(copy_data(b"2\n"), copy_done(), query("SELECT 5"))
    assert first_value(first.recv_until("Z")) == b"5"
    assert second.value("SELECT count(*) FROM copied_too") == "0"


def test_pitfall_20_a_client_that_leaves_in_a_copy_leaves_a_clean_backend(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS copied_half", "CREATE TABLE copied_half (x int)")
    for ending in ("abort", "close"):
        for data in (b"", copy_data(b"1\n"), copy_data(b"1" * 100_000)[:70_000]):
            first = login()
            first.send(query("COPY copied_half FROM STDIN"))
            first.recv_until("G")
            first.send(data)
            getattr(first, ending)()
            assert login().value("SELECT count(*) FROM copied_half") == "0"
    first = login()
    first.send(query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"))
    first.recv_until("H")
    first.abort()
    assert login().value("SELECT 1") == "1"


# -- 21 and 22: prepared statements ----------------------------------------------------------------------------------


def test_pitfall_21_equal_names_of_different_clients_are_different_statements(login: Login) -> None:
    clients = [login() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(parse(f"SELECT {number}", "s"), sync())
        assert kinds(client.recv_until("Z")) == "1Z"
    for _ in range(2):
        for number, client in enumerate(clients):
            client.send(bind("s"), execute(), sync())
            assert first_value(client.recv_until("Z")) == str(number).encode()


def test_pitfall_21_the_servers_own_names_are_not_a_clients(login: Login) -> None:
    first, second = login(), login()
    first.send(parse("SELECT 'a secret'", "s"), sync())
    first.recv_until("Z")
    for name in [f"rustydb_{number}" for number in range(1, 60)]:
        second.send(describe("S", name), sync())
        assert second.recv_until("Z")[0].fields["C"] == "26000"
        second.send(close("S", name), sync())
        assert kinds(second.recv_until("Z")) == "3Z"
    first.send(bind("s"), execute(), sync())
    assert first_value(first.recv_until("Z")) == b"a secret"


def test_pitfall_21_a_describe_alone_finds_its_statement(login: Login) -> None:
    first, second = login(), login()
    first.send(parse("SELECT $1::int AS mine", "s"), sync())
    first.recv_until("Z")
    for number in range(6):
        second.send(parse(f"SELECT {number} AS filler", f"f{number}"), sync())
        second.recv_until("Z")
    first.send(describe("S", "s"), sync())
    assert kinds(first.recv_until("Z")) == "tTZ"


def test_pitfall_21_a_failed_parse_leaves_no_name(login: Login) -> None:
    first = login()
    first.send(parse("SELECT * FROM missing_relation", "s"), sync())
    assert kinds(first.recv_until("Z")) == "EZ"
    first.send(parse("SELECT 1", "s"), bind("s"), execute(), sync())
    assert kinds(first.recv_until("Z")) == "12DCZ"


def test_pitfall_21_eviction_in_a_pipeline_that_fails_loses_no_statement(login: Login) -> None:
    first = login()
    for number in range(5):  # more than the backend keeps
        first.send(parse(f"SELECT {number} / $1::int", f"s{number}"), sync())
        first.recv_until("Z")
    first.send(bind("s0", ["0"]), execute(), bind("s1", ["1"]), execute(), bind("s4", ["1"]), execute(), sync())
    assert kinds(first.recv_until("Z")) == "EZ"  # the constant is folded when it is bound
    for _ in range(2):
        for number in range(5):
            first.send(bind(f"s{number}", ["1"]), execute(), sync())
            assert first_value(first.recv_until("Z")) == str(number).encode()


def test_pitfall_21_an_unqualified_name_means_what_the_sessions_search_path_says(login: Login, script: Script) -> None:
    for schema in ("here", "there"):
        script(
            f"DROP SCHEMA IF EXISTS {schema} CASCADE",
            f"CREATE SCHEMA {schema}",
            f"CREATE TABLE {schema}.place AS SELECT '{schema}' AS name",
        )
    clients = {schema: login(options=f"-c search_path={schema}") for schema in ("here", "there")}
    for client in clients.values():
        client.send(parse("SELECT name FROM place", "s"), sync())
        assert kinds(client.recv_until("Z")) == "1Z"
    for _ in range(2):
        for schema, client in clients.items():
            client.send(bind("s"), execute(), sync())
            assert first_value(client.recv_until("Z")) == schema.encode()


def test_pitfall_21_sql_prepare_and_protocol_names_are_one_namespace(login: Login) -> None:
    first = login()
    first.send(parse("SELECT 'by protocol'", "p"), sync())
    first.recv_until("Z")
    assert first.value("EXECUTE p") == "by protocol"
    first.simple("PREPARE q AS SELECT 'by sql'")
    first.send(bind("q"), execute(), sync())
    assert first_value(first.recv_until("Z")) == b"by sql"
    first.send(parse("SELECT 1", "q"), sync())
    assert first.recv_until("Z")[0].fields["C"] == "42P05"
    first.simple("DEALLOCATE p")
    first.send(bind("p"), execute(), sync())
    assert first.recv_until("Z")[0].fields["C"] == "26000"


def test_a_prepared_statement_whose_table_is_gone_breaks_no_other(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS goes", "CREATE TABLE goes (x int)")
    for begin in ((), ("BEGIN",)):
        first = login()
        first.send(parse("SELECT * FROM goes", "s"), sync())
        first.recv_until("Z")
        script("DROP TABLE IF EXISTS goes")
        for statement in (*begin, "PREPARE q AS SELECT 'q'"):
            first.simple(statement)
        assert first.value("EXECUTE q") == "q"
        first.close()
        script("CREATE TABLE goes (x int)")


@pytest.mark.parametrize("in_transaction", [False, True])
def test_pitfall_22_a_result_type_that_changed_is_told_once_and_heals(
    login_pair: Login, script_pair: Script, *, in_transaction: bool
) -> None:
    script_pair("DROP TABLE IF EXISTS wide", "CREATE TABLE wide (a int)", "INSERT INTO wide VALUES (1)")
    first, second = login_pair(), login_pair()
    first.send(parse("SELECT * FROM wide", "s"), describe("S", "s"), bind("s"), execute(), sync())
    assert kinds(first.recv_until("Z")) == "1tT2DCZ"
    script_pair("ALTER TABLE wide ADD COLUMN b int DEFAULT 2")
    second.simple("BEGIN")  # whichever backend is left, the answer is one
    if in_transaction:
        first.simple("BEGIN")
    first.send(bind("s"), execute(), sync())
    assert first.recv_match("E", "Z")[0].fields["C"] == "0A000"
    assert first.status == ("E" if in_transaction else "I")
    if in_transaction:
        first.simple("ROLLBACK")
    first.send(close("S", "s"), parse("SELECT * FROM wide", "s"), describe("S", "s"), bind("s"), execute(), sync())
    replies = first.recv_until("Z")
    assert kinds(replies) == "31tT2DCZ"
    assert [found.values for found in replies if found.kind == "D"] == [[b"1", b"2"]]


# -- 23 and 24: cancel -----------------------------------------------------------------------------------------------


def test_pitfall_23_a_cancel_never_hits_another_clients_statement(login: Login) -> None:
    first, second = login(), login()
    for _ in range(40):
        first.send(query("SELECT 1"))
        cancels = threading.Thread(target=first.cancel)
        cancels.start()
        first.recv_until("Z")
        assert second.value("SELECT 'mine' FROM pg_sleep(0.002)") == "mine"
        cancels.join()


def test_pitfall_23_a_cancel_with_the_wrong_key_or_for_an_idle_session_does_nothing(login: Login) -> None:
    first, second = login(), login()
    first.cancel()
    second.send(query("SELECT 'mine' FROM pg_sleep(0.1)"))
    first.cancel()
    with WireClient(*second.address) as wrong:
        wrong.pid, wrong.secret = second.pid, bytes(4)
        wrong.cancel()
    assert first_value(second.recv_until("Z")) == b"mine"


def test_pitfall_24_a_client_that_waits_for_a_backend_can_be_cancelled(login: Login) -> None:
    first, second = login(), login()
    first.simple("BEGIN")
    second.send(query("SELECT 1"))
    time.sleep(0.1)
    second.cancel()
    assert second.recv_match("E", "Z")[0].fields["C"] == "57014"
    assert first.value("SELECT 2") == "2"
    first.simple("COMMIT")
    assert second.value("SELECT 3") == "3"


def test_pitfall_24_a_special_statement_that_waits_can_be_cancelled_again_and_again(login: Login) -> None:
    first, second = login(), login()
    first.simple("BEGIN")
    for _ in range(3):
        second.send(query("SELECT lastval()"))
        time.sleep(0.1)
        second.cancel()
        assert second.recv_match("E", "Z")[0].fields["C"] == "57014"
    first.simple("COMMIT")
    assert second.value("SELECT 3") == "3"


# -- 30 to 32, 35, 37: backends that end, and the pool ---------------------------------------------------------------


def real_pids(server: RustyServer) -> set[str | None]:
    with WireClient.login(server.target) as client:
        return {row[0] for row in client.simple("SHOW BACKENDS")}


def test_pitfall_30_an_idle_backend_that_was_ended_is_not_given_out(single_server: RustyServer, login: Login) -> None:
    first = login()
    first.simple("SELECT 1")
    first.send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
    must_fail(first)
    assert login().value("SELECT 2") == "2"


def test_pitfall_31_a_statement_on_a_backend_that_dies_is_not_executed_twice(login: Login, script: Script) -> None:
    script("DROP SEQUENCE IF EXISTS executed", "CREATE SEQUENCE executed")
    first = login()
    first.send(query("SELECT nextval('executed'), pg_terminate_backend(pg_backend_pid()), pg_sleep(1)"))
    must_fail(first)
    assert login().value("SELECT nextval('executed')") == "2"


def test_pitfall_32_clients_that_give_up_cost_no_connections(single_server: RustyServer, login: Login) -> None:
    login().simple("SELECT 1")
    before = real_pids(single_server)
    for _ in range(5):
        client = login()
        client.send(query("SELECT pg_sleep(20)"))
        time.sleep(0.05)
        client.abort()
    assert login().value("SELECT 2") == "2"
    assert real_pids(single_server) == before


def test_pitfall_35_a_prepared_transaction_is_finished_by_another_session(login: Login, script: Script) -> None:
    script("DROP TABLE IF EXISTS twice", "CREATE TABLE twice (x int)")
    for ending, count in (("COMMIT", "1"), ("ROLLBACK", "1")):
        first = login()
        first.simple("BEGIN")
        first.simple("INSERT INTO twice VALUES (1)")
        first.simple("PREPARE TRANSACTION 'two phases'")
        assert first.status == "I"
        first.abort()
        second = login()
        second.simple(f"{ending} PREPARED 'two phases'")
        assert second.value("SELECT count(*) FROM twice") == count


def test_pitfall_37_who_looks_at_a_full_server_needs_no_backend(login: Login) -> None:
    first = login()
    first.simple("BEGIN")
    second = login()  # this way to start is known
    assert second.simple("SHOW POOLS")
    first.simple("COMMIT")


def test_pitfall_37_more_clients_than_backends_all_come_through(login_pair: Login) -> None:
    clients = [login_pair() for _ in range(12)]
    for client in clients:
        client.send(query("BEGIN"), query("SELECT pg_sleep(0.01)"), query("COMMIT"), query("SELECT 'through'"))
    for client in clients:
        for _ in range(3):
            client.recv_until("Z")
        assert first_value(client.recv_until("Z")) == b"through"
