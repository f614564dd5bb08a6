"""The connections of one (database, role) and the queue for them. On the query path.

A session looks its block up once and keeps it. For each statement or transaction:

    conn = block.try_acquire(context)      # an idle connection, at once
    if conn is None:
        block.wait(waiter)                 # later: waiter.granted(conn) or waiter.failed(exc)
    ...
    block.release(conn)                    # last of all: it may run another session's `granted`

Invariant: while somebody waits, nothing is idle (but for the moment of a hand-off), so nobody is overtaken.
Everything that concerns more than one block is the pool's, which the block knows as `BlockOwner`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from server.pool.errors import PoolMisuse
from server.pool.policy import Backoff
from server.pool.seat import CLOSED, IDLE, LEASED, LONG_HELD, RETIRED, CloseReason, Pooled, Seat
from server.pool.settings import PoolKey
from server.pool.stats import Average
from server.pool.waiter import Waiter, WaitQueue
from server.snapshots import PoolSnapshot

C = TypeVar("C", bound=Pooled)

CONTEXT_SEARCH_DEPTH = 4
"""How far down the idle stack a connection of the caller's own context is looked for."""


class BlockOwner(Protocol[C]):
    """The pool, as its blocks see it."""

    def queued(self, block: Block[C]) -> None:
        """A waiter came; serve it, but not before the caller has returned."""

    def unqueued(self, block: Block[C]) -> None:
        """The last waiter left."""

    def discard(self, block: Block[C], conn: C, reason: CloseReason) -> None:
        """Close a connection that is in no list any more, and use the room."""

    def takes(self, block: Block[C]) -> bool:
        """A lease ends in a block that owes connections: do the others still need it?"""

    def callback_failed(self, block: Block[C], exc: Exception) -> None: ...


class Block(Generic[C]):
    """Made by `Pool.block`. Counters are plain integers and totals since the block was made."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_is_serving",
        "_owner",
        "backoff",
        "claim",
        "connecting",
        "connections",
        "demand",
        "gap_seconds",
        "generation",
        "hold_seconds",
        "holding_since",
        "idle",
        "is_refused",
        "key",
        "lease_seconds",
        "leased",
        "lost_at",
        "queue",
        "quota",
        "releases",
        "releases_before",
        "sampled_lease_seconds",
        "sampled_releases",
        "sessions",
        "surplus",
        "wait_seconds",
        "waits",
    )

    def __init__(self, key: PoolKey, owner: BlockOwner[C], clock: Callable[[], float], backoff: Backoff) -> None:
        self.key = key
        self._owner = owner
        self._clock = clock
        self._is_serving = False
        self.idle: list[C] = []  # a stack: the last released is the first used, the bottom is given away
        self.queue: WaitQueue[C] = WaitQueue()
        self.connections: set[C] = set()  # idle and leased
        self.leased = 0
        self.connecting = 0
        self.generation = 0  # connections of an older one are closed when they come back
        self.surplus = 0  # how many of the next releases are for other blocks
        self.backoff = backoff
        self.is_refused = False  # the last login was refused for good: only try for a waiter
        self.sessions = 0
        # For the policy, kept up by the pool.
        self.claim = 0.0
        self.quota = 0
        self.demand = Average(0.0, 0.07)
        self.hold_seconds = Average(0.001, 0.3)
        self.holding_since = 0.0  # since when it has had a connection without a break
        self.releases_before = 0  # the total at that time
        self.gap_seconds = 0.0  # between two uses, as seen when it last had none; 0 is unknown
        self.sampled_releases = 0
        self.sampled_lease_seconds = 0.0
        self.lost_at = -1.0  # when its last connection had last been used
        # Totals.
        self.releases = 0
        self.lease_seconds = 0.0
        self.waits = 0
        self.wait_seconds = 0.0

    @property
    def size(self) -> int:
        """Connections, those being made included: what the block takes of the budget."""
        return len(self.idle) + self.leased + self.connecting

    def attach(self) -> None:
        """A session begins to use the block."""
        self.sessions += 1

    def detach(self) -> None:
        """That session ended."""
        self.sessions -= 1

    def try_acquire(self, context: object) -> C | None:
        """Lease an idle connection, one in `context` if it is near the top; None where the caller has to wait."""
        idle = self.idle
        if not idle or self.queue:
            return None
        conn = idle.pop()
        if conn.context is not context and idle:
            conn = self._better_for(context, conn)
        seat = conn.seat
        seat.state = LEASED
        seat.leased_at = self._clock()
        self.leased += 1
        return conn

    def try_acquire_this(self, conn: C) -> bool:
        """Lease this very connection; False where it is not idle here (or somebody waits)."""
        if self.queue or conn not in self.idle:
            return False
        self.idle.remove(conn)
        conn.seat.state = LEASED
        conn.seat.leased_at = self._clock()
        self.leased += 1
        return True

    def wait(self, waiter: Waiter[C]) -> None:
        """Queue up. Exactly one of the waiter's callbacks follows, after this returns, unless `cancel` comes first."""
        if waiter in self.queue:
            raise PoolMisuse("this waiter is in the queue already")
        self.queue[waiter] = self._clock()
        self._owner.queued(self)

    def cancel(self, waiter: Waiter[C]) -> bool:
        """Leave the queue; False where the waiter was not in it (then it has had its callback)."""
        if self.queue.pop(waiter, None) is None:
            return False
        if not self.queue:
            self._owner.unqueued(self)
        return True

    def retry(self, conn: C, waiter: Waiter[C]) -> None:
        """`conn` was found dead before its first use: drop it and wait again, in the place the waiter had."""
        seat = conn.seat
        since = seat.since if seat.granted_at == seat.leased_at else seat.leased_at
        self.queue.restore(waiter, since)
        self.release(conn, reusable=False)
        self._owner.queued(self)

    def release(self, conn: C, *, reusable: bool = True) -> None:
        """End a lease. The oldest waiter gets the connection before this returns; not `reusable`, it is closed."""
        seat = conn.seat
        if seat.block is not self or (seat.state != LEASED and seat.state != LONG_HELD):
            raise PoolMisuse(f"released a connection that is not leased from {self.key}")
        now = self._clock()
        self.lease_seconds += now - seat.leased_at
        self.releases += 1
        self.leased -= 1
        seat.state = IDLE
        seat.released_at = now
        if not reusable:
            self._owner.discard(self, conn, CloseReason.UNUSABLE)
        elif seat.generation != self.generation:
            self._owner.discard(self, conn, CloseReason.STALE)
        elif self.surplus and self._owner.takes(self):
            self.surplus -= 1
            self._owner.discard(self, conn, CloseReason.STOLEN)
        else:
            self.idle.append(conn)
            if self.queue:
                self.serve()

    def mark_long_held(self, conn: C, *, long_held: bool = True) -> None:
        """The lease is idle in transaction or pinned (or no longer): it may not count against `default_pool_size`."""
        seat = conn.seat
        if seat.block is self and seat.is_leased:
            seat.state = LONG_HELD if long_held else LEASED

    # What follows is for the pool.

    def serve(self) -> None:
        """Hand idle connections to waiters, oldest first. Called from a callback, it leaves it to the loop below."""
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while self.idle and self.queue:
                conn = self.idle.pop()
                waiter, since = self.queue.popitem(last=False)
                seat = conn.seat
                now = self._clock()
                seat.state = LEASED
                seat.leased_at = seat.granted_at = now
                seat.since = since
                self.leased += 1
                self.waits += 1
                self.wait_seconds += now - since
                if not self.queue:
                    self._owner.unqueued(self)
                try:
                    waiter.granted(conn)
                except Exception as exc:  # noqa: BLE001 - one session's bug is not another's
                    self._owner.callback_failed(self, exc)
                    if seat.leased_at == now and seat.is_leased:  # still that lease: nobody else will end it
                        self.release(conn, reusable=False)
        finally:
            self._is_serving = False

    def fail_all(self, exc: BaseException) -> None:
        """Fail everybody who waits now; who comes in a callback waits anew."""
        for waiter in list(self.queue):
            self.fail(waiter, exc)

    def fail(self, waiter: Waiter[C], exc: BaseException) -> None:
        if self.cancel(waiter):
            try:
                waiter.failed(exc)
            except Exception as bug:  # noqa: BLE001 - as above
                self._owner.callback_failed(self, bug)

    def admit(self, conn: C, now: float, expires_at: float) -> None:
        """A new connection joins, idle."""
        seat = conn.seat
        seat.block = self
        seat.state = IDLE
        seat.generation = self.generation
        seat.created_at = seat.released_at = now
        seat.expires_at = expires_at
        if not self.connections:
            if self.lost_at >= 0.0:
                gap = now - self.lost_at
                self.gap_seconds = (self.gap_seconds + gap) / 2.0 if self.gap_seconds else gap
            self.holding_since = now
            self.releases_before = self.releases
        self.connections.add(conn)
        self.idle.append(conn)

    def expel(self, conn: C) -> None:
        """Forget a connection that is in no list any more."""
        conn.seat.state = CLOSED
        conn.seat.block = None
        if len(self.connections) == 1:
            self.gap_seconds = self._gap_until(conn.seat.released_at)
            self.lost_at = conn.seat.released_at
        self.connections.discard(conn)

    def retire(self, seat: Seat) -> None:
        """Close this one at its next release."""
        seat.generation = RETIRED

    def usual_gap_seconds(self) -> float:
        """From one use to the next, on average since it has had connections; 0 is unknown. Only while one is idle."""
        return self._gap_until(self.idle[-1].seat.released_at)

    def _gap_until(self, last_used_at: float) -> float:
        leases = self.releases - self.releases_before
        return (last_used_at - self.holding_since) / (leases - 1) if leases > 1 else self.gap_seconds

    def long_held(self, now: float, longer_than: float) -> int:
        """Leases that are long-held by mark, or by having lasted longer than so many seconds."""
        return sum(
            1
            for conn in self.connections
            if conn.seat.state == LONG_HELD or (conn.seat.state == LEASED and now - conn.seat.leased_at > longer_than)
        )

    def snapshot(self, now: float, *, pool_size: int, is_paused: bool) -> PoolSnapshot:
        pinned = sum(1 for conn in self.connections if conn.seat.state == LONG_HELD)
        return PoolSnapshot(
            database=self.key.database,
            role=self.key.role,
            sessions_active=max(0, self.sessions - len(self.queue)),
            sessions_waiting=len(self.queue),
            backends_active=self.leased - pinned,
            backends_idle=len(self.idle),
            backends_pinned=pinned,
            backends_connecting=self.connecting,
            max_wait_us=int((now - self.queue.oldest()) * 1_000_000) if self.queue else 0,
            pool_size=pool_size,
            paused=is_paused,
        )

    def _better_for(self, context: object, top: C) -> C:
        idle = self.idle
        for i in range(len(idle) - 1, max(-1, len(idle) - CONTEXT_SEARCH_DEPTH), -1):
            conn = idle[i]
            if conn.context is context:
                del idle[i]
                idle.append(top)
                return conn
        return top
