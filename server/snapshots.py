"""Plain-data views of the running server, and the few verbs an operator has.

What `SHOW ...`, `/metrics` and the dashboard read. The core fills them; nothing here knows how.
All counters are totals since start unless said; durations are microseconds where the name ends in `_us`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """One client session. `pid` is the virtual process id that the client was given."""

    pid: int
    role: str
    database: str
    application_name: str
    state: str  # PgBouncer's words: active, waiting, idle, idle_in_transaction, pinned
    client_addr: str
    client_port: int
    local_addr: str
    tls: str | None
    connected_at: float  # seconds since the epoch
    last_request_at: float
    wait_us: int  # current wait for a backend; 0 when not waiting
    backend_pid: int | None  # engine process id of the leased backend
    pins: tuple[str, ...]
    prepared_statements: int
    statements: int
    query: str  # last statement text, cut to 1024 characters
    context_id: int
    replication: bool


@dataclass(frozen=True, slots=True)
class BackendSnapshot:
    """One connection to the engine. `session_pid` is the virtual pid of the session that leases it, if any."""

    pid: int
    role: str
    database: str
    state: str  # PgBouncer's words: active, idle, used, tested, new, being_canceled
    connected_at: float
    released_at: float
    session_pid: int | None
    prepared_statements: int
    statements: int
    context_id: int


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One (database, role) pool, in the columns of PgBouncer's SHOW POOLS."""

    database: str
    role: str
    sessions_active: int
    sessions_waiting: int
    backends_active: int
    backends_idle: int
    backends_pinned: int
    backends_connecting: int
    max_wait_us: int
    pool_size: int
    paused: bool


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Totals of one database, in the columns of PgBouncer's SHOW STATS."""

    database: str
    transactions: int
    statements: int
    bytes_received: int
    bytes_sent: int
    transaction_time_us: int
    statement_time_us: int
    wait_time_us: int
    errors: int
    parses: int  # Parse messages of clients
    prepares: int  # Parse messages sent to backends


class ServerControl(Protocol):
    """What an administrator can look at and do. Implemented by the composition root."""

    def sessions(self) -> list[SessionSnapshot]: ...
    def backends(self) -> list[BackendSnapshot]: ...
    def pools(self) -> list[PoolSnapshot]: ...
    def stats(self) -> list[PoolStats]: ...

    async def pause(self, database: str | None) -> None:
        """Stop giving out backends; returns when the leased ones are back (PgBouncer's PAUSE)."""

    def resume(self, database: str | None) -> None: ...

    def reconnect(self, database: str | None) -> None:
        """Close every backend as soon as it is released (PgBouncer's RECONNECT)."""

    async def reload(self) -> list[str]:
        """Read the configuration again; returns the names of the settings that changed."""

    def kill_session(self, pid: int) -> bool:
        """End a session with 57P01; False where no such session is."""

    def shutdown(self, mode: str) -> None:
        """`wait_for_servers`, `wait_for_clients` or `immediate`, as PgBouncer's SHUTDOWN."""

    def version(self) -> str: ...
    def engine_version(self) -> str: ...
    def started_at(self) -> float: ...
    def is_ready(self) -> bool: ...
    def loop_lag_us(self) -> tuple[int, int]:
        """Median and 99th percentile of the event loop's lag over the last minute."""
