"""server.limits: slots before the login, counts after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import PgError
from server.config import Config
from server.limits import ClientLimits, ClientSlot
from server.roles import DatabaseAccess, Role, Secret
from server.settings_table import ServerSettings

ALICE = Role("alice", 100, False, True, False, -1, None, Secret.NONE, None, frozenset({"alice"}))
APP = DatabaseAccess("app", 200, True, -1, True)


def limits(max_clients: int = 100, **options: Any) -> ClientLimits:
    return ClientLimits(Config(server=ServerSettings(max_clients=max_clients)), **options)


def enter(
    door: ClientLimits, role: Role = ALICE, database: DatabaseAccess = APP, address: str = "10.0.0.1"
) -> ClientSlot:
    slot = door.admit(address, is_local=False)
    try:
        door.claim_role(slot, role)
        door.claim_database(slot, role, database)
    except PgError:
        slot.release()
        raise
    return slot


def refusal(call: Any) -> str:
    with pytest.raises(PgError) as caught:
        call()
    assert caught.value.sqlstate == "53300"
    assert caught.value.severity == "FATAL"
    return caught.value.message


def test_the_client_above_max_clients_is_refused_before_it_logs_in() -> None:
    door = limits(2)
    slots = [door.admit("10.0.0.1", is_local=False) for _ in range(2)]
    assert refusal(lambda: door.admit("10.0.0.2", is_local=False)) == "sorry, too many clients already"
    slots[0].release()
    door.admit("10.0.0.2", is_local=False)


def test_releasing_twice_counts_once() -> None:
    door = limits()
    first, _second = enter(door), enter(door)
    first.release()
    first.release()
    assert first.is_released
    assert door.clients == 1


def test_one_address_cannot_take_every_slot() -> None:
    door = limits(max_per_address=2)
    slots = [door.admit("10.0.0.1", is_local=False) for _ in range(2)]
    assert refusal(lambda: door.admit("10.0.0.1", is_local=False)) == "too many connections from this address"
    door.admit("10.0.0.2", is_local=False)
    for _ in range(5):
        door.admit("", is_local=True)
    slots[0].release()
    door.admit("10.0.0.1", is_local=False)


def test_role_connection_limit() -> None:
    door, role = limits(), replace(ALICE, connection_limit=1)
    slot = enter(door, role)
    assert refusal(lambda: enter(door, role)) == 'too many connections for role "alice"'
    slot.release()
    enter(door, role)


def test_database_connection_limit() -> None:
    door, database = limits(), replace(APP, connection_limit=1)
    slot = enter(door, ALICE, database)
    assert refusal(lambda: enter(door, ALICE, database)) == 'too many connections for database "app"'
    assert door.clients == 1
    slot.release()
    enter(door, ALICE, database)


def test_superusers_are_under_no_role_or_database_limit() -> None:
    door = limits()
    role = replace(ALICE, is_superuser=True, connection_limit=0)
    enter(door, role, replace(APP, connection_limit=0))


def test_the_last_slots_are_for_administrators() -> None:
    door = limits(10)
    slots = [enter(door) for _ in range(7)]
    assert "remaining connection slots are reserved" in refusal(lambda: enter(door))
    enter(door, replace(ALICE, oid=7, member_of=frozenset({"root", "rustydb_admin"})))
    enter(door, replace(ALICE, oid=8, member_of=frozenset({"pg_use_reserved_connections"})))
    enter(door, replace(ALICE, oid=9, is_superuser=True))
    assert refusal(lambda: enter(door)) == "sorry, too many clients already"
    slots[0].release()


def test_every_counter_is_empty_when_all_have_left() -> None:
    door = limits()
    slots = [
        enter(door, replace(ALICE, oid=n % 3 + 1), replace(APP, oid=n % 5 + 1), f"10.0.0.{n}") for n in range(1, 31)
    ]
    for slot in slots:
        slot.release()
    assert door.clients == 0
    assert (door._by_address, door._by_role, door._by_database) == ({}, {}, {})
