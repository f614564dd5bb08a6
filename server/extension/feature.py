"""What a feature is, and what it is given.

A feature is an object with the attributes of `Feature`, found through the entry point group `rustydb.features` or a
`module:object` path in `features.enabled`. It registers everything in `setup`, begins its work in `start` (the engine
is up, no client is in yet) and ends it in `stop` (the clients are gone, the engine is still up).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from server.extension.bus import EventBus
from server.extension.commands import CommandRegistry
from server.extension.hooks import Hooks
from server.extension.http_routes import HttpRoutes
from server.extension.services import Services

if TYPE_CHECKING:
    from prometheus_client.registry import Collector


class StartPolicy(enum.Enum):
    """What happens when a feature cannot be set up or started."""

    REFUSE = "refuse"  # the server does not start: a feature that must not be missing (audit)
    WITHOUT = "without"  # the server starts without it and says so


class MetricsSink(Protocol):
    """Where a feature puts its Prometheus collector."""

    def register(self, collector: Collector) -> None: ...


@dataclass(frozen=True, slots=True)
class FeatureContext:
    """Everything a feature may touch of the server."""

    name: str
    bus: EventBus
    hooks: Hooks
    commands: CommandRegistry
    http: HttpRoutes
    metrics: MetricsSink
    services: Services
    settings: Mapping[str, object]  # the feature's own section of the configuration
    data_dir: Path  # the server's data directory; a feature keeps its files in a folder of its own there
    log: logging.Logger


class Feature(Protocol):
    """A feature. Stateless until `setup`; one instance a server."""

    @property
    def name(self) -> str:
        """Lower case, unique: the name in `features.enabled`, in logs, events and metrics."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Names of features that are set up and started before this one, and without which it does not run."""

    @property
    def start_policy(self) -> StartPolicy: ...

    def setup(self, context: FeatureContext) -> None:
        """Register hooks, subscriptions, commands, routes, collectors and services.

        Opens nothing and waits for nothing.
        """

    async def start(self) -> None:
        """Begin: open files, read tables, start tasks (and own them)."""

    async def stop(self) -> None:
        """End everything that start began. Called also after a start that failed halfway; must not raise."""
