"""Acquire, wait, release: the part of the pool that every statement passes."""

from __future__ import annotations

import pytest

from server.pool import CloseReason, PoolMisuse
from tests.unit.server.pool.pool_rig import LOGIN_SECONDS, Asker, Rig


def test_last_released_connection_is_the_first_used() -> None:
    rig = Rig()
    idle = rig.idle(3)
    assert rig.ask().conn is idle[-1]


def test_idle_connection_of_the_callers_context_is_preferred_near_the_top_only() -> None:
    rig = Rig()
    idle = rig.idle(6)
    mine, far = object(), object()
    idle[-3].context = mine
    idle[0].context = far
    block = rig.block()
    assert block.try_acquire(mine) is idle[-3]
    assert block.try_acquire(far) is idle[-1]
    assert len(block.idle) == 4
    assert block.leased == 2


def test_one_certain_connection_can_be_had_while_it_is_idle_and_nobody_waits() -> None:
    rig = Rig(max_backends=2)
    first, second = rig.idle(2)
    block = rig.block()
    assert block.try_acquire_this(first)
    assert not block.try_acquire_this(first)
    assert block.idle == [second]
    block.release(first)
    assert block.idle == [second, first]


def test_waiters_are_served_in_the_order_they_came() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    waiters = [rig.ask() for _ in range(5)]
    order: list[int] = []
    holder = first
    for _ in range(5):
        holder.release()
        [holder] = [waiter for waiter in waiters if waiter.conn is not None]
        order.append(waiters.index(holder))
    assert order == [0, 1, 2, 3, 4]


def test_released_connection_is_handed_over_before_release_returns() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    waiter = rig.ask()
    conn = first.conn
    first.release()
    assert waiter.conn is conn


def test_nobody_overtakes_a_waiter_from_within_a_callback() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    block = rig.block()
    seen: list[object] = []

    class Greedy(Asker):
        def granted(self, conn: object) -> None:
            super().granted(conn)  # type: ignore[arg-type]
            self.release()
            seen.append(block.try_acquire(None))

    block.wait(Greedy(rig, block))
    patient = rig.ask()
    first.release()
    assert seen == [None]
    assert patient.conn is not None


def test_ten_thousand_waiters_that_release_at_once_do_not_nest() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    waiters = [rig.ask(hold=0.0) for _ in range(10_000)]
    first.release()
    assert all(waiter.granted_at >= 0 for waiter in waiters)
    assert len(rig.block().idle) == 1


def test_waiter_that_leaves_gets_no_callback() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    gone, stays = rig.ask(), rig.ask()
    assert rig.block().cancel(gone)
    assert not rig.block().cancel(gone)
    first.release()
    assert gone.conn is None
    assert gone.error is None
    assert stays.conn is not None


def test_waiter_of_a_dead_connection_keeps_its_place() -> None:
    rig = Rig(max_backends=2, default_pool_size=2)
    first, second = rig.leased(2)
    unlucky = rig.ask()
    rig.loop.run_for(0.1)
    later = rig.ask()
    first.release()
    conn, unlucky.conn = unlucky.conn, None
    assert conn is not None
    rig.block().retry(conn, unlucky)
    second.release()
    assert unlucky.conn is not None
    assert later.conn is None


def test_first_user_of_a_dead_idle_connection_queues_before_later_comers() -> None:
    rig = Rig(max_backends=1)
    rig.idle(1)
    unlucky = rig.ask()
    rig.loop.run_for(0.1)
    later = rig.ask()
    conn, unlucky.conn = unlucky.conn, None
    assert conn is not None
    rig.block().retry(conn, unlucky)
    rig.loop.run_for(LOGIN_SECONDS * 2)
    assert unlucky.conn is not None
    assert later.conn is None


def test_unusable_connection_is_closed_and_replaced_for_the_waiter() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    waiter = rig.ask()
    conn, first.conn = first.conn, None
    assert conn is not None
    rig.block().release(conn, reusable=False)
    assert not conn.is_open
    rig.loop.run_for(LOGIN_SECONDS)
    assert waiter.conn is not None
    assert rig.observer.reasons() == [CloseReason.UNUSABLE]


def test_releasing_twice_is_our_bug_and_says_so() -> None:
    rig = Rig()
    [first] = rig.leased(1)
    conn = first.conn
    assert conn is not None
    first.release()
    with pytest.raises(PoolMisuse):
        rig.block().release(conn)
    with pytest.raises(PoolMisuse):
        rig.block("other").release(conn)


def test_waiting_twice_is_our_bug_and_says_so() -> None:
    rig = Rig(max_backends=1)
    rig.leased(1)
    waiter = rig.ask()
    with pytest.raises(PoolMisuse):
        rig.block().wait(waiter)


def test_bug_in_one_sessions_callback_costs_only_its_connection() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    block = rig.block()

    class Broken(Asker):
        def granted(self, conn: object) -> None:
            raise ValueError("a bug")

    block.wait(Broken(rig, block))
    sound = rig.ask()
    first.release()
    rig.loop.run_for(0.1)
    assert sound.conn is not None
    assert [event[0] for event in rig.observer.events].count("callback_failed") == 1
    assert CloseReason.UNUSABLE in rig.observer.reasons()


def test_waiting_beside_an_idle_connection_is_served_after_wait_returned() -> None:
    rig = Rig()
    rig.idle(1)
    asker = Asker(rig, rig.block())
    rig.block().wait(asker)
    assert asker.conn is None
    rig.loop.run_for(0.0)
    assert asker.conn is not None


def test_totals_count_leases_waits_and_their_time() -> None:
    rig = Rig(max_backends=1)
    [first] = rig.leased(1)
    rig.ask(hold=0.5)
    rig.loop.run_for(2.0)
    first.release()
    rig.loop.run_for(1.0)
    block = rig.block()
    assert block.releases == 2
    assert block.waits == 2
    assert block.wait_seconds == pytest.approx(2.0 + LOGIN_SECONDS)
    assert block.lease_seconds == pytest.approx(3.0 - LOGIN_SECONDS + 0.5)
