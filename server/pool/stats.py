"""Counters of the pool and whom it tells of what is rare. Nothing here runs for an ordinary acquire and release."""

from __future__ import annotations

from typing import Protocol

from server.pool.seat import CloseReason
from server.pool.settings import PoolKey


class PoolObserver(Protocol):
    """Hears of connections coming and going. Must not raise and must not call the pool."""

    def connected(self, key: PoolKey, seconds: float) -> None: ...
    def connect_failed(self, key: PoolKey, exc: BaseException, seconds: float) -> None: ...
    def disconnected(self, key: PoolKey, reason: CloseReason) -> None: ...
    def wait_timed_out(self, key: PoolKey, waited_seconds: float) -> None: ...
    def breaker_changed(self, key: PoolKey | None, is_open: bool) -> None:
        """Waiters fail at once (or no longer), of one block, or of all where `key` is None."""

    def callback_failed(self, key: PoolKey, exc: Exception) -> None:
        """A waiter's callback or `disconnect` raised: a bug of ours that the pool survived."""


class SilentObserver:
    """Hears everything and says nothing."""

    def connected(self, key: PoolKey, seconds: float) -> None: ...
    def connect_failed(self, key: PoolKey, exc: BaseException, seconds: float) -> None: ...
    def disconnected(self, key: PoolKey, reason: CloseReason) -> None: ...
    def wait_timed_out(self, key: PoolKey, waited_seconds: float) -> None: ...
    def breaker_changed(self, key: PoolKey | None, is_open: bool) -> None: ...
    def callback_failed(self, key: PoolKey, exc: Exception) -> None: ...


class PoolCounters:
    """Totals since start. Plain integers: read them, do not write them."""

    __slots__ = ("connect_failures", "connects", "disconnects", "steals", "wait_timeouts")

    def __init__(self) -> None:
        self.connects = 0
        self.connect_failures = 0
        self.disconnects = 0
        self.steals = 0
        self.wait_timeouts = 0


class Average:
    """An exponentially weighted mean; `weight` is what one sample counts."""

    __slots__ = ("value", "weight")

    def __init__(self, initial: float, weight: float) -> None:
        self.value = initial
        self.weight = weight

    def add(self, sample: float) -> None:
        self.value += (sample - self.value) * self.weight
