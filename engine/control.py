"""RustyDB's own queries: catalogs, roles, the control database. Nobody else opens connections for that.

`EngineControl` keeps at most one connection a database, opened when first used and closed when unused for a while.
They are outside the pool's budget and log in as RustyDB's own role. Statements run one after the other on each
database; a long one belongs in a connection of its own. `search_path` holds pg_catalog alone, since a client can
create objects in any other schema: qualify every other name.

Errors: what the engine says no to is `asyncpg.PostgresError`; an engine that cannot be reached is
`EngineUnavailable`. A statement whose connection broke is never sent again: it may have run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from engine.address import EngineAddress
from engine.errors import EngineUnavailable

INTERNAL_ROLE = "rustydb_internal"
CONTROL_DATABASE = "rustydb"
APPLICATION_NAME = "rustydb control"

_SETTINGS = {
    "application_name": APPLICATION_NAME,
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "local_preload_libraries": "",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "row_security": "on",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
"""An administrator can ALTER DATABASE ... SET what he likes; our own queries must not feel it."""


_BROKEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    OSError,
)
"""What ends a connection. TimeoutError is an OSError."""


@dataclass(slots=True)
class _Slot:
    """The connection of one database, and the order of those who use it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connection: Any = None  # asyncpg.Connection: asyncpg ships no usable type for its methods' results
    used_at: float = 0.0


class EngineControl:
    """Control queries to one engine."""

    def __init__(
        self,
        address: Callable[[], EngineAddress],
        *,
        role: str = INTERNAL_ROLE,
        default_database: str = CONTROL_DATABASE,
        connect_timeout_seconds: float = 10.0,
        idle_seconds: float = 60.0,
        server_version_num: int | None = None,
    ) -> None:
        self._address = address
        self._role = role
        self._default_database = default_database
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle_seconds = idle_seconds
        self._slots: dict[str, _Slot] = {}
        self._reaper: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def role(self) -> str:
        """The role that control queries run as."""
        return self._role

    @property
    def has_password(self) -> bool:
        """Our role proves itself with a password."""
        return bool(self._secret())

    @property
    def default_database(self) -> str:
        return self._default_database

    async def fetch(self, sql: str, *args: object, database: str | None = None) -> list[asyncpg.Record]:
        """Rows of one statement with parameters $1, $2, ..."""
        async with self._connection(database) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return rows

    async def fetchval(self, sql: str, *args: object, database: str | None = None) -> Any:
        """First column of the first row; None where there is no row."""
        async with self._connection(database) as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object, database: str | None = None) -> str:
        """Run one statement with parameters; returns the command tag."""
        async with self._connection(database) as connection:
            tag: str = await connection.execute(sql, *args)
            return tag

    async def run_script(self, sql: str, *, database: str | None = None) -> None:
        """Run several statements, in one transaction unless the script has its own BEGIN and COMMIT."""
        async with self._connection(database) as connection:
            await connection.execute(sql)

    @asynccontextmanager
    async def transaction(self, database: str | None = None) -> AsyncIterator[Any]:
        """An `asyncpg.Connection` inside a transaction; committed at the end of the block, rolled back on error."""
        async with self._connection(database) as connection, connection.transaction():
            yield connection

    async def close_database(self, database: str) -> None:
        """Drop our own connection to a database, so that it can be dropped or renamed."""
        slot = self._slots.get(database)
        if slot is None:
            return
        async with slot.lock:
            connection, slot.connection = slot.connection, None
            if connection is not None:
                await _close(connection)

    async def close(self) -> None:
        """Drop every connection. The object can be used again: it connects anew."""
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            if slot.connection is not None:
                await _close(slot.connection)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def abandon(self) -> None:
        """The engine is gone: forget the connections without talking to it. Statements under way fail."""
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            if slot.connection is not None:
                slot.connection.terminate()

    @asynccontextmanager
    async def _connection(self, database: str | None) -> AsyncIterator[Any]:
        name = database or self._default_database
        slot = self._slots.setdefault(name, _Slot())
        async with slot.lock:
            if slot.connection is None or slot.connection.is_closed():
                slot.connection = await self._connect(name)
            try:
                yield slot.connection
            except (*_BROKEN, asyncpg.InterfaceError) as error:
                if isinstance(error, asyncpg.InterfaceError) and not slot.connection.is_closed():
                    raise
                slot.connection.terminate()
                slot.connection = None
                raise EngineUnavailable(
                    "the connection to the engine broke", detail=str(error) or type(error).__name__
                ) from error
            finally:
                slot.used_at = time.monotonic()
                self._schedule_reaper()

    async def _connect(self, database: str) -> Any:
        address = self._address()
        try:
            connection = await asyncpg.connect(
                host=address.host,
                port=address.port,
                user=self._role,
                # Explicit values, empty ones too: asyncpg would otherwise obey PGPASSWORD, PGSSLMODE and their like.
                password=self._secret() or "",
                database=database,
                timeout=self._connect_timeout_seconds,
                ssl=address.tls if address.tls is not None else False,
                direct_tls=False,
                target_session_attrs="any",
                server_settings=_SETTINGS,
                # Our own statements are few and fixed, and DDL by clients may change what they mean.
                statement_cache_size=32,
            )
            # Unknown before PostgreSQL 17, so it cannot be a startup parameter.
            if connection.get_server_version() >= (17,):
                await connection.execute("SET transaction_timeout = 0")
            return connection
        except _BROKEN as error:
            raise EngineUnavailable(
                f"could not connect to the engine at {address}", detail=str(error) or type(error).__name__
            ) from error

    def _secret(self) -> str | None:
        """What proves our role to the engine: its address knows."""
        lookup = self._address().user_secret
        return lookup(self._role) if lookup is not None else None

    def _schedule_reaper(self) -> None:
        if self._reaper is None:
            self._reaper = asyncio.get_running_loop().call_later(self._idle_seconds, self._reap)

    def _reap(self) -> None:
        self._reaper = None
        now = time.monotonic()
        for name, slot in list(self._slots.items()):
            if slot.lock.locked() or now - slot.used_at < self._idle_seconds:
                continue
            del self._slots[name]
            if slot.connection is not None:
                task = asyncio.ensure_future(_close(slot.connection))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        if self._slots:
            self._schedule_reaper()


async def _close(connection: Any) -> None:
    """Close without waiting for an engine that no longer answers."""
    try:
        await connection.close(timeout=2.0)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
