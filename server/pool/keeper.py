"""Housekeeping, once a second while there are connections: idle timeout, lifetime, minimum sizes.

A connection near the end of its lifetime in a busy block gets its successor first, so that nobody waits for the login.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

from server.pool.block import Block
from server.pool.seat import IDLE, CloseReason, Pooled, Seat
from server.pool.settings import PoolSettings

C = TypeVar("C", bound=Pooled)

KEEP_SECONDS = 1.0
PRE_REPLACE_FRACTION = 0.05
BUSY_SECONDS = 10.0


class KeeperHost(Protocol[C]):
    """The pool, as its keeper sees it."""

    @property
    def settings(self) -> PoolSettings: ...
    def all_blocks(self) -> Collection[Block[C]]: ...
    def open_spare(self, block: Block[C], replaces: Seat | None = None) -> bool:
        """Start a login that nobody waits for, if there is room; tells whether it did."""

    def close_idle(self, block: Block[C], conn: C, reason: CloseReason) -> None: ...


class Keeper(Generic[C]):
    def __init__(self, host: KeeperHost[C], loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._host = host
        self._loop = loop
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_SECONDS, self._keep)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _keep(self) -> None:
        self._timer = None
        now = self._clock()
        needs_keeping = False
        for block in self._host.all_blocks():
            self._end_lifetimes(block, now)
            self._close_unused(block, now)
            self._fill_up(block)
            needs_keeping = needs_keeping or bool(block.size) or self._minimum(block) > 0
        if needs_keeping:
            self.arm()

    def _end_lifetimes(self, block: Block[C], now: float) -> None:
        lifetime = self._host.settings.server_lifetime
        if not lifetime:
            return
        for conn in list(block.connections):
            seat = conn.seat
            if now >= seat.expires_at:
                block.retire(seat)
                if seat.state == IDLE:
                    self._host.close_idle(block, conn, CloseReason.STALE)
            elif now >= seat.expires_at - lifetime * PRE_REPLACE_FRACTION and not seat.replacing:
                is_busy = block.leased or block.queue or now - block.idle[-1].seat.released_at < BUSY_SECONDS
                if is_busy and not any(other.seat.replacing for other in block.connections):
                    seat.replacing = self._host.open_spare(block, seat)

    def _close_unused(self, block: Block[C], now: float) -> None:
        timeout = self._host.settings.server_idle_timeout
        if not timeout:
            return
        spare = block.size - self._minimum(block)
        for conn in list(block.idle):  # the bottom was used least recently
            if spare <= 0 or now - conn.seat.released_at < timeout:
                break
            self._host.close_idle(block, conn, CloseReason.IDLE)
            spare -= 1

    def _fill_up(self, block: Block[C]) -> None:
        for _ in range(self._minimum(block) - block.size):
            if block.is_refused or not self._host.open_spare(block):
                break

    def _minimum(self, block: Block[C]) -> int:
        settings = self._host.settings
        return min(settings.min_pool_size, settings.default_pool_size) if block.sessions > 0 else 0
