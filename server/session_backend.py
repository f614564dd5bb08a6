"""A session's side of the engine: how it comes to a backend, hears its replies, and gives it back.

Implements the pool's `Waiter` and the engine's `BackendOwner`. On the query path: `with_backend`, `backend_ready`,
`release`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import cast

from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.expectations import PASS, Expected, HiddenReplies, MixedReplies, Reply
from protocol.scan import READY_IDLE, SYNC_BYTES, message
from server.context import SessionContext, must_await_replay, replay_sql
from server.errors import pool_error
from server.listen import transcoded
from server.prepared import BACKEND_NAME_PREFIX, forget_unnamed
from server.session_state import ACTIVE, BUSY, CLOSED, COPY_IN, IDLE, OPEN, WAITING, SessionState

_READY_BYTES = 6
_COPY_HIGH_BYTES = 1 << 20
"""What may wait for the engine during COPY before the client is paused: enough that neither side stops and starts."""


class BackendSide(SessionState):
    """Leases, replies, and what follows from them."""

    __slots__ = ()

    def pump(self) -> None:
        """Take runs from the inbox (the client's side)."""
        raise NotImplementedError

    def adjust_reading(self) -> None:
        """Read from the client, or not (the client's side)."""
        raise NotImplementedError

    # -- leasing ---------------------------------------------------------------------------------------------------

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
        self.adjust_reading()

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
        current = cast(SessionContext | None, backend.context)
        waits = must_await_replay(current, wanted)
        sql = replay_sql(current, wanted)
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
        if self.is_tainted:
            self.is_tainted = False
            self.block.release(backend, reusable=False)
        elif backend.cancels_in_flight:
            self.host.quarantine(self.me, backend)
        else:
            self.block.release(backend)

    # -- BackendOwner ----------------------------------------------------------------------------------------------

    def backend_chunk(self, chunk: bytes) -> None:
        """Reply bytes."""
        self.reply_started = True
        self.send(chunk)

    def backend_ready(self, chunk: bytes, status: int) -> None:
        """The run is over."""
        self.sent_bytes += len(chunk)
        stats = self.database.stats
        self.idle_since = perf_counter()
        stats.statement_ended(self.idle_since - self.run_started)
        self.status = status
        if self.observed is not None:
            pending = self.host.observer.after_run(self.me, self.run_error)
            self.run_error = None
            if pending is not None:
                self.phase = BUSY
                self.host.run_after(self.me, pending, chunk)
                return
        if self.effects is not None and self.effects.notified and self.channels and status == READY_IDLE:
            # What a session sends itself arrives before ReadyForQuery.
            self.phase = BUSY
            self.host.sync_listener(self.me, lambda: self.end_run(chunk) if self.is_open else None)
            return
        self.end_run(chunk)

    def end_run(self, chunk: bytes) -> None:
        """Give the client the last bytes of its run, ReadyForQuery among them, and go on."""
        status = self.status
        self.is_self_synced = False
        self.rewritten = None
        if self.notifications is not None and status == READY_IDLE:
            chunk = chunk[:-_READY_BYTES] + b"".join(self.notifications) + chunk[-_READY_BYTES:]
            self.notifications = None
        self.transport.write(chunk)
        if self._skip_bytes:
            self.is_tainted = True  # a CopyData message was cut in half: the backend still waits for its rest
        if status == READY_IDLE:
            self.transactions += 1
            if self.effects is not None:
                self.phase = BUSY
                self.effects.settle(self.me)
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
        if self.run_stack is not None:
            self.close_run_stack()
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
            self.adjust_reading()

    def backend_complete(self, tag: bytes | None) -> None:
        """A statement of the run completed."""
        if self.effects is not None:
            self.effects.completed(self.me, tag)
        if self.observed is not None:
            self.observed.completed(tag)

    def backend_error(self, error: PgError, raw: bytes) -> bytes:
        """The engine refused; the client gets its words, with its own names for prepared statements."""
        self.database.stats.count_error(error.sqlstate)
        if self.is_self_synced:
            self.is_skipping = True  # PostgreSQL would skip up to the client's own Sync
        if self.effects is not None:
            self.effects.failed(self.me)
        if self.observed is not None and self.run_error is None:
            self.run_error = error
        if self.run_is_extended and self.backend is not None:
            forget_unnamed(self, self.backend)
        if error.sqlstate == "0A000" and self.run_is_extended:
            self.database.bump_generation()  # a shared statement's result type changed: a fresh Parse gets a fresh one
        if self.rewritten is not None and error.position is not None:
            original, rewritten = self.rewritten
            error.position = rewritten.original_character(original, error.position)
            raw = error.to_error_response()
        if BACKEND_NAME_PREFIX in raw and self.prepared:
            return self._with_own_names(error)
        return raw

    def _with_own_names(self, error: PgError) -> bytes:
        # Names of one shared statement look the same to the engine: those that the run speaks of come first.
        items = sorted((self.prepared or {}).items(), key=lambda item: item[0] + b"\0" not in self.request)
        for name, statement in items:
            ours, theirs = statement.shared.name.decode(), name.decode(errors="replace")
            error.message = error.message.replace(f'"{ours}"', f'"{theirs}"')
        return error.to_error_response()

    def backend_parameter(self, name: str, value: str) -> None:
        """A reported setting changed under a statement of ours."""
        if self.reported.get(name) != value:
            self.reported = {**self.reported, name: value}
        self.tracker().reported(name)

    def backend_copy_in(self) -> None:
        """The engine waits for CopyData."""
        self.phase = COPY_IN
        backend = self.backend
        if backend is not None:
            backend.transport.set_write_buffer_limits(high=_COPY_HIGH_BYTES)
        if self.run_is_extended and backend is not None and backend.plans[0] is PASS:
            # The Sync that was sent is ignored during COPY: one more will come, and what follows the COPY before it.
            replies = MixedReplies()
            replies.push(Expected(Reply.EXECUTE))
            backend.plans[0] = replies
        if self.inbox:
            asyncio.get_running_loop().call_soon(self.pump)

    def backend_notifier(self, pid: int) -> int:
        """The session that sent a notification."""
        return self.host.virtual_pid(pid)

    def backend_lost(self, error: PgError | None) -> None:
        """The engine closed our backend."""
        backend, self.backend = self.backend, None
        is_cut = backend is not None and backend.is_mid_message
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
        if is_cut:
            self.end("engine lost")  # in the middle of a row: nothing more can be said
        elif phase is IDLE or phase is BUSY or not self.reply_started or error is None:
            self.fatal(error or PgError("57P02", "connection to the database engine was lost", severity="FATAL"))
        else:
            self.end("engine lost")

    def backend_pressure(self, *, is_high: bool) -> None:
        """The engine reads slowly, or does no more."""
        self._pressure = is_high
        self.adjust_reading()

    # -- errors and the end ----------------------------------------------------------------------------------------

    def fail_run(self, error: PgError) -> None:
        """Answer the current run with an error, without the engine; the session lives. Only outside a transaction."""
        self.database.stats.count_error(error.sqlstate)
        if self.observed is not None:
            pending = self.host.observer.after_run(self.me, error)
            if pending is not None:
                self.host.run_after(self.me, pending, b"")
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
        error.severity = error.severity_localized = "FATAL"
        if self.backend is None or not self.backend.is_mid_message:
            self.send(error.to_error_response())
        self.ended_by = error.sqlstate
        self.end(error.message)

    def end(self, reason: str) -> None:
        """End the session: the client's connection is closed, the backend is cleaned and given back."""
        if self.phase is CLOSED:
            return
        if self.run_stack is not None:
            self.close_run_stack()
        was_waiting = self.phase is WAITING
        self._left_in = self.phase
        self.phase = CLOSED
        self._then = None
        if was_waiting:
            self.block.cancel(self)
        backend, self.backend = self.backend, None
        self.inbox.clear()
        self.host.leave(self.me, backend, reason)
        if not self.transport.is_closing():
            self.transport.close()

    def notify(self, message_: bytes) -> None:
        """A NotificationResponse for the client: now, or when its transaction has ended."""
        if self.encoding is not None:
            message_ = transcoded(message_, self.encoding)
        if self.phase is IDLE and self.status == READY_IDLE:
            self.send(message_)
        elif self.phase is not CLOSED:
            if self.notifications is None:
                self.notifications = []
            self.notifications.append(message_)
