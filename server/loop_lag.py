"""How late the event loop runs its callbacks.

Every tenth of a second a callback notes how much later than asked it was called. Something that holds the loop for 50
ms shows as lags up to 50 ms. `quantiles_us` answers for the last minute, which is what ServerControl.loop_lag_us and
/metrics show.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

INTERVAL_SECONDS: Final = 0.1
WINDOW_SECONDS: Final = 60.0


class LoopLagMonitor:
    """Measures the loop it is started on. Owns one timer; `stop` ends it."""

    __slots__ = ("_due", "_interval", "_lags_us", "_loop", "_timer", "max_us")

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS, window_seconds: float = WINDOW_SECONDS) -> None:
        self._interval = interval_seconds
        self._lags_us: deque[int] = deque(maxlen=max(1, round(window_seconds / interval_seconds)))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.max_us = 0  # since the start

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._schedule(self._loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None

    def quantiles_us(self) -> tuple[int, int]:
        """Median and 99th percentile over the last minute, in microseconds; (0, 0) before the first measurement."""
        ordered = sorted(self._lags_us)
        if not ordered:
            return 0, 0
        last = len(ordered) - 1
        return ordered[last // 2], ordered[round(last * 0.99)]

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._interval
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        loop = self._loop
        if loop is None:
            return
        lag_us = max(0, round((loop.time() - self._due) * 1_000_000))
        self._lags_us.append(lag_us)
        self.max_us = max(self.max_us, lag_us)
        self._schedule(loop)
