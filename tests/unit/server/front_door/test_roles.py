"""server.roles: cached, single-flight, and never older than the last invalidation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.errors import EngineUnavailable
from protocol.errors import PgError
from server.roles import RoleDirectory, Secret
from tests.unit.server.front_door.door_harness import VERIFIER, Catalog, database_row, role_row


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def catalog() -> Catalog:
    return Catalog([role_row("alice", 100), role_row("bob", 101)], [database_row("app", 200)])


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_second_look_up_asks_nobody() -> None:
    found = catalog()
    directory = RoleDirectory(found)
    assert await directory.role("alice") is await directory.role("alice")
    assert await directory.role("nobody") is None
    assert await directory.role("nobody") is None
    assert found.queries == [("alice",), ("nobody",)]


async def test_look_ups_at_the_same_time_share_one_query() -> None:
    found = catalog()
    found.gate = asyncio.Event()
    directory = RoleDirectory(found)
    tasks = [asyncio.create_task(directory.role("alice")) for _ in range(50)]
    await settle()
    found.gate.set()
    roles = await asyncio.gather(*tasks)
    assert len(set(map(id, roles))) == 1
    assert found.queries == [("alice",)]


async def test_an_asker_that_is_cancelled_does_not_take_the_others_along() -> None:
    found = catalog()
    found.gate = asyncio.Event()
    directory = RoleDirectory(found)
    first, second = (asyncio.create_task(directory.role("alice")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    found.gate.set()
    assert (await second) is not None


async def test_invalidate_takes_effect_at_once() -> None:
    found = catalog()
    directory = RoleDirectory(found)
    await directory.role("alice")
    await directory.role("bob")
    found.roles["alice"]["rolcanlogin"] = False
    directory.invalidate("alice")
    role = await directory.role("alice")
    assert role is not None
    assert not role.can_login
    await directory.role("bob")
    assert found.queries == [("alice",), ("bob",), ("alice",)]
    directory.invalidate()
    await directory.role("bob")
    assert len(found.queries) == 4


async def test_an_answer_asked_for_before_an_invalidation_is_neither_kept_nor_shared() -> None:
    found = catalog()
    found.gate = asyncio.Event()
    directory = RoleDirectory(found)
    early = asyncio.create_task(directory.role("alice"))
    await settle()
    found.roles["alice"] = role_row("alice", 100, rolcanlogin=False)
    directory.invalidate("alice")
    late = asyncio.create_task(directory.role("alice"))
    await settle()
    found.gate.set()
    before, after = await early, await late
    assert before is not None
    assert before.can_login
    assert after is not None
    assert not after.can_login
    assert await directory.role("alice") is after
    assert len(found.queries) == 2


async def test_entries_age_out() -> None:
    found, clock = catalog(), Clock()
    directory = RoleDirectory(found, max_age_seconds=5, clock=clock)
    await directory.role("alice")
    clock.now += 4.9
    await directory.role("alice")
    assert len(found.queries) == 1
    clock.now += 0.2
    await directory.role("alice")
    assert len(found.queries) == 2


async def test_memory_is_bounded() -> None:
    found = catalog()
    directory = RoleDirectory(found, max_entries=10)
    for number in range(100):
        await directory.role(f"nobody{number}")
    assert len(directory._roles._entries) == 10
    assert not directory._roles._pending


async def test_internal_roles_and_impossible_names_do_not_exist() -> None:
    found = catalog()
    found.roles["rustydb_internal"] = role_row("rustydb_internal", 10, rolsuper=True)
    directory = RoleDirectory(found, hidden_roles=["rustydb_internal"])
    for name in ("rustydb_internal", "", "a\0b", "a\udce9"):
        assert await directory.role(name) is None
    assert found.queries == []


async def test_an_engine_that_cannot_be_asked_is_57p03_and_is_asked_again() -> None:
    found = catalog()
    directory = RoleDirectory(found)
    found.error = EngineUnavailable("gone")
    for _ in range(2):
        with pytest.raises(PgError) as caught:
            await directory.role("alice")
        assert (caught.value.sqlstate, caught.value.severity) == ("57P03", "FATAL")
    found.error = None
    assert await directory.role("alice") is not None


async def test_databases_are_kept_for_each_role() -> None:
    found = catalog()
    directory = RoleDirectory(found)
    alice, bob = await directory.role("alice"), await directory.role("bob")
    assert alice is not None
    assert bob is not None
    database = await directory.database(alice, "app")
    assert database is not None
    assert (database.name, database.oid) == ("app", 200)
    await directory.database(alice, "app")
    await directory.database(bob, "app")
    assert await directory.database(bob, "nowhere") is None
    assert found.queries[2:] == [("app", 100), ("app", 101), ("nowhere", 101)]


@pytest.mark.parametrize(
    ("password", "secret"),
    [
        (VERIFIER, Secret.SCRAM),
        ("md5" + "0" * 32, Secret.MD5),
        (None, Secret.NONE),
        ("", Secret.NONE),
        ("plain", Secret.UNKNOWN),
        ("SCRAM-SHA-256$4096:x$y:z", Secret.UNKNOWN),
    ],
)
async def test_what_a_role_has_for_a_password(password: str | None, secret: Secret) -> None:
    role = await RoleDirectory(Catalog([role_row("alice", 100, rolpassword=password)])).role("alice")
    assert role is not None
    assert role.secret is secret
    assert (role.verifier is not None) == (secret is Secret.SCRAM)


@pytest.mark.parametrize(("until", "expired"), [(None, False), (999.0, True), (1001.0, False), (float("inf"), False)])
async def test_valid_until(until: Any, expired: bool) -> None:
    role = await RoleDirectory(Catalog([role_row("alice", 100, valid_until=until)])).role("alice")
    assert role is not None
    assert role.is_expired(1000.0) == expired
