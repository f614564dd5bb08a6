"""The feature loader: finding, order, failure policies, taking back what was registered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from protocol.errors import PgError
from server import features
from server.extension.bus import EventBus
from server.extension.commands import ADMIN_ROLE, AdminCommand, AdminResult, CommandRegistry
from server.extension.context import SessionContexts
from server.extension.events import EngineLost, FeatureFailed
from server.extension.feature import FeatureContext, StartPolicy
from server.extension.hooks import CONTINUE, Hooks
from server.extension.http_routes import HttpRoute, HttpRoutes
from server.extension.services import Services
from server.features import FeatureError, FeatureHost, Surface

HERE = __name__


class Gauge(Collector):
    def __init__(self, name: str) -> None:
        self._family = GaugeMetricFamily(name, "A test.")

    def collect(self) -> list[GaugeMetricFamily]:
        return [self._family]


class Contexts:
    def settings(self, context_id: int) -> Mapping[str, str]:
        return {}


class Recorded:
    """A feature that registers one of everything and notes what is done with it."""

    name = "recorded"
    requires: tuple[str, ...] = ()
    start_policy = StartPolicy.WITHOUT
    fails_in = ""
    registers_as = ""
    calls: list[str] = []  # noqa: RUF012 - the test's own, see `fresh`

    def _step(self, step: str) -> None:
        self.calls.append(f"{self.name}.{step}")
        if self.fails_in == step:
            raise OSError("no disk")

    def setup(self, context: FeatureContext) -> None:
        name = self.registers_as or context.name
        context.bus.subscribe(EngineLost, lambda events: None, subscriber=name)
        context.hooks.add_before_query(lambda asked: CONTINUE, feature=name)
        word = f"MARK{context.name.upper()}"
        context.commands.register(
            AdminCommand(word, ADMIN_ROLE, (), lambda call: AdminResult(), "A test.", feature=name)
        )
        context.http.add(HttpRoute("GET", f"/{context.name}", self._page, name, "A test."))  # type: ignore[arg-type]
        context.metrics.register(Gauge(f"test_{context.name}"))
        if context.services.find(SessionContexts) is None:  # type: ignore[type-abstract]
            context.services.provide(SessionContexts, Contexts())  # type: ignore[type-abstract]
        self._step("setup")

    async def _page(self, request: object) -> None:
        return None

    async def start(self) -> None:
        self._step("start")

    async def stop(self) -> None:
        self._step("stop")


class Base(Recorded):
    name = "base"


class Middle(Recorded):
    name = "middle"
    requires = ("base",)


class Top(Recorded):
    name = "top"
    requires = ("middle", "base")


class FailsInSetup(Recorded):
    name = "base"
    fails_in = "setup"


class FailsInStart(Recorded):
    name = "base"
    fails_in = "start"


class Vital(Recorded):
    name = "vital"
    fails_in = "start"
    start_policy = StartPolicy.REFUSE


class Disguised(Recorded):
    name = "disguised"
    registers_as = "core"


class One(Recorded):
    name = "one"
    requires = ("two",)


class Two(Recorded):
    name = "two"
    requires = ("one",)


class FailsInStop(Recorded):
    name = "sticky"
    fails_in = "stop"


class Hangs(Recorded):
    name = "hangs"

    async def stop(self) -> None:
        await asyncio.Event().wait()


INSTANCE = Base()
NOT_A_FEATURE = "text"


def make_incomplete() -> object:
    return object()


class World:
    def __init__(self, tmp_path: Path) -> None:
        Recorded.calls = []
        self.failures: list[FeatureFailed] = []
        self.bus = EventBus()
        self.bus.subscribe(FeatureFailed, self.failures.extend, subscriber="watch", linger_seconds=0)
        self.metrics = CollectorRegistry()
        self.surface = Surface(
            self.bus, Hooks(), CommandRegistry(), HttpRoutes(), self.metrics, Services(), tmp_path, lambda name: {}
        )
        self.host = FeatureHost(self.surface)

    def load(self, *names: str) -> None:
        self.host.load([name if ":" in name or not name[0].isupper() else f"{HERE}:{name}" for name in names])

    async def run(self, *names: str) -> None:
        self.load(*names)
        self.host.setup()
        await self.host.start()

    def registered_by(self) -> set[str]:
        return {owner for _, owner in self.surface.owners()} - {"watch"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_features_start_after_what_they_require_and_stop_before_it(world: World) -> None:
    await world.run("Top", "Middle", "Base")
    assert world.host.running == ("base", "middle", "top")
    await world.host.stop()
    assert Recorded.calls == [
        *("base.setup", "middle.setup", "top.setup"),
        *("base.start", "middle.start", "top.start"),
        *("top.stop", "middle.stop", "base.stop"),
    ]
    assert [status.state.value for status in world.host.statuses()] == ["stopped"] * 3


async def test_nothing_enabled_is_nothing_done(world: World) -> None:
    await world.run()
    assert world.host.statuses() == []
    await world.host.stop()


def test_an_instance_and_a_name_twice_are_fine(world: World) -> None:
    world.load("INSTANCE", "INSTANCE")
    assert [status.name for status in world.host.statuses()] == ["base"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["nowhere"], "no feature is named 'nowhere'"),
        (["no_such_module:Feature"], "cannot be loaded: ModuleNotFoundError"),
        (["Missing"], "cannot be loaded: AttributeError"),
        (["NOT_A_FEATURE"], "neither a feature nor makes one"),
        (["make_incomplete"], "is no feature, it lacks name, requires"),
        (["One", "Two"], "require one another in a circle"),
        (["Base", "INSTANCE"], "two features are named base"),
    ],
)
def test_a_wrong_configuration_always_refuses(world: World, names: list[str], words: str) -> None:
    host_names = [name if ":" in name or name == "nowhere" else f"{HERE}:{name}" for name in names]
    with pytest.raises(FeatureError, match=words):
        world.host.load(host_names)


@pytest.mark.parametrize("name", ["FailsInSetup", "FailsInStart"])
async def test_a_feature_that_fails_is_left_out_with_everything_it_registered(world: World, name: str) -> None:
    world.bus.start()
    await world.run(name)
    (status,) = world.host.statuses()
    assert status.state.value == "failed"
    assert status.error is not None
    assert "OSError: no disk" in status.error
    assert world.registered_by() == set()
    assert world.surface.services.types() == frozenset()
    assert list(world.metrics.collect()) == []
    await world.bus.stop()
    assert [(one.feature, one.is_fatal) for one in world.failures] == [("base", False)]


async def test_a_feature_that_fails_in_start_is_stopped(world: World) -> None:
    await world.run("FailsInStart")
    assert Recorded.calls == ["base.setup", "base.start", "base.stop"]


@pytest.mark.parametrize("name", ["FailsInSetup", "FailsInStart"])
async def test_what_requires_it_does_not_run_either(world: World, name: str) -> None:
    await world.run(name, "Middle", "Top")
    assert world.host.running == ()
    errors = [status.error or "" for status in world.host.statuses()]
    assert "requires base, which does not run" in errors[1]
    assert "requires middle, base, which does not run" in errors[2]
    assert world.registered_by() == set()


async def test_a_requirement_that_is_not_enabled_is_a_failure_of_the_feature(world: World) -> None:
    await world.run("Middle")
    assert world.host.running == ()


async def test_a_vital_feature_that_fails_refuses_the_start(world: World) -> None:
    with pytest.raises(FeatureError, match="vital failed in start: no disk"):
        await world.run("Base", "Vital")
    await world.host.stop()
    assert Recorded.calls[-1] == "base.stop"


async def test_registering_under_another_name_refuses_the_start(world: World) -> None:
    with pytest.raises(FeatureError, match="registered under another name: command of core, hook of core"):
        await world.run("Disguised")


async def test_a_feature_that_fails_to_stop_does_not_keep_the_others(world: World) -> None:
    await world.run("Base", "FailsInStop")
    await world.host.stop()
    assert Recorded.calls[-2:] == ["sticky.stop", "base.stop"]


async def test_a_feature_that_hangs_in_stop_is_left_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "STOP_SECONDS", 0.05)
    await world.run("Base", "Hangs")
    await asyncio.wait_for(world.host.stop(), 2)
    assert Recorded.calls[-1] == "base.stop"


def test_a_pg_error_of_setup_is_a_failure_like_any_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Base, context: FeatureContext) -> None:
        raise PgError("0A000", "not on this engine")

    monkeypatch.setattr(Base, "setup", refuse)
    world.load("Base")
    world.host.setup()
    assert world.host.statuses()[0].error == "setup: PgError: not on this engine"
