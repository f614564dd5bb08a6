"""One budget of connections over all blocks: who may open one, who has to give one up, what PAUSE and its kin do.

The pool knows callables, not PostgreSQL: `connect` makes a connection, `disconnect` ends one, and nothing here awaits
per acquire. Ordinary acquires and releases never come here (see `block`); this module runs when somebody waits, when
a connection comes or goes, on a tick while somebody waits, and once a second for the housekeeping.

Invariants: connections, those being made included, never exceed `max_backends` (but after `retune` to less, until
leases end); a connection is leased to one at a time; each waiter gets exactly one callback.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from server.pool.allotment import Allotment
from server.pool.block import Block
from server.pool.connector import Connector
from server.pool.errors import PoolClosed, PoolTimeout, PoolUnavailable
from server.pool.keeper import Keeper
from server.pool.policy import Backoff, FailureKind, classify_failure
from server.pool.seat import IDLE, CloseReason, Pooled, Seat
from server.pool.settings import PoolKey, PoolSettings
from server.pool.settling import Settling
from server.pool.stats import PoolCounters, PoolObserver, SilentObserver
from server.snapshots import PoolSnapshot

C = TypeVar("C", bound=Pooled)

LIFETIME_JITTER = 0.1
LONG_LEASE_SECONDS = 5.0
"""A lease that has lasted this long counts as long-held, whether it is marked or not."""
TICK_SECONDS = 0.01
TICK_SECONDS_PER_WAITING_BLOCK = 0.00002


class Pool(Generic[C]):
    def __init__(
        self,
        *,
        connect: Callable[[PoolKey], Awaitable[C]],
        disconnect: Callable[[C], None],
        settings: PoolSettings,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
        observer: PoolObserver | None = None,
        classify: Callable[[BaseException], FailureKind] = classify_failure,
        rng: random.Random | None = None,
    ) -> None:
        """`disconnect` is called once for each connection, but not for those that `conn_lost` reported while idle."""
        self.settings = settings
        self.counters = PoolCounters()
        self.size = 0
        """Connections over all blocks, those being made included."""
        self._disconnect = disconnect
        self._loop = loop
        self._clock = clock
        self._observer: PoolObserver = observer if observer is not None else SilentObserver()
        self._rng = rng if rng is not None else random.Random()
        # A block lives as long as a session, a connection or a waiter needs it.
        self._blocks: WeakValueDictionary[PoolKey, Block[C]] = WeakValueDictionary()
        self._seated: dict[Block[C], None] = {}  # with connections, those being made included
        self._waiting: dict[Block[C], None] = {}  # with waiters and connections
        self._starving: dict[Block[C], None] = {}  # with waiters and none, who has been without longest first
        self._is_contended = False  # somebody who may have a connection could not get one
        self._held_back: Counter[str] = Counter()  # databases that get no connections now, by evictions under way
        self._paused: set[str] = set()
        self._all_paused = False
        self.is_closed = False
        self._tick: asyncio.TimerHandle | None = None
        self._settling = Settling(loop)
        self._connector = Connector(
            connect=connect,
            classify=classify,
            loop=loop,
            clock=clock,
            rng=self._rng,
            settings=settings,
            sink=self,
            observer=self._observer,
        )
        self._allotment: Allotment[C] = Allotment(self._connector)
        self._keeper: Keeper[C] = Keeper(self, loop, clock)

    # --- for sessions

    def block(self, key: PoolKey) -> Block[C]:
        """The block of `key`; a session keeps it, and tells it with `attach` and `detach` that it does."""
        block = self._blocks.get(key)
        if block is None:
            block = Block(key, self, self._clock, Backoff(self._rng))
            self._blocks[key] = block
            if self.settings.min_pool_size:
                self._keeper.arm()
        return block

    def conn_lost(self, conn: C) -> None:
        """The owner saw the connection die. An idle one is dropped at once, a leased one when it is released."""
        seat = conn.seat
        block = seat.block
        if not isinstance(block, Block):
            return
        block.retire(seat)
        if seat.state == IDLE:
            block.idle.remove(conn)
            self._drop(block, conn, CloseReason.LOST, disconnect=False)
            self._pump()

    # --- for the operator

    def snapshot(self) -> list[PoolSnapshot]:
        now = self._clock()
        blocks = [block for _, block in sorted(self._blocks.items())]
        size = self.settings.default_pool_size
        return [b.snapshot(now, pool_size=size, is_paused=self._is_held_back(b.key.database)) for b in blocks]

    async def pause(self, database: str | None = None) -> None:
        """Give out nothing more, close what is idle, and return when every lease has ended (PgBouncer's PAUSE).

        Waiters stay in their queue, and `query_wait_timeout` still holds for them.
        """
        if database is None:
            self._all_paused = True
        else:
            self._paused.add(database)
        self.reconnect(database)
        await self._settling.until(
            lambda: not any(b.size for b in self._of(database)) or not self._is_paused_for(database)
        )

    def resume(self, database: str | None = None) -> None:
        """Undo `pause`. Without a database: all of them, as PgBouncer does."""
        if database is None:
            self._all_paused = False
            self._paused.clear()
        else:
            self._paused.discard(database)
        self._pump()
        self._settling.check()

    def reconnect(self, database: str | None = None) -> None:
        """Close idle connections now and leased ones on release; new ones take their place when needed."""
        self._renew(self._of(database))

    def evict_role(self, role: str) -> None:
        """The role's password, settings or existence changed: its connections are not used again."""
        self._renew(block for block in list(self._blocks.values()) if block.key.role == role)

    def give_way(self, key: PoolKey) -> None:
        """Close what is idle in other pools of this database or role: the engine counts it against their limits."""
        for block in list(self._blocks.values()):
            if block.key != key and (block.key.database == key.database or block.key.role == key.role):
                for conn in list(block.idle):
                    self.close_idle(block, conn, CloseReason.STOLEN)

    async def evict_database(self, database: str) -> None:
        """Close the database's idle connections now and its leased ones on release; returns when none is idle.

        New ones may come the next moment: use `evicting` around a statement that must find none.
        """
        async with self.evicting(database):
            pass

    @asynccontextmanager
    async def evicting(self, database: str) -> AsyncIterator[None]:
        """Within, the database has no idle connections and gets no new ones; its waiters wait (DROP DATABASE, ...)."""
        self._held_back[database] += 1
        try:
            self.reconnect(database)
            self._connector.cancel(self._of(database))
            await self._settling.until(lambda: not any(b.idle or b.connecting for b in self._of(database)))
            yield
        finally:
            self._held_back[database] -= 1
            if not self._held_back[database]:
                del self._held_back[database]
            self._pump()

    def retune(self, settings: PoolSettings) -> None:
        """Take new limits; what is over them goes when it is idle or released."""
        self.settings = settings
        self._connector.retune(settings)
        now = self._clock()
        for block in self._seated:
            for conn in block.connections:
                conn.seat.expires_at = self._expiry(conn.seat.created_at)
        self._rebalance(now)
        self._pump()
        self._keeper.arm()

    def close(self) -> None:
        """Fail every waiter, now and later, close what is idle; leases end as they end. Cannot be undone."""
        self.is_closed = True
        self._connector.cancel(self.all_blocks())
        self.reconnect(None)
        for block in (*self._starving, *self._waiting):
            block.fail_all(PoolClosed())
        self._keeper.disarm()
        self._settling.check()

    async def drain(self) -> None:
        """`close`, and wait until every lease has ended and every login under way is gone."""
        self.close()
        await self._settling.until(lambda: not self.size)

    # --- BlockOwner

    def queued(self, block: Block[C]) -> None:
        self._file(block)
        if self.is_closed:
            self._loop.call_soon(block.fail_all, PoolClosed())
            return
        if block.idle:
            self._loop.call_soon(block.serve)
            return
        self._arm()
        now = self._clock()
        if not self._is_contended or (not block.size and len(self._starving) == 1):
            self._grow(block, now)
        if not block.size and self._connector.hopeless(block, now) is not None:
            self._loop.call_soon(self._fail_fast, block)

    def unqueued(self, block: Block[C]) -> None:
        self._file(block)

    def takes(self, block: Block[C]) -> bool:
        return self._is_contended or self.size > self.settings.max_backends

    def discard(self, block: Block[C], conn: C, reason: CloseReason) -> None:
        self._drop(block, conn, reason)
        self._pump()

    def callback_failed(self, block: Block[C], exc: Exception) -> None:
        self._observer.callback_failed(block.key, exc)

    # --- ConnectSink

    def landed(self, block: Block[C], conn: C, generation: int, seconds: float, replaces: Seat | None) -> None:
        self.counters.connects += 1
        self._observer.connected(block.key, seconds)
        now = self._clock()
        block.admit(conn, now, self._expiry(now))
        block.is_refused = False
        self._file(block)
        is_stale = generation != block.generation or self._is_held_back(block.key.database) or self.is_closed
        if is_stale or self.size > self.settings.max_backends:
            self.close_idle(block, conn, CloseReason.UNWANTED)
        elif replaces is not None:
            block.retire(replaces)
            for old in block.idle:
                if old.seat is replaces:
                    self.close_idle(block, old, CloseReason.STALE)
                    break
        if replaces is not None:
            replaces.replacing = False
        block.serve()
        self._keeper.arm()
        self._pump()
        self._settling.check()

    def missed(
        self, block: Block[C], exc: BaseException, kind: FailureKind | None, seconds: float, replaces: Seat | None
    ) -> None:
        self.size -= 1
        self._file(block)
        if replaces is not None:
            replaces.replacing = False
        if kind is not None:
            self.counters.connect_failures += 1
            self._observer.connect_failed(block.key, exc, seconds)
        if kind is FailureKind.PERMANENT:
            block.is_refused = True
            block.fail_all(exc)
        else:
            for waiting in tuple(self._starving) if kind is FailureKind.ENGINE else (block,):
                self._fail_fast(waiting)
        self._pump()
        self._settling.check()

    # --- KeeperHost

    def all_blocks(self) -> list[Block[C]]:
        return list(self._blocks.values())

    def open_spare(self, block: Block[C], replaces: Seat | None = None) -> bool:
        now = self._clock()
        has_room = self.size < self.settings.max_backends and not self._starving
        if not has_room or self._is_held_back(block.key.database) or not self._connector.can_start(block, now):
            return False
        self._open(block, replaces)
        return True

    def close_idle(self, block: Block[C], conn: C, reason: CloseReason) -> None:
        block.idle.remove(conn)
        self._drop(block, conn, reason)

    # --- growing and shrinking

    def _pump(self) -> None:
        """Start every login that may start, for blocks without a connection first."""
        now = self._clock()
        self._is_contended = False
        for blocks in (self._starving, self._waiting):
            for block in tuple(blocks):
                if not self._grow(block, now) and not self._has_room(block, now):
                    break

    def _grow(self, block: Block[C], now: float) -> bool:
        """Start logins for the block's waiters, as many as it should have; False where it could not have them all."""
        while self._may_grow(block, now):
            if not self._connector.can_start(block, now) or not self._make_room(block, now):
                self._is_contended = True
                return False
            self._open(block)
        return True

    def _may_grow(self, block: Block[C], now: float) -> bool:
        if len(block.queue) <= block.connecting + len(block.idle) or self._is_held_back(block.key.database):
            return False
        settings = self.settings
        if block.size < settings.default_pool_size:
            return True
        reserve = settings.reserve_pool_timeout
        if not reserve or now - block.queue.oldest() < reserve:
            return False
        return block.size - block.long_held(now, LONG_LEASE_SECONDS) < settings.default_pool_size

    def _has_room(self, block: Block[C], now: float) -> bool:
        """Might other blocks, with connections or without as `block` is, be able to start a login?"""
        if not self._connector.headroom(now) or self.size > self.settings.max_backends:
            return False
        return self.size < self.settings.max_backends or self._allotment.victim(now, self._seated, block) is not None

    def _make_room(self, block: Block[C], now: float) -> bool:
        """Is there room in the budget, or an unused connection elsewhere whose place can be had?"""
        if self.size != self.settings.max_backends:
            return self.size < self.settings.max_backends
        if not self._allotment.is_worth_a_login(block, block.size, now):
            return False
        victim = self._allotment.victim(now, self._seated, block)
        if victim is not None:
            self._steal(victim)
        return victim is not None

    def _steal(self, block: Block[C]) -> None:
        self.counters.steals += 1
        self.close_idle(block, block.idle[0], CloseReason.STOLEN)

    def _open(self, block: Block[C], replaces: Seat | None = None) -> None:
        self.size += 1
        self._connector.start(block, replaces)
        self._file(block)

    def _drop(self, block: Block[C], conn: C, reason: CloseReason, *, disconnect: bool = True) -> None:
        """Let go of a connection that is in no list any more."""
        block.expel(conn)
        self.size -= 1
        self.counters.disconnects += 1
        self._file(block)
        if disconnect:
            try:
                self._disconnect(conn)
            except Exception as exc:  # noqa: BLE001 - the pool goes on
                self._observer.callback_failed(block.key, exc)
        self._observer.disconnected(block.key, reason)
        self._settling.check()

    def _renew(self, blocks: Iterable[Block[C]]) -> None:
        for block in blocks:
            block.generation += 1
            for conn in list(block.idle):
                self.close_idle(block, conn, CloseReason.STALE)
        self._pump()

    def _file(self, block: Block[C]) -> None:
        """Put the block into the lists it belongs to."""
        has_connections = block.size > 0
        if has_connections:
            self._seated[block] = None
            self._starving.pop(block, None)
        else:
            self._seated.pop(block, None)
            self._waiting.pop(block, None)
            block.surplus = 0
        if not block.queue:
            self._starving.pop(block, None)
            self._waiting.pop(block, None)
        elif has_connections:
            self._waiting[block] = None
        else:
            self._starving[block] = None

    # --- under pressure

    def _arm(self) -> None:
        if self._tick is None:
            crowd = len(self._starving) + len(self._waiting)
            self._tick = self._loop.call_later(max(TICK_SECONDS, crowd * TICK_SECONDS_PER_WAITING_BLOCK), self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        now = self._clock()
        for block in (*self._starving, *self._waiting):
            self._expire(block, now)
        self._rebalance(now)
        self._pump()
        if self._starving or self._waiting:
            self._arm()

    def _expire(self, block: Block[C], now: float) -> None:
        timeout = self.settings.query_wait_timeout
        while timeout and block.queue and now - block.queue.oldest() >= timeout:
            waiter, since = next(iter(block.queue.items()))
            self.counters.wait_timeouts += 1
            self._observer.wait_timed_out(block.key, now - since)
            block.fail(waiter, PoolTimeout(now - since))

    def _rebalance(self, now: float) -> None:
        for block in self._seated:
            block.surplus = 0
        if self.size > self.settings.max_backends:
            self._shed()
        elif self._is_contended and self.size == self.settings.max_backends:
            for block, count in self._allotment.donors(now, self._seated, self._starving, self.settings):
                from_idle = min(count, len(block.idle))
                for _ in range(from_idle):
                    self._steal(block)
                block.surplus = count - from_idle if block.size else 0

    def _shed(self) -> None:
        """The budget shrank: close what is idle, longest first, and take the rest when leases end."""
        while self.size > self.settings.max_backends:
            victim = min((b for b in self._seated if b.idle), key=lambda b: b.idle[0].seat.released_at, default=None)
            if victim is None:
                break
            self.close_idle(victim, victim.idle[0], CloseReason.UNWANTED)
        for _ in range(self.size - self.settings.max_backends):
            largest = max(self._seated, key=lambda b: b.leased - b.surplus)
            largest.surplus += 1

    def _fail_fast(self, block: Block[C]) -> None:
        error = None if block.size else self._connector.hopeless(block, self._clock())
        if error is not None:
            block.fail_all(PoolUnavailable(error))

    # --- small things

    def _of(self, database: str | None) -> list[Block[C]]:
        return [b for b in self.all_blocks() if database is None or b.key.database == database]

    def _is_paused_for(self, database: str | None) -> bool:
        return self._all_paused or database in self._paused

    def _is_held_back(self, database: str) -> bool:
        return self.is_closed or self._all_paused or database in self._paused or database in self._held_back

    def _expiry(self, created_at: float) -> float:
        return created_at + self.settings.server_lifetime * (1.0 - LIFETIME_JITTER * self._rng.random())
