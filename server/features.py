"""Finds, orders, starts and stops features. The core names none of them.

`features.enabled` lists names of entry points of the group `rustydb.features`, or `module:object` paths for what is not
installed. The object is a Feature, or something that makes one when called without arguments.

What goes wrong is decided by the feature's own `start_policy`: REFUSE ends the start of the server with a FeatureError,
WITHOUT takes back everything the feature had registered, publishes FeatureFailed, and goes on. A feature whose
requirement does not run does not run either. A name that cannot be found, a cycle and two features of one name always
refuse: that is a wrong configuration.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from server.admin.sources import FeatureState, FeatureStatus
from server.extension.bus import EventBus
from server.extension.commands import CommandRegistry
from server.extension.events import FeatureFailed
from server.extension.feature import Feature, FeatureContext, StartPolicy
from server.extension.hooks import Hooks
from server.extension.http_routes import HttpRoutes
from server.extension.services import Services

ENTRY_POINT_GROUP: Final = "rustydb.features"
STOP_SECONDS: Final = 30.0

_log = logging.getLogger(__name__)


class FeatureError(Exception):
    """The server must not start: a feature that is asked for cannot be found, loaded, set up or started."""


class _Metrics:
    """The metrics of one feature: remembers its collectors, to take them back."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        self._registry.register(collector)
        self._collectors.append(collector)

    def withdraw(self) -> None:
        for collector in self._collectors:
            self._registry.unregister(collector)
        self._collectors.clear()


@dataclass(frozen=True, slots=True)
class Surface:
    """What features register with: the extension surface of one server."""

    bus: EventBus
    hooks: Hooks
    commands: CommandRegistry
    http: HttpRoutes
    metrics: CollectorRegistry
    services: Services
    data_dir: Path
    settings: Callable[[str], Mapping[str, object]]  # the section of a feature

    def owners(self) -> Counter[tuple[str, str]]:
        """How much is registered, by kind and name of the feature."""
        found: Counter[tuple[str, str]] = Counter()
        found.update(("subscription", one.subscriber) for one in self.bus.stats())
        found.update(("hook", one.feature) for one in self.hooks.entries())
        found.update(("command", one.command.feature) for one in self.commands)
        found.update(("route", one.feature) for one in self.http)
        return found


class _Loaded:
    """One feature and where it stands."""

    def __init__(self, feature: Feature, origin: str, surface: Surface) -> None:
        self.feature = feature
        self.name = feature.name
        self.requires = tuple(feature.requires)
        self.origin = origin
        self.metrics = _Metrics(surface.metrics)
        self.services: frozenset[type[object]] = frozenset()
        self.state = FeatureState.LOADED
        self.error: str | None = None


class FeatureHost:
    """All features of one server: `load`, then `setup`, then `start`; `stop` at the end."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._features: list[_Loaded] = []

    def statuses(self) -> list[FeatureStatus]:
        """Rows of SHOW FEATURES, in the order of start."""
        return [FeatureStatus(one.name, one.origin, one.state, one.requires, one.error) for one in self._features]

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(one.name for one in self._features if one.state is FeatureState.RUNNING)

    def load(self, enabled: Sequence[str]) -> None:
        """Import what is enabled and put it in order. Raises FeatureError."""
        entry_points = {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
        loaded: list[_Loaded] = []
        for name in dict.fromkeys(enabled):
            target = entry_points[name].value if name in entry_points else name
            if ":" not in target:
                known = ", ".join(sorted(entry_points)) or "none is installed"
                raise FeatureError(f"features.enabled: no feature is named {name!r} (known: {known})")
            loaded.append(_Loaded(_import_feature(target, name), target if target == name else name, self._surface))
        self._features = _in_order(loaded)

    def setup(self) -> None:
        """Let every feature register. Raises FeatureError where a feature that must not be missing fails."""
        for one in self._features:
            if not self._can_go_on(one, FeatureState.READY):
                continue
            before, services = self._surface.owners(), self._surface.services.types()
            try:
                one.feature.setup(self._context(one))
            except Exception as error:  # noqa: BLE001 - a feature may raise anything
                one.services = self._surface.services.types() - services
                self._fail(one, "setup", error)
            else:
                self._check_ownership(one, before)
                one.services = self._surface.services.types() - services
                one.state = FeatureState.READY

    async def start(self) -> None:
        """Start every feature that is set up, each after what it requires."""
        for one in self._features:
            if one.state is not FeatureState.READY or not self._can_go_on(one, FeatureState.RUNNING):
                continue
            try:
                await one.feature.start()
            except Exception as error:  # noqa: BLE001 - a feature may raise anything
                await self._stop_one(one)
                self._fail(one, "start", error)
            else:
                one.state = FeatureState.RUNNING

    async def stop(self) -> None:
        """Stop in reverse order.

        A feature that fails or hangs while stopping holds up nobody for more than STOP_SECONDS.
        """
        for one in reversed(self._features):
            if one.state is FeatureState.RUNNING:
                await self._stop_one(one)
                one.state = FeatureState.STOPPED

    async def _stop_one(self, one: _Loaded) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await one.feature.stop()
        except Exception as error:  # noqa: BLE001 - a feature may raise anything
            _log.error("feature %s failed to stop", one.name, exc_info=error)
            self._publish(one, "stop", error, is_fatal=False)

    def _context(self, one: _Loaded) -> FeatureContext:
        surface = self._surface
        return FeatureContext(
            one.name,
            surface.bus,
            surface.hooks,
            surface.commands,
            surface.http,
            one.metrics,
            surface.services,
            surface.settings(one.name),
            surface.data_dir,
            logging.getLogger(f"enterprise.{one.name}"),
        )

    def _can_go_on(self, one: _Loaded, needed: FeatureState) -> bool:
        """Whether everything it requires has come as far as `needed`."""
        states = {other.name: other.state for other in self._features}
        missing = [name for name in one.requires if states.get(name) is not needed]
        if missing:
            self._fail(one, "start", FeatureError(f"it requires {', '.join(missing)}, which does not run"))
        return not missing

    def _check_ownership(self, one: _Loaded, before: Counter[tuple[str, str]]) -> None:
        # What is registered under another name could not be taken back, and would be blamed on somebody else.
        foreign = [f"{kind} of {owner}" for kind, owner in self._surface.owners() - before if owner != one.name]
        if foreign:
            raise FeatureError(f"{one.name} registered under another name: {', '.join(sorted(foreign))}")

    def _fail(self, one: _Loaded, where: str, error: Exception) -> None:
        one.state = FeatureState.FAILED
        one.error = f"{where}: {type(error).__name__}: {error}"
        surface = self._surface
        for registry in (surface.bus, surface.hooks, surface.commands, surface.http):
            registry.remove_feature(one.name)
        for service_type in one.services:
            surface.services.withdraw(service_type)
        one.metrics.withdraw()
        is_fatal = one.feature.start_policy is StartPolicy.REFUSE
        _log.error("feature %s failed in %s", one.name, where, exc_info=error)
        self._publish(one, where, error, is_fatal=is_fatal)
        if is_fatal:
            raise FeatureError(f"feature {one.name} failed in {where}: {error}") from error

    def _publish(self, one: _Loaded, where: str, error: Exception, *, is_fatal: bool) -> None:
        text = f"{type(error).__name__}: {error}"
        self._surface.bus.publish(FeatureFailed(one.name, where, text, is_fatal, time.time()))


def _import_feature(target: str, name: str) -> Feature:
    module_name, _, attribute = target.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        if isinstance(found, type) or not hasattr(found, "setup"):
            if not callable(found):
                raise TypeError(f"{target} is neither a feature nor makes one")
            found = found()
        missing = [
            one for one in ("name", "requires", "start_policy", "setup", "start", "stop") if not hasattr(found, one)
        ]
    except Exception as error:
        raise FeatureError(f"features.enabled: {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if missing:
        raise FeatureError(f"features.enabled: {name!r} is no feature, it lacks {', '.join(missing)}")
    return found  # type: ignore[return-value]  # has every attribute of the Protocol


def _in_order(features: Iterable[_Loaded]) -> list[_Loaded]:
    """Each after what it requires, else in the order of the configuration."""
    listed = list(features)
    waiting = {one.name: one for one in listed}
    if len(waiting) != len(listed):
        twice = [name for name, count in Counter(one.name for one in listed).items() if count > 1]
        raise FeatureError(f"features.enabled: two features are named {', '.join(twice)}")
    ordered: list[_Loaded] = []
    while waiting:
        ready = [one for one in waiting.values() if not any(name in waiting for name in one.requires)]
        if not ready:
            raise FeatureError(f"features.enabled: {', '.join(waiting)} require one another in a circle")
        ordered.append(ready[0])
        del waiting[ready[0].name]
    return ordered
