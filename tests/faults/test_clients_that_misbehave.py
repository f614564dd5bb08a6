"""Clients that vanish, stall, flood and send garbage: nobody else notices, and the server lives."""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import threading
import time

import pytest

from tests.support.load import Bystander, crowd
from tests.support.processes import resident_bytes, wait_until
from tests.support.rustydb_process import RustyServer
from tests.support.target import Target
from tests.support.wire_client import (
    SSL_REQUEST,
    WireClient,
    bind,
    cancel_request,
    copy_data,
    execute,
    message,
    parse,
    query,
    startup,
    sync,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90, method="signal")]

MIB = 1 << 20
STALLED_RESULT = "SELECT repeat('x', 1000) FROM generate_series(1, 300000)"


def count_active(client: WireClient, pattern: str) -> int:
    """Statements of clients that run in the engine and look like the pattern."""
    own = "pid <> pg_backend_pid() AND query NOT LIKE '%pg_stat_activity%'"
    text = f"SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE '{pattern}' AND {own}"
    return int(client.value(text) or 0)


def test_client_that_vanishes_mid_copy_leaves_nothing_behind(server: RustyServer, bystander: Bystander) -> None:
    with WireClient.login(server.target) as observer:
        observer.simple("DROP TABLE IF EXISTS vanished; CREATE TABLE vanished (a text)")
        for number in range(30):
            client = WireClient.login(server.target)
            client.send(query("COPY vanished FROM STDIN"))
            client.recv_match("G")
            client.send(copy_data(b"x" * 50000 + b"\n"), b"d\0\0\xff\xff half of a message"[: 5 + number])
            client.reset() if number % 2 else client.abort()
        wait_until(lambda: count_active(observer, "COPY vanished%") == 0, 10, "the end of every COPY")
        assert observer.value("SELECT count(*) FROM vanished") == "0"
        observer.simple("DROP TABLE vanished")


def test_client_that_vanishes_in_a_transaction_frees_its_locks(server: RustyServer, bystander: Bystander) -> None:
    with WireClient.login(server.target) as observer:
        observer.simple("DROP TABLE IF EXISTS locked; CREATE TABLE locked (a int)")
        for number in range(30):
            client = WireClient.login(server.target)
            client.simple("BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE; INSERT INTO locked VALUES (1)")
            client.reset() if number % 2 else client.abort()
            assert observer.value("SELECT count(*) FROM locked") == "0"
        observer.simple("DROP TABLE locked")


def test_client_that_vanishes_during_a_statement_ends_it(server: RustyServer, bystander: Bystander) -> None:
    with WireClient.login(server.target) as observer:
        for number in range(10):
            client = WireClient.login(server.target)
            if number % 2:
                client.send(query("SELECT pg_sleep(60), 'vanisher'"))
            else:
                client.send(parse("SELECT pg_sleep(60), 'vanisher'"), bind(), execute(), sync())
            time.sleep(0.05)
            client.reset()
        wait_until(lambda: count_active(observer, "%vanisher%") == 0, 15, "the end of the abandoned statements")


def test_client_that_stops_reading_costs_no_memory(server: RustyServer, bystander: Bystander) -> None:
    before = resident_bytes(server.pid)
    stalled = [WireClient.login(server.target, timeout_seconds=60) for _ in range(4)]
    for client in stalled:
        client.send(query(STALLED_RESULT))
    time.sleep(3)
    grown = resident_bytes(server.pid) - before
    assert grown < 24 * MIB, f"4 clients that do not read 300 MB each cost {grown / MIB:.1f} MiB"
    assert sum(found.kind == "D" for found in stalled[0].recv_until("Z")) == 300_000
    for client in stalled:
        client.abort()


def test_client_that_sends_without_reading_costs_no_memory(server: RustyServer, bystander: Bystander) -> None:
    """A pipeline whose replies nobody reads: the server stops reading requests too."""
    before = resident_bytes(server.pid)
    client = WireClient.login(server.target)
    unit = parse("SELECT repeat('x', 100000)") + bind() + execute() + sync()
    client.socket.settimeout(2)
    sent = 0
    with pytest.raises(TimeoutError):  # noqa: PT012
        while sent < 256 * MIB:
            client.send(unit * 1000)
            sent += len(unit) * 1000
    grown = resident_bytes(server.pid) - before
    client.reset()
    assert grown < 48 * MIB, f"an unread pipeline cost {grown / MIB:.1f} MiB"


def test_cancel_storm_hits_only_its_target(server: RustyServer, bystander: Bystander) -> None:
    victim = WireClient.login(server.target, timeout_seconds=60)
    other = WireClient.login(server.target)
    stop = threading.Event()

    def storm(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            kind = chance.randrange(4)
            if kind == 0:
                request = cancel_request(victim.pid, victim.secret)
            elif kind == 1:
                request = cancel_request(other.pid, bytes(len(other.secret)))
            elif kind == 2:
                request = cancel_request(chance.randrange(1 << 31), chance.randbytes(4))
            else:
                request = cancel_request(victim.pid, b"")
            try:
                with socket.create_connection((server.target.host, server.target.port), 10) as connection:
                    connection.sendall(request)
                    connection.recv(1)
            except OSError:
                continue

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        outcomes: dict[str, int] = {}
        for number in range(60):
            victim.send(query(f"SELECT {number}, pg_sleep(0.02)"))
            found = victim.recv_until("Z")
            outcome = next((error.fields["C"] for error in found if error.kind == "E"), "answered")
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            assert other.value(f"SELECT {number}") == str(number)
        assert outcomes.get("57014", 0) > 0
        assert set(outcomes) <= {"57014", "answered"}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    time.sleep(0.2)
    assert victim.value("SELECT 'alive'") == "alive"
    victim.close()
    other.close()


BEFORE_LOGIN = {
    "nothing": b"",
    "one_byte": b"\0",
    "half_a_length": b"\0\0\0",
    "zero_length": b"\0\0\0\0",
    "length_of_three": b"\0\0\0\3",
    "length_without_body": b"\0\0\0\4",
    "huge_length": b"\x7f\xff\xff\xff" + b"x" * 100,
    "negative_length": b"\xff\xff\xff\xff" + b"x" * 100,
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "broken_tls_hello": b"\x16\x03\x01\x02\x00" + b"\xff" * 512,
    "tls_request_then_plain_startup": struct.pack("!II", 8, SSL_REQUEST) + startup({"user": "postgres"}),
    "tls_request_then_garbage": struct.pack("!II", 8, SSL_REQUEST) + b"\xde\xad\xbe\xef" * 10,
    "startup_without_terminator": struct.pack("!II", 20, 196608) + b"user\0postgre",
    "startup_with_name_only": struct.pack("!II", 13, 196608) + b"user\0",
    "startup_not_utf8": struct.pack("!II", 8 + 10, 196608) + b"user\0\xff\xfe\xfd\0\0",
    "many_parameters": startup({"user": "postgres", **{f"p{n}": "v" * 100 for n in range(90)}}),
    "cancel_too_short": struct.pack("!II", 8, 80877102),
    "cancel_with_a_long_key": cancel_request(1, b"k" * 4000),
    "password_before_startup": message("p", b"secret\0"),
    "query_before_startup": query("SELECT 1"),
    "startup_then_query": startup({"user": "postgres", "database": "postgres"}) + query("SELECT 1"),
    "startup_then_wrong_mechanism": startup({"user": "postgres"}) + message("p", b"PLAIN\0\0\0\0\0"),
    "startup_then_huge_password": startup({"user": "postgres"}) + b"p\x7f\xff\xff\xff" + b"x" * 1000,
    "startup_then_half_a_message": startup({"user": "postgres"}) + b"p\0\0",
}


@pytest.mark.parametrize("garbage", BEFORE_LOGIN.values(), ids=BEFORE_LOGIN.keys())
def test_garbage_before_login_ends_only_its_connection(
    server: RustyServer, bystander: Bystander, garbage: bytes
) -> None:
    client = WireClient(server.target.host, server.target.port)
    client.send(garbage)
    assert client.is_at_end(12.0), "the connection was left open"
    client.abort()


def test_random_bytes_before_login(server: RustyServer, bystander: Bystander) -> None:
    chance = random.Random(7)
    for _ in range(150):
        client = WireClient(server.target.host, server.target.port)
        client.send(chance.randbytes(chance.randrange(1, 300)))
        client.reset() if chance.random() < 0.5 else client.abort()


AFTER_LOGIN = {
    "unknown_type": message("~", b"what"),
    "zero_byte_type": message("\0", b""),
    "length_of_three": b"Q\0\0\0\3",
    "zero_length": b"Q\0\0\0\0",
    "negative_length": b"Q\xff\xff\xff\xff" + b"x" * 100,
    "huge_length": b"Q\x7f\xff\xff\xff" + b"x" * 100,
    "huge_sync": b"S\x7f\xff\xff\xff" + b"x" * 100,
    "password_now": message("p", b"secret\0"),
    "query_without_terminator": message("Q", b"SELECT 1"),
    "query_not_utf8": message("Q", b"SELECT '\xff\xfe'\0"),
    "parse_cut_short": message("P", b"name\0SELECT"),
    "parse_lies_about_types": message("P", b"\0SELECT 1\0\xff\xff"),
    "bind_lies_about_values": message("B", b"\0\0\0\0\xff\xff\0\0"),
    "bind_value_longer_than_message": message("B", b"\0\0\0\0\0\1\x7f\xff\xff\xffabc\0\0"),
    "describe_empty": message("D", b""),
    "execute_empty": message("E", b""),
    "close_of_what": message("C", b"Zname\0"),
    "sync_with_body": message("S", b"body"),
    "function_call_cut_short": message("F", b"\0\0"),
}


@pytest.mark.parametrize("inside", [False, True], ids=["idle", "in_a_transaction"])
@pytest.mark.parametrize("garbage", AFTER_LOGIN.values(), ids=AFTER_LOGIN.keys())
def test_garbage_after_login_harms_only_its_session(
    server: RustyServer, bystander: Bystander, garbage: bytes, inside: bool
) -> None:
    """PostgreSQL answers with an error, and closes where the stream is lost; the client sends a Sync and leaves."""
    client = WireClient.login(server.target)
    if inside:
        client.simple("BEGIN")
    client.send(garbage, sync())
    client.socket.settimeout(3)
    try:
        while client.recv().kind != "Z":
            pass
    except (OSError, TimeoutError):
        pass
    client.reset()


def test_half_messages_then_silence_then_the_rest(server: RustyServer, bystander: Bystander) -> None:
    client = WireClient.login(server.target)
    whole = query("SELECT 'in pieces'") + parse("SELECT $1::text") + bind("", ["x"]) + execute() + sync()
    for position in range(len(whole)):
        client.send(whole[position : position + 1])
        if position % 7 == 0:
            time.sleep(0.002)
    assert [found.values for found in client.recv_until("Z") if found.kind == "D"] == [[b"in pieces"]]
    assert [found.values for found in client.recv_until("Z") if found.kind == "D"] == [[b"x"]]
    client.close()


async def test_a_thousand_clients_connect_at_once(server: RustyServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    began = time.monotonic()
    with Bystander(server.target):
        troubles = await crowd(server.target, 1000)
    assert troubles == []
    assert time.monotonic() - began < 60


def test_more_clients_than_allowed_are_told_so(dispensable: RustyServer) -> None:
    dispensable.settings["SERVER__MAX_CLIENTS"] = "5"
    dispensable.start()
    target: Target = dispensable.target
    inside = [WireClient.login(target) for _ in range(5)]
    refused = WireClient(target.host, target.port)
    refused.send(startup({"user": target.user, "database": target.database}))
    errors = [found.fields["C"] for found in refused.authenticate(target.password) if found.kind == "E"]
    assert errors == ["53300"]
    refused.abort()
    inside.pop().close()
    wait_until(lambda: _can_log_in(target), 5, "a place for the next client")
    for client in inside:
        assert client.value("SELECT 1") == "1"
        client.close()


def _can_log_in(target: Target) -> bool:
    try:
        WireClient.login(target).close()
    except Exception:
        return False
    return True


DEEP = {
    "concatenations": "SELECT length(" + "||".join(["'a'"] * 50_000) + ")",
    "nested_sub_selects": "SELECT " + "(SELECT " * 10_000 + "1" + ")" * 10_000,
    "parentheses": "SELECT " + "(" * 30_000 + "1" + ")" * 30_000,
    "nested_case": "SELECT " + "CASE WHEN true THEN " * 5_000 + "1" + " END" * 5_000,
    "not_not_not": "SELECT " + "NOT " * 50_000 + "true",
    "array_brackets": "SELECT " + "ARRAY[" * 10_000 + "1" + "]" * 10_000,
    "many_statements": ";".join(["SELECT 1"] * 5_000),
    "long_in_list": "SELECT 1 WHERE 1 IN (" + ",".join(map(str, range(60_000))) + ")",
    "open_comments": "/*" * 5_000 + " */" * 5_000 + "SELECT 1",
    "cut_off_in_the_middle": "SELECT " + "(SELECT " * 10_000 + "1",
}


def outcome_of(target: Target, sql: str, extended: bool) -> tuple[list[str], int]:
    """SQLSTATEs and the number of rows."""
    with WireClient.login(target, timeout_seconds=60) as client:
        client.send(parse(sql) + bind() + execute() + sync() if extended else query(sql))
        found = client.recv_until("Z")
    return [error.fields["C"] for error in found if error.kind == "E"], sum(row.kind == "D" for row in found)


@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("sql", DEEP.values(), ids=DEEP.keys())
def test_deep_statement_ends_as_on_the_bare_engine(
    server: RustyServer, bystander: Bystander, engine: object, request: pytest.FixtureRequest, sql: str, extended: bool
) -> None:
    expected = outcome_of(request.getfixturevalue("engine").target, sql, extended)
    assert outcome_of(server.target, sql, extended) == expected
    assert os.getpid() != server.pid
