"""How the engine tells the rest of the server what happens to it.

`engine` imports nothing of `server`; whoever opens a cluster injects an `EngineObserver`. The calls are made on the
event loop, must not block and must not raise.
"""

from __future__ import annotations

from typing import Protocol

from engine.capabilities import EngineInfo


class EngineObserver(Protocol):
    """Told about the life of one engine, in the order things happen."""

    def engine_ready(self, info: EngineInfo) -> None:
        """The engine accepts connections: at the first start, and again after each `engine_lost`.

        `info.epoch` is higher than in every call before: what was learned from the engine before is void.
        """

    def engine_lost(self, reason: str) -> None:
        """Every connection to the engine is dead or dying; `engine_ready` follows when it has recovered."""

    def engine_stopped(self) -> None:
        """The engine was stopped on our request."""


class NullObserver:
    """Nobody listens."""

    def engine_ready(self, info: EngineInfo) -> None:
        pass

    def engine_lost(self, reason: str) -> None:
        pass

    def engine_stopped(self) -> None:
        pass
