"""Which executions a run of extended messages holds, and with what values."""

from __future__ import annotations

from server.observer import executions
from server.prepared import SharedStatement, VirtualStatement
from tests.support.wire_client import bind, describe, execute, flush, parse, sync
from tests.unit.server.core.rig import Rig, plain_info


def found(run: bytes, *, prepared: str = "") -> list[tuple[str, str, int, tuple[bytes | None, ...], str]]:
    session = Rig().session()
    if prepared:
        shared = SharedStatement(b"rustydb_1", prepared.encode() + b"\0\0\0")
        session.prepared = {b"s": VirtualStatement(shared, plain_info())}
    return [
        (portal.text.decode(), name, limit, portal.parameters.values, portal.statement_name)
        for _, name, limit, portal in executions(session, run)
    ]


def test_an_execution_is_an_execute_with_its_values() -> None:
    run = parse("SELECT $1") + bind(values=["a"]) + describe("P") + execute(limit=5) + sync()
    assert found(run) == [("SELECT $1", "", 5, (b"a",), "")]


def test_named_statements_and_portals_are_followed() -> None:
    run = (
        bind("s", ["a", None], "one")
        + bind("s", [b"\0"], "two", formats=[1])
        + execute("two")
        + execute("one")
        + sync()
    )
    assert found(run, prepared="SELECT $1, $2") == [
        ("SELECT $1, $2", "two", 0, (b"\0",), "s"),
        ("SELECT $1, $2", "one", 0, (b"a", None), "s"),
    ]


def test_a_portal_is_remembered_by_the_next_run() -> None:
    session = Rig().session()
    assert len(executions(session, parse("SELECT 1") + bind(portal="p") + execute("p", 2) + flush())) == 1
    ((position, name, limit, portal),) = executions(session, execute("p", 3) + sync())
    assert (position, name, limit, portal.text) == (0, "p", 3, b"SELECT 1")


def test_what_is_unknown_is_no_execution() -> None:
    assert found(bind("missing") + execute() + sync()) == []
    assert found(execute("missing") + sync()) == []


def test_positions_are_those_of_the_execute_messages() -> None:
    parts = [parse("SELECT 1"), bind(), execute(), parse("SELECT 2"), bind(), execute(), sync()]
    positions = [position for position, *_ in executions(Rig().session(), b"".join(parts))]
    assert positions == [len(b"".join(parts[:2])), len(b"".join(parts[:5]))]


def test_portals_of_ended_runs_are_not_kept_for_ever() -> None:
    session = Rig().session()
    for number in range(500):
        executions(session, parse("SELECT 1") + bind(portal=f"p{number}") + execute(f"p{number}") + sync())
    assert session.bound is not None
    assert len(session.bound) < 100
