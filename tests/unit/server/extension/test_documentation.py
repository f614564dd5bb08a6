"""docs/hooks-and-events.md and docs/admin-commands.md name everything there is, and the example in them works."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from server.admin.console import AdminConsole
from server.extension.bus import EventBus
from server.extension.commands import MONITOR_ROLE, AdminCaller, CommandRegistry, RegisteredCommand
from server.extension.events import ALL_EVENTS, Event
from server.extension.hooks import HOOK_POINTS, HookOrder, Hooks
from server.extension.http_routes import HttpRoutes
from server.extension.services import Services
from server.features import FeatureHost, Surface
from tests.unit.server.admin.test_commands_of_the_core import COMMANDS
from tests.unit.server.extension.test_hooks import finished

DOCS = Path(__file__).resolve().parents[4] / "docs"
HOOKS_AND_EVENTS = (DOCS / "hooks-and-events.md").read_text()
ADMIN_COMMANDS = (DOCS / "admin-commands.md").read_text()


@pytest.mark.parametrize("event", ALL_EVENTS, ids=lambda event: event.__name__)
def test_every_event_is_documented_with_its_fields(event: type[Event]) -> None:
    (row,) = (line for line in HOOKS_AND_EVENTS.splitlines() if line.startswith(f"| `{event.__name__}` |"))
    for name in cast(tuple[str, ...], event.__slots__):
        assert f"`{name}`" in row
    assert ("inline" in row.split("|")[2]) == event.inline


@pytest.mark.parametrize("point", HOOK_POINTS)
def test_every_hook_point_is_documented(point: str) -> None:
    assert f"| `{point}` |" in HOOKS_AND_EVENTS
    assert hasattr(Hooks(), point)


def test_every_stage_of_hooks_is_documented() -> None:
    for stage in HookOrder:
        assert stage.name.lower() in HOOKS_AND_EVENTS


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: one.name)
def test_every_command_and_column_is_documented(one: RegisteredCommand) -> None:
    if one.command.alias_of:
        assert f"`{one.readable_syntax}`" in ADMIN_COMMANDS
        return
    _, _, section = ADMIN_COMMANDS.partition(f"### {one.name}\n")
    section = section.partition("\n### ")[0]
    assert f"`{one.readable_syntax}`" in section
    for column in one.command.columns:
        assert f"| `{column.name}` |" in section


@pytest.fixture
def example() -> Iterator[str]:
    """The Python block of the page, as a module that can be named in features.enabled."""
    (source,) = re.findall(r"```python\n(.*?)```", HOOKS_AND_EVENTS, flags=re.DOTALL)
    module = types.ModuleType("documented_feature")
    exec(compile(source, "hooks-and-events.md", "exec"), vars(module))  # the page is our own
    sys.modules[module.__name__] = module
    yield f"{module.__name__}:Slowest"
    del sys.modules[module.__name__]


async def test_the_feature_of_the_example_works(example: str, tmp_path: Path) -> None:
    bus, commands = EventBus(), CommandRegistry()
    surface = Surface(bus, Hooks(), commands, HttpRoutes(), CollectorRegistry(), Services(), tmp_path, lambda name: {})
    host = FeatureHost(surface)
    host.load([example])
    host.setup()
    await host.start()
    assert bus.wants_query_finished

    async def is_member(role: str, required: str) -> bool:
        return required == MONITOR_ROLE

    bus.start()
    bus.publish(finished())
    await bus.stop()
    console = AdminConsole(commands, is_member, bus)
    for text, rows in (
        ("SHOW SLOWEST", [("alice", 100, "SELECT 1")]),
        ("SHOW SLOWEST FOR ROLE alice", [("alice", 100, "SELECT 1")]),
        ("SHOW SLOWEST FOR ROLE bob", []),
    ):
        bound = console.match(text)
        assert bound is not None
        assert (await console.run(bound, AdminCaller("mona", 1, False))).rows == rows
    await host.stop()
    assert host.statuses()[0].state.value == "stopped"
