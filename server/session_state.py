"""What one session is: who it is, what it holds, and what it waits for. Plain data and the smallest questions about it.

The behaviour is in the two layers above: `server.session_backend` (the side of the engine) and `server.session` (the
side of
the client).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, cast

from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.scan import READY_IDLE
from server.context import SessionContext
from server.effects import EffectTracker
from server.local_statement import LocalNames
from server.prepared import VirtualStatement
from server.statement_info import Needs, PinReason, QueryInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AsyncExitStack

    from server.database import DatabaseState
    from server.extension.context import SessionInfo
    from server.front_door import Identity
    from server.observer import BoundPortal, ObservedRun, QueryObserver
    from server.pool.block import Block
    from server.session import ClientSession
    from server.virtual_pid import RewrittenText


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

READY = {status: b"Z\x00\x00\x00\x05" + bytes([status]) for status in b"ITE"}
"""ReadyForQuery by transaction status."""


class SessionHost(Protocol):
    """What a session needs of the server."""

    observer: QueryObserver
    max_message_bytes: int

    def run_special(self, session: ClientSession, request: bytes, info: QueryInfo | None) -> None:
        """Take over a run that needs work first; sets the session on its way again when done."""

    def run_judged(
        self, session: ClientSession, request: bytes, answer: Awaitable[bytes | None] | bytes | None
    ) -> None:
        """Go on with a simple Query that the hooks changed, answered, or have yet to decide about."""

    def run_after(self, session: ClientSession, pending: Awaitable[None], chunk: bytes) -> None:
        """Wait for those who must know before the client does, then `end_run`."""

    def run_ended(self, session: ClientSession, stack: AsyncExitStack) -> None:
        """Undo what was held until the end of a run."""

    def virtual_pid(self, pid: int) -> int:
        """The session that used a backend last."""

    def sync_listener(self, session: ClientSession, then: Callable[[], None]) -> None:
        """Call `then` when the session has every notification sent before now."""

    def leave(self, session: ClientSession, backend: BackendConnection | None, reason: str) -> None:
        """The session ended; `backend`, in whatever state, is to be cleaned and given back."""

    def quarantine(self, session: ClientSession, backend: BackendConnection) -> None:
        """Give the backend back once the cancel requests that were sent to it have settled."""

    def statement_settled(self, session: ClientSession, tracker: EffectTracker) -> None:
        """A transaction with effects beyond the session ended (catalog, roles, LISTEN): pass them on."""


class SessionState:
    """The data of one session, and questions that need nothing else."""

    __slots__ = (
        "__weakref__",
        "_is_paused",
        "_left_in",
        "_pressure",
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
        "hold",
        "host",
        "identity",
        "idle_since",
        "inbox",
        "info",
        "is_hold_over",
        "is_killed",
        "is_materialised",
        "is_pumping",
        "is_self_synced",
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
        "rewritten",
        "run_error",
        "run_is_extended",
        "run_names",
        "run_stack",
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
        "wants_own_names",
        "was_open",
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
        self.connected_at = now
        self.last_request_at = now
        self.idle_since = now
        self._start_empty()

    def _start_empty(self) -> None:
        """What every session begins with."""
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
        self.rewritten: tuple[bytes, RewrittenText] | None = None  # a text of this run with process ids in it
        self.request = b""
        self.request_info: QueryInfo | None = None
        self.query = b""
        self.sequence_backend: BackendConnection | None = None  # where this session's currval and lastval live
        self.is_materialised = False
        self.wants_own_names = False  # the next statement that needs it is_materialised finds it so, within its run
        self.is_pumping = False
        self.hold: asyncio.TimerHandle | None = None  # until then a run without its Sync is held
        self.is_hold_over = False
        self.is_self_synced = False  # the run ended in a Flush, and we added the Sync
        self.was_open = False  # the run in `request` continues one that was under way
        self.is_skipping = False  # a local error in a pipeline: messages up to Sync are dropped
        self.is_tainted = False  # the backend must not be used again
        self.is_killed = False
        self.ended_by = ""
        self.run_is_extended = False
        self.run_started = 0.0
        self.run_names: tuple[bytes, ...] = ()  # named statements that the run in `request` uses
        self.run_stack: AsyncExitStack | None = None
        self.reply_started = False
        self.wait_started = 0.0
        self.statements = 0
        self.transactions = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._then: Callable[[], None] | None = None
        self._left_in: Phase = IDLE
        self._skip_bytes = 0
        self._is_paused = False
        self._pressure = False

    def tracker(self) -> EffectTracker:
        """What the current transaction does to the session; made when first needed."""
        if self.effects is None:
            self.effects = EffectTracker()
        return self.effects

    def send(self, data: bytes) -> None:
        """Write to the client."""
        self.sent_bytes += len(data)
        self.transport.write(data)

    def send_ready(self) -> None:
        """ReadyForQuery of our own, with the session's status."""
        self.send(READY[self.status])

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
    def me(self) -> ClientSession:
        """This session as those outside know it: the whole of its layers."""
        return cast("ClientSession", self)

    def keep_until_run_ends(self, stack: AsyncExitStack) -> None:
        """`stack` is closed when the current run is over, however it ends."""
        self.run_stack = stack

    def close_run_stack(self) -> None:
        """The run is over."""
        stack, self.run_stack = self.run_stack, None
        if stack is not None:
            self.host.run_ended(self.me, stack)

    def can_borrow(self) -> bool:
        """Idle and without a backend."""
        return self.phase is IDLE and self.backend is None and not self.inbox

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
