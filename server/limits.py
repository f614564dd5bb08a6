"""How many clients may be connected: in all, per address, per role, per database.

A `ClientSlot` is taken when the startup packet is read, before any login, and given back exactly once when the client
is gone, whoever holds it then. After the login `claim_role` and `claim_database` count it there as well. Messages and
SQLSTATEs are PostgreSQL's. Pure: plain counters.
"""

from __future__ import annotations

from typing import Final, TypeVar

from protocol.errors import PgError
from protocol.sqlstate import TOO_MANY_CONNECTIONS
from server.config import Config
from server.roles import DatabaseAccess, Role

RESERVED_SLOTS: Final = 3  # PostgreSQL's superuser_reserved_connections
RESERVED_ROLES: Final = frozenset({"rustydb_admin", "pg_use_reserved_connections"})

_Key = TypeVar("_Key", str, int)


class ClientSlot:
    """One client's place under the limits. The core calls `release` when the client's connection is lost."""

    __slots__ = ("_address", "_database_oid", "_limits", "_role_oid")

    def __init__(self, limits: ClientLimits, address: str) -> None:
        self._limits: ClientLimits | None = limits
        self._address = address
        self._role_oid = 0
        self._database_oid = 0

    def release(self) -> None:
        """Give the place back. Calls after the first do nothing."""
        limits, self._limits = self._limits, None
        if limits is not None:
            limits._forget(self._address, self._role_oid, self._database_oid)

    @property
    def is_released(self) -> bool:
        return self._limits is None


class ClientLimits:
    """The counters. `max_clients` is read at the time of use, so a reload needs no call."""

    def __init__(self, config: Config, *, max_per_address: int = 0) -> None:
        """`max_per_address`: 0 means no such limit. It does not concern the Unix socket."""
        self._server = config.server
        self._max_per_address = max_per_address
        self._total = 0
        self._by_address: dict[str, int] = {}
        self._by_role: dict[int, int] = {}
        self._by_database: dict[int, int] = {}

    @property
    def clients(self) -> int:
        """Clients that have a slot: those logging in and those logged in."""
        return self._total

    def admit(self, address: str, *, is_local: bool) -> ClientSlot:
        """A slot for a client whose startup packet has arrived. Raises PgError 53300."""
        if self._total >= self._server.max_clients:
            raise _too_many("sorry, too many clients already")
        if self._max_per_address and not is_local and self._by_address.get(address, 0) >= self._max_per_address:
            raise _too_many("too many connections from this address")
        self._total += 1
        self._by_address[address] = self._by_address.get(address, 0) + 1
        return ClientSlot(self, address)

    def claim_role(self, slot: ClientSlot, role: Role) -> None:
        """Count a client that has proved its role. Raises PgError 53300."""
        if not role.is_superuser:
            if 0 <= role.connection_limit <= self._by_role.get(role.oid, 0):
                raise _too_many(f'too many connections for role "{role.name}"')
            self._check_reserve(role)
        slot._role_oid = role.oid
        self._by_role[role.oid] = self._by_role.get(role.oid, 0) + 1

    def claim_database(self, slot: ClientSlot, role: Role, database: DatabaseAccess) -> None:
        """Count a client under its database. Raises PgError 53300."""
        if not role.is_superuser and 0 <= database.connection_limit <= self._by_database.get(database.oid, 0):
            raise _too_many(f'too many connections for database "{database.name}"')
        slot._database_oid = database.oid
        self._by_database[database.oid] = self._by_database.get(database.oid, 0) + 1

    def _check_reserve(self, role: Role) -> None:
        # The client itself is counted already. Where few clients are allowed at all, nothing is set aside.
        reserve = RESERVED_SLOTS if self._server.max_clients > 2 * RESERVED_SLOTS else 0
        if self._total > self._server.max_clients - reserve and not role.member_of & RESERVED_ROLES:
            raise _too_many(
                "remaining connection slots are reserved for roles with privileges of the "
                '"pg_use_reserved_connections" role'
            )

    def _forget(self, address: str, role_oid: int, database_oid: int) -> None:
        self._total -= 1
        _decrement(self._by_address, address)
        if role_oid:
            _decrement(self._by_role, role_oid)
        if database_oid:
            _decrement(self._by_database, database_oid)


def _decrement(counts: dict[_Key, int], key: _Key) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]


def _too_many(message: str) -> PgError:
    return PgError(TOO_MANY_CONNECTIONS, message, severity="FATAL")
