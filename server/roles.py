"""Roles and databases as the login needs them, read from the engine's catalogs and kept for a moment.

`RoleDirectory` answers from memory where it can. Several clients that ask for the same thing at once share one query.
`invalidate` takes effect at once: an answer whose query began before it is neither kept nor given to whoever asks after
it. Entries also age out after `MAX_AGE_SECONDS`, for changes that nobody announces. The engine's internal roles are
answered as if they did not exist.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

import asyncpg

from engine.errors import EngineError
from protocol.errors import PgError
from protocol.scram import ScramVerifier

MAX_AGE_SECONDS: Final = 5.0
MAX_ENTRIES: Final = 20_000

_ROLE_SQL: Final = """
SELECT r.oid, r.rolname, r.rolsuper, r.rolcanlogin, r.rolreplication, r.rolconnlimit, r.rolpassword,
       pg_catalog.date_part('epoch', r.rolvaliduntil) AS valid_until,
       (WITH RECURSIVE up(oid) AS (
            SELECT r.oid UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN up ON m.member = up.oid)
        SELECT pg_catalog.array_agg(g.rolname::pg_catalog.text)
        FROM up JOIN pg_catalog.pg_authid g ON g.oid = up.oid) AS member_of
FROM pg_catalog.pg_authid r WHERE r.rolname = $1::pg_catalog.text
"""

_DATABASE_SQL: Final = """
SELECT d.oid, d.datname, d.datallowconn, d.datconnlimit,
       pg_catalog.has_database_privilege($2::pg_catalog.oid, d.oid, 'CONNECT') AS can_connect
FROM pg_catalog.pg_database d WHERE d.datname = $1::pg_catalog.text
"""


class ControlQueries(Protocol):
    """The part of engine.control.EngineControl that is needed here."""

    async def fetch(self, sql: str, *args: object) -> Sequence[Mapping[str, Any]]: ...


class Secret(Enum):
    """What pg_authid.rolpassword holds."""

    SCRAM = "scram"
    MD5 = "md5"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Role:
    """One row of pg_authid, and the names of all roles it is a member of, itself included."""

    name: str
    oid: int
    is_superuser: bool
    can_login: bool
    can_replicate: bool
    connection_limit: int  # -1: none
    valid_until: float | None  # seconds since the epoch; infinity is possible
    secret: Secret
    verifier: ScramVerifier | None
    member_of: frozenset[str]

    def is_expired(self, now: float) -> bool:
        return self.valid_until is not None and self.valid_until < now


@dataclass(frozen=True, slots=True)
class DatabaseAccess:
    """One row of pg_database, seen by one role."""

    name: str
    oid: int
    allows_connections: bool
    connection_limit: int  # -1: none, -2: the database is half dropped
    can_connect: bool


_T = TypeVar("_T")


class _Entry(Generic[_T]):
    __slots__ = ("expires_at", "value")

    def __init__(self, value: _T, expires_at: float) -> None:
        self.value = value
        self.expires_at = expires_at


class RoleDirectory:
    """Look-ups by name. Raises PgError 57P03 where the engine cannot be asked."""

    def __init__(
        self,
        control: ControlQueries,
        *,
        hidden_roles: Collection[str] = (),
        max_age_seconds: float = MAX_AGE_SECONDS,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._hidden_roles = frozenset(hidden_roles)
        self._roles: _Cache[str, Role | None] = _Cache(max_age_seconds, max_entries, clock)
        self._databases: _Cache[tuple[int, str], DatabaseAccess | None] = _Cache(max_age_seconds, max_entries, clock)

    def cached_role(self, name: str) -> Role | None:
        """The role, if it is in memory and fresh. None says nothing."""
        return self._roles.peek(name)

    async def role(self, name: str) -> Role | None:
        """The role of that name; None where there is none that a client may know of."""
        if name in self._hidden_roles or not _is_name(name):
            return None
        return await self._roles.get(name, lambda: self._read_role(name))

    async def database(self, role: Role, name: str) -> DatabaseAccess | None:
        """The database of that name; None where there is none."""
        if not _is_name(name):
            return None
        return await self._databases.get((role.oid, name), lambda: self._read_database(role.oid, name))

    def invalidate(self, role: str | None = None) -> None:
        """One role changed. None: anything may have (membership, GRANT on a database, a rename, a database itself)."""
        if role is None:
            self._roles.clear()
        else:
            self._roles.discard(role)
        # A role's grants are kept by its oid, which a new role of the same name does not share: drop them all.
        self._databases.clear()

    async def _read_role(self, name: str) -> Role | None:
        rows = await self._query(_ROLE_SQL, name)
        return _role(rows[0]) if rows else None

    async def _read_database(self, role_oid: int, name: str) -> DatabaseAccess | None:
        rows = await self._query(_DATABASE_SQL, name, role_oid)
        return _database(rows[0]) if rows else None

    async def _query(self, sql: str, *args: object) -> Sequence[Mapping[str, Any]]:
        try:
            return await self._control.fetch(sql, *args)
        except (EngineError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise PgError(
                "57P03",
                "the database system is not accepting connections",
                detail="Roles cannot be looked up at the moment.",
                severity="FATAL",
            ) from error


_K = TypeVar("_K")


class _Cache(Generic[_K, _T]):
    """Answers by key: bounded, ageing, one query at a time for a key, and never older than the last discard."""

    def __init__(self, max_age_seconds: float, max_entries: int, clock: Callable[[], float]) -> None:
        self._max_age_seconds = max_age_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._entries: dict[_K, _Entry[_T]] = {}
        # Queries under way. A discard takes them out, so that later askers start their own and the answer is not kept.
        self._pending: dict[_K, asyncio.Task[_T]] = {}

    def peek(self, key: _K) -> _T | None:
        entry = self._entries.get(key)
        return entry.value if entry is not None and entry.expires_at > self._clock() else None

    async def get(self, key: _K, read: Callable[[], Awaitable[_T]]) -> _T:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at > self._clock():
            return entry.value
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.ensure_future(self._fill(key, read))
            task.add_done_callback(_retrieve)
        # Shielded: the client that started the query may vanish while others wait for it.
        return await asyncio.shield(task)

    def discard(self, key: _K) -> None:
        self._entries.pop(key, None)
        self._pending.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()
        self._pending.clear()

    async def _fill(self, key: _K, read: Callable[[], Awaitable[_T]]) -> _T:
        mine = asyncio.current_task()
        began_at = self._clock()
        try:
            value = await read()
            if self._pending.get(key) is mine:
                self._keep(key, _Entry(value, began_at + self._max_age_seconds))
            return value
        finally:
            if self._pending.get(key) is mine:
                del self._pending[key]

    def _keep(self, key: _K, entry: _Entry[_T]) -> None:
        self._entries.pop(key, None)
        while len(self._entries) >= self._max_entries:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = entry


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Take the exception out of a query whose askers all vanished."""
    if not task.cancelled():
        task.exception()


def _is_name(name: str) -> bool:
    """Could the catalog hold it? Names of the engine are UTF-8."""
    try:
        return "\0" not in name and bool(name.encode())
    except UnicodeEncodeError:
        return False


def _role(row: Mapping[str, Any]) -> Role:
    password: str | None = row["rolpassword"]
    verifier = ScramVerifier.parse(password) if password else None
    return Role(
        name=row["rolname"],
        oid=row["oid"],
        is_superuser=row["rolsuper"],
        can_login=row["rolcanlogin"],
        can_replicate=row["rolreplication"],
        connection_limit=row["rolconnlimit"],
        valid_until=row["valid_until"],
        secret=_secret(password, verifier),
        verifier=verifier,
        member_of=frozenset(row["member_of"]),
    )


def _secret(password: str | None, verifier: ScramVerifier | None) -> Secret:
    if not password:
        return Secret.NONE
    if verifier is not None:
        return Secret.SCRAM
    return Secret.MD5 if password.startswith("md5") and len(password) == 35 else Secret.UNKNOWN


def _database(row: Mapping[str, Any]) -> DatabaseAccess:
    return DatabaseAccess(
        name=row["datname"],
        oid=row["oid"],
        allows_connections=row["datallowconn"],
        connection_limit=row["datconnlimit"],
        can_connect=row["can_connect"],
    )
