"""Backends and the engine killed, the server stopped or killed: what was acknowledged is there afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.load import Ledger, write_until_refused
from tests.support.processes import children_of, wait_until
from tests.support.rustydb_process import RustyServer
from tests.support.target import Target
from tests.support.wire_client import Message, WireClient, WireError, query

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120, method="signal")]

BACK_SECONDS = 40.0


def backends_running(server: RustyServer, tag: str) -> list[int]:
    """Engine processes whose title ends with a command tag, e.g. SELECT."""
    found: list[int] = []
    for pid in children_of(server.engine_pid):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
        if title.startswith("postgres:") and title.endswith(tag):
            found.append(pid)
    return found


def rest_of(client: WireClient) -> list[Message]:
    """What still comes: up to ReadyForQuery or the end of the connection."""
    found: list[Message] = []
    try:
        while not found or found[-1].kind != "Z":
            found.append(client.recv())
    except OSError:
        pass
    return found


def answers(target: Target) -> bool:
    try:
        with WireClient.login(target, timeout_seconds=5) as client:
            return client.value("SELECT 1") == "1"
    except (OSError, WireError):
        return False


@pytest.mark.parametrize("in_transaction", [False, True], ids=["autocommit", "in_a_transaction"])
def test_backend_terminated_mid_row_gives_an_error_and_no_half_answer(
    server: RustyServer, bystander: object, in_transaction: bool
) -> None:
    client = WireClient.login(server.target)
    if in_transaction:
        client.simple("BEGIN")
    client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 500000)"))
    client.recv_match("T", "D")
    wait_until(lambda: bool(backends_running(server, "SELECT")), 5, "the backend of the SELECT")
    for pid in backends_running(server, "SELECT"):
        os.kill(pid, signal.SIGTERM)
    found = rest_of(client)
    assert not any(part.kind == "C" for part in found), "the result was called complete"
    # PostgreSQL ends without a word where the reply was cut in the middle of a message: nothing can follow that.
    assert {part.fields["C"] for part in found if part.kind == "E"} <= {"57P01", "08006"}
    assert not any(part.kind == "Z" for part in found)
    client.abort()


def test_backend_terminated_while_idle_is_not_noticed(server: RustyServer) -> None:
    with WireClient.login(server.target) as client:
        client.simple("SET own.kept TO 'kept'")
        for _ in range(5):
            for pid in backends_running(server, "idle"):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.1)
            assert client.value("SELECT current_setting('own.kept')") == "kept"


def test_backend_crash_restarts_the_engine_and_idle_sessions_live(server: RustyServer) -> None:
    """SIGKILL to one backend: PostgreSQL ends all the others and recovers."""
    idle = WireClient.login(server.target, timeout_seconds=60)
    idle.simple("SET own.kept TO 'kept'")
    busy = WireClient.login(server.target, timeout_seconds=60)
    busy.send(query("SELECT pg_sleep(60)"))
    wait_until(lambda: bool(backends_running(server, "SELECT")), 5, "the backend of the SELECT")
    os.kill(backends_running(server, "SELECT")[0], signal.SIGKILL)
    errors = [part.fields["C"] for part in rest_of(busy) if part.kind == "E"]
    assert errors
    assert set(errors) <= {"57P01", "57P02", "57P03", "08006", "08003"}
    wait_until(lambda: answers(server.target), BACK_SECONDS, "the engine's return")
    assert _survives(idle)
    busy.abort()
    idle.close()


def _survives(idle: WireClient) -> bool:
    """An idle session answers again, with its settings; a statement may be refused while the engine comes back."""
    deadline = time.monotonic() + BACK_SECONDS
    while time.monotonic() < deadline:
        try:
            return idle.value("SELECT current_setting('own.kept')") == "kept"
        except WireError as error:
            if error.sqlstate[:2] not in ("57", "08", "53"):
                raise
            time.sleep(0.2)
    return False


def test_engine_killed_under_idle_and_busy_sessions_comes_back(server: RustyServer) -> None:
    """SIGKILL to the postmaster: busy sessions get an error, idle ones go on, committed rows are there."""
    with WireClient.login(server.target) as client:
        client.simple("DROP TABLE IF EXISTS survived; CREATE TABLE survived (a int); INSERT INTO survived VALUES (1)")
    idle = [WireClient.login(server.target, timeout_seconds=90) for _ in range(5)]
    for client in idle:
        client.simple("SET own.kept TO 'kept'")
    busy = [WireClient.login(server.target, timeout_seconds=60) for _ in range(3)]
    for client in busy:
        client.send(query("SELECT pg_sleep(60)"))
    transaction = WireClient.login(server.target, timeout_seconds=60)
    transaction.simple("BEGIN; INSERT INTO survived VALUES (2)")
    old = server.kill_engine()
    for client in busy:
        errors = [part.fields["C"] for part in rest_of(client) if part.kind == "E"]
        assert errors, "a busy session got no error"
        assert errors[0][:2] in ("57", "08")
    with pytest.raises((WireError, OSError)):
        transaction.simple("COMMIT")
    wait_until(lambda: server.engine_pid not in (0, old), BACK_SECONDS, "a new engine")
    wait_until(lambda: answers(server.target), BACK_SECONDS, "the engine's return")
    for client in idle:
        assert _survives(client)
    with WireClient.login(server.target) as client:
        assert client.simple("SELECT a FROM survived") == [["1"]]
        client.simple("DROP TABLE survived")
    for client in [*idle, *busy, transaction]:
        client.abort()


def test_engine_killed_again_and_again_under_load(server: RustyServer) -> None:
    with WireClient.login(server.target) as client:
        client.simple("DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (n int PRIMARY KEY)")
    ledgers: list[Ledger] = []
    stop = threading.Event()
    for life in range(2):
        threads: list[threading.Thread] = []
        for writer in range(4):
            ledger = Ledger()
            ledgers.append(ledger)
            first = (life * 4 + writer) * 1_000_000
            arguments = (server.target, first, ledger, bool(writer % 2), stop)
            threads.append(threading.Thread(target=write_until_refused, args=arguments))
            threads[-1].start()
        time.sleep(0.7)
        server.kill_engine()
        wait_until(lambda: answers(server.target), BACK_SECONDS, "the engine's return")
        stop.set()  # a session that had no statement under way lives, and its writer goes on
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        stop.clear()
    check_ledgers(server.target, ledgers)


def check_ledgers(target: Target, ledgers: list[Ledger]) -> None:
    """Every acknowledged row is there, and none that nobody sent."""
    with WireClient.login(target) as client:
        there = {int(row[0] or 0) for row in client.simple("SELECT n FROM ledger")}
    acknowledged = {number for ledger in ledgers for number in ledger.acknowledged}
    unknown = {ledger.unknown for ledger in ledgers}
    assert acknowledged, "nothing was written before the end"
    assert acknowledged - there == set(), "acknowledged rows are lost"
    assert there - acknowledged <= unknown, "rows are there that nobody wrote"


def test_sigterm_under_load_loses_no_acknowledged_write(dispensable: RustyServer) -> None:
    dispensable.settings["SERVER__SHUTDOWN_TIMEOUT"] = "5s"
    server = dispensable.start()
    with WireClient.login(server.target) as client:
        client.simple("CREATE TABLE ledger (n int PRIMARY KEY)")
    ledgers = [Ledger() for _ in range(8)]
    threads = [
        threading.Thread(target=write_until_refused, args=(server.target, n * 1_000_000, ledger, bool(n % 2)))
        for n, ledger in enumerate(ledgers)
    ]
    for thread in threads:
        thread.start()
    idle = WireClient.login(server.target)
    time.sleep(1.0)
    assert server.stop(signal.SIGTERM, 40) == 0
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert idle.is_at_end(2.0)
    idle.abort()
    assert server.engine_pid == 0, "the engine was left running"
    server.start()
    check_ledgers(server.target, ledgers)


def test_killed_server_finds_its_data_again(dispensable: RustyServer) -> None:
    """SIGKILL to the front end leaves an engine behind: the next start adopts or stops it."""
    server = dispensable.start()
    with WireClient.login(server.target) as client:
        client.simple("CREATE TABLE ledger (n int PRIMARY KEY)")
    ledgers = [Ledger() for _ in range(4)]
    threads = [
        threading.Thread(target=write_until_refused, args=(server.target, n * 1_000_000, ledger, bool(n % 2)))
        for n, ledger in enumerate(ledgers)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    server.kill()
    for thread in threads:
        thread.join(20)
    server.start()
    check_ledgers(server.target, ledgers)


def test_server_and_engine_killed_together_recover(dispensable: RustyServer) -> None:
    """As after a power cut: both are gone at once, and a stale postmaster.pid is left."""
    server = dispensable.start()
    with WireClient.login(server.target) as client:
        client.simple("CREATE TABLE ledger (n int PRIMARY KEY); INSERT INTO ledger VALUES (1)")
    engine = server.engine_pid
    server.kill()
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{engine}").exists(), 10, "the end of the engine's process")
    server.start()
    with WireClient.login(server.target) as client:
        assert client.value("SELECT n FROM ledger") == "1"
