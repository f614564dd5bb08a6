"""A simulated engine and simulated sessions for the pool, in virtual time.

The engine checks what must never happen while it runs: more connections than the budget, a connection leased twice,
given to the wrong block, or used after it was closed.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable

from server.pool import Block, Pool, PoolKey, PoolSettings, Seat, SilentObserver
from tests.simulation.virtual_loop import VirtualLoop

Seconds = Callable[[], float]


class SimulatedConnection:
    def __init__(self, key: PoolKey) -> None:
        self.key = key
        self.context: object = None
        self.seat = Seat()
        self.user: object | None = None
        self.is_open = True


class EngineError(Exception):
    """The simulated engine said no."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class SimulatedEngine:
    """Logins cost time, more where many run at once (`cores`)."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, budget: int, login: Seconds, cores: int) -> None:
        self.loop = loop
        self.rng = rng
        self.budget = budget
        self.login = login
        self.cores = cores
        self.is_up = True
        self.open: set[SimulatedConnection] = set()
        self.logging_in = 0
        self.max_logging_in = 0
        self.attempts: list[float] = []
        self.logins = 0
        self.lost: Callable[[SimulatedConnection], None] = lambda conn: None

    async def connect(self, key: PoolKey) -> SimulatedConnection:
        self.attempts.append(self.loop.time())
        if not self.is_up:
            await asyncio.sleep(0.0005)
            raise ConnectionRefusedError("the engine is down")
        self.logging_in += 1
        self.max_logging_in = max(self.max_logging_in, self.logging_in)
        assert len(self.open) + self.logging_in <= self.budget, "more connections than the budget"
        try:
            await asyncio.sleep(self.login() * max(1.0, self.logging_in / self.cores))
        finally:
            self.logging_in -= 1
        if not self.is_up:
            raise EngineError("57P03")
        conn = SimulatedConnection(key)
        self.open.add(conn)
        self.logins += 1
        return conn

    def disconnect(self, conn: SimulatedConnection) -> None:
        assert conn.user is None, "closed while it was in use"
        self._close(conn)

    def check_out(self, conn: SimulatedConnection, user: object, key: PoolKey) -> None:
        assert conn.user is None, "leased twice"
        assert conn.key == key, "leased to another block"
        conn.user = user

    def check_in(self, conn: SimulatedConnection) -> None:
        assert conn.user is not None
        conn.user = None

    def stop(self) -> None:
        """Crash: every connection is gone at once."""
        self.is_up = False
        for conn in list(self.open):
            conn.is_open = False
            self.lost(conn)
        self.open.clear()

    def start(self) -> None:
        self.is_up = True

    def _close(self, conn: SimulatedConnection) -> None:
        conn.is_open = False
        self.open.discard(conn)


class Strict(SilentObserver):
    """A simulated session has no bugs: what its callbacks raise is a finding."""

    def __init__(self) -> None:
        self.findings: list[Exception] = []

    def callback_failed(self, key: PoolKey, exc: Exception) -> None:
        self.findings.append(exc)


class Simulation:
    """One pool on one simulated engine, and the figures of whoever uses it."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        seed: int = 1,
        login: tuple[float, float] = (0.005, 0.010),
        cores: int = 4,
    ) -> None:
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.settings = settings
        self.engine = SimulatedEngine(
            self.loop, self.rng, settings.max_backends, lambda: self.rng.uniform(*login), cores
        )
        self.observer = Strict()
        self.pool: Pool[SimulatedConnection] = Pool(
            connect=self.engine.connect,
            disconnect=self.engine.disconnect,
            settings=settings,
            loop=self.loop,
            clock=self.loop.time,
            rng=random.Random(seed + 1),
            observer=self.observer,
        )
        self.engine.lost = self.pool.conn_lost
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.failures: dict[str, list[BaseException]] = defaultdict(list)
        self.vain_waits: dict[str, list[float]] = defaultdict(list)
        self.sessions: list[Session] = []

    def spread(self, low: float, high: float) -> Seconds:
        return lambda: self.rng.uniform(low, high)

    def exponential(self, mean: float) -> Seconds:
        return lambda: self.rng.expovariate(1.0 / mean)

    def session(
        self,
        group: str,
        database: str,
        *,
        hold: Seconds,
        think: Seconds,
        role: str = "app",
        start: float = 0.0,
        end: float = 1e9,
        long_held: bool = False,
    ) -> Session:
        session = Session(self, group, PoolKey(database, role), hold, think, end, long_held)
        self.loop.call_later(start, session.begin)
        self.sessions.append(session)
        return session

    def run(self, seconds: float) -> Simulation:
        self.loop.run_for(seconds)
        assert not self.loop.errors, self.loop.errors
        assert not self.observer.findings, self.observer.findings
        return self

    def waiting_longest(self) -> float:
        """The longest wait of those who still wait, and of those who do not."""
        now = self.loop.time()
        still = [now - s.asked_at for s in self.sessions if s.is_waiting]
        return max([*still, *(max(waits) for waits in self.waits.values() if waits)], default=0.0)

    def served(self, *groups: str) -> int:
        return sum(len(self.waits[g]) for g in groups or tuple(self.waits))


class Session:
    """Asks for a connection, holds it, thinks, asks again."""

    def __init__(
        self,
        sim: Simulation,
        group: str,
        key: PoolKey,
        hold: Seconds,
        think: Seconds,
        end: float,
        long_held: bool,
    ) -> None:
        self.sim = sim
        self.group = group
        self.block: Block[SimulatedConnection] = sim.pool.block(key)
        self.block.attach()
        self.hold = hold
        self.think = think
        self.end = end
        self.long_held = long_held
        self.asked_at = 0.0
        self.is_waiting = False
        self.conn: SimulatedConnection | None = None

    def begin(self) -> None:
        self.asked_at = self.sim.loop.time()
        self.is_waiting = True
        conn = self.block.try_acquire(self)
        if conn is None:
            self.block.wait(self)
        else:
            self.granted(conn)

    def granted(self, conn: SimulatedConnection) -> None:
        sim = self.sim
        assert self.is_waiting
        assert conn.is_open, "granted a closed connection"
        self.is_waiting = False
        sim.waits[self.group].append(sim.loop.time() - self.asked_at)
        sim.engine.check_out(conn, self, self.block.key)
        self.conn = conn
        if self.long_held:
            self.block.mark_long_held(conn)
        sim.loop.call_later(self.hold(), self._finish)

    def failed(self, exc: BaseException) -> None:
        assert self.is_waiting
        self.is_waiting = False
        self.sim.failures[self.group].append(exc)
        self.sim.vain_waits[self.group].append(self.sim.loop.time() - self.asked_at)
        self._again()

    def _finish(self) -> None:
        conn, self.conn = self.conn, None
        assert conn is not None
        self.sim.engine.check_in(conn)
        self.block.release(conn, reusable=conn.is_open)
        self._again()

    def _again(self) -> None:
        if self.sim.loop.time() < self.end:
            self.sim.loop.call_later(self.think(), self.begin)
