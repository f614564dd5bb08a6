"""One client session after login: requests in, backend leased, replies out.

A session is a small state machine driven by callbacks of the event loop: no task and no await per statement. Requests
are taken one *run* at a time (a Query, or extended messages up to their Sync or Flush), because what one run did to the
session must be known before the next is sent. `Phase` says what the session waits for:

    IDLE      for the client                       WAITING   for a backend
    ACTIVE    for ReadyForQuery                    OPEN      for more of a pipeline whose Sync has not come
    COPY_IN   for the client's CopyData            BUSY      for something of our own (replay, settling, a special run)
    CLOSED    for nothing

The plain path (`_start_query`, `_start_extended`, `backend_ready`) is kept free of everything rare: what a statement does to
the virtual session is `server.effects`, extended messages are rewritten in `server.extended`, statements that need
work before they may be forwarded go through `server.special`, and what is left behind by a client is cleaned in `server.cleanup`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.expectations import PASS, HiddenReplies, MixedReplies
from protocol.scan import (
    F_COPY_DATA,
    F_COPY_DONE,
    F_COPY_FAIL,
    F_FLUSH,
    F_FUNCTION_CALL,
    F_QUERY,
    F_SYNC,
    F_TERMINATE,
    FLUSH_BYTES,
    FRONTEND_TYPES,
    HEADER_BYTES,
    READY_FAILED,
    READY_IDLE,
    SYNC_BYTES,
    length_at,
    message,
    skip_same_type,
)
from server.context import SessionContext, must_await_replay, replay_sql
from server.effects import EffectTracker
from server.errors import pool_error
from server.extended import (
    EXTENDED_TYPES,
    RunBuilder,
    is_one_run,
    prepare_first,
    refusal_message,
    refusal_replies,
    statements_to_prepare,
)
from server.local_statement import LocalNames
from server.prepared import VirtualStatement
from server.statement_info import Needs, PinReason, QueryInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from server.database import DatabaseState
    from server.extension.context import SessionInfo
    from server.front_door import Identity
    from server.observer import BoundPortal, ObservedRun, QueryObserver
    from server.pool.block import Block


class Phase(IntEnum):
    """What a session waits for; see the module's text."""

    IDLE = 0
    WAITING = 1
    ACTIVE = 2
    OPEN = 3
    COPY_IN = 4
    BUSY = 5
    CLOSED = 6


IDLE, WAITING, ACTIVE, OPEN, COPY_IN, BUSY, CLOSED = Phase

_INBOX_HIGH_BYTES = 256 * 1024
_OPEN_RUN_BYTES = 64 * 1024
_QUERY_KEPT_BYTES = 1024
_READY = {status: b"Z\x00\x00\x00\x05" + bytes([status]) for status in b"ITE"}

_LARGE_OBJECT_FUNCTIONS = frozenset({715, 764, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172})
"""OIDs of the built-in functions that libpq calls by FunctionCall."""


class SessionHost(Protocol):
    """What a session needs of the server."""

    observer: QueryObserver
    max_message_bytes: int

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run something of a session's own in a task that the server owns."""

    def run_special(self, session: ClientSession, request: bytes, info: QueryInfo | None) -> None:
        """Take over a run that needs work first; sets the session on its way again when done."""

    def run_judged(
        self, session: ClientSession, request: bytes, answer: Awaitable[bytes | None] | bytes | None
    ) -> None:
        """Go on with a simple Query that the hooks changed, answered, or have yet to decide about."""

    def run_after(self, session: ClientSession, pending: Awaitable[None], chunk: bytes) -> None:
        """Wait for those who must know before the client does, then `end_run`."""

    def leave(self, session: ClientSession, backend: BackendConnection | None, reason: str) -> None:
        """The session ended; `backend`, in whatever state, is to be cleaned and given back."""

    def quarantine(self, session: ClientSession, backend: BackendConnection) -> None:
        """Give the backend back once the cancel requests that were sent to it have settled."""

    def statement_settled(self, session: ClientSession, tracker: EffectTracker) -> None:
        """A transaction with effects beyond the session ended (catalog, roles, LISTEN): pass them on."""


class ClientSession(asyncio.Protocol):
    """The virtual session of one client. Implements the pool's `Waiter` and the engine's `BackendOwner`."""

    __slots__ = (
        "__weakref__",
        "_is_paused",
        "_left_in",
        "_pressure",
        "_scanned",
        "_skip_bytes",
        "_then",
        "backend",
        "baseline",
        "block",
        "bound",
        "channels",
        "connected_at",
        "context",
        "database",
        "defaults",
        "effects",
        "encoding",
        "ended_by",
        "host",
        "identity",
        "inbox",
        "info",
        "is_killed",
        "is_materialised",
        "is_skipping",
        "is_tainted",
        "last_request_at",
        "local_answers",
        "local_names",
        "notifications",
        "observed",
        "phase",
        "pid",
        "pins",
        "portals",
        "prepared",
        "protocol_version",
        "query",
        "received_bytes",
        "reply_started",
        "reported",
        "request",
        "request_info",
        "run_error",
        "run_is_extended",
        "run_started",
        "secret",
        "sent_bytes",
        "sequence_backend",
        "serial",
        "statements",
        "status",
        "transactions",
        "transport",
        "unnamed",
        "wait_started",
    )

    def __init__(
        self,
        *,
        host: SessionHost,
        transport: asyncio.Transport,
        identity: Identity,
        protocol_version: tuple[int, int],
        database: DatabaseState,
        block: Block[BackendConnection],
        context: SessionContext,
        reported: dict[str, str],
        defaults: dict[str, str],
        pid: int,
        serial: int,
        secret: bytes,
        now: float,
    ) -> None:
        self.host = host
        self.transport = transport
        self.identity = identity
        self.protocol_version = protocol_version
        self.database = database
        self.block = block
        self.context = context
        self.baseline = context
        self.reported = reported  # shared with other sessions until it changes; what the client was told
        self.defaults = defaults  # what a backend of this role and database reports without any SET
        self.pid = pid
        self.serial = serial
        self.secret = secret
        self.phase: Phase = IDLE
        self.status = READY_IDLE
        self.backend: BackendConnection | None = None
        self.effects: EffectTracker | None = None
        self.encoding: str | None = None  # Python codec of statement texts; None for UTF-8
        self.inbox = bytearray()
        self.pins: set[str] = set()
        self.prepared: dict[bytes, VirtualStatement] | None = None
        self.portals: dict[bytes, QueryInfo] | None = None
        self.unnamed: tuple[bytes, QueryInfo] | None = None
        self.local_names: LocalNames | None = None
        self.local_answers: dict[int, bytes | PgError] | None = None  # of the run in `request`, by offset
        self.channels: set[str] | None = None
        self.notifications: list[bytes] | None = None
        self.info: SessionInfo | None = None  # as features see it; made when first asked for
        self.observed: ObservedRun | None = None
        self.bound: dict[bytes, BoundPortal] | None = None  # kept only while somebody observes
        self.run_error: PgError | None = None
        self.request = b""
        self.request_info: QueryInfo | None = None
        self.query = b""
        self.sequence_backend: BackendConnection | None = None  # where this session's currval and lastval live
        self.is_materialised = False
        self.is_skipping = False  # a local error in a pipeline: messages up to Sync are dropped
        self.is_tainted = False  # the backend must not be used again
        self.is_killed = False
        self.ended_by = ""
        self.run_is_extended = False
        self.run_started = 0.0
        self.reply_started = False
        self.wait_started = 0.0
        self.connected_at = now
        self.last_request_at = now
        self.statements = 0
        self.transactions = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._then: Callable[[], None] | None = None
        self._left_in: Phase = IDLE
        self._scanned = 0
        self._skip_bytes = 0
        self._is_paused = False
        self._pressure = False

    # -- requests --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what the client sent."""
        size = len(data)
        self.received_bytes += size
        if self.phase is IDLE and not self.inbox and not self._skip_bytes and not self.is_skipping:
            if size > HEADER_BYTES:
                kind = data[0]
                if kind == F_QUERY:
                    if length_at(data, 1)[0] + 1 == size:
                        self._start_query(data)
                        return
                elif kind in EXTENDED_TYPES and data[-5:] == SYNC_BYTES and is_one_run(data):
                    self._start_extended(data)
                    return
        elif self.phase is COPY_IN and not self.inbox:
            data = self._copy_in(data)
            if not data:
                return
        self.inbox += data
        self.pump()

    def pump(self) -> None:
        """Take runs from the inbox as long as the session may start one."""
        while self.inbox:
            phase = self.phase
            if phase is COPY_IN:
                rest = self._copy_in(bytes(self.inbox))
                progress = len(rest) != len(self.inbox)
                self.inbox = bytearray(rest)
                if not progress:
                    break
                continue
            if phase is not IDLE and phase is not OPEN:
                break
            try:
                run = self._take_run()
            except PgError as error:
                self.fatal(error)
                return
            if run is None:
                break
            self._start_run(run)
        self._adjust_reading()

    def _start_run(self, run: bytes) -> None:
        """Dispatch one run by its first message."""
        kind = run[0]
        if self.is_skipping:
            self._skip_run(run)
        elif kind == F_QUERY:
            self._start_query(run)
        elif kind == F_TERMINATE:
            self.end("terminate")
        elif kind == F_FUNCTION_CALL:
            self._start_function_call(run)
        elif kind in (F_COPY_DATA, F_COPY_DONE, F_COPY_FAIL):
            return  # left over from a COPY that failed: PostgreSQL drops them too
        else:
            self._start_extended(run)

    def _skip_run(self, run: bytes) -> None:
        """After a local error in a pipeline everything up to Sync is dropped."""
        if run[0] == F_TERMINATE:
            self.end("terminate")
        elif run[-5:] == SYNC_BYTES or run[0] == F_SYNC:
            self.is_skipping = False
            self.send(_READY[self.status])

    def _take_run(self) -> bytes | None:
        """The next whole run in the inbox, or None where more bytes are needed. Raises PgError 08P01."""
        inbox = self.inbox
        if self._skip_bytes:
            dropped = min(self._skip_bytes, len(inbox))
            del inbox[:dropped]
            self._skip_bytes -= dropped
        pos = self._scanned
        end_of_data = len(inbox)
        while end_of_data - pos >= HEADER_BYTES:
            kind = inbox[pos]
            length = length_at(inbox, pos + 1)[0]
            if kind not in FRONTEND_TYPES:
                raise PgError("08P01", f"invalid frontend message type {kind}", severity="FATAL")
            if length < 4 or length > self.host.max_message_bytes:
                raise PgError("08P01", "invalid message length", severity="FATAL")
            end = pos + 1 + length
            if end > end_of_data:
                break
            if kind not in EXTENDED_TYPES:
                # A run of extended messages that is not ended yet goes first, without its Sync.
                return self._cut(end if pos == 0 else pos)
            pos = end
            if kind == F_SYNC or kind == F_FLUSH:
                return self._cut(end)
        if pos > _OPEN_RUN_BYTES:
            return self._cut(pos)
        self._scanned = pos
        return None

    def _cut(self, end: int) -> bytes:
        run = bytes(self.inbox[:end])
        del self.inbox[:end]
        self._scanned = 0
        return run

    def _start_query(self, request: bytes) -> None:
        """A simple Query."""
        text = request[5:-1]
        info = self.database.infos.get(text)
        if info is None or self.encoding is not None:
            info = self.database.analyse(text, self.encoding)
        self.request = request
        self.request_info = info
        self._begin(text)
        if not self.database.is_current or (not info.is_plain and self.needs_of(info)):
            self.phase = BUSY
            self.host.run_special(self, request, info)
            return
        if self.host.observer.is_active and self._observe_query(request, info):
            return
        self.with_backend(self.send_query)

    def _observe_query(self, request: bytes, info: QueryInfo) -> bool:
        """Ask the hooks. True where they took the statement over, or want to think about it."""
        try:
            answer = self.host.observer.before_query(self, request, info)
        except PgError as error:
            self.refuse_run(error)
            return True
        if answer is request:
            return False
        self.phase = BUSY
        self.host.run_judged(self, request, answer)
        return True

    def _begin(self, text: bytes) -> None:
        self.statements += 1
        self.query = text if len(text) <= _QUERY_KEPT_BYTES else text[:_QUERY_KEPT_BYTES]
        self.run_started = self.last_request_at = perf_counter()
        self.reply_started = False

    def send_query(self) -> None:
        """Forward the Query in `request`; the backend is leased and in our context."""
        backend = self.backend
        assert backend is not None and self.request_info is not None
        info = self.request_info
        if info.has_effects:
            tracker = self.tracker()
            for statement in info.statements:
                tracker.expect(statement.effects)
            backend.watch_completions = True
        if self.observed is not None:
            backend.watch_completions = True
        self.unnamed = None
        backend.unnamed = None
        if self.phase is OPEN:
            backend.send_more(self.request)
            return
        self.run_is_extended = False
        self.phase = ACTIVE
        backend.statements += 1
        backend.send(self.request, PASS)

    def _start_extended(self, request: bytes) -> None:
        """A run of extended messages; in phase OPEN it continues the one before."""
        if self.phase is not OPEN:
            self._begin(self.query)
            if self._is_special(request):
                self.phase = BUSY
                self.host.run_special(self, request, None)
                return
        self.request = request
        self.with_backend(self.send_extended)

    def _is_special(self, request: bytes) -> bool:
        """Whether a run needs more than rewriting names."""
        if self.host.observer.is_active or not self.database.is_current:
            return True
        return bool(self.database.needs_of_run(request, self))

    def needs_of(self, info: QueryInfo) -> Needs:
        """What a text needs in this session."""
        needs = info.needs
        if info.reads_sequence and PinReason.SEQUENCE_STATE not in self.pins:
            needs |= Needs.SEQUENCE
        if self.is_materialised:
            needs &= ~(Needs.MATERIALISE | Needs.LISTENER)
        return needs

    def advanced_sequence(self) -> None:
        """A statement may have advanced a sequence: currval and lastval live in this backend now."""
        self.sequence_backend = self.backend
        if self.identity.role in self.database.sequence_readers:
            self.pins.add(PinReason.SEQUENCE_STATE)

    def send_extended(self) -> None:
        """Forward the extended messages in `request`, with our names; the backend is leased and in our context."""
        backend = self.backend
        assert backend is not None
        if self.prepared and self.phase is not OPEN:
            missing = statements_to_prepare(self, backend, self.request)
            if missing:
                self.phase = BUSY
                prepare_first(backend, missing, self._prepared_first)
                return
        builder = RunBuilder(self, backend)
        answers, self.local_answers = self.local_answers, None
        builder.build(self.request, answers)
        data, is_synced = builder.finish()
        self.run_is_extended = True
        if self.phase is OPEN:
            plan = backend.plans[-1]
            assert isinstance(plan, MixedReplies)
            builder.extend(plan)
            backend.send_more(data)
        else:
            backend.statements += 1
            backend.send(data, builder.plan(is_synced=is_synced))
        self.phase = ACTIVE if is_synced else OPEN
        self._deliver_local_answers(backend)

    def _prepared_first(self, error: PgError | None) -> None:
        """What the run uses is on the backend now, or means something else than the client was told."""
        if self.phase is CLOSED:
            return
        self.phase = IDLE
        if error is None:
            self.send_extended()
            return
        self.database.bump_generation()
        self.refuse_run(error)

    def refuse_run(self, error: PgError) -> None:
        """Fail the run in `request` with our words, in the state PostgreSQL would leave the transaction in."""
        if self.status == READY_IDLE:
            if self.backend is not None and not self.pins:
                self.release()
            self.fail_run(error)
            return
        backend = self.backend
        assert backend is not None
        if self.request[:1] == b"Q":
            self.phase = ACTIVE
            backend.send(refusal_message() + SYNC_BYTES, refusal_replies(error))
        elif self.request[-5:] == SYNC_BYTES:
            self.phase = ACTIVE
            self.run_is_extended = True
            backend.send(refusal_message() + SYNC_BYTES, refusal_replies(error))
        else:
            self.phase = OPEN
            self.run_is_extended = True
            backend.send(refusal_message() + FLUSH_BYTES, refusal_replies(error, is_synced=False))

    def _deliver_local_answers(self, backend: BackendConnection) -> None:
        """Answers of ours at the head of the queue need no word from the engine to be due."""
        plan = backend.plans[-1] if backend.plans else None
        if isinstance(plan, MixedReplies) and len(backend.plans) == 1:
            answers = plan.local_answers()
            if answers:
                self.send(answers)

    def _start_function_call(self, request: bytes) -> None:
        """The fast-path FunctionCall: large objects are known to be harmless, what else there is may not be."""
        self._begin(b"<FunctionCall>")
        oid = int.from_bytes(request[5:9], "big")
        if oid not in _LARGE_OBJECT_FUNCTIONS:
            self.pins.add("FunctionCall of an unknown function")
        self.request = request
        self.request_info = self.database.plain_info
        self.with_backend(self.send_query)

    def _copy_in(self, data: bytes) -> bytes:
        """Forward CopyData; returns what does not belong to the COPY or is not complete."""
        backend = self.backend
        assert backend is not None
        pos = min(self._skip_bytes, len(data))
        self._skip_bytes -= pos
        while len(data) - pos >= HEADER_BYTES:
            kind = data[pos]
            end = pos + 1 + length_at(data, pos + 1)[0]
            if end > len(data):
                if kind == F_COPY_DATA and len(data) - pos >= _OPEN_RUN_BYTES:
                    self._skip_bytes = end - len(data)
                    pos = len(data)
                break
            if kind == F_COPY_DATA:
                pos = skip_same_type(data, end, kind)
                continue
            pos = end
            if kind == F_TERMINATE:
                self.end("terminate")
                return b""
            if kind not in (F_FLUSH, F_SYNC):
                self.phase = OPEN if self.run_is_extended else ACTIVE
                break
        backend.send_more(data if pos == len(data) else data[:pos])
        return data[pos:]

    # -- backends --------------------------------------------------------------------------------------------------

    def with_backend(self, then: Callable[[], None]) -> None:
        """Call `then` with a backend leased and brought into the session's context, now or later."""
        backend = self.backend
        if backend is None:
            backend = self.block.try_acquire(self.context)
            if backend is None:
                self._then = then
                self.phase = WAITING
                self.wait_started = perf_counter()
                self.block.wait(self)
                return
            backend.owner = self
            backend.last_session_pid = self.pid
            self.backend = backend
        if backend.context is not self.context and self.status == READY_IDLE and self.phase is not OPEN:
            self._replay(backend, then)
            return
        then()

    def granted(self, conn: BackendConnection) -> None:
        """The pool found a backend for us."""
        then, self._then = self._then, None
        if self.phase is CLOSED or then is None:
            self.block.release(conn)
            return
        self.database.stats.waited(perf_counter() - self.wait_started)
        self.phase = IDLE
        conn.owner = self
        conn.last_session_pid = self.pid
        self.backend = conn
        self.with_backend(then)
        self._adjust_reading()

    def failed(self, exc: BaseException) -> None:
        """The pool has no backend for us: the run fails, the session lives."""
        self._then = None
        if self.phase is CLOSED:
            return
        self.phase = IDLE
        self.fail_run(pool_error(exc))

    def _replay(self, backend: BackendConnection, then: Callable[[], None]) -> None:
        """Bring the backend's settings to ours: a unit of its own, in the same round trip where that is safe."""
        wanted = self.context
        waits = must_await_replay(backend.context, wanted)
        sql = replay_sql(backend.context, wanted)
        backend.context = wanted
        if not sql:
            then()
            return

        def replayed(reply: HiddenReplies) -> None:
            if reply.error is not None:
                backend.context = None
                self.is_tainted = True
                self.fatal(
                    PgError(
                        "08006", f"could not restore the session's settings: {reply.error.message}", severity="FATAL"
                    )
                )
                return
            self._report_differences(backend)
            if waits and self.phase is BUSY:
                self.phase = IDLE
                then()

        backend.send_hidden(sql, replayed)
        if waits:
            self.phase = BUSY
        else:
            then()

    def _report_differences(self, backend: BackendConnection) -> None:
        """Tell the client of reported settings that differ on this backend from what it was told last."""
        reported = backend.reported
        if reported == self.reported:
            return
        changed = [(name, value) for name, value in reported.items() if self.reported.get(name) != value]
        self.reported = dict(reported)
        self.send(b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in changed))

    def release(self) -> None:
        """Give the backend back: nothing is owed, no transaction is open, nothing pins."""
        backend = self.backend
        assert backend is not None
        self.backend = None
        backend.owner = None
        backend.watch_completions = False
        backend.resume_reading()
        if backend.cancels_in_flight:
            self.host.quarantine(self, backend)
        elif self.is_tainted:
            self.is_tainted = False
            self.block.release(backend, reusable=False)
        else:
            self.block.release(backend)

    def tracker(self) -> EffectTracker:
        """What the current transaction does to the session; made when first needed."""
        if self.effects is None:
            self.effects = EffectTracker()
        return self.effects

    # -- BackendOwner ----------------------------------------------------------------------------------------------

    def backend_chunk(self, chunk: bytes) -> None:
        """Reply bytes."""
        self.reply_started = True
        self.send(chunk)

    def backend_ready(self, chunk: bytes, status: int) -> None:
        """The run is over."""
        self.sent_bytes += len(chunk)
        stats = self.database.stats
        stats.statement_ended(perf_counter() - self.run_started)
        self.status = status
        if self.observed is not None:
            pending = self.host.observer.after_run(self, self.run_error)
            self.run_error = None
            if pending is not None:
                self.phase = BUSY
                self.host.run_after(self, pending, chunk)
                return
        self.end_run(chunk)

    def end_run(self, chunk: bytes) -> None:
        """Give the client the last bytes of its run, ReadyForQuery among them, and go on."""
        self.transport.write(chunk)
        status = self.status
        if self._skip_bytes:
            self.is_tainted = True  # a CopyData message was cut in half: the backend still waits for its rest
        if status == READY_IDLE:
            self.transactions += 1
            if self.effects is not None:
                self.phase = BUSY
                self.effects.settle(self)
                return
            if not self.pins:
                self.release()
        else:
            backend = self.backend
            if backend is not None:
                self.block.mark_long_held(backend)
        self.go_idle()

    def settled(self) -> None:
        """The engine has told what the ended transaction left behind; the session goes on."""
        self.effects = None
        backend = self.backend
        if backend is not None:
            backend.watch_completions = False
            if not self.pins:
                self.release()
            else:
                self.block.mark_long_held(backend)
        self.go_idle()

    def go_idle(self) -> None:
        """Ready for the next run."""
        if self.phase is CLOSED:
            return
        self.phase = IDLE
        if self.is_killed:
            self.fatal(PgError("57P01", "terminating connection due to administrator command", severity="FATAL"))
            return
        if self.notifications is not None and self.status == READY_IDLE:
            self.send(b"".join(self.notifications))
            self.notifications = None
        if self.inbox:
            self.pump()
        elif self._is_paused:
            self._adjust_reading()

    def backend_complete(self, tag: bytes | None) -> None:
        """A statement of the run completed."""
        if self.effects is not None:
            self.effects.completed(self, tag)
        if self.observed is not None:
            self.observed.completed(tag)

    def backend_error(self, error: PgError) -> None:
        """The engine refused; the client gets its words in the chunk that follows."""
        self.database.stats.count_error(error.sqlstate)
        if self.effects is not None:
            self.effects.failed()
        if self.observed is not None and self.run_error is None:
            self.run_error = error
        if error.sqlstate == "0A000" and self.run_is_extended:
            self.database.bump_generation()  # a shared statement's result type changed: a fresh Parse gets a fresh one

    def backend_parameter(self, name: str, value: str) -> None:
        """A reported setting changed under a statement of ours."""
        if self.reported.get(name) != value:
            self.reported = {**self.reported, name: value}
        self.tracker().reported(name)

    def backend_copy_in(self) -> None:
        """The engine waits for CopyData."""
        self.phase = COPY_IN
        if self.inbox:
            asyncio.get_running_loop().call_soon(self.pump)

    def backend_lost(self, error: PgError | None) -> None:
        """The engine closed our backend."""
        backend, self.backend = self.backend, None
        if backend is not None:
            self.block.release(backend, reusable=False)
        phase = self.phase
        self.is_tainted = False
        if phase is CLOSED:
            return
        may_live = phase is ACTIVE and not self.reply_started and self.status == READY_IDLE and not self.pins
        if error is None and may_live:
            self.effects = None
            self.fail_run(
                PgError(
                    "08006",
                    "connection to the database engine was lost",
                    detail="The statement may or may not have been executed.",
                )
            )
            return
        if phase is IDLE or phase is BUSY or not self.reply_started or error is None:
            self.fatal(error or PgError("57P02", "connection to the database engine was lost", severity="FATAL"))
        else:
            self.end("engine lost")

    def backend_pressure(self, *, is_high: bool) -> None:
        """The engine reads slowly, or does no more."""
        self._pressure = is_high
        self._adjust_reading()

    # -- the client's side -----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write to the client."""
        self.sent_bytes += len(data)
        self.transport.write(data)

    def send_ready(self) -> None:
        """ReadyForQuery of our own, with the session's status."""
        self.send(_READY[self.status])

    def fail_run(self, error: PgError) -> None:
        """Answer the current run with an error, without the engine; the session lives. Only outside a transaction."""
        self.database.stats.count_error(error.sqlstate)
        if self.observed is not None:
            pending = self.host.observer.after_run(self, error)
            if pending is not None:
                self.host.run_after(self, pending, b"")
        self.send(error.to_error_response())
        if self.request[:1] == b"Q" or self.request[-5:] == SYNC_BYTES:
            self.send_ready()
        else:
            self.is_skipping = True
        self.go_idle()

    def fatal(self, error: PgError) -> None:
        """Tell the client why, and end the session."""
        if self.phase is CLOSED:
            return
        error.severity = "FATAL"
        self.send(error.to_error_response())
        self.ended_by = error.sqlstate
        self.end(error.message)

    def end(self, reason: str) -> None:
        """End the session: the client's connection is closed, the backend is cleaned and given back."""
        if self.phase is CLOSED:
            return
        was_waiting = self.phase is WAITING
        self._left_in = self.phase
        self.phase = CLOSED
        self._then = None
        if was_waiting:
            self.block.cancel(self)
        backend, self.backend = self.backend, None
        self.inbox.clear()
        self.host.leave(self, backend, reason)
        if not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self.end("client lost")

    def pause_writing(self) -> None:
        """The client reads slowly: the engine has to wait."""
        if self.backend is not None:
            self.backend.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self.backend is not None:
            self.backend.resume_reading()

    def _adjust_reading(self) -> None:
        """Stop reading from the client while the engine is slow or much is waiting here; go on when neither is so."""
        waiting = len(self.inbox) > _INBOX_HIGH_BYTES and self.phase not in (IDLE, OPEN, COPY_IN, CLOSED)
        should_pause = self._pressure or waiting
        if should_pause == self._is_paused or self.phase is CLOSED or self.transport.is_closing():
            return
        self._is_paused = should_pause
        if should_pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def notify(self, message_: bytes) -> None:
        """A NotificationResponse for the client: now, or when its transaction has ended."""
        if self.phase is IDLE and self.status == READY_IDLE:
            self.send(message_)
        elif self.phase is not CLOSED:
            if self.notifications is None:
                self.notifications = []
            self.notifications.append(message_)

    @property
    def left_open(self) -> bool:
        """The session ended while its run had no Sync yet."""
        return self.run_is_extended and self._left_in in (OPEN, COPY_IN)

    @property
    def left_in_copy(self) -> bool:
        """The session ended while the engine waited for CopyData."""
        return self._left_in is COPY_IN

    @property
    def has_cut_copy(self) -> bool:
        """A CopyData message was forwarded in part."""
        return self._skip_bytes > 0 and self._left_in is COPY_IN

    @property
    def local(self) -> LocalNames:
        """Statements and portals that the server answers itself."""
        if self.local_names is None:
            self.local_names = LocalNames()
        return self.local_names

    @property
    def is_open(self) -> bool:
        """Not ended."""
        return self.phase is not CLOSED

    @property
    def idle_phase(self) -> Phase:
        """For those who must not import the phases."""
        return IDLE

    @property
    def busy_phase(self) -> Phase:
        """For those who must not import the phases."""
        return BUSY

    @property
    def is_in_failed_transaction(self) -> bool:
        """Only ROLLBACK will do."""
        return self.status == READY_FAILED
