"""Who gives way when the budget is used up: decides which blocks owe how many connections to others.

Two regimes, after Gel's. While every block that has work can have a connection, the budget is shared by claim
(`policy.share`) and blocks above their share give. When they are more than the connections, each block that has one
keeps it for a quantum, long enough to make the login worth its cost, and then passes it on to whoever has been
without one longest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

from server.pool.block import Block
from server.pool.connector import Connector
from server.pool.policy import share
from server.pool.seat import Pooled
from server.pool.settings import PoolSettings

C = TypeVar("C", bound=Pooled)

MIN_HOLD_SECONDS = 0.001
"""A lease counts as at least this long: below it, the loop's own time rules."""
STALE_SECONDS = 1.0
"""Averages older than this are started afresh."""


class Allotment(Generic[C]):
    def __init__(self, connector: Connector[C]) -> None:
        self._connector = connector
        self._sampled_at = -math.inf
        self._totals: dict[Block[C], tuple[int, float]] = {}

    def grace_seconds(self) -> float:
        """An idle connection is not taken from its block before this: its session may just be thinking."""
        return max(0.01, 2.0 * self._connector.seconds.value)

    def quantum_seconds(self) -> float:
        """How long a block keeps its only connection while others have none."""
        return max(0.05, 5.0 * self._connector.seconds.value)

    def donors(
        self, now: float, seated: Collection[Block[C]], starving: Collection[Block[C]], settings: PoolSettings
    ) -> list[tuple[Block[C], int]]:
        """Blocks, and how many connections each should give now. For every tick on which somebody is kept waiting."""
        self._sample(now, seated, starving)
        held = {b: b.long_held(now, settings.reserve_pool_timeout or math.inf) for b in seated}
        hungry = [b for b in starving if b.backoff.may_try(now)]
        claimants = [b for b in seated if b.queue or b.leased > held[b] or self._is_thinking(b, now)] + hungry
        available = settings.max_backends - sum(held.values())
        headroom = self._connector.headroom(now)
        if available <= 0 or headroom <= 0:
            return []
        if len(claimants) > available:
            return self._by_turn(now, seated, held, min(len(hungry), headroom))
        limits = []
        for b in claimants:
            use = max(len(b.queue) + b.leased - held.get(b, 0), math.ceil(b.demand.value - 0.5))
            limits.append(max(1, min(use, settings.default_pool_size)))
        claims = [max(b.demand.value, 0.1) * b.hold_seconds.value for b in claimants]
        for b in seated:
            b.quota = 0
        for b, quota in zip(claimants, share(available, claims, limits), strict=True):
            b.quota = quota
        wanted = sum(
            max(0, min(b.quota - (b.size - held.get(b, 0)), len(b.queue) - b.connecting))
            for b in claimants
            if b.queue and b.backoff.may_try(now)
        )
        return self._by_share(seated, held, min(wanted, headroom))

    def _by_share(
        self, seated: Iterable[Block[C]], held: dict[Block[C], int], wanted: int
    ) -> list[tuple[Block[C], int]]:
        given: list[tuple[Block[C], int]] = []
        for block in sorted(seated, key=lambda b: b.size - held[b] - b.quota, reverse=True):
            over = min(block.size - block.connecting - held[block] - block.quota, wanted)
            if over <= 0:
                break
            given.append((block, over))
            wanted -= over
        return given

    def _by_turn(
        self, now: float, seated: Iterable[Block[C]], held: dict[Block[C], int], wanted: int
    ) -> list[tuple[Block[C], int]]:
        given: list[tuple[Block[C], int]] = []
        spare = {b: b.size - b.connecting - held[b] for b in seated}
        for block in sorted((b for b in spare if spare[b] > 1), key=lambda b: spare[b], reverse=True):
            over = min(spare[block] - 1, wanted)
            if over > 0:
                given.append((block, over))
                wanted -= over
        quantum = self.quantum_seconds()
        for block in sorted((b for b in spare if spare[b] == 1), key=lambda b: b.holding_since):
            if wanted <= 0 or now - block.holding_since < quantum:
                break
            given.append((block, 1))
            wanted -= 1
        return given

    def _is_thinking(self, block: Block[C], now: float) -> bool:
        return bool(block.idle) and now - block.idle[-1].seat.released_at < self.grace_seconds()

    def _sample(self, now: float, seated: Iterable[Block[C]], starving: Iterable[Block[C]]) -> None:
        is_stale = now - self._sampled_at > STALE_SECONDS
        self._sampled_at = now
        before, self._totals = self._totals, {}
        for block in (*seated, *starving):
            demand = float(len(block.queue) + block.leased)
            if is_stale:
                block.demand.value = demand
            else:
                block.demand.add(demand)
            releases, lease_seconds = block.releases, block.lease_seconds
            self._totals[block] = (releases, lease_seconds)
            old_releases, old_seconds = before.get(block, (0, 0.0))
            if releases > old_releases:
                hold = (lease_seconds - old_seconds) / (releases - old_releases)
                block.hold_seconds.add(max(hold, MIN_HOLD_SECONDS))
