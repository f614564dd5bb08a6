"""The pool is on the query path: what an acquire and a release may cost."""

from __future__ import annotations

import time
import timeit

import pytest

from tests.unit.server.pool.pool_rig import Rig


@pytest.mark.timing
def test_acquire_and_release_cost_about_a_microsecond_each_at_most() -> None:
    rig = Rig()
    rig.idle(4)
    block = rig.block()
    block._clock = time.monotonic

    def once() -> None:
        conn = block.try_acquire(None)
        assert conn is not None
        block.release(conn)

    number = 20_000
    seconds = min(timeit.repeat(once, number=number, repeat=7)) / number
    assert seconds < 2e-6, f"{seconds * 1e9:.0f} ns for both"
