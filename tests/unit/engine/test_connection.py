"""A backend's reply stream: however it is cut, the client gets the same bytes and the owner hears the same calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.connection import BackendConnection
from protocol import scan
from protocol.errors import PgError
from protocol.expectations import PASS, Action, Expected, HiddenReplies, MixedReplies, Reply, ReplyPlan
from protocol.scan import READY_IDLE


def message(kind: bytes, body: bytes = b"") -> bytes:
    return scan.message(kind, body)


PARSED, BOUND = message(b"1"), message(b"2")
READY = message(b"Z", b"I")
IN_BLOCK = message(b"Z", b"T")
COMPLETE = message(b"C", b"SELECT 3\0")
ERROR = PgError("22012", "division by zero").to_error_response()
FATAL = PgError("57P01", "terminating connection", severity="FATAL").to_error_response()
SETTING = message(b"S", b"TimeZone\0UTC\0")
NOTIFIED = message(b"A", b"\0\0\0\7channel\0payload\0")
TOLD = message(b"A", b"\0\0\1\xf7channel\0payload\0")
ROWS = b"".join(message(b"D", b"\0\1\0\0\0\2ab") for _ in range(40))
LONG = message(b"D", b"\0\1" + (3000).to_bytes(4, "big") + b"x" * 3000)
COLUMNS = message(b"T", b"\0\1a" + b"\0" * 19)


class Wire:
    """As much of a transport as a connection uses."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_reading = True
        self.is_gone = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.is_gone

    def close(self) -> None:
        self.is_gone = True

    abort = close

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True


class Owner:
    """Writes down everything it is told."""

    def __init__(self) -> None:
        self.forwarded = bytearray()
        self.calls: list[tuple[object, ...]] = []

    def backend_chunk(self, chunk: bytes) -> None:
        assert chunk
        self.forwarded += chunk

    def backend_ready(self, chunk: bytes, status: int) -> None:
        self.forwarded += chunk
        self.calls.append(("ready", chr(status), len(self.forwarded)))

    def backend_complete(self, tag: bytes | None) -> None:
        self.calls.append(("complete", tag))

    def backend_error(self, error: PgError, raw: bytes) -> bytes:
        self.calls.append(("error", error.sqlstate))
        return PgError(error.sqlstate, "in the client's own words").to_error_response()

    def backend_parameter(self, name: str, value: str) -> None:
        self.calls.append(("parameter", name, value))

    def backend_copy_in(self) -> None:
        self.calls.append(("copy in",))

    def backend_notifier(self, pid: int) -> int:
        return pid + 496

    def backend_lost(self, error: PgError | None) -> None:
        self.calls.append(("lost", error.sqlstate if error is not None else None))

    def backend_pressure(self, *, is_high: bool) -> None:
        self.calls.append(("pressure", is_high))


def connect() -> tuple[BackendConnection, Owner, Wire]:
    wire, owner = Wire(), Owner()
    connection = BackendConnection(
        transport=cast(asyncio.Transport, wire),
        database="d",
        role="r",
        pid=7,
        secret=b"",
        reported={},
        connected_at=0.0,
    )
    connection.owner = owner
    connection.watch_completions = True
    return connection, owner, wire


def mixed(*expected: Expected) -> MixedReplies:
    replies = MixedReplies()
    for one in expected:
        replies.push(one)
    return replies


def ours() -> MixedReplies:
    return mixed(
        Expected(Reply.PARSE, Action.IGNORE), Expected(Reply.BIND), Expected(Reply.DESCRIBE), Expected(Reply.EXECUTE),
        Expected(Reply.LOCAL, bytes_=message(b"3")), Expected(Reply.PARSE), Expected(Reply.SYNC),
    )  # fmt: skip


STREAMS: dict[str, tuple[Callable[[Callable[[HiddenReplies], None]], Sequence[ReplyPlan]], bytes]] = {
    "passed on": (
        lambda _: [PASS, PASS],
        COLUMNS + ROWS + LONG + SETTING + NOTIFIED + COMPLETE + IN_BLOCK + ERROR + READY,
    ),
    "ours in between": (
        lambda done: [PASS, HiddenReplies(done), PASS],
        COLUMNS + ROWS + COMPLETE + READY + COLUMNS + ROWS + COMPLETE + NOTIFIED + SETTING + READY + LONG + COMPLETE
        + READY,
    ),
    "ours that failed": (lambda done: [HiddenReplies(done), PASS], ERROR + READY + COMPLETE + READY),
    "mixed": (lambda _: [ours()], PARSED + BOUND + COLUMNS + ROWS + LONG + COMPLETE + SETTING + PARSED + READY),
    "mixed that failed": (lambda _: [ours(), PASS], PARSED + BOUND + NOTIFIED + ERROR + READY + COMPLETE + READY),
    "row limits and empty texts": (lambda _: [PASS], ROWS + message(b"s") + message(b"I") + READY),
    "copies": (
        lambda _: [PASS, PASS],
        message(b"H", b"\0\0\0") + message(b"d", b"1\n") * 50 + message(b"c") + COMPLETE + READY
        + message(b"G", b"\0\0\0") + COMPLETE + READY,
    ),
    "unasked": (lambda _: [], SETTING + NOTIFIED + message(b"N", b"\0") + FATAL),
}  # fmt: skip


def play(name: str, cuts: Sequence[int]) -> tuple[bytes, list[tuple[object, ...]], list[object], object]:
    make, stream = STREAMS[name]
    connection, owner, _ = connect()
    done: list[object] = []
    for plan in make(lambda hidden: done.append((hidden.rows, hidden.error and hidden.error.sqlstate))):
        connection.send(b"", plan)
    last = 0
    for cut in [*sorted(set(cuts)), len(stream)]:
        if last < cut <= len(stream):
            connection.data_received(stream[last:cut])
            last = cut
    connection.connection_lost(None)
    return bytes(owner.forwarded), owner.calls, done, (connection.reported, connection.status)


@pytest.mark.parametrize("name", STREAMS)
def test_every_place_of_one_cut_gives_the_same(name: str) -> None:
    whole = play(name, [])
    for cut in range(len(STREAMS[name][1])):
        assert play(name, [cut]) == whole, cut


@pytest.mark.parametrize("name", STREAMS)
def test_byte_by_byte_gives_the_same(name: str) -> None:
    assert play(name, range(len(STREAMS[name][1]))) == play(name, [])


@settings(deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 5000), max_size=20))
def test_any_cuts_give_the_same(name: str, cuts: list[int]) -> None:
    assert play(name, cuts) == play(name, [])


def test_what_is_passed_on_is_unchanged_but_for_errors_and_process_ids() -> None:
    forwarded, calls, _, known = play("passed on", [])
    _, stream = STREAMS["passed on"]
    own = PgError("22012", "in the client's own words").to_error_response()
    assert forwarded == stream.replace(NOTIFIED, TOLD).replace(ERROR, own)
    assert [call[:2] for call in calls] == [
        ("parameter", "TimeZone"), ("complete", b"SELECT 3"), ("ready", "T"), ("error", "22012"), ("ready", "I"),
        ("lost", None),
    ]  # fmt: skip
    assert known == ({"TimeZone": "UTC"}, READY_IDLE)


def test_ours_stays_ours() -> None:
    forwarded, _, done, known = play("ours in between", [])
    assert forwarded == COLUMNS + ROWS + COMPLETE + READY + TOLD + LONG + COMPLETE + READY
    assert done == [([[b"ab"]] * 40, None)]
    assert known == ({"TimeZone": "UTC"}, READY_IDLE)


def test_mixed_replies_are_sorted_out() -> None:
    forwarded, *_ = play("mixed", [])
    assert forwarded == BOUND + COLUMNS + ROWS + LONG + COMPLETE + message(b"3") + SETTING + PARSED + READY


def test_a_fatal_error_while_idle_says_why_the_connection_is_lost() -> None:
    _, calls, _, _ = play("unasked", [])
    assert calls[-1] == ("lost", "57P01")


def test_a_connection_is_idle_when_nothing_is_owed_and_no_block_is_open() -> None:
    connection, _, _ = connect()
    assert connection.is_idle
    connection.send(b"", PASS)
    assert not connection.is_idle
    connection.data_received(IN_BLOCK)
    assert not connection.is_idle
    connection.send(b"", PASS)
    connection.data_received(READY)
    assert connection.is_idle
    connection.connection_lost(None)
    assert not connection.is_idle


def test_a_row_cut_in_half_is_known_to_be_cut() -> None:
    connection, owner, _ = connect()
    connection.send(b"", PASS)
    connection.data_received(LONG[:100])
    assert bytes(owner.forwarded) == LONG[:100]  # not kept back
    assert connection.is_mid_message
    connection.data_received(LONG[100:])
    assert not connection.is_mid_message


def test_a_lost_connection_tells_who_waits_once() -> None:
    connection, owner, _ = connect()
    failures: list[str] = []
    lost: list[BackendConnection] = []
    connection.on_lost = lost.append
    connection.send_hidden("SELECT 1", lambda hidden: failures.append(hidden.error.sqlstate if hidden.error else ""))
    for _ in range(2):
        connection.connection_lost(None)
    assert (failures, lost, owner.calls) == (["08006"], [connection], [("lost", None)])


def test_reading_is_paused_and_resumed_once() -> None:
    connection, _, wire = connect()
    for _ in range(2):
        connection.pause_reading()
    assert not wire.is_reading
    connection.close()
    assert wire.is_reading
    assert bytes(wire.sent) == b"X\0\0\0\4"
