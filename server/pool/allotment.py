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
PATIENCE = 5.0
FREE_PATIENCE = 1.0
"""A block with connections of its own gets another's when its queue is longer than so many logins: the latter where
the giver has no work."""
MAX_GAP_LOGINS = 32.0
"""Is a block's connection idle for longer than so many logins between two uses, then others may as well have it."""
HYSTERESIS = 1.2
"""How much better a connection must be used elsewhere before it moves."""
MAX_PROTECTION_SECONDS = 1.0
"""Idle for so long, a connection is free for all."""
STALE_SECONDS = 1.0
"""Averages older than this are started afresh."""


class Allotment(Generic[C]):
    def __init__(self, connector: Connector[C]) -> None:
        self._connector = connector
        self._sampled_at = -math.inf

    def grace_seconds(self) -> float:
        """A connection idle for less than this is not taken: its session may just be thinking."""
        return max(0.01, 2.0 * self._connector.seconds.value)

    def quantum_seconds(self) -> float:
        """How long a block keeps its only connection while others have none."""
        return max(0.05, 8.0 * self._connector.seconds.value)

    def victim(self, now: float, seated: Iterable[Block[C]], taker: Block[C]) -> Block[C] | None:
        """The block whose longest idle connection can be had on the spot. `taker` matters by having one or none."""
        found, oldest = None, now - self.grace_seconds()
        for block in seated:
            if block.idle and block.idle[0].seat.released_at < oldest:
                # A block that is in use keeps its last one; who gives that up is decided with all claims in view.
                is_free = now - block.idle[0].seat.released_at > MAX_PROTECTION_SECONDS
                if is_free or (not taker.size and (block.size > 1 or not self._is_in_use(block, now))):
                    found, oldest = block, block.idle[0].seat.released_at
        return found

    def donors(
        self, now: float, seated: Collection[Block[C]], starving: Collection[Block[C]], settings: PoolSettings
    ) -> list[tuple[Block[C], int]]:
        """Blocks, and how many connections each should give now. For every tick on which somebody is kept waiting."""
        self._sample(now, seated)
        held = {b: b.long_held(now, math.inf) for b in seated}
        if sum(held.values()) >= settings.max_backends:  # nothing else is left: what of it ends first has to do
            held = dict.fromkeys(seated, 0)
        hungry = [b for b in starving if b.backoff.may_try(now)]
        claimants = [b for b in seated if b.queue or b.leased > held[b] or self._is_in_use(b, now)] + hungry
        available = settings.max_backends - sum(held.values())
        headroom = self._connector.headroom(now)
        if headroom <= 0:
            return []
        if len(claimants) > available:
            return self._by_turn(now, seated, held, min(len(hungry), headroom))
        for b in seated:
            b.claim, b.quota = 0.0, 0
        for b in hungry:
            b.demand.value = max(b.demand.value, len(b.queue))
        for b in claimants:
            b.claim = max(b.demand.value, 0.1) * b.hold_seconds.value
        limits = [self._usable(b, held.get(b, 0), settings.default_pool_size) for b in claimants]
        for b, quota in zip(claimants, share(available, [b.claim for b in claimants], limits), strict=True):
            b.quota = quota
        return self._by_share(now, claimants, held, headroom)

    def _usable(self, block: Block[C], held: int, at_most: int) -> int:
        demand = max(len(block.queue) + block.leased - held, math.ceil(block.demand.value))
        return max(1, min(demand, at_most))

    def _by_share(
        self, now: float, claimants: Iterable[Block[C]], held: dict[Block[C], int], most: int
    ) -> list[tuple[Block[C], int]]:
        """Move connections, one by one, from the blocks furthest above their quota to those furthest below.

        Only where it makes a difference, or chance would keep connections moving for nothing.
        """
        have = {b: b.size - held.get(b, 0) for b in (*held, *claimants)}
        gives: dict[Block[C], int] = {}
        takers = [b for b in claimants if b.queue and have[b] < b.quota and b.backoff.may_try(now)]
        for _ in range(most):
            # Who has none comes first, then who has least for its claim.
            able = (b for b in takers if have[b] < b.quota and len(b.queue) > b.connecting)
            taker = max(able, key=lambda b: (not have[b], b.claim / (have[b] or 1)), default=None)
            rich = (b for b in held if have[b] > b.quota and b.size - b.connecting - held[b] > gives.get(b, 0))
            giver = max(rich, key=lambda b: have[b] - b.quota, default=None)
            if taker is None or giver is None:
                break
            patience = PATIENCE if giver.claim else FREE_PATIENCE
            is_better_used = (
                not have[taker]
                or not giver.claim
                or taker.claim / have[taker] * (have[giver] - 1) > giver.claim * HYSTERESIS
            )
            if not is_better_used or not self.is_worth_a_login(taker, have[taker], now, patience):
                takers.remove(taker)
                continue
            have[taker] += 1
            have[giver] -= 1
            gives[giver] = gives.get(giver, 0) + 1
        return list(gives.items())

    def is_worth_a_login(self, taker: Block[C], size: int, now: float, patience: float = FREE_PATIENCE) -> bool:
        """With `size` connections, does the queue take longer to clear than so many logins, or never get empty?"""
        if not size or (patience <= FREE_PATIENCE and taker.demand.value > size + 1):
            return True
        limit = patience * self._connector.seconds.value
        return len(taker.queue) * taker.hold_seconds.value / size > limit or now - taker.queue.oldest() > limit

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
            if wanted <= 0:
                break
            is_unused = not block.leased and not self._is_in_use(block, now)
            if is_unused or now - block.holding_since >= quantum:
                given.append((block, 1))
                wanted -= 1
        return given

    def _is_in_use(self, block: Block[C], now: float) -> bool:
        """Will a session come back to the idle connection soon, going by how often it was used so far?"""
        if not block.idle:
            return False
        gap = block.usual_gap_seconds()
        unused = now - block.idle[-1].seat.released_at
        if gap > MAX_GAP_LOGINS * self._connector.seconds.value:
            gap = 0.0  # keeping a connection for so long saves too little
        return unused < max(4.0 * gap, self.grace_seconds())

    def _sample(self, now: float, seated: Iterable[Block[C]]) -> None:
        is_stale = now - self._sampled_at > STALE_SECONDS
        self._sampled_at = now
        for block in seated:
            demand = float(len(block.queue) + block.leased)
            if is_stale:
                block.demand.value = demand
            else:
                block.demand.add(demand)
            leases = block.releases - block.sampled_releases
            if leases:
                hold = (block.lease_seconds - block.sampled_lease_seconds) / leases
                block.hold_seconds.add(max(hold, MIN_HOLD_SECONDS))
                block.sampled_releases, block.sampled_lease_seconds = block.releases, block.lease_seconds
