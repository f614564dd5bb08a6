"""Extended runs for one backend: names made real, what is missing injected, what it has left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.connection import BackendConnection
from protocol.expectations import MixedReplies
from protocol.scan import READY_FAILED
from server.extended import RunBuilder, examine
from server.session import ClientSession
from server.statement_info import EffectKind, Needs
from tests.support.wire_client import bind, close, describe, execute, flush, parse, query, sync
from tests.unit.server.core.rig import Rig, messages


def build(session: ClientSession, backend: BackendConnection, run: bytes) -> tuple[str, bytes, MixedReplies | None]:
    """Types of the messages sent, the bytes sent, and the plan (None: everything is passed on)."""
    builder = RunBuilder(session, backend)
    builder.build(run)
    data, is_synced = builder.finish()
    plan = builder.plan(is_synced=is_synced)
    return "".join(kind for kind, _ in messages(data)), data, plan if isinstance(plan, MixedReplies) else None


def answer(plan: MixedReplies, *raw: bytes) -> bytes:
    """What goes to the client for these replies of the engine."""
    out = plan.local_answers()
    for one in raw:
        out += plan.receive(one[0], one) + plan.local_answers()
    return out


PARSED, BOUND, CLOSED, COMPLETE = b"1\0\0\0\4", b"2\0\0\0\4", b"3\0\0\0\4", b"C\0\0\0\x0dSELECT 1\0"
READY = b"Z\0\0\0\5I"


def prepare(session: ClientSession, backend: BackendConnection, name: str, text: str) -> None:
    _, _, plan = build(session, backend, parse(text, name) + sync())
    assert plan is not None
    answer(plan, *([PARSED] if len(plan.queue) > 1 else []), READY)


def test_a_run_without_names_is_forwarded_as_it_came() -> None:
    rig = Rig()
    run = parse("SELECT $1") + bind(values=["1"]) + describe("P") + execute() + sync()
    kinds, data, plan = build(rig.session(), rig.backend(), run)
    assert (kinds, data, plan) == ("PBDES", run, None)


def test_a_named_statement_is_prepared_once_for_all_sessions() -> None:
    rig = Rig()
    backend = rig.backend()
    prepare(rig.session(), backend, "mine", "SELECT 1")
    other = rig.session()
    kinds, _, plan = build(other, backend, parse("SELECT 1", "theirs") + bind("theirs") + execute() + sync())
    assert kinds == "BES"
    assert plan is not None
    assert answer(plan, BOUND, COMPLETE, READY) == PARSED + BOUND + COMPLETE + READY
    assert len(backend.prepared) == 1


@pytest.mark.parametrize("use", [bind("s") + execute(), describe("S", "s")])
def test_a_statement_that_the_backend_lacks_is_prepared_unseen(use: bytes) -> None:
    rig = Rig()
    session = rig.session()
    prepare(session, rig.backend(), "s", "SELECT 1")
    kinds, data, plan = build(session, rig.backend(), use + sync())
    assert kinds[0] == "P"
    assert b"rustydb_1\0" in data
    assert plan is not None
    assert answer(plan, PARSED) == b""


def test_the_least_recently_used_makes_room_and_stays_where_its_close_was_skipped() -> None:
    rig = Rig(max_prepared_statements=2)
    session, backend = rig.session(), rig.backend()
    for number in range(2):
        prepare(session, backend, f"s{number}", f"SELECT {number}")
    build(session, backend, bind("s0") + execute() + sync())
    kinds, data, plan = build(session, backend, parse("SELECT 9", "s9") + sync())
    assert kinds == "CPS"
    assert messages(data)[0][1] == b"Srustydb_2\0"
    assert list(backend.prepared.values()) == [b"rustydb_1", b"rustydb_3"]
    assert plan is not None
    error = b"E\0\0\0\5\0"
    answer(plan, error, READY)
    assert set(backend.prepared.values()) == {b"rustydb_1", b"rustydb_2"}
    assert session.prepared is not None
    assert b"s9" not in session.prepared


@given(st.lists(st.tuples(st.sampled_from("PBCD"), st.integers(0, 5)), max_size=40))
def test_a_backend_never_keeps_more_than_its_limit(steps: list[tuple[str, int]]) -> None:
    rig = Rig(max_prepared_statements=3)
    session, backend = rig.session(), rig.backend()
    for kind, number in steps:
        name = f"s{number}"
        known = session.prepared is not None and name.encode() in session.prepared
        if kind == "P" and not known:
            prepare(session, backend, name, f"SELECT {number}")
        elif kind == "C":
            build(session, backend, close("S", name) + sync())
        elif known:
            build(session, backend, (bind(name) if kind == "B" else describe("S", name)) + sync())
        assert len(backend.prepared) <= 3


def test_the_unnamed_statement_comes_back_on_another_backend() -> None:
    rig = Rig()
    session, backend, other = rig.session(), rig.backend(), rig.backend()
    build(session, backend, parse("SELECT 1") + sync())
    assert build(session, backend, bind() + execute() + sync())[0] == "BES"
    assert build(session, other, bind() + execute() + sync())[0] == "PBES"
    assert build(session, other, bind() + execute() + sync())[0] == "BES"


@pytest.mark.parametrize("use", [bind() + execute(), describe("S", "")])
def test_the_unnamed_statement_of_another_session_is_not_there(use: bytes) -> None:
    rig = Rig()
    backend = rig.backend()
    build(rig.session(), backend, parse("SELECT 'secret'") + sync())
    _, data, plan = build(rig.session(), backend, use + sync())
    assert b"refused by RustyDB" in data
    assert plan is not None
    assert b"26000" in answer(plan, b"E\0\0\0\5\0")


@pytest.mark.parametrize("message", [bind("rustydb_1"), describe("S", "rustydb_1")])
def test_our_own_names_are_nobodys(message: bytes) -> None:
    rig = Rig()
    backend = rig.backend()
    prepare(rig.session(), backend, "s", "SELECT 1")
    _, data, _ = build(rig.session(), backend, message + sync())
    assert b"refused by RustyDB" in data


def test_a_close_is_answered_here_and_the_backend_keeps_the_statement() -> None:
    rig = Rig()
    session, backend = rig.session(), rig.backend()
    prepare(session, backend, "s", "SELECT 1")
    kinds, _, plan = build(session, backend, close("S", "s") + sync())
    assert kinds == "S"
    assert plan is not None
    assert answer(plan, READY) == CLOSED + READY
    assert len(backend.prepared) == 1
    assert not session.prepared


def test_in_a_failed_transaction_the_engine_is_asked_whether_it_may_be_prepared() -> None:
    rig = Rig()
    session, backend = rig.session(), rig.backend()
    prepare(rig.session(), backend, "theirs", "SELECT 1")
    session.status = READY_FAILED
    kinds, data, plan = build(session, backend, parse("SELECT 1", "s") + sync())
    assert (kinds, messages(data)[0][1][:1]) == ("PS", b"\0")
    assert plan is not None
    answer(plan, b"E\0\0\0\5\0", READY)
    assert not session.prepared


def test_effects_are_expected_in_the_order_of_execution() -> None:
    rig = Rig()
    session, backend = rig.session(), rig.backend()
    run = parse("SET work_mem = '1MB'") + bind() + execute() + parse("SELECT 1") + bind(portal="p") + execute("p")
    build(session, backend, run + sync())
    assert session.effects is not None
    assert backend.watch_completions
    expected = [[effect.kind for effect in effects] for effects in session.effects._expected]
    assert expected == [[EffectKind.SET], []]


@pytest.mark.parametrize(
    ("values", "formats", "kind", "argument"),
    [
        (["my.a", "x", "f"], [], EffectKind.SET, "my.a"),
        (["MY.A", "x", "true"], [], EffectKind.SET_LOCAL, "my.a"),
        ([b"my.a", b"x", b"\1"], [0, 0, 1], EffectKind.SET_LOCAL, "my.a"),
        ([b"my.a", b"x", b"\0"], [0, 0, 1], EffectKind.SET, "my.a"),
        ([None, "x", "off"], [], EffectKind.SET, ""),
    ],
)
def test_bound_arguments_of_set_config_are_read(
    values: list[str | bytes | None], formats: list[int], kind: EffectKind, argument: str
) -> None:
    rig = Rig()
    session, backend = rig.session(), rig.backend()
    build(
        session,
        backend,
        parse("SELECT set_config($1, $2, $3)") + bind(values=values, formats=formats) + execute() + sync(),
    )
    assert session.effects is not None
    (effects,) = session.effects._expected
    assert [(effect.kind, effect.argument) for effect in effects] == [(kind, argument)]


def test_portals_of_ended_transactions_are_forgotten() -> None:
    rig = Rig()
    session, backend = rig.session(), rig.backend()
    for number in range(1000):
        build(session, backend, parse("SELECT 1") + bind(portal=f"p{number}") + execute(f"p{number}") + sync())
    assert session.portals is not None
    assert len(session.portals) < 100


@pytest.mark.parametrize(
    ("run", "is_whole"),
    [
        (parse("SELECT 1") + bind() + execute() + sync(), True),
        (parse("SELECT 1") + flush(), True),
        (sync(), True),
        (sync() + sync(), False),
        (parse("SELECT 1") + query("SELECT 2"), False),
        ((parse("SELECT 1") + sync())[:-1], False),
        (b"P\0\0\0\3", False),
    ],
)
def test_one_run_is_told_from_what_is_more_or_less(run: bytes, is_whole: bool) -> None:
    assert (examine(Rig().session(), run) is not None) is is_whole


def test_what_a_run_needs_is_found_in_its_texts() -> None:
    session = Rig().session()
    assert examine(session, parse("SELECT 1") + sync()) == (Needs.NOTHING, ())
    facts = examine(session, parse("LISTEN x") + sync())
    assert facts is not None
    assert facts[0] & Needs.LISTENER
