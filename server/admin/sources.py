"""Where the core's admin commands read from, as one object that the composition root fills."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.config import SettingValue
from server.extension.bus import EventBus
from server.extension.commands import CommandRegistry
from server.extension.hooks import Hooks
from server.snapshots import ServerControl


class FeatureState(enum.Enum):
    """Where a feature stands."""

    LOADED = "loaded"  # found, not set up yet
    READY = "ready"  # set up, not started yet
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class FeatureStatus:
    """One row of SHOW FEATURES."""

    name: str
    origin: str  # entry point or module:object
    state: FeatureState
    requires: tuple[str, ...]
    error: str | None


@dataclass(frozen=True, slots=True)
class AdminSources:
    """What `show` and `control` read and act on."""

    control: ServerControl
    bus: EventBus
    hooks: Hooks
    registry: CommandRegistry
    settings: Callable[[], Sequence[SettingValue]]
    features: Callable[[], Sequence[FeatureStatus]]
