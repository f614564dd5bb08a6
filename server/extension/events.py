"""Every event of the server, on one page. An event is a fact: past tense, never changed, nothing is asked by it.

The core publishes them on `bus.EventBus`; features, metrics and logs subscribe. The docstring of a class is its line in
docs/hooks-and-events.md. Durations are integers of microseconds (`_us`) or nanoseconds (`_ns`), moments are seconds
since the epoch (`_at`), sizes are bytes (`_bytes`). `ALL_EVENTS` at the end is the list that the documentation and SHOW
EVENTS go by.

An event with `inline = True` can be waited for: an inline subscriber finishes before the server goes on, and can
refuse. The others are published where nothing can wait (a connection is already lost) and are delivered buffered only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from server.extension.context import QueryContext, SessionInfo
from server.extension.facts import fact


class Event:
    """Base of all events. `inline` says whether a subscriber can make the server wait for it."""

    __slots__ = ()
    inline: ClassVar[bool] = False


class Verdict(enum.Enum):
    """What the hooks decided before a statement ran."""

    CONTINUE = "continue"
    REWRITE = "rewrite"
    ANSWER = "answer"
    DENY = "deny"


class Outcome(enum.Enum):
    """How a statement ended. UNKNOWN: the backend was lost when it may have run."""

    OK = "ok"
    ERROR = "error"
    DENIED = "denied"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class TransactionOutcome(enum.Enum):
    """How a transaction ended.

    PREPARED: two-phase, not yet decided. UNKNOWN counts as committed wherever that is the safe side.
    """

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    PREPARED = "prepared"
    UNKNOWN = "unknown"


class CacheUse(enum.Enum):
    """Whether an answer came from a cache. BYPASS: no cache was asked."""

    BYPASS = "bypass"
    HIT = "hit"
    MISS = "miss"


# Sessions


@dataclass(frozen=True, slots=True)
class AuthenticationFailed(Event):
    """A client did not prove who it is, or was refused before it could:

    wrong password, unknown role, host rule, limit, expired.
    """

    inline: ClassVar[bool] = True
    role: str  # as claimed
    database: str  # as asked for
    auth_method: str
    client_addr: str
    client_port: int
    tls: str | None
    application_name: str
    sqlstate: str
    reason: str  # for the operator; the client was told less
    is_throttled: bool
    at: float


@dataclass(frozen=True, slots=True)
class SessionAuthenticated(Event):
    """A client proved who it is. Inline subscribers finish before it is told so."""

    inline: ClassVar[bool] = True
    session: SessionInfo
    duration_us: int  # from accept to proof
    at: float


@dataclass(frozen=True, slots=True)
class SessionOpened(Event):
    """A session took its first ReadyForQuery: the client can send statements."""

    session: SessionInfo
    at: float


@dataclass(frozen=True, slots=True)
class SessionClosed(Event):
    """A session is over, whatever ended it."""

    session: SessionInfo
    reason: str  # "terminate", "client lost", "killed", "timeout", "shutdown", "protocol violation", "engine lost", ...
    sqlstate: str | None  # of the FATAL error that ended it, if any
    duration_us: int
    statements: int
    transactions: int
    received_bytes: int
    sent_bytes: int
    had_open_transaction: bool
    at: float


@dataclass(frozen=True, slots=True)
class SessionKilled(Event):
    """An administrator, a limit or a feature ended a session."""

    session: SessionInfo
    killed_by: str  # role of the administrator, or name of the feature
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class SessionContextChanged(Event):
    """The settings or the role of a session changed (SET, RESET, SET ROLE, set_config)."""

    session: SessionInfo
    old_context_id: int
    new_context_id: int
    names: tuple[str, ...]  # settings that changed
    current_role: str
    at: float


# Statements


@fact
class QueryStarted(Event):
    """A statement is about to run, be answered from a cache, or be denied. Published for every statement, after the
    hooks decided.

    Inline subscribers finish before anything is sent to the engine or to the client."""

    inline: ClassVar[bool] = True
    query: QueryContext
    verdict: Verdict
    decided_by: str  # hook that denied, answered or rewrote; "" where none did
    reason: str  # its reason, "" where none did


@fact
class QueryFinished(Event):
    """A statement is over and its last byte is ready for the client.

    Inline subscribers finish before ReadyForQuery is written.
    """

    inline: ClassVar[bool] = True
    query: QueryContext
    outcome: Outcome
    sqlstate: str | None  # of the error, if any
    command_tag: str  # e.g. "INSERT 0 1"; of the last statement of a text; "" where none completed
    rows: int  # DataRow or CopyData messages relayed, either way
    sent_bytes: int  # to the client
    received_bytes: int  # from the client, COPY data included
    duration_us: int  # from the last byte of the request to the last byte of the reply
    wait_us: int  # of it, waiting for a backend
    backend_pid: int | None  # None where the engine was not asked
    transaction_status: str  # "I", "T" or "E" afterwards
    cache: CacheUse
    is_suspended: bool  # PortalSuspended: a row limit ended it, more rows may be asked for


@dataclass(frozen=True, slots=True)
class QueryCancelled(Event):
    """A cancel was carried out: a client's CancelRequest, an administrator's, or a limit's."""

    session: SessionInfo
    query_id: int | None  # None: nothing ran when it arrived
    requested_by: str  # "client", role of an administrator, or name of a feature
    at: float


@dataclass(frozen=True, slots=True)
class TransactionEnded(Event):
    """A transaction ended, and with it all its statements.

    Inline subscribers finish before ReadyForQuery is written.
    """

    inline: ClassVar[bool] = True
    session: SessionInfo
    outcome: TransactionOutcome
    transaction_id: int | None  # xid8, where it was learned
    gid: str | None  # global id of a two-phase transaction
    is_block: bool  # False: one statement or pipeline in its implicit transaction
    statements: int
    first_query_id: int
    last_query_id: int
    duration_us: int
    at: float


# Backends and the engine


@dataclass(frozen=True, slots=True)
class BackendConnected(Event):
    """A new connection to the engine is ready."""

    backend_pid: int
    role: str
    database: str
    duration_us: int
    at: float


@fact
class BackendAcquired(Event):
    """A session was given a backend."""

    session: SessionInfo
    backend_pid: int
    wait_us: int
    at: float


@fact
class BackendReleased(Event):
    """A session gave its backend back."""

    session: SessionInfo
    backend_pid: int
    held_us: int
    statements: int
    was_reset: bool  # cleaned before the next session gets it
    at: float


@dataclass(frozen=True, slots=True)
class BackendLost(Event):
    """A connection to the engine ended: closed by us, by the engine, or broken."""

    backend_pid: int
    role: str
    database: str
    session: SessionInfo | None  # who held it
    reason: str
    is_expected: bool  # True: lifetime, idle time, RECONNECT, drain
    at: float


@dataclass(frozen=True, slots=True)
class EngineStarted(Event):
    """The engine accepts connections:

    at start, and after it came back. Everything cached of the engine before is void.
    """

    version: str
    version_num: int
    system_identifier: str
    epoch: int  # counts engine lives seen by this server
    duration_us: int
    at: float


@dataclass(frozen=True, slots=True)
class EngineLost(Event):
    """The engine does not accept connections any more."""

    reason: str
    epoch: int
    is_expected: bool  # we stopped it
    at: float


@dataclass(frozen=True, slots=True)
class SchemaChanged(Event):
    """The catalog of a database changed, or may have:

    DDL, GRANT, roles, or a statement that could not be understood.
    """

    database: str  # "" where all databases are concerned (roles)
    generation: int  # catalog generation afterwards
    command_tag: str
    relations: frozenset[tuple[str, str]]  # as named in the statement; empty where unknown
    is_roles: bool  # roles, memberships, passwords, ALTER ROLE | DATABASE ... SET
    query_id: int | None
    at: float


# The server


@dataclass(frozen=True, slots=True)
class ServerStarted(Event):
    """The server accepts clients."""

    version: str
    listen: tuple[str, ...]
    features: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class ServerStopping(Event):
    """The server stopped accepting clients and is going to end."""

    mode: str  # "wait_for_servers", "wait_for_clients", "immediate"
    requested_by: str  # role of the administrator, or "SIGTERM", "SIGINT"
    at: float


@dataclass(frozen=True, slots=True)
class ConfigReloaded(Event):
    """The configuration was read again. Inline subscribers finish before the caller is told."""

    inline: ClassVar[bool] = True
    changed: tuple[str, ...]  # names of settings that have another value now
    pending_restart: tuple[str, ...]
    requested_by: str
    at: float


@dataclass(frozen=True, slots=True)
class AdminCommandStarted(Event):
    """An admin command passed the parser and the role check and is about to run.

    Inline subscribers finish before it does.
    """

    inline: ClassVar[bool] = True
    command: str
    text: str
    role: str
    session_id: int
    at: float


@dataclass(frozen=True, slots=True)
class AdminCommandRun(Event):
    """An admin command ended, or was refused. Inline subscribers finish before its result is written."""

    inline: ClassVar[bool] = True
    command: str
    text: str
    role: str
    session_id: int
    outcome: Outcome
    sqlstate: str | None
    rows: int
    duration_us: int
    at: float


@dataclass(frozen=True, slots=True)
class FeatureFailed(Event):
    """A feature could not start, or one of its hooks or subscribers raised."""

    feature: str
    where: str  # "setup", "start", "stop", "hook before_query", "event QueryFinished", ...
    error: str
    is_fatal: bool  # the server refused to start, or the statement was denied
    at: float


ALL_EVENTS: tuple[type[Event], ...] = (
    AuthenticationFailed,
    SessionAuthenticated,
    SessionOpened,
    SessionClosed,
    SessionKilled,
    SessionContextChanged,
    QueryStarted,
    QueryFinished,
    QueryCancelled,
    TransactionEnded,
    BackendConnected,
    BackendAcquired,
    BackendReleased,
    BackendLost,
    EngineStarted,
    EngineLost,
    SchemaChanged,
    ServerStarted,
    ServerStopping,
    ConfigReloaded,
    AdminCommandStarted,
    AdminCommandRun,
    FeatureFailed,
)
