"""Whatever happens, in whatever order: never over the budget, no waiter lost, no connection leaked or leased twice."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from server.pool import Block, Pool, PoolKey, PoolSettings, PoolTimeout, SilentObserver
from server.pool.seat import IDLE
from tests.simulation.pool_load import EngineError, SimulatedConnection, SimulatedEngine
from tests.simulation.virtual_loop import VirtualLoop

KEYS = [PoolKey(database, role) for database in ("a", "b", "c") for role in ("x", "y")]
SETTINGS = PoolSettings(
    max_backends=4,
    default_pool_size=2,
    min_pool_size=1,
    reserve_pool_timeout=0.5,
    query_wait_timeout=30.0,
    server_idle_timeout=20.0,
    server_lifetime=60.0,
    server_connect_timeout=2.0,
    connect_burst=3,
)

keys = st.sampled_from(KEYS)
databases = st.sampled_from(["a", "b", "c"])


class SessionBug(Exception):
    """The kind of exception the pool has to survive."""


class Watcher(SilentObserver):
    """Sees the failed assertions of callbacks, which the pool catches as it catches any bug of a session."""

    def __init__(self) -> None:
        self.failed_checks: list[Exception] = []

    def callback_failed(self, key: PoolKey, exc: Exception) -> None:
        if not isinstance(exc, SessionBug):
            self.failed_checks.append(exc)


class Client:
    """A waiter that checks its own contract."""

    def __init__(self, model: PoolMachine, block: Block[SimulatedConnection]) -> None:
        self.model = model
        self.block = block
        self.conn: SimulatedConnection | None = None
        self.is_waiting = False
        self.is_inside_wait = False
        self.on_grant = "keep"

    def ask(self, on_grant: str) -> None:
        self.on_grant = on_grant
        conn = None if on_grant == "not try" else self.block.try_acquire(object())
        if conn is not None:
            assert not self.block.queue, "somebody was overtaken"
            self.take(conn)
            return
        self.is_waiting = self.is_inside_wait = True
        self.block.wait(self)
        self.is_inside_wait = False

    def granted(self, conn: SimulatedConnection) -> None:
        assert self.is_waiting, "granted to somebody who does not wait"
        assert not self.is_inside_wait, "granted before wait() returned"
        assert conn.is_open or conn in self.model.dead
        earlier = [since for since in self.block.queue.values() if since < conn.seat.since]
        assert not earlier, "somebody was overtaken"
        self.is_waiting = False
        self.take(conn)
        if self.on_grant == "release":
            self.release(True)
        elif self.on_grant == "ask again":
            self.release(True)
            self.ask("keep")
        elif self.on_grant == "raise":
            self.model.engine.check_in(conn)
            self.conn = None
            raise SessionBug

    def take(self, conn: SimulatedConnection) -> None:
        self.model.engine.check_out(conn, self, self.block.key)
        assert self.model.began_at[conn] >= self.model.renewed_at.get(self.block.key, -1.0), "a stale connection"
        self.conn = conn

    def failed(self, exc: BaseException) -> None:
        well_since = self.model.loop.time() - self.model.healed_at
        assert well_since < 3.0 or (isinstance(exc, PoolTimeout) and well_since < 30.0), f"failed: {exc}"
        assert self.is_waiting, "failed somebody who does not wait"
        assert not self.is_inside_wait, "failed before wait() returned"
        self.is_waiting = False
        if self.on_grant == "ask again":
            self.ask("keep")

    def release(self, reusable: bool) -> None:
        conn, self.conn = self.conn, None
        assert conn is not None
        self.model.engine.check_in(conn)
        self.block.release(conn, reusable=reusable and conn.is_open)


class PoolMachine(RuleBasedStateMachine):
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.watcher = Watcher()
        self.pace = 0.02
        self.engine = SimulatedEngine(self.loop, random.Random(1), 10**6, lambda: self.login_seconds, cores=100)
        self.login_seconds = 0.01
        self.refusals: dict[str, str] = {}
        self.dead: set[SimulatedConnection] = set()
        self.dead_while_idle: set[SimulatedConnection] = set()
        self.renewed_at: dict[PoolKey, float] = {}
        self.began_at: dict[SimulatedConnection, float] = {}
        self.healed_at = 1e9
        self.everybody: list[Client] = []
        self.budget = SETTINGS.max_backends
        self.waits_for: list[asyncio.Task[None]] = []
        self.gates: list[asyncio.Future[None]] = []
        self.pool: Pool[SimulatedConnection] = Pool(
            connect=self.connect,
            disconnect=self.disconnect,
            settings=SETTINGS,
            loop=self.loop,
            clock=self.loop.time,
            rng=random.Random(2),
            observer=self.watcher,
        )
        self.engine.lost = self.lose

    async def connect(self, key: PoolKey) -> SimulatedConnection:
        assert len(self.engine.open) + self.engine.logging_in < self.budget, "over the budget"
        began_at = self.loop.time()
        conn = await self.engine.connect(key)
        self.began_at[conn] = began_at
        if key.database in self.refusals:
            self.engine.disconnect(conn)
            raise EngineError(self.refusals[key.database])
        return conn

    def disconnect(self, conn: SimulatedConnection) -> None:
        assert conn not in self.dead_while_idle, "disconnected twice"
        self.engine.disconnect(conn)

    def lose(self, conn: SimulatedConnection) -> None:
        conn.is_open = False
        self.dead.add(conn)
        if conn.user is None:
            self.dead_while_idle.add(conn)
        self.pool.conn_lost(conn)

    # --- sessions

    @rule(
        target=clients, key=keys, on_grant=st.sampled_from(["keep", "keep", "release", "ask again", "raise", "not try"])
    )
    def a_session_asks(self, key: PoolKey, on_grant: str) -> Client:
        self.loop.run_for(0.0001)  # nobody comes at the same time as another
        client = Client(self, self.pool.block(key))
        client.block.attach()
        self.everybody.append(client)
        client.ask(on_grant)
        return client

    @rule(target=clients, on_grants=st.lists(st.sampled_from(["keep", "release"]), min_size=2, max_size=8))
    def sessions_of_all_kinds_ask(self, on_grants: list[str]) -> object:
        return multiple(*[self.a_session_asks(KEYS[i % len(KEYS)], what) for i, what in enumerate(on_grants)])

    @rule(target=clients, key=keys, count=st.integers(2, 6))
    def many_sessions_ask(self, key: PoolKey, count: int) -> object:
        return multiple(*[self.a_session_asks(key, "keep") for _ in range(count)])

    @rule(client=clients)
    def a_session_asks_again(self, client: Client) -> None:
        if client.conn is None and not client.is_waiting:
            client.ask("keep")

    @rule(client=clients, reusable=st.booleans())
    def a_lease_ends(self, client: Client, reusable: bool) -> None:
        if client.conn is not None:
            client.release(reusable)

    @rule(count=st.integers(1, 6))
    def leases_end(self, count: int) -> None:
        for client in [client for client in self.everybody if client.conn is not None][:count]:
            if client.conn is not None:
                client.release(True)
            self.loop.run_for(self.pace)

    @rule(client=clients, long_held=st.booleans())
    def a_lease_is_marked(self, client: Client, long_held: bool) -> None:
        if client.conn is not None:
            client.block.mark_long_held(client.conn, long_held=long_held)

    @rule(client=clients)
    def a_lease_is_found_dead(self, client: Client) -> None:
        if client.conn is not None:
            conn, client.conn = client.conn, None
            self.engine.check_in(conn)
            client.is_waiting = client.is_inside_wait = True
            client.block.retry(conn, client)
            client.is_inside_wait = False

    @rule(client=clients)
    def a_waiter_leaves(self, client: Client) -> None:
        was_waiting = client.is_waiting
        assert client.block.cancel(client) == was_waiting
        client.is_waiting = False

    @rule(client=consumes(clients))
    def a_session_ends(self, client: Client) -> None:
        self.a_waiter_leaves(client)
        self.a_lease_ends(client, True)
        client.block.detach()
        self.everybody.remove(client)

    # --- the engine

    @precondition(lambda self: self.engine.open)
    @rule(pick=st.randoms(use_true_random=False))
    def a_connection_dies(self, pick: random.Random) -> None:
        conn = pick.choice(sorted(self.engine.open, key=lambda c: (c.key, c.seat.created_at)))
        self.engine.open.discard(conn)
        self.lose(conn)

    @rule(is_up=st.sampled_from([True, True, True, False]))
    def the_engine_crashes_or_starts(self, is_up: bool) -> None:
        if is_up:
            self.engine.start()
        else:
            self.engine.stop()

    @rule(database=databases, sqlstate=st.sampled_from(["3D000", "28000", "53300", "57P03", "", "", "", ""]))
    def a_database_refuses(self, database: str, sqlstate: str) -> None:
        if sqlstate:
            self.refusals[database] = sqlstate
        else:
            self.refusals.pop(database, None)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.01, 0.5, 5.0]))
    def logins_take(self, seconds: float) -> None:
        self.login_seconds = seconds

    # --- the operator

    def renewed(self, database: str | None, role: str | None) -> None:
        for key in KEYS:
            if database in (None, key.database) and role in (None, key.role):
                self.renewed_at[key] = self.loop.time()

    @rule(database=st.none() | databases, resume_now=st.sampled_from([True, True, False]))
    def pause_or_resume(self, database: str | None, resume_now: bool) -> None:
        if resume_now:
            self.pool.resume(database)
        else:
            self.waits_for.append(self.loop.create_task(self.pool.pause(database)))

    @rule(database=st.none() | databases, role=st.none() | st.sampled_from(["x", "y"]))
    def reconnect_or_evict_role(self, database: str | None, role: str | None) -> None:
        if role is None:
            self.pool.reconnect(database)
            self.renewed(database, None)
        else:
            self.pool.evict_role(role)
            self.renewed(None, role)

    @rule(database=databases, ends=st.sampled_from([True, True, False]))
    def evict_database(self, database: str, ends: bool) -> None:
        if ends:
            self.end_evictions()
            return
        gate = self.loop.create_future()

        async def evict() -> None:
            async with self.pool.evicting(database):
                assert not any(conn.key.database == database for conn in self.engine.open if conn.user is None)
                await gate

        self.gates.append(gate)
        self.waits_for.append(self.loop.create_task(evict()))

    def end_evictions(self) -> None:
        for gate in self.gates:
            if not gate.done():
                gate.set_result(None)

    @rule(budget=st.integers(1, 6), size=st.integers(1, 4))
    def retune(self, budget: int, size: int) -> None:
        # What is leased over a smaller budget stays until it is released; nothing new may come before.
        self.pool.retune(replace(SETTINGS, max_backends=budget, default_pool_size=size))
        self.budget = budget

    @rule(seconds=st.sampled_from([0.3, 2.0, 40.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_for(seconds)

    @rule(pace=st.sampled_from([0.0, 0.001, 0.02, 0.02, 0.3]))
    def life_takes_another_pace(self, pace: float) -> None:
        self.pace = pace

    # --- what always holds

    @invariant()
    def the_books_are_right(self) -> None:
        blocks = self.pool.all_blocks()
        assert self.pool.size == sum(block.size for block in blocks)
        counted = {conn for block in blocks for conn in block.connections}
        assert self.engine.open <= counted, "a connection leaked"
        for block in blocks:
            idle = [conn for conn in block.connections if conn.seat.state == IDLE]
            assert set(block.idle) == set(idle)
            assert len(block.idle) == len(idle)
            assert block.leased == len(block.connections) - len(idle)
            assert all(conn.is_open and conn.user is None for conn in idle)
            assert (block in self.pool._seated) == (block.size > 0)
            assert (block in self.pool._waiting) == (block.size > 0 and len(block.queue) > 0)
            assert (block in self.pool._starving) == (block.size == 0 and len(block.queue) > 0)
            assert list(block.queue.values()) == sorted(block.queue.values())
        for client in self.everybody:
            assert client.is_waiting == (client in client.block.queue)
            assert client.conn is None or client.conn.seat.is_leased

    @invariant()
    def nobody_waits_beside_an_idle_connection(self) -> None:
        self.loop.run_for(self.pace)
        if self.healed_at < self.loop.time():
            assert self.pool.size <= self.budget
        assert not any(block.idle and block.queue for block in self.pool.all_blocks())

    @invariant()
    def nothing_was_logged(self) -> None:
        assert not self.loop.errors
        assert not self.watcher.failed_checks

    def teardown(self) -> None:
        self.engine.start()
        self.refusals.clear()
        self.login_seconds = 0.01
        self.pool.resume()
        self.end_evictions()
        self.healed_at = self.loop.time()
        for _ in range(300):
            self.loop.run_for(0.1)
            for client in self.everybody:
                if client.conn is not None:
                    client.release(True)
            if not any(client.is_waiting or client.conn for client in self.everybody):
                break
        assert not any(client.is_waiting for client in self.everybody), "a waiter was lost"
        self.the_books_are_right()
        assert self.pool.size <= self.budget
        assert not self.watcher.failed_checks
        self.loop.run(self.pool.drain())
        self.loop.run_ready()
        assert all(task.done() and task.exception() is None for task in self.waits_for)
        assert self.pool.size == 0
        assert not self.engine.open
        assert not self.loop.errors, self.loop.errors


PoolMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestPool = PoolMachine.TestCase
