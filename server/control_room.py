"""`ServerControl`: what an operator can look at and do, over the running parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from protocol.errors import PgError
from server.metrics_collector import CacheCounters
from server.session import ClientSession
from server.session_state import Phase
from server.snapshots import BackendSnapshot, PoolSnapshot, PoolStats, SessionSnapshot

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.hub import SessionHub
    from server.loop_lag import LoopLagMonitor

_STATUS_IDLE = 0x49
_SHOWN_QUERY_BYTES = 1024


class ControlRoom:
    """Implements `server.snapshots.ServerControl`."""

    def __init__(
        self,
        hub: SessionHub,
        lag: LoopLagMonitor,
        *,
        version: str,
        reload: Callable[[], Awaitable[list[str]]],
        shutdown: Callable[[str], None],
        is_ready: Callable[[], bool],
    ) -> None:
        self._hub = hub
        self._lag = lag
        self._version = version
        self._reload = reload
        self._shutdown = shutdown
        self._is_ready = is_ready
        self._started_at = time.time()
        self._clock_offset = time.time() - perf_counter()
        self._monotonic_offset = time.time() - time.monotonic()  # the pool's clock

    def sessions(self) -> list[SessionSnapshot]:
        """All client sessions."""
        return [self._session(session) for session in self._hub.sessions.values()]

    def backends(self) -> list[BackendSnapshot]:
        """All backends."""
        return [self._backend(backend) for backend in self._hub.backends.by_pid.values()]

    def pools(self) -> list[PoolSnapshot]:
        """All pools, with the sessions the pool itself does not know of."""
        return self._hub.pool.snapshot()

    def stats(self) -> list[PoolStats]:
        """Totals of all databases."""
        live: dict[str, list[ClientSession]] = {}
        for session in self._hub.sessions.values():
            live.setdefault(session.database.name, []).append(session)
        return [state.stats.snapshot(state.name, live.get(state.name, ())) for state in self._hub.databases.values()]

    def session_counts(self) -> dict[tuple[str, str], int]:
        """How many sessions each database has in each state."""
        counts: dict[tuple[str, str], int] = {}
        for session in self._hub.sessions.values():
            key = (session.database.name, _state(session))
            counts[key] = counts.get(key, 0) + 1
        return counts

    def analysis_cache(self) -> CacheCounters:
        """How often a text had been analysed before."""
        statements = sum(state.stats.statements for state in self._hub.databases.values())
        entries = sum(len(state.infos) for state in self._hub.databases.values())
        misses = self._hub.analyses
        return CacheCounters(max(0, statements - misses), misses, entries)

    async def pause(self, database: str | None) -> None:
        """Stop giving out backends; returns when the leased ones are back. Raises PgError 3D000."""
        if database is not None and not await self._hub.cluster.control.fetchval(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)", database
        ):
            raise PgError("3D000", f'database "{database}" does not exist')
        await self._hub.pool.pause(database)

    def resume(self, database: str | None) -> None:
        """Give out backends again."""
        self._hub.pool.resume(database)

    def reconnect(self, database: str | None) -> None:
        """Close every backend as soon as it is released."""
        self._hub.pool.reconnect(database)

    async def reload(self) -> list[str]:
        """Read the configuration again."""
        return await self._reload()

    def kill_session(self, pid: int) -> bool:
        """End a session; what it runs is cancelled. The caller's own ends when its command has been answered."""
        session = self._hub.sessions.get(pid)
        if session is None:
            return False
        self._hub.kill(session)
        return True

    def shutdown(self, mode: str) -> None:
        """End the server."""
        asyncio.get_running_loop().call_soon(self._shutdown, mode)

    def version(self) -> str:
        """Of RustyDB."""
        return self._version

    def engine_version(self) -> str:
        """Of PostgreSQL."""
        return self._hub.cluster.info.version

    def started_at(self) -> float:
        """Seconds since the epoch."""
        return self._started_at

    def is_ready(self) -> bool:
        """Clients are accepted and the engine answers."""
        return self._is_ready()

    def loop_lag_us(self) -> tuple[int, int]:
        """Median and 99th percentile over the last minute."""
        return self._lag.quantiles_us()

    def _session(self, session: ClientSession) -> SessionSnapshot:
        identity = session.identity
        waiting = session.phase is Phase.WAITING
        return SessionSnapshot(
            pid=session.pid,
            role=identity.role,
            database=session.database.name,
            application_name=session.reported.get("application_name", ""),
            state=_state(session),
            client_addr=identity.client_addr,
            client_port=identity.client_port,
            local_addr=identity.local_addr,
            tls=identity.tls,
            connected_at=session.connected_at + self._clock_offset,
            last_request_at=session.last_request_at + self._clock_offset,
            wait_us=int((perf_counter() - session.wait_started) * 1e6) if waiting else 0,
            backend_pid=session.backend.pid if session.backend is not None else None,
            pins=tuple(sorted(session.pins)),
            prepared_statements=len(session.prepared or ()),
            statements=session.statements,
            query=session.query[:_SHOWN_QUERY_BYTES].decode(errors="replace"),
            context_id=session.context.id,
            replication=False,
        )

    def _backend(self, backend: BackendConnection) -> BackendSnapshot:
        owner = backend.owner
        context = backend.context
        state = "idle" if owner is None else "active"
        if backend.cancels_in_flight:
            state = "being_canceled"
        return BackendSnapshot(
            pid=backend.pid,
            role=backend.role,
            database=backend.database,
            state=state,
            connected_at=backend.connected_at,
            released_at=backend.seat.released_at + self._monotonic_offset if backend.seat.released_at else 0.0,
            session_pid=owner.pid if isinstance(owner, ClientSession) else None,
            prepared_statements=len(backend.prepared),
            statements=backend.statements,
            context_id=getattr(context, "id", 0),
        )


def _state(session: ClientSession) -> str:
    """In PgBouncer's words."""
    if session.phase is Phase.WAITING:
        return "waiting"
    if session.phase is not Phase.IDLE:
        return "active"
    if session.status != _STATUS_IDLE:
        return "idle_in_transaction"
    return "pinned" if session.pins else "idle"
