"""Registering commands, services and routes: what would go wrong later is an error now."""

from __future__ import annotations

from typing import Protocol

import pytest

from server.extension.commands import (
    ADMIN_ROLE,
    AdminColumn,
    AdminCommand,
    AdminResult,
    CommandCall,
    CommandError,
    CommandRegistry,
)
from server.extension.http_routes import HttpRoute, HttpRouteError, HttpRoutes
from server.extension.services import ServiceError, Services


def nothing(call: CommandCall) -> AdminResult:
    return AdminResult()


def command(syntax: str, **changes: object) -> AdminCommand:
    fields: dict[str, object] = {"role": ADMIN_ROLE, "columns": (), "handler": nothing, "doc": "A test."} | changes
    return AdminCommand(syntax, **fields)  # type: ignore[arg-type]


def test_name_and_tag_come_from_the_syntax() -> None:
    registry = CommandRegistry([command("SHOW POOLS"), command("KILL SESSION <n:integer>")])
    kill, show = list(registry)
    assert (kill.name, kill.tag, kill.readable_syntax) == ("KILL SESSION", "KILL SESSION", "KILL SESSION n")
    assert (show.name, show.tag) == ("SHOW POOLS", "SHOW")
    assert len(registry) == 2
    assert registry.find("SHOW POOLS") is show
    assert registry.find("SHOW NOTHING") is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (command("SHOW POOLS", role=""), "needs a role"),
        (command("SHOW POOLS", doc=" "), "needs documentation"),
        (command("SHOW POOLS", columns=(AdminColumn("a"), AdminColumn("a"))), "two columns of one name"),
        (command("SHOW pools"), "must be upper case"),
        (command("<x> POOLS"), "must begin with a keyword"),
        (command("( POOLS )"), "must begin with a keyword"),
    ],
)
def test_an_incomplete_command_is_refused(changed: AdminCommand, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        CommandRegistry([changed])


@pytest.mark.parametrize(
    "syntax",
    [
        "SELECT <x>",
        "SHOW <name>",
        "SHOW ALL",
        "SHOW TIME ZONE <x>",
        "SHOW SESSION AUTHORIZATION",
        "SHOW TRANSACTION ISOLATION LEVEL",
        "SET <x>",
        "SET RUSTYDB <x>",
        "CREATE POLICY <x>",
        "ALTER SYSTEM RELOAD",
        "DROP TABLE CACHE",
        "EXPLAIN ANALYZE CACHE",
        "EXPLAIN SELECT <x:text>",
        "EXPLAIN ( CACHE )",
        "COPY <x> TO AUDIT",
        "COPY ( SELECT <x:text>",
        "VACUUM CACHE",
        "IDENTIFY_SYSTEM",
    ],
)
def test_a_command_that_would_hide_a_statement_of_postgresql_is_refused(syntax: str) -> None:
    with pytest.raises(CommandError, match="would hide a statement of PostgreSQL"):
        CommandRegistry([command(syntax)])


@pytest.mark.parametrize(
    "syntax",
    [
        "SHOW CACHE [ FOR TABLE <x:qualified> ]",
        "SHOW SESSION <n:integer>",
        "SHOW SESSION VARIABLES",
        "CREATE AUDIT POLICY <name>",
        "DROP QUERY RULE <name>",
        "EXPLAIN CACHE <statement:text>",
        "COPY ( AUDIT STREAM [ FROM SEQ <n:integer> ] ) TO STDOUT",
        "WARM CACHE",
        "MARK <x>",
    ],
)
def test_the_commands_of_features_to_come_can_be_registered(syntax: str) -> None:
    CommandRegistry([command(syntax)])


def test_a_name_or_a_beginning_taken_twice_is_refused() -> None:
    registry = CommandRegistry([command("SHOW CACHE")])
    with pytest.raises(CommandError, match="registered twice"):
        registry.register(command("SHOW CACHE [ FOR <x> ]"))
    with pytest.raises(CommandError, match="begins as another"):
        registry.register(command("SHOW CACHE [ FOR <x> ]", name="OTHER"))
    with pytest.raises(CommandError, match="registered twice"):
        registry.register(command("WARM CACHE", name="SHOW CACHE"))


def test_the_longest_beginning_comes_first() -> None:
    registry = CommandRegistry([command("SHOW CACHE"), command("SHOW CACHE ENTRIES"), command("SHOW AUDIT LOG ALL")])
    assert [len(one.head) for one in registry.starting_with("show")] == [4, 3, 2]
    assert registry.starting_with("select") == ()


def test_removing_a_feature_takes_its_commands() -> None:
    registry = CommandRegistry(
        [command("SHOW CACHE", feature="cache"), command("WARM CACHE", feature="cache"), command("SHOW POOLS")]
    )
    registry.remove_feature("cache")
    assert [one.name for one in registry] == ["SHOW POOLS"]
    assert registry.starting_with("warm") == ()


class Clock(Protocol):
    def now(self) -> float: ...


class FixedClock:
    def now(self) -> float:
        return 1.0


def test_services_are_found_by_type_and_provided_once() -> None:
    services = Services()
    assert services.find(Clock) is None  # type: ignore[type-abstract]
    with pytest.raises(ServiceError, match="nobody provides"):
        services.get(Clock)  # type: ignore[type-abstract]
    services.provide(Clock, FixedClock())  # type: ignore[type-abstract]
    assert services.get(Clock).now() == 1.0  # type: ignore[type-abstract]
    with pytest.raises(ServiceError, match="provided twice"):
        services.provide(Clock, FixedClock())  # type: ignore[type-abstract]
    services.withdraw(Clock)
    assert services.types() == frozenset()


async def page(request: object) -> None:
    return None


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "TRACE"},
        {"path": "metrics"},
        {"path": "/metrics"},
        {"path": "/readyz"},
        {"feature": ""},
        {"doc": ""},
    ],
)
def test_a_route_that_cannot_be_served_is_refused(changed: dict[str, str]) -> None:
    fields = {"method": "GET", "path": "/x", "feature": "a", "doc": "A page."} | changed
    with pytest.raises(HttpRouteError):
        HttpRoutes().add(HttpRoute(handler=page, **fields))  # type: ignore[arg-type]


def test_a_route_is_registered_once_for_each_method() -> None:
    routes = HttpRoutes()
    routes.add(HttpRoute("GET", "/x", page, "a", "A page."))  # type: ignore[arg-type]
    routes.add(HttpRoute("POST", "/x", page, "b", "A page."))  # type: ignore[arg-type]
    with pytest.raises(HttpRouteError, match="registered twice"):
        routes.add(HttpRoute("GET", "/x", page, "b", "A page."))  # type: ignore[arg-type]
    routes.remove_feature("a")
    assert [route.method for route in routes] == ["POST"]
