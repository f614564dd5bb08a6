"""What completed statements leave in the virtual session."""

from __future__ import annotations

import pytest

from engine.connection import BackendConnection
from server.effects import EffectTracker, python_encoding
from server.session import ClientSession
from server.statement_info import Effect, EffectKind, PinReason
from tests.unit.server.core.rig import Rig, messages, sent

K = EffectKind


def begin(*, pins: set[str] | None = None, **baseline: str) -> tuple[ClientSession, BackendConnection, EffectTracker]:
    rig = Rig()
    session, backend = rig.session(**baseline), rig.backend()
    backend.context = session.context
    session.backend, backend.owner = backend, session
    session.pins |= pins or set()
    return session, backend, session.tracker()


def complete(session: ClientSession, *steps: tuple[Effect, str]) -> None:
    tracker = session.tracker()
    for effect, tag in steps:
        tracker.expect((effect,))
        tracker.completed(session, tag.encode())


def answer(backend: BackendConnection, *values: bytes | None) -> str:
    """Answer the question that is asked when a transaction has ended; returns the question."""
    (_, body), *_ = messages(sent(backend.transport))
    row = len(values).to_bytes(2, "big")
    for value in values:
        row += b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value
    backend.data_received(b"D" + (len(row) + 4).to_bytes(4, "big") + row + b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\5I")
    return body[:-1].decode()


def test_a_setting_is_asked_for_and_kept_as_the_engine_says_it() -> None:
    session, backend, tracker = begin()
    complete(session, (Effect(K.SET, "work_mem", "1024"), "SET"))
    tracker.settle(session)
    assert "'work_mem'" in answer(backend, b"1MB")
    assert session.context.settings == {"work_mem": "1MB"}
    assert session.effects is None
    assert session.backend is None  # given back
    assert backend.context is session.context


def test_a_reported_setting_needs_no_question() -> None:
    session, backend, tracker = begin()
    backend.reported["DateStyle"] = "German, DMY"
    tracker.reported("DateStyle")
    tracker.settle(session)
    assert sent(backend.transport) == b""
    assert session.context.settings == {"datestyle": "German, DMY"}


@pytest.mark.parametrize("name", ["is_superuser", "session_authorization", "in_hot_standby"])
def test_what_follows_from_something_else_is_not_a_setting(name: str) -> None:
    _, _, tracker = begin()
    tracker.reported(name)
    assert not tracker.touched


@pytest.mark.parametrize(
    ("is_reverted", "now", "wanted"),
    [
        (False, b"4MB", {"work_mem": "8MB"}),  # back to the startup's value, which this backend does not know
        (True, b"5MB", {"work_mem": "5MB"}),  # the RESET was rolled back
        (False, b"5MB", {"work_mem": "8MB"}),  # the server's own value happens to be what was set
    ],
)
def test_reset_goes_back_to_the_startup_setting(is_reverted: bool, now: bytes, wanted: dict[str, str]) -> None:
    session, backend, tracker = begin(work_mem="8MB")
    session.context = session.database.contexts.intern({"work_mem": "5MB"})
    complete(session, (Effect(K.RESET, "work_mem"), "RESET"))
    tracker.reverted = is_reverted
    tracker.settle(session)
    answer(backend, now)
    assert session.context.settings == wanted


def test_discard_all_leaves_the_startup_settings_and_nothing_else() -> None:
    session, backend, tracker = begin(pins={PinReason.SQL_PREPARE, PinReason.LOAD}, **{"my.a": "1"})
    session.context = session.database.contexts.intern({"my.a": "2", "role": "x"})
    session.prepared = {}
    complete(session, (Effect(K.DISCARD_ALL), "DISCARD ALL"))
    tracker.settle(session)
    asked = answer(backend, b"", b"none")
    assert "'my.a'" in asked
    assert "'role'" in asked
    assert session.context.settings == {"my.a": "1"}
    assert session.pins == {PinReason.LOAD}  # a loaded library stays loaded
    assert session.prepared is None


def test_a_provable_pin_ends_on_proof_alone() -> None:
    for count, pins in ((b"2", {PinReason.ADVISORY_LOCK}), (b"0", set[str]())):
        session, backend, tracker = begin()
        complete(session, (Effect(K.PIN, PinReason.ADVISORY_LOCK), "SELECT 1"))
        tracker.settle(session)
        assert "pg_locks" in answer(backend, count)
        assert session.pins == pins


def test_a_statement_that_failed_may_have_run_in_part() -> None:
    session, _, tracker = begin()
    tracker.expect((Effect(K.PIN, PinReason.ADVISORY_LOCK), Effect(K.SET, "my.a"), Effect(K.SEQUENCE)))
    tracker.expect((Effect(K.PIN, PinReason.HIDDEN_STATE),))
    tracker.failed(session)
    assert session.pins == {PinReason.ADVISORY_LOCK}  # what stands behind it did not begin
    assert session.sequence_backend is session.backend
    assert tracker.must_prove
    assert not tracker.touched  # settings go back with the transaction


def test_whatever_was_sent_may_run_after_its_client_left() -> None:
    session, _, tracker = begin()
    tracker.expect((Effect(K.PIN, PinReason.ADVISORY_LOCK),))
    tracker.expect((Effect(K.PIN, PinReason.COMPUTED_SETTING),))
    tracker.abandon(session)
    assert session.pins == {PinReason.ADVISORY_LOCK, PinReason.COMPUTED_SETTING}


def test_a_suspended_portal_has_not_completed() -> None:
    session, _, tracker = begin()
    tracker.expect((Effect(K.SET, "my.a"),))
    tracker.completed(session, None)
    assert not tracker.touched


@pytest.mark.parametrize(
    ("steps", "heard"),
    [
        ([(Effect(K.LISTEN, "a"), "LISTEN"), (Effect(K.COMMIT), "COMMIT")], ["a"]),
        ([(Effect(K.LISTEN, "a"), "LISTEN"), (Effect(K.COMMIT), "ROLLBACK")], []),
        ([(Effect(K.LISTEN, "a"), "LISTEN"), (Effect(K.ROLLBACK), "ROLLBACK"), (Effect(K.LISTEN, "b"), "LISTEN"),
          (Effect(K.COMMIT), "COMMIT")], ["b"]),
        ([(Effect(K.LISTEN, "a"), "LISTEN"), (Effect(K.SAVEPOINT, "s"), "SAVEPOINT"), (Effect(K.LISTEN, "b"), "LISTEN"),
          (Effect(K.ROLLBACK_TO, "s"), "ROLLBACK"), (Effect(K.LISTEN, "c"), "LISTEN")], ["a", "c"]),
        ([(Effect(K.SAVEPOINT, "s"), "SAVEPOINT"), (Effect(K.LISTEN, "a"), "LISTEN"),
          (Effect(K.SAVEPOINT, "s"), "SAVEPOINT"), (Effect(K.LISTEN, "b"), "LISTEN"),
          (Effect(K.RELEASE, "s"), "RELEASE"),
          (Effect(K.ROLLBACK_TO, "s"), "ROLLBACK")], []),
    ],
)  # fmt: skip
def test_listens_follow_the_transaction_and_its_savepoints(steps: list[tuple[Effect, str]], heard: list[str]) -> None:
    session, _, tracker = begin()
    complete(session, *steps)
    assert [effect.argument for effect in tracker.listens] == heard


def test_a_search_path_of_a_latin1_session_is_asked_for_because_it_may_not_be_ascii() -> None:
    session, backend, tracker = begin()
    backend.reported.update({"client_encoding": "LATIN1", "search_path": "sch\ufffdma"})
    tracker.reported("search_path")
    tracker.reported("client_encoding")
    tracker.settle(session)
    answer(backend, "schéma".encode("latin-1"))
    assert session.context.settings["search_path"] == "schéma"
    assert session.encoding == "latin-1"


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [("UTF8", None), ("SQL_ASCII", None), ("LATIN1", "latin-1"), ("WIN1252", "cp1252"), ("X", "latin-1")],
)
def test_encodings_have_codecs(encoding: str, codec: str | None) -> None:
    assert python_encoding(encoding) == codec
    "é".encode(codec or "utf-8")
