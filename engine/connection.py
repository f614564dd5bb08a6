"""One connection to PostgreSQL after its login: bytes out, expected replies in.

A `BackendConnection` moves bytes and finds message boundaries; it knows no SQL, no session and no pool. Who leases it
(`owner`) is told of whole chunks and of the few replies that change something. What is sent pushes its `ReplyPlan`
first, so the connection always knows what PostgreSQL still owes: it is idle exactly when that queue is empty and the
last ReadyForQuery said `I`.

This is the query path: one call per received chunk, no object per message.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from protocol.errors import PgError
from protocol.expectations import PASS, Action, HiddenReplies, MixedReplies, ReplyPlan
from protocol.scan import (
    B_COMMAND_COMPLETE,
    B_COPY_DATA,
    B_COPY_IN,
    B_DATA_ROW,
    B_EMPTY_QUERY,
    B_ERROR,
    B_NOTIFICATION,
    B_PARAMETER_STATUS,
    B_PORTAL_SUSPENDED,
    B_READY,
    HEADER_BYTES,
    READY_IDLE,
    STREAMED,
    length_at,
    message,
    skip_same_type,
)

if TYPE_CHECKING:
    from collections.abc import Hashable


class BackendOwner(Protocol):
    """Who leases a backend. Called in the order of the stream; must not raise."""

    def backend_chunk(self, chunk: bytes) -> None:
        """Reply bytes for the client, not the last ones of the run."""

    def backend_ready(self, chunk: bytes, status: int) -> None:
        """The last bytes of the run, up to and with ReadyForQuery; `status` is I, T or E."""

    def backend_complete(self, tag: bytes | None) -> None:
        """A statement completed (`b""`: an empty one, None: its row limit was reached). Only while
        `watch_completions` is set.
        """

    def backend_error(self, error: PgError, raw: bytes) -> bytes:
        """The engine refused something of the client's; returns the ErrorResponse for the client, mostly `raw`."""

    def backend_parameter(self, name: str, value: str) -> None:
        """A reported setting changed; its bytes are in the chunk that follows."""

    def backend_copy_in(self) -> None:
        """The engine waits for CopyData."""

    def backend_notifier(self, pid: int) -> int:
        """The process id that clients know the sender of a notification by."""

    def backend_lost(self, error: PgError | None) -> None:
        """The connection is gone; `error` is the FATAL the engine sent, if it did."""

    def backend_pressure(self, *, is_high: bool) -> None:
        """The engine reads slower than it is sent to (COPY, large parameters)."""


class BackendConnection(asyncio.Protocol):
    """A logged-in backend. Made by `engine.connect.dial`; lives in a pool between leases."""

    __slots__ = (
        "_is_paused",
        "_lost_error",
        "_skip",
        "_skip_is_hidden",
        "_tail",
        "bytes_received",
        "bytes_sent",
        "cancels_in_flight",
        "connected_at",
        "context",
        "database",
        "is_lost",
        "last_session_pid",
        "on_lost",
        "owner",
        "pid",
        "plans",
        "prepared",
        "reported",
        "role",
        "seat",
        "secret",
        "statements",
        "status",
        "transport",
        "unnamed",
        "watch_completions",
    )

    def __init__(
        self,
        *,
        transport: asyncio.Transport,
        database: str,
        role: str,
        pid: int,
        secret: bytes,
        reported: dict[str, str],
        connected_at: float,
    ) -> None:
        self.transport = transport
        self.database = database
        self.role = role
        self.pid = pid
        self.secret = secret
        self.reported = reported
        self.connected_at = connected_at
        self.owner: BackendOwner | None = None
        self.on_lost: Callable[[BackendConnection], None] | None = None
        self.plans: deque[ReplyPlan] = deque()
        self.status = READY_IDLE
        self.context: object | None = None
        self.unnamed: object | None = None
        self.prepared: OrderedDict[Hashable, bytes] = OrderedDict()
        self.watch_completions = False
        self.cancels_in_flight = 0
        self.statements = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.last_session_pid = 0
        self.is_lost = False
        self.seat: Any = None  # the pool's bookkeeping; nothing to us
        self._tail = b""
        self._skip = 0
        self._skip_is_hidden = False
        self._is_paused = False
        self._lost_error: PgError | None = None

    # -- sending ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes, plan: ReplyPlan) -> None:
        """Send requests that end in one ReadyForQuery (or will, once their Sync follows by `send_more`)."""
        self.plans.append(plan)
        self.bytes_sent += len(data)
        self.transport.write(data)

    def send_more(self, data: bytes) -> None:
        """Send more of the run that is already expected: CopyData, the rest of a pipeline, its Sync."""
        self.bytes_sent += len(data)
        self.transport.write(data)

    def send_hidden(self, sql: str, done: Callable[[HiddenReplies], None]) -> None:
        """Run our own text by the simple protocol; `done` gets its rows and error. Drops the unnamed statement."""
        self.unnamed = None
        self.send(message(b"Q", sql.encode() + b"\0"), HiddenReplies(done))

    @property
    def is_idle(self) -> bool:
        """Nothing owed and no transaction open."""
        return not self.plans and self.status == READY_IDLE and not self.is_lost

    @property
    def is_mid_message(self) -> bool:
        """Part of a message was forwarded, and the rest has not come."""
        return self._skip > 0 and not self._skip_is_hidden

    def pause_reading(self) -> None:
        """The client reads slower than the engine sends."""
        if not self._is_paused and not self.is_lost:
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client has caught up."""
        if self._is_paused:
            self._is_paused = False
            if not self.is_lost:
                self.transport.resume_reading()

    def close(self) -> None:
        """Say Terminate and close."""
        if not self.is_lost and not self.transport.is_closing():
            self.resume_reading()
            self.transport.write(b"X\0\0\0\4")
            self.transport.close()

    def abort(self) -> None:
        """Close at once, in whatever state."""
        if not self.transport.is_closing():
            self.transport.abort()

    # -- receiving -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what PostgreSQL sent."""
        self.bytes_received += len(data)
        if self._tail:
            data = self._tail + data
            self._tail = b""
        while data:
            if not self.plans:
                data = self._receive_unsolicited(data)
                continue
            plan = self.plans[0]
            if plan is PASS:
                data = self._relay(data)
            elif isinstance(plan, HiddenReplies):
                data = self._receive_hidden(data, plan)
            else:
                assert isinstance(plan, MixedReplies)
                data = self._relay_mixed(data, plan)

    def _relay(self, data: bytes) -> bytes:
        """Forward up to ReadyForQuery; returns what follows it."""
        end_of_data = len(data)
        pos = self._skip
        if pos > end_of_data:
            self._skip = pos - end_of_data
            self._forward(data)
            return b""
        self._skip = 0
        unpack = length_at
        while end_of_data - pos >= HEADER_BYTES:
            kind = data[pos]
            end = pos + 1 + unpack(data, pos + 1)[0]
            if end > end_of_data:
                if kind in STREAMED:
                    self._skip = end - end_of_data
                    pos = end_of_data
                break
            if kind == B_DATA_ROW or kind == B_COPY_DATA:
                pos = skip_same_type(data, end, kind)
                continue
            if kind == B_READY:
                status = data[pos + 5]
                self.status = status
                self.plans.popleft()
                owner = self.owner
                if end == end_of_data:
                    if owner is not None:
                        owner.backend_ready(data, status)
                    return b""
                if owner is not None:
                    owner.backend_ready(data[:end], status)
                return data[end:]
            if kind == B_COMMAND_COMPLETE:
                if self.watch_completions and self.owner is not None:
                    self.owner.backend_complete(data[pos + HEADER_BYTES : end - 1])
            elif kind == B_NOTIFICATION:
                data = data[:pos] + self._with_virtual_pid(data[pos:end]) + data[end:]
            elif kind == B_ERROR:
                shown = self._error(data[pos:end])
                data = data[:pos] + shown + data[end:]
                end = pos + len(shown)
                end_of_data = len(data)
            else:
                self._notice_reply(kind, data, pos, end)
            pos = end
        if pos == end_of_data:
            self._forward(data)
        else:
            self._tail = data[pos:]
            if pos:
                self._forward(data[:pos])
        return b""

    def _relay_mixed(self, data: bytes, plan: MixedReplies) -> bytes:
        """Forward, drop or replace reply by reply; returns what follows ReadyForQuery."""
        out: list[bytes] = [plan.local_answers()]
        end_of_data = len(data)
        pos = min(self._skip, end_of_data)
        if pos:
            if not self._skip_is_hidden:
                out.append(data[:pos])
            self._skip -= pos
        while end_of_data - pos >= HEADER_BYTES:
            kind = data[pos]
            end = pos + 1 + length_at(data, pos + 1)[0]
            if end > end_of_data:
                if kind == B_DATA_ROW or kind == B_COPY_DATA:
                    out.append(data[pos:])
                    self._skip = end - end_of_data
                    self._skip_is_hidden = False
                    pos = end_of_data
                break
            if kind == B_DATA_ROW or kind == B_COPY_DATA:
                end = skip_same_type(data, end, kind)
                out.append(data[pos:end])
                pos = end
                continue
            raw = data[pos:end]
            if kind == B_NOTIFICATION:
                raw = self._with_virtual_pid(raw)
            elif kind == B_ERROR:
                raw = self._error(raw)
            is_ours = bool(plan.queue) and plan.queue[0].action is Action.IGNORE
            out.append(plan.receive(kind, raw))
            out.append(plan.local_answers())
            if kind == B_READY:
                self.status = data[pos + 5]
                if not plan.queue:
                    self.plans.popleft()
                    if self.owner is not None:
                        self.owner.backend_ready(b"".join(out), self.status)
                    return data[end:]
                pos = end
                continue
            if kind == B_COMMAND_COMPLETE:
                if self.watch_completions and self.owner is not None and not is_ours:
                    self.owner.backend_complete(data[pos + HEADER_BYTES : end - 1])
            else:
                self._notice_reply(kind, data, pos, end)
            pos = end
        self._tail = data[pos:]
        chunk = b"".join(out)
        if chunk:
            self._forward(chunk)
        return b""

    def _receive_hidden(self, data: bytes, plan: HiddenReplies) -> bytes:
        """Keep our own statement's reply; returns what follows its ReadyForQuery."""
        pos = 0
        while len(data) - pos >= HEADER_BYTES:
            kind = data[pos]
            end = pos + 1 + length_at(data, pos + 1)[0]
            if end > len(data):
                break
            if kind == B_READY:
                self.status = data[pos + 5]
                self.plans.popleft()
                plan.done(plan)
                return data[end:]
            body = data[pos + HEADER_BYTES : end]
            if kind == B_PARAMETER_STATUS:
                name, value = _parameter(body)
                self.reported[name] = value
            elif kind == B_ERROR:
                plan.receive(kind, body)
                self._remember_fatal(plan.error)
            elif kind == B_NOTIFICATION:
                self._forward(self._with_virtual_pid(data[pos:end]))
            else:
                plan.receive(kind, body)
            pos = end
        self._tail = data[pos:]
        return b""

    def _receive_unsolicited(self, data: bytes) -> bytes:
        """What PostgreSQL sends while idle: settings, notices, notifications, or why it is about to close."""
        pos = 0
        while len(data) - pos >= HEADER_BYTES:
            kind = data[pos]
            end = pos + 1 + length_at(data, pos + 1)[0]
            if end > len(data):
                break
            body = data[pos + HEADER_BYTES : end]
            if kind == B_PARAMETER_STATUS:
                name, value = _parameter(body)
                self.reported[name] = value
                if self.owner is not None:
                    self.owner.backend_parameter(name, value)
                    self.owner.backend_chunk(data[pos:end])
            elif kind == B_ERROR:
                self._remember_fatal(PgError.from_body(body))
            elif self.owner is not None:
                raw = data[pos:end]
                self.owner.backend_chunk(self._with_virtual_pid(raw) if kind == B_NOTIFICATION else raw)
            pos = end
        self._tail = data[pos:]
        return b""

    def _notice_reply(self, kind: int, data: bytes, pos: int, end: int) -> None:
        """The rarer replies of a client's run that change something."""
        owner = self.owner
        if kind == B_PARAMETER_STATUS:
            name, value = _parameter(data[pos + HEADER_BYTES : end])
            self.reported[name] = value
            if owner is not None:
                owner.backend_parameter(name, value)
        elif kind == B_COPY_IN:
            if owner is not None:
                owner.backend_copy_in()
        elif self.watch_completions and owner is not None:
            if kind == B_EMPTY_QUERY:
                owner.backend_complete(b"")
            elif kind == B_PORTAL_SUSPENDED:
                owner.backend_complete(None)

    def _error(self, raw: bytes) -> bytes:
        """An ErrorResponse of a client's run: told to the owner, and in the words the client should see."""
        error = PgError.from_body(raw[HEADER_BYTES:])
        self._remember_fatal(error)
        return raw if self.owner is None else self.owner.backend_error(error, raw)

    def _with_virtual_pid(self, notification: bytes) -> bytes:
        """A NotificationResponse with the sender's process id as clients know it."""
        if self.owner is None:
            return notification
        pid = self.owner.backend_notifier(int.from_bytes(notification[5:9], "big"))
        return notification[:5] + pid.to_bytes(4, "big") + notification[9:]

    def _forward(self, chunk: bytes) -> None:
        if self.owner is not None:
            self.owner.backend_chunk(chunk)

    def _remember_fatal(self, error: PgError | None) -> None:
        if error is not None and error.severity in ("FATAL", "PANIC"):
            self._lost_error = error

    # -- the transport's other calls -------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """PostgreSQL reads slowly: the client must wait."""
        if self.owner is not None:
            self.owner.backend_pressure(is_high=True)

    def resume_writing(self) -> None:
        """PostgreSQL reads again."""
        if self.owner is not None:
            self.owner.backend_pressure(is_high=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone: tell who leases it, and who keeps it."""
        if self.is_lost:
            return
        self.is_lost = True
        owner, self.owner = self.owner, None
        hidden = [plan for plan in self.plans if isinstance(plan, HiddenReplies)]
        self.plans.clear()
        lost = self._lost_error or PgError("08006", "connection to the database engine was lost", severity="FATAL")
        if owner is not None:
            owner.backend_lost(self._lost_error)
        for plan in hidden:
            plan.error = lost
            plan.done(plan)
        if self.on_lost is not None:
            self.on_lost(self)


def _parameter(body: bytes) -> tuple[str, str]:
    """Name and value of a ParameterStatus body."""
    name, _, rest = body.partition(b"\0")
    return name.decode(errors="replace"), rest[:-1].decode(errors="replace")
