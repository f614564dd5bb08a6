"""All connections to the engine that sessions use: made for the pool, cancelled, cleaned, and kept out of it when
they must be.

`Backends` gives the pool its two callables and is the only one that dials for clients. A backend to which a cancel was
sent is kept out of the pool until that cancel has settled, so that it never hits another session's statement.
"""

from __future__ import annotations

import asyncio
import time
from time import perf_counter
from typing import TYPE_CHECKING

from engine import connect
from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.scram import ScramKeys
from server.cleanup import BackendCleaner
from server.extension.events import BackendConnected, BackendLost
from server.pool.pool import Pool
from server.pool.seat import Seat
from server.pool.settings import PoolKey, PoolSettings
from server.pool_log import PoolLog

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from server.config import Config
    from server.context import ContextRegistry
    from server.extension.bus import EventBus
    from server.front_door import Identity
    from server.session import ClientSession
    from server.tasks import TaskOwner

_CANCELS_AT_ONCE = 32
_TOO_MANY_CONNECTIONS = "53300"
_LIMIT_PAUSES = (0.01, 0.05, 0.2)  # seconds


class Backends:
    """The engine connections of one server."""

    def __init__(
        self, config: Config, cluster: Cluster, contexts: ContextRegistry, tasks: TaskOwner, bus: EventBus
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._contexts = contexts
        self._tasks = tasks
        self._bus = bus
        self._cancels = asyncio.Semaphore(_CANCELS_AT_ONCE)
        self._keys: dict[str, ScramKeys] = {}
        self._quarantined: dict[BackendConnection, ClientSession] = {}
        self.by_pid: dict[int, BackendConnection] = {}
        self.pool: Pool[BackendConnection] = Pool(
            connect=self._connect,
            disconnect=self._disconnect,
            settings=pool_settings(config),
            loop=asyncio.get_running_loop(),
            observer=PoolLog(),
        )

    def retune(self) -> None:
        """The configuration was read again."""
        self.pool.retune(pool_settings(self._config))

    def close(self) -> None:
        """End every connection."""
        self.pool.close()
        for backend in list(self.by_pid.values()):
            backend.abort()

    def credentials(self, role: str) -> connect.Credentials:
        """What proves a role at the engine where the engine asks for it: its configured secret, else the client's
        own keys.
        """
        secret = self._cluster.address.user_secret
        return connect.Credentials(password=secret(role) if secret is not None else None, keys=self._keys.get(role))

    def remember_keys(self, identity: Identity) -> None:
        """The keys of a client's SCRAM exchange log the role in at a remote engine too (key passthrough)."""
        if identity.scram_client_key is not None and identity.scram_server_key is not None:
            self._keys[identity.role] = ScramKeys(identity.scram_client_key, identity.scram_server_key)

    async def dial_listener(self, database: str) -> BackendConnection:
        """A connection of our own, outside the pool, for the shared listener of a database."""
        role = self._cluster.control.role
        return await connect.dial(
            self._cluster.address, database=database, role=role, credentials=self.credentials(role)
        )

    def virtual_pid(self, pid: int) -> int:
        """The session that used a backend last, as clients know it; the pid itself for processes that are not ours."""
        backend = self.by_pid.get(pid)
        return backend.last_session_pid if backend is not None and backend.last_session_pid else pid

    # -- the pool's callables --------------------------------------------------------------------------------------

    async def _connect(self, key: PoolKey) -> BackendConnection:
        started = perf_counter()
        try:
            backend = await self._dial(key)
        except PgError as error:
            if error.sqlstate != _TOO_MANY_CONNECTIONS:
                raise
            backend = await self._dial_in_limits(key)
        backend.seat = Seat()
        backend.context = self._contexts.empty
        backend.on_lost = self._lost
        self.by_pid[backend.pid] = backend
        if self._bus.has_subscribers(BackendConnected):
            took_us = int((perf_counter() - started) * 1e6)
            self._bus.publish(BackendConnected(backend.pid, key.role, key.database, took_us, time.time()))
        return backend

    async def _dial(self, key: PoolKey) -> BackendConnection:
        return await connect.dial(
            self._cluster.address,
            database=key.database,
            role=key.role,
            credentials=self.credentials(key.role),
            timeout_seconds=self._config.pool.server_connect_timeout,
        )

    async def _dial_in_limits(self, key: PoolKey) -> BackendConnection:
        """Once more, after the CONNECTION LIMIT of a role or database was reached.

        The engine counts what a client knows nothing of: idle backends of other pools, and our own connection.
        """
        for pause in _LIMIT_PAUSES:
            await self._cluster.control.close_database(key.database)
            self.pool.give_way(key)
            await asyncio.sleep(pause)  # their processes are about to end
            try:
                return await self._dial(key)
            except PgError as error:
                if error.sqlstate != _TOO_MANY_CONNECTIONS:
                    raise
        return await self._dial(key)

    def _disconnect(self, backend: BackendConnection) -> None:
        self.by_pid.pop(backend.pid, None)
        backend.on_lost = None
        self._tell_lost(backend, is_expected=True)
        if backend.plans:
            backend.abort()
        else:
            backend.close()

    def _lost(self, backend: BackendConnection) -> None:
        self.by_pid.pop(backend.pid, None)
        self._tell_lost(backend, is_expected=False)
        self.pool.conn_lost(backend)

    def _tell_lost(self, backend: BackendConnection, *, is_expected: bool) -> None:
        if self._bus.has_subscribers(BackendLost):
            reason = "closed by the pool" if is_expected else "connection lost"
            self._bus.publish(
                BackendLost(backend.pid, backend.role, backend.database, None, reason, is_expected, time.time())
            )

    # -- cancel ----------------------------------------------------------------------------------------------------

    def cancel(self, backend: BackendConnection) -> None:
        """Send a CancelRequest. Until it has settled the backend goes to nobody else."""
        backend.cancels_in_flight += 1
        self._tasks.spawn(self._cancel(backend), "cancel request")

    async def _cancel(self, backend: BackendConnection) -> None:
        try:
            async with self._cancels:
                await connect.cancel(self._cluster.address, backend.pid, backend.secret)
        finally:
            backend.cancels_in_flight -= 1
            if not backend.cancels_in_flight:
                session = self._quarantined.pop(backend, None)
                if session is not None:
                    session.block.release(backend, reusable=not backend.is_lost)

    def quarantine(self, session: ClientSession, backend: BackendConnection) -> None:
        """Give the backend back once the cancels sent to it have settled."""
        self._quarantined[backend] = session

    def clean(self, session: ClientSession, backend: BackendConnection, *, should_cancel: bool) -> None:
        """Bring the backend that a session left behind to rest, and give it back."""
        block = session.block
        if backend.is_lost or session.is_tainted or session.has_cut_copy:
            backend.owner = None
            block.release(backend, reusable=False)
            return

        if session.effects is not None:
            session.effects.abandon(session)

        def done(reusable: bool) -> None:
            if reusable and backend.cancels_in_flight:
                self._quarantined[backend] = session
            else:
                block.release(backend, reusable=reusable)

        cleaner = BackendCleaner(
            backend,
            pins=frozenset(session.pins),
            was_dirty=session.effects is not None,
            empty=self._contexts.empty,
            done=done,
        )
        cleaner.start(in_copy=session.left_in_copy, wants_sync=session.left_open)
        if should_cancel and backend.plans and not backend.is_lost:
            self.cancel(backend)


def pool_settings(config: Config) -> PoolSettings:
    """The pool's part of the configuration."""
    pool = config.pool
    return PoolSettings(
        max_backends=pool.max_backends,
        default_pool_size=pool.default_pool_size,
        min_pool_size=pool.min_pool_size,
        reserve_pool_timeout=pool.reserve_pool_timeout,
        query_wait_timeout=pool.query_wait_timeout,
        server_idle_timeout=pool.server_idle_timeout,
        server_lifetime=pool.server_lifetime,
        server_connect_timeout=pool.server_connect_timeout,
        connect_burst=pool.connect_burst,
    )
