"""The budget, logins and their failures, and what an operator can do."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.pool import CloseReason, PoolClosed, PoolKey, PoolTimeout, PoolUnavailable
from tests.simulation.pool_load import EngineError
from tests.unit.server.pool.pool_rig import LOGIN_SECONDS, Rig

# --- size and budget


def test_block_is_the_same_for_the_same_key_and_forgotten_when_unused() -> None:
    rig = Rig()
    block = rig.block()
    assert rig.block() is block
    del block
    assert rig.pool.snapshot() == []


def test_block_grows_to_default_pool_size_and_no_further_for_busy_leases() -> None:
    rig = Rig(max_backends=10, default_pool_size=3)
    askers = [rig.ask() for _ in range(5)]
    rig.loop.run_for(1.0)
    assert [asker.conn is not None for asker in askers] == [True, True, True, False, False]


def test_marked_leases_make_room_beyond_default_pool_size_after_the_reserve_timeout() -> None:
    rig = Rig(max_backends=10, default_pool_size=3, reserve_pool_timeout=0.5)
    for asker in rig.leased(3):
        assert asker.conn is not None
        rig.block().mark_long_held(asker.conn)
    waiter = rig.ask()
    rig.loop.run_for(0.4)
    assert waiter.conn is None
    rig.loop.run_for(0.2)
    assert waiter.conn is not None
    assert rig.pool.snapshot()[0].backends_pinned == 3


def test_leases_that_last_long_make_room_without_a_mark() -> None:
    rig = Rig(max_backends=10, default_pool_size=2)
    rig.leased(2)
    waiter = rig.ask()
    rig.loop.run_for(3.0)
    assert waiter.conn is None
    rig.loop.run_for(2.0)
    assert waiter.conn is not None


def test_idle_transactions_of_one_role_do_not_deadlock_it_while_the_budget_lasts() -> None:
    rig = Rig(max_backends=8, default_pool_size=2)
    for _ in range(8):
        asker = rig.ask()
        rig.loop.run_for(0.5)
        assert asker.conn is not None
        rig.block().mark_long_held(asker.conn)


def test_connection_idle_longest_is_closed_for_a_newcomer_when_the_budget_is_used_up() -> None:
    rig = Rig(max_backends=2, default_pool_size=2)
    [oldest] = rig.idle(1, "old")
    rig.loop.run_for(1.0)
    [newer] = rig.idle(1, "newer")
    rig.loop.run_for(1.0)
    newcomer = rig.ask("new")
    rig.loop.run_for(LOGIN_SECONDS)
    assert newcomer.conn is not None
    assert not oldest.is_open
    assert newer.is_open
    assert rig.pool.counters.steals == 1


def test_budget_busy_elsewhere_gives_way_at_the_next_release() -> None:
    rig = Rig(max_backends=2, default_pool_size=2)
    first, _second = rig.leased(2, "busy")
    crowd = [rig.ask("busy") for _ in range(3)]
    newcomer = rig.ask("new")
    rig.loop.run_for(0.1)
    first.release()
    rig.loop.run_for(LOGIN_SECONDS)
    assert newcomer.conn is not None
    assert not any(asker.conn for asker in crowd)


def test_smaller_budget_closes_idle_now_and_leased_on_release() -> None:
    rig = Rig(max_backends=6, default_pool_size=6)
    rig.idle(2, "idle")
    leased = rig.leased(4, "busy")
    rig.pool.retune(replace(rig.settings, max_backends=3))
    assert rig.pool.size == 4
    leased[0].release()
    assert rig.pool.size == 3
    leased[1].release()
    assert rig.pool.size == 3


def test_login_under_way_when_the_budget_shrinks_is_closed_on_arrival() -> None:
    rig = Rig(max_backends=2)
    rig.ask("a")
    rig.ask("b")
    rig.loop.run_for(LOGIN_SECONDS / 2)
    rig.pool.retune(replace(rig.settings, max_backends=1))
    rig.loop.run_for(LOGIN_SECONDS)
    assert rig.pool.size == 1


# --- waiting in vain


def test_query_wait_timeout_fails_the_waiter_and_nobody_else() -> None:
    rig = Rig(max_backends=1, query_wait_timeout=2.0)
    [holder] = rig.leased(1)
    early = rig.ask()
    rig.loop.run_for(1.0)
    late = rig.ask()
    rig.loop.run_for(1.05)
    assert isinstance(early.error, PoolTimeout)
    assert early.error.waited_seconds == pytest.approx(2.0, abs=0.02)
    assert late.error is None
    holder.release()
    assert late.conn is not None


def test_refused_login_fails_all_waiters_at_once() -> None:
    rig = Rig()
    rig.refusal = EngineError("3D000")
    askers = [rig.ask() for _ in range(3)]
    rig.loop.run_for(LOGIN_SECONDS)
    assert [asker.error for asker in askers] == [rig.refusal] * 3


def test_too_many_connections_is_retried_until_it_works() -> None:
    rig = Rig()
    rig.refusal = EngineError("53300")
    asker = rig.ask()
    rig.loop.run_for(2.0)
    assert asker.error is None
    assert 3 <= len(rig.engine.attempts) <= 10
    rig.refusal = None
    rig.loop.run_for(1.1)
    assert asker.conn is not None


def test_engine_that_stays_away_opens_the_circuit_and_a_probe_closes_it() -> None:
    rig = Rig(breaker_seconds=3.0)
    rig.engine.stop()
    asker = rig.ask()
    rig.loop.run_for(6.0)
    assert isinstance(asker.error, PoolUnavailable)
    assert isinstance(asker.error.last_error, ConnectionRefusedError)
    attempts = len(rig.engine.attempts)
    refused = rig.ask()
    assert refused.error is None, "no callback before wait() returns"
    rig.loop.run_for(1.1)
    assert isinstance(refused.error, PoolUnavailable)
    assert len(rig.engine.attempts) <= attempts + 2
    rig.engine.start()
    rig.loop.run_for(1.1)
    probe = rig.ask("another")
    rig.loop.run_for(1.1)
    assert [event[1:] for event in rig.observer.events if event[0] == "breaker_changed"] == [
        (None, True),
        (None, False),
    ]
    assert probe.conn is not None
    assert rig.ask().error is None


def test_block_recovers_when_the_engine_went_away_during_its_own_trouble() -> None:
    rig = Rig()
    rig.refusal = EngineError("53300")
    asker = rig.ask()
    rig.loop.run_for(0.1)
    rig.engine.stop()
    rig.loop.run_for(1.0)
    rig.refusal = None
    rig.engine.start()
    rig.loop.run_for(2.0)
    assert asker.conn is not None


def test_one_unreachable_database_does_not_slow_the_others() -> None:
    rig = Rig(connect_burst=1, breaker_seconds=3.0)
    plain_connect = rig.engine.connect

    async def connect(key: PoolKey) -> object:
        if key.database == "broken":
            raise EngineError("53300")
        return await plain_connect(key)

    rig.engine.connect = connect  # type: ignore[assignment]
    broken = rig.ask("broken")
    rig.loop.run_for(1.0)
    sound = rig.ask("sound")
    rig.loop.run_for(0.05)
    assert sound.conn is not None
    rig.loop.run_for(5.0)
    assert isinstance(broken.error, PoolUnavailable)


def test_login_that_hangs_ends_with_server_connect_timeout() -> None:
    rig = Rig(server_connect_timeout=1.0)
    rig.login_seconds = 100.0
    asker = rig.ask()
    rig.loop.run_for(1.5)
    rig.login_seconds = LOGIN_SECONDS
    rig.loop.run_for(2.0)
    assert asker.conn is not None
    assert any(isinstance(event[2], TimeoutError) for event in rig.observer.events if event[0] == "connect_failed")


def test_no_more_than_connect_burst_logins_at_a_time_and_fifty_times_as_many_a_second() -> None:
    rig = Rig(max_backends=100, connect_burst=4)
    rig.login_seconds = 0.0001
    for i in range(100):
        rig.ask(f"d{i}")
    rig.loop.run_for(0.25)
    assert rig.engine.max_logging_in == 4
    assert rig.engine.logins <= 4 + 0.25 * 200
    rig.loop.run_for(0.5)
    assert rig.engine.logins == 100


# --- connections that end


def test_connection_that_dies_idle_is_dropped_at_once() -> None:
    rig = Rig()
    dead, alive = rig.idle(2)
    rig.pool.conn_lost(dead)
    assert rig.pool.size == 1
    assert rig.ask().conn is alive
    rig.pool.conn_lost(dead)


def test_room_of_a_dead_connection_is_used_at_once() -> None:
    rig = Rig(max_backends=1)
    rig.idle(1, "other")
    [dead] = rig.block("other").idle
    waiter = rig.ask()
    assert rig.engine.logging_in == 0
    rig.pool.conn_lost(dead)
    rig.loop.run_ready()
    assert rig.engine.logging_in == 1
    rig.loop.run_for(LOGIN_SECONDS)
    assert waiter.conn is not None


def test_connection_that_dies_leased_goes_at_its_release() -> None:
    rig = Rig()
    [asker] = rig.leased(1)
    assert asker.conn is not None
    rig.pool.conn_lost(asker.conn)
    assert rig.pool.size == 1
    asker.release()
    assert rig.pool.size == 0


def test_idle_connections_are_closed_after_server_idle_timeout_down_to_the_minimum() -> None:
    rig = Rig(server_idle_timeout=60.0, min_pool_size=1)
    block = rig.block()
    block.attach()
    rig.idle(3)
    rig.loop.run_for(65.0)
    assert block.size == 1
    assert set(rig.observer.reasons()) == {CloseReason.IDLE}
    block.detach()
    rig.loop.run_for(2.0)
    assert block.size == 0


def test_minimum_is_opened_while_sessions_use_the_block() -> None:
    rig = Rig(min_pool_size=2)
    block = rig.block()
    block.attach()
    rig.loop.run_for(3.0)
    assert len(block.idle) == 2


def test_minimum_is_not_tried_again_and_again_where_logins_are_refused() -> None:
    rig = Rig(min_pool_size=2)
    rig.refusal = EngineError("28000")
    block = rig.block()
    block.attach()
    rig.loop.run_for(60.0)
    assert len(rig.engine.attempts) <= 2


def test_old_connection_of_a_busy_block_is_replaced_before_its_end() -> None:
    rig = Rig(server_lifetime=100.0)
    asker = rig.ask(hold=0.01)
    rig.loop.run_for(0.1)
    [first] = rig.block().idle

    def again() -> None:
        nonlocal asker
        asker = rig.ask(hold=0.01)
        assert asker.granted_at == rig.loop.time(), "somebody waited for a login"
        rig.loop.call_later(0.1, again)

    again()
    rig.loop.run_for(300.0)
    assert not first.is_open
    assert 3 <= rig.engine.logins <= 6
    assert rig.pool.size <= 2


def test_lifetimes_differ_so_that_connections_do_not_end_together() -> None:
    rig = Rig(server_lifetime=1000.0)
    ends = {conn.seat.expires_at - conn.seat.created_at for conn in rig.idle(10)}
    assert len(ends) == 10
    assert all(900.0 <= end <= 1000.0 for end in ends)


def test_leased_connection_past_its_lifetime_goes_at_its_release() -> None:
    rig = Rig(server_lifetime=10.0)
    [asker] = rig.leased(1)
    rig.loop.run_for(20.0)
    conn = asker.conn
    assert conn is not None
    assert conn.is_open
    asker.release()
    assert not conn.is_open


# --- the operator


def test_pause_waits_for_leases_and_keeps_waiters_until_resume() -> None:
    rig = Rig()
    rig.idle(2)
    [asker] = rig.leased(1)
    paused = rig.loop.create_task(rig.pool.pause("db"))
    rig.loop.run_for(1.0)
    assert not paused.done()
    assert rig.pool.size == 1
    waiter, elsewhere = rig.ask(), rig.ask("other")
    asker.release()
    rig.loop.run_for(1.0)
    assert paused.done()
    assert rig.block().size == 0
    assert waiter.conn is None
    assert elsewhere.conn is not None
    assert [row.paused for row in rig.pool.snapshot()] == [True, False]
    rig.pool.resume("db")
    rig.loop.run_for(LOGIN_SECONDS)
    assert waiter.conn is not None


def test_query_wait_timeout_holds_during_pause() -> None:
    rig = Rig(query_wait_timeout=1.0)
    rig.loop.run(rig.pool.pause())
    waiter = rig.ask()
    rig.loop.run_for(1.1)
    assert isinstance(waiter.error, PoolTimeout)


def test_resume_ends_a_pause_that_still_waits() -> None:
    rig = Rig()
    rig.leased(1)
    paused = rig.loop.create_task(rig.pool.pause())
    rig.loop.run_for(1.0)
    rig.pool.resume()
    rig.loop.run_for(0.0)
    assert paused.done()


def test_reconnect_renews_idle_leased_and_arriving_connections() -> None:
    rig = Rig()
    idle = rig.idle(1)
    [asker] = rig.leased(1)
    assert asker.conn is idle[0]
    arriving = rig.ask()
    rig.loop.run_for(LOGIN_SECONDS / 2)
    rig.pool.reconnect("db")
    rig.loop.run_for(LOGIN_SECONDS * 3)
    old, asker.conn = asker.conn, None
    assert old is not None
    rig.block().release(old)
    assert not old.is_open
    assert arriving.conn is not None
    assert arriving.conn.seat.created_at > 1.0 + LOGIN_SECONDS
    assert rig.observer.reasons() == [CloseReason.UNWANTED, CloseReason.STALE]


def test_changed_role_gets_new_connections_in_every_database() -> None:
    """Pitfall 33: ALTER ROLE ... SET does not reach connections that are open already."""
    rig = Rig()
    changed = rig.idle(1, "a", "alice") + rig.idle(1, "b", "alice")
    kept = rig.idle(1, "a", "bob")
    rig.pool.evict_role("alice")
    assert not any(conn.is_open for conn in changed)
    assert all(conn.is_open for conn in kept)


def test_dropped_database_has_no_idle_connection_when_eviction_returns() -> None:
    rig = Rig()
    idle = rig.idle(2, "doomed") + rig.idle(1, "doomed", "other")
    [leased] = rig.leased(1, "doomed", "third")
    rig.loop.run(rig.pool.evict_database("doomed"))
    assert not any(conn.is_open for conn in idle)
    assert leased.conn is not None
    assert leased.conn.is_open
    leased.release()
    assert rig.pool.size == 0


def test_eviction_breaks_off_logins_and_holds_new_ones_until_it_ends() -> None:
    rig = Rig()
    rig.login_seconds = 5.0
    waiter = rig.ask("doomed")
    rig.loop.run_for(1.0)

    async def drop_database() -> None:
        async with rig.pool.evicting("doomed"):
            assert rig.loop.time() == pytest.approx(1.0)
            await asyncio.sleep(10.0)
            assert rig.engine.logging_in == 0
            assert rig.pool.size == 0

    rig.loop.run(drop_database())
    assert waiter.error is None
    rig.loop.run_for(6.0)
    assert waiter.conn is not None
    assert rig.pool.counters.connect_failures == 0


def test_closed_pool_fails_waiters_and_drain_returns_when_the_last_lease_ends() -> None:
    rig = Rig(max_backends=1)
    [asker] = rig.leased(1)
    waiting, logging_in = rig.ask(), rig.ask("other")
    drained = rig.loop.create_task(rig.pool.drain())
    rig.loop.run_for(1.0)
    assert isinstance(waiting.error, PoolClosed)
    assert isinstance(logging_in.error, PoolClosed)
    assert not drained.done()
    late = rig.ask()
    assert late.error is None
    rig.loop.run_for(0.1)
    assert isinstance(late.error, PoolClosed)
    asker.release()
    rig.loop.run_for(0.0)
    assert drained.done()
    assert not rig.engine.open


def test_snapshot_shows_what_pgbouncers_show_pools_shows() -> None:
    rig = Rig(max_backends=2, default_pool_size=2)
    block = rig.block()
    for _ in range(5):
        block.attach()
    one, _two = rig.leased(2)
    assert one.conn is not None
    block.mark_long_held(one.conn)
    rig.ask()
    rig.loop.run_for(0.25)
    [row] = rig.pool.snapshot()
    assert (row.database, row.role, row.pool_size, row.paused) == ("db", "app", 2, False)
    assert (row.sessions_active, row.sessions_waiting) == (4, 1)
    assert (row.backends_active, row.backends_pinned, row.backends_idle, row.backends_connecting) == (1, 1, 0, 0)
    assert row.max_wait_us == pytest.approx(250_000, abs=1)


def test_system_without_use_has_no_timers() -> None:
    """Nothing ticks for an unused pool: an idle server sleeps."""
    rig = Rig(server_idle_timeout=30.0)
    rig.idle(2)
    rig.loop.run_for(100.0)
    assert rig.pool.size == 0
    assert not [handle for _, _, handle in rig.loop._timers if not handle.cancelled()]


def test_pool_collapse_under_a_slow_engine_does_not_become_a_login_storm() -> None:
    """Pitfall 32: sessions that time out and come back must not multiply logins."""
    rig = Rig(max_backends=50, connect_burst=4, query_wait_timeout=1.0, server_connect_timeout=5.0)
    rig.login_seconds = 60.0
    for second in range(30):
        for i in range(50):
            rig.loop.call_later(second, rig.ask, f"d{i}")
    rig.loop.run_for(30.0)
    assert rig.engine.max_logging_in == 4
    assert len(rig.engine.attempts) <= 4 * 30 / 5.0 + 4
