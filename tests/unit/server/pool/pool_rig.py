"""A pool on a simulated engine in virtual time, and a waiter that remembers what it got."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from server.pool import Block, CloseReason, Pool, PoolKey, PoolSettings
from tests.simulation.pool_load import SimulatedConnection, SimulatedEngine
from tests.simulation.virtual_loop import VirtualLoop

LOGIN_SECONDS = 0.01


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def connected(self, key: PoolKey, seconds: float) -> None:
        self.events.append(("connected", key))

    def connect_failed(self, key: PoolKey, exc: BaseException, seconds: float) -> None:
        self.events.append(("connect_failed", key, exc))

    def disconnected(self, key: PoolKey, reason: CloseReason) -> None:
        self.events.append(("disconnected", key, reason))

    def wait_timed_out(self, key: PoolKey, waited_seconds: float) -> None:
        self.events.append(("wait_timed_out", key))

    def breaker_changed(self, key: PoolKey | None, is_open: bool) -> None:
        self.events.append(("breaker_changed", key, is_open))

    def callback_failed(self, key: PoolKey, exc: Exception) -> None:
        self.events.append(("callback_failed", key, exc))

    def reasons(self) -> list[CloseReason]:
        return [event[2] for event in self.events if event[0] == "disconnected"]


class Asker:
    """A waiter."""

    def __init__(self, rig: Rig, block: Block[SimulatedConnection]) -> None:
        self.rig = rig
        self.block = block
        self.conn: SimulatedConnection | None = None
        self.error: BaseException | None = None
        self.granted_at = -1.0
        self.hold_seconds: float | None = None

    def granted(self, conn: SimulatedConnection) -> None:
        self.conn = conn
        self.granted_at = self.rig.loop.time()
        if self.hold_seconds == 0.0:
            self.release()
        elif self.hold_seconds is not None:
            self.rig.loop.call_later(self.hold_seconds, self.release)

    def failed(self, exc: BaseException) -> None:
        self.error = exc

    def release(self) -> None:
        assert self.conn is not None
        conn, self.conn = self.conn, None
        self.block.release(conn)


class Rig:
    made: ClassVar[list[Rig]] = []
    """Those of the running test; conftest takes them down."""

    def __init__(self, **changes: Any) -> None:
        self.made.append(self)
        self.loop = VirtualLoop()
        self.settings = PoolSettings(**changes)
        self.login_seconds = LOGIN_SECONDS
        self.engine = SimulatedEngine(self.loop, random.Random(1), 10**6, lambda: self.login_seconds, cores=1000)
        self.observer = Recorder()
        self.pool: Pool[SimulatedConnection] = Pool(
            connect=self.connect,
            disconnect=self.engine.disconnect,
            settings=self.settings,
            loop=self.loop,
            clock=self.loop.time,
            observer=self.observer,
            rng=random.Random(1),
        )
        self.engine.lost = self.pool.conn_lost
        self.refusal: BaseException | None = None

    async def connect(self, key: PoolKey) -> SimulatedConnection:
        conn = await self.engine.connect(key)
        if self.refusal is not None:
            self.engine.disconnect(conn)
            raise self.refusal
        return conn

    def block(self, database: str = "db", role: str = "app") -> Block[SimulatedConnection]:
        return self.pool.block(PoolKey(database, role))

    def ask(self, database: str = "db", role: str = "app", *, hold: float | None = None) -> Asker:
        """Ask as a session does; `hold` releases by itself after so long."""
        asker = Asker(self, self.block(database, role))
        asker.hold_seconds = hold
        conn = asker.block.try_acquire(None)
        if conn is None:
            asker.block.wait(asker)
        else:
            asker.granted(conn)
        return asker

    def leased(self, count: int, database: str = "db", role: str = "app") -> list[Asker]:
        askers = [self.ask(database, role) for _ in range(count)]
        self.loop.run_for(1.0)
        assert all(asker.conn is not None for asker in askers)
        return askers

    def idle(self, count: int, database: str = "db", role: str = "app") -> list[SimulatedConnection]:
        for asker in self.leased(count, database, role):
            asker.release()
        return list(self.block(database, role).idle)
