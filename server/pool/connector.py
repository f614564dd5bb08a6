"""Makes connections: how many logins at a time, how fast, when to try again, when to give up hope.

It owns the tasks (one a login, none an acquire) and the failure memory of the engine; each block keeps its own beside
it. What to do with a new connection or a failure is the pool's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Generic, Protocol, TypeVar

from server.pool.block import Block
from server.pool.errors import PoolMisuse
from server.pool.policy import Backoff, FailureKind, TokenBucket
from server.pool.seat import Pooled, Seat
from server.pool.settings import PoolKey, PoolSettings
from server.pool.stats import Average, PoolObserver

C = TypeVar("C", bound=Pooled)


LOGINS_A_SECOND = 50.0
"""For each login that may be under way."""


def _new_bucket(settings: PoolSettings, now: float) -> TokenBucket:
    return TokenBucket(settings.connect_burst, settings.connect_burst * LOGINS_A_SECOND, now)


class ConnectSink(Protocol[C]):
    """The pool, as its connector sees it. Each started login ends in exactly one of the two calls."""

    def landed(self, block: Block[C], conn: C, generation: int, seconds: float, replaces: Seat | None) -> None: ...
    def missed(
        self, block: Block[C], exc: BaseException, kind: FailureKind | None, seconds: float, replaces: Seat | None
    ) -> None:
        """The login failed, or was cancelled by us: then `kind` is None."""


class Connector(Generic[C]):
    def __init__(
        self,
        *,
        connect: Callable[[PoolKey], Awaitable[C]],
        classify: Callable[[BaseException], FailureKind],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        rng: random.Random,
        settings: PoolSettings,
        sink: ConnectSink[C],
        observer: PoolObserver,
    ) -> None:
        self._connect = connect
        self._classify = classify
        self._loop = loop
        self._clock = clock
        self._settings = settings
        self._sink = sink
        self._observer = observer
        self._open_circuits: set[PoolKey | None] = set()  # None is the engine's
        self._tasks: dict[asyncio.Task[None], Block[C]] = {}
        self._bucket = _new_bucket(settings, clock())
        self.engine = Backoff(rng)
        self.seconds = Average(0.01, 0.2)
        """The mean time a login takes."""

    @property
    def active(self) -> int:
        return len(self._tasks)

    def can_start(self, block: Block[C], now: float) -> bool:
        return (
            len(self._tasks) < self._settings.connect_burst
            and self.engine.may_try(now)
            and block.backoff.may_try(now)
            and self._bucket.tokens(now) > 0
        )

    def headroom(self, now: float) -> int:
        """How many more logins may start now, as far as the engine and the limits on logins go."""
        if not self.engine.may_try(now):
            return 0
        return min(self._settings.connect_burst - len(self._tasks), self._bucket.tokens(now))

    def hopeless(self, block: Block[C], now: float) -> BaseException | None:
        """Why a waiter would wait in vain for a login, if the circuit is open and no attempt is due or under way."""
        for backoff in (self.engine, block.backoff):
            if self._is_open(backoff, now) and not backoff.may_try(now) and not backoff.is_probing:
                return backoff.last_error
        return None

    def start(self, block: Block[C], replaces: Seat | None = None) -> None:
        """Begin one login. Only after `can_start`."""
        self._bucket.take()
        self.engine.is_probing = bool(self.engine.failures)
        block.backoff.is_probing = bool(block.backoff.failures)
        block.connecting += 1
        task = self._loop.create_task(self._run(block, block.generation, replaces), name=f"pool connect {block.key}")
        self._tasks[task] = block

    def retune(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._bucket = _new_bucket(settings, self._clock())

    def cancel(self, blocks: Collection[Block[C]]) -> None:
        """Break off the logins under way for these blocks."""
        for task, block in self._tasks.items():
            if block in blocks:
                task.cancel()

    async def _run(self, block: Block[C], generation: int, replaces: Seat | None) -> None:
        began = self._clock()
        conn: C | None = None
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(self._settings.server_connect_timeout or None):
                conn = await self._connect(block.key)
        except asyncio.CancelledError as exc:
            failure = exc
        except Exception as exc:  # noqa: BLE001 - goes to the waiters
            failure = exc
        now = self._clock()
        if conn is not None and conn.seat.block is not None:
            conn, failure = None, PoolMisuse("connect() returned a connection that is in a pool already")
        task = asyncio.current_task()
        assert task is not None
        del self._tasks[task]
        block.connecting -= 1
        if conn is not None:
            self.seconds.add(now - began)
            self.engine.succeeded()
            block.backoff.succeeded()
            self._report_circuits(block, now)
            self._sink.landed(block, conn, generation, now - began, replaces)
            return
        assert failure is not None
        kind = None if isinstance(failure, asyncio.CancelledError) else self._classify(failure)
        self._remember(block, failure, kind, now)
        self._report_circuits(block, now)
        self._sink.missed(block, failure, kind, now - began, replaces)

    def _remember(self, block: Block[C], failure: BaseException, kind: FailureKind | None, now: float) -> None:
        self.engine.is_probing = block.backoff.is_probing = False
        if kind is FailureKind.ENGINE:
            self.engine.failed(now, failure)
        elif kind is FailureKind.BLOCK:
            block.backoff.failed(now, failure)
        elif kind is FailureKind.PERMANENT:  # the engine said no: it is there
            self.engine.succeeded()
            block.backoff.succeeded()

    def _is_open(self, backoff: Backoff, now: float) -> bool:
        return backoff.is_open(now, self._settings.breaker_failures, self._settings.breaker_seconds)

    def _report_circuits(self, block: Block[C], now: float) -> None:
        for key, backoff in ((None, self.engine), (block.key, block.backoff)):
            is_open = self._is_open(backoff, now)
            if is_open != (key in self._open_circuits):
                self._open_circuits.symmetric_difference_update({key})
                self._observer.breaker_changed(key, is_open)
