"""One client session after login: requests in, backend leased, replies out.

A session is a small state machine driven by callbacks of the event loop: no task and no await per statement. Requests
are taken one *run* at a time (a Query, or extended messages up to their Sync or Flush), because what one run did to the
session must be known before the next is sent. `Phase` says what the session waits for:

    IDLE      for the client                       WAITING   for a backend
    ACTIVE    for ReadyForQuery                    OPEN      for more of a pipeline whose Sync has not come
    COPY_IN   for the client's CopyData            BUSY      for something of our own (replay, settling, a special run)
    CLOSED    for nothing

The plain path (`_start_query`, `_start_extended`, `backend_ready`) is kept free of everything rare: what a statement
does to
the virtual session is `server.effects`, extended messages are rewritten in `server.extended`, statements that need
work before they may be forwarded go through `server.special`, and what is left behind by a client is cleaned in
`server.cleanup`.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from time import perf_counter
from typing import TYPE_CHECKING

from protocol.errors import PgError
from protocol.expectations import PASS, Action, Expected, MixedReplies, Reply
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
    READY_IDLE,
    SYNC_BYTES,
    length_at,
    skip_same_type,
)
from server.extended import EXTENDED_TYPES, RunBuilder, examine
from server.injected import (
    prepare_first,
    refusal_message,
    refusal_replies,
    refuse_within,
    statements_to_prepare,
)
from server.known_runs import start_known_run
from server.session_backend import BackendSide
from server.session_state import ACTIVE, BUSY, CLOSED, COPY_IN, IDLE, OPEN, READY
from server.statement_info import Needs, QueryInfo

if TYPE_CHECKING:
    from engine.connection import BackendConnection

_INBOX_HIGH_BYTES = 256 * 1024
_OPEN_RUN_BYTES = 64 * 1024
_QUERY_KEPT_BYTES = 1024
_LONG_TEXT_BYTES = 4096
_HOLD_SECONDS = 0.0005

_log = logging.getLogger(__name__)

_MALFORMED = (ValueError, IndexError, struct.error)

_LARGE_OBJECT_FUNCTIONS = frozenset({715, 764, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172})
"""OIDs of the built-in functions that libpq calls by FunctionCall."""


class ClientSession(BackendSide, asyncio.Protocol):
    """The virtual session of one client: its requests, run by run."""

    __slots__ = ()

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
                elif data[-5:] == SYNC_BYTES:
                    try:
                        if start_known_run(self, data):
                            return
                        facts = examine(self, data)
                        if facts is not None:
                            self._start_extended(data, facts)
                            return
                    except _MALFORMED:
                        self._refuse_malformed()
                        return
        elif self.phase is COPY_IN and not self.inbox:
            data = self._copy_in(data)
            if not data:
                return
        self.inbox += data
        self.pump()

    def pump(self) -> None:
        """Take runs from the inbox as long as the session may start one."""
        if self.is_pumping:
            return  # a run that was answered at once: the loop below us goes on
        self.is_pumping = True
        try:
            self._pump()
        except _MALFORMED:
            self._refuse_malformed()
        finally:
            self.is_pumping = False
        self.adjust_reading()

    def _refuse_malformed(self) -> None:
        """A message whose inside is not what its type says. Nobody knows what else the client gets wrong."""
        _log.warning("malformed message from session %d", self.pid, exc_info=True)
        self.fatal(PgError("08P01", "invalid message format"))

    def _pump(self) -> None:
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
            # Ahead of CopyInResponse, or left over from a COPY that failed: PostgreSQL drops the latter, and so do we.
            if self.phase is OPEN and self.backend is not None:
                self.backend.send_more(run)
        else:
            self._start_extended(run, examine(self, run) or (Needs.NOTHING, ()))

    def _skip_run(self, run: bytes) -> None:
        """After a local error in a pipeline everything up to Sync is dropped."""
        if run[0] == F_TERMINATE:
            self.end("terminate")
        elif run[-5:] == SYNC_BYTES or run[0] == F_SYNC:
            self.is_skipping = False
            self.send(READY[self.status])

    def _take_run(self) -> bytes | None:
        """The next whole run in the inbox, or None where more bytes are needed. Raises PgError 08P01."""
        inbox = self.inbox
        if self._skip_bytes:
            dropped = min(self._skip_bytes, len(inbox))
            del inbox[:dropped]
            self._skip_bytes -= dropped
        pos = 0
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
        if not pos:
            return None
        # Whole messages whose Sync has not come: PostgreSQL would execute them, and tell of an error, at once. Their
        # Sync is mostly a moment behind, and one run is cheaper than two.
        if pos < _OPEN_RUN_BYTES and not self.is_hold_over:
            if self.hold is None:
                self.hold = asyncio.get_running_loop().call_later(_HOLD_SECONDS, self._end_hold)
            return None
        self.is_hold_over = False
        return self._cut(pos)

    def _end_hold(self) -> None:
        """The Sync did not come in time: what is there goes without it."""
        self.hold = None
        self.is_hold_over = True
        self.pump()
        self.is_hold_over = False

    def _cut(self, end: int) -> bytes:
        run = bytes(self.inbox[:end])
        del self.inbox[:end]
        if self.hold is not None:
            self.hold.cancel()
            self.hold = None
        return run

    def _start_query(self, request: bytes) -> None:
        """A simple Query."""
        text = request[5:-1]
        info = self.database.infos.get(text)
        if info is None or self.encoding is not None:
            if len(text) > _LONG_TEXT_BYTES and self.database.is_slow(text):
                self._begin(text)
                self.phase = BUSY
                self.host.run_special(self, request, self.database.plain_info)
                return
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
        self.was_open = self.phase is OPEN
        self.statements += 1
        self.query = text if len(text) <= _QUERY_KEPT_BYTES else text[:_QUERY_KEPT_BYTES]
        self.run_started = self.last_request_at = self.idle_since = perf_counter()
        self.reply_started = False

    def send_query(self) -> None:
        """Forward the Query in `request`; the backend is leased and in our context."""
        backend = self.backend
        assert backend is not None
        assert self.request_info is not None
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
        self.run_is_extended = False
        if self.phase is OPEN:
            plan = backend.plans[-1]
            assert isinstance(plan, MixedReplies)
            plan.push(Expected(Reply.QUERY))
            backend.send_more(self.request)
            self._go_on()
            return
        self.phase = ACTIVE
        backend.statements += 1
        backend.send(self.request, PASS)

    def _start_extended(self, request: bytes, facts: tuple[Needs, tuple[bytes, ...]]) -> None:
        """A run of extended messages; in phase OPEN it continues the one before."""
        is_more = self.phase is OPEN
        if not is_more:
            self._begin(self.query)
        self.was_open = is_more
        needs, self.run_names = facts
        if needs or self.host.observer.is_active or self._must_read_first(request):
            self.phase = BUSY
            self.host.run_special(self, request, None)
            return
        self.request = request
        self.with_backend(self.send_extended)

    def _must_read_first(self, request: bytes) -> bool:
        """Whether the catalog or a long text has to be read before the run may go."""
        database = self.database
        return not database.is_current or (len(request) > _LONG_TEXT_BYTES and database.has_slow_text(request))

    def send_extended(self) -> None:
        """Forward the extended messages in `request`, with our names; the backend is leased and in our context."""
        backend = self.backend
        assert backend is not None
        if self.run_names and self.phase is not OPEN:
            missing = statements_to_prepare(self, backend, self.run_names)
            if missing:
                self.phase = BUSY
                prepare_first(backend, missing, self.database.max_prepared_statements, self._prepared_first)
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
            plan_ = builder.plan(is_synced=is_synced)
            if not is_synced and builder.only_prepares and self.request[-5:] == FLUSH_BYTES:
                # Parse and Describe up to a Flush: end the run ourselves, or an idle client would keep the backend.
                assert isinstance(plan_, MixedReplies)
                plan_.push(Expected(Reply.SYNC, Action.IGNORE))
                data += SYNC_BYTES
                is_synced = self.is_self_synced = True
            backend.send(data, plan_)
        self.phase = ACTIVE if is_synced else OPEN
        self._deliver_local_answers(backend)
        if not is_synced:
            self._go_on()

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
        backend = self.backend
        if self.was_open and backend is not None and backend.plans:
            plan = backend.plans[-1]
            assert isinstance(plan, MixedReplies)
            self.phase = ACTIVE if self.request[:1] == b"Q" or self.request[-5:] == SYNC_BYTES else OPEN
            refuse_within(plan, error, is_synced=self.phase is ACTIVE)
            backend.send_more(refusal_message() + (SYNC_BYTES if self.phase is ACTIVE else FLUSH_BYTES))
            self._go_on()
            return
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
            self._go_on()

    def _go_on(self) -> None:
        """The rest of a pipeline may have come while its beginning waited for a backend."""
        if self.phase is OPEN and self.inbox and not self.is_pumping:
            self.pump()

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

    # -- the transport ---------------------------------------------------------------------------------------------

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

    def adjust_reading(self) -> None:
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
