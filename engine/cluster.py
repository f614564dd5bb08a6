"""The engine as everybody else sees it: one narrow interface, two kinds behind it.

`open_cluster(config)` makes the kind that `engine.mode` names: `EmbeddedCluster` or `RemoteCluster`. Nobody asks which
one he has: what differs is in `capabilities`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from engine.address import EngineAddress
from engine.capabilities import BackendCapabilities, EngineInfo
from engine.control import EngineControl
from engine.embedded import EmbeddedCluster, EmbeddedOptions
from engine.observer import EngineObserver
from engine.remote import RemoteCluster

__all__ = ["Cluster", "ClusterConfig", "EngineAddress", "EngineInfo", "open_cluster"]


class Cluster(Protocol):
    """One PostgreSQL engine."""

    def prepare(self) -> None:
        """Do what may need root: users, directories, the lock. Blocks. `start` does it where it was not done."""

    def give_up_root(self) -> None:
        """Become `security.frontend_os_user` for good, after `prepare` and before the event loop."""

    async def start(self) -> None:
        """Until the engine is ready: control database, roles and capabilities are there. Raises EngineError."""

    async def stop(self, mode: str = "fast") -> None:
        """Stop the engine, or let go of a remote one. Idempotent."""

    async def reload(self, settings: Mapping[str, str]) -> None:
        """Put changed `engine.settings` in force."""

    @property
    def address(self) -> EngineAddress: ...
    @property
    def control(self) -> EngineControl: ...
    @property
    def info(self) -> EngineInfo: ...
    @property
    def capabilities(self) -> BackendCapabilities: ...
    @property
    def is_running(self) -> bool: ...


class _ServerSection(Protocol):
    @property
    def data_dir(self) -> Path: ...


class _EngineSection(Protocol):
    @property
    def mode(self) -> str: ...
    @property
    def bin_dir(self) -> Path | None: ...
    @property
    def dsn(self) -> str: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def start_timeout(self) -> float: ...
    @property
    def stop_timeout(self) -> float: ...
    @property
    def os_user(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, str]: ...


class _SecuritySection(Protocol):
    @property
    def superuser(self) -> bool: ...
    @property
    def frontend_os_user(self) -> str: ...


class _AuthSection(Protocol):
    @property
    def scram_iterations(self) -> int: ...
    @property
    def password(self) -> str: ...


class ClusterConfig(Protocol):
    """The part of `server.config.Config` that the engine reads."""

    @property
    def server(self) -> _ServerSection: ...
    @property
    def engine(self) -> _EngineSection: ...
    @property
    def security(self) -> _SecuritySection: ...
    @property
    def auth(self) -> _AuthSection: ...


def open_cluster(config: ClusterConfig, observer: EngineObserver | None = None) -> Cluster:
    """The cluster that the configuration names; not started yet. Raises EngineConfigError."""
    if config.engine.mode == "remote":
        return RemoteCluster(
            config.engine.dsn,
            observer,
            data_dir=config.server.data_dir,
            frontend_os_user=config.security.frontend_os_user or None,
        )
    return EmbeddedCluster(embedded_options(config), observer)


def embedded_options(config: ClusterConfig) -> EmbeddedOptions:
    """What the configuration says of an embedded cluster."""
    return EmbeddedOptions(
        data_dir=config.server.data_dir,
        bin_dir=config.engine.bin_dir,
        max_connections=config.engine.max_connections,
        start_timeout=config.engine.start_timeout,
        stop_timeout=config.engine.stop_timeout,
        engine_os_user=config.engine.os_user or None,
        frontend_os_user=config.security.frontend_os_user or None,
        settings=config.engine.settings,
        superuser=config.security.superuser,
        password=config.auth.password or None,
        scram_iterations=config.auth.scram_iterations,
    )
