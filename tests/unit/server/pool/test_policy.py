"""Sharing, pacing and judging, without a pool."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pool import FailureKind, PoolSettings, classify_failure
from server.pool.policy import Backoff, TokenBucket, share
from tests.simulation.pool_load import EngineError


@pytest.mark.parametrize(
    ("budget", "claims", "limits", "expected"),
    [
        (10, [1.0], [20], [10]),
        (10, [1.0, 1.0], [20, 20], [5, 5]),
        (10, [9.0, 1.0], [20, 20], [9, 1]),
        (10, [99.0, 1.0, 1.0], [20, 20, 20], [8, 1, 1]),
        (10, [9.0, 1.0], [4, 20], [4, 6]),
        (10, [9.0, 1.0], [4, 2], [4, 2]),
        (10, [0.0, 0.0], [20, 20], [5, 5]),
        (3, [5.0, 1.0, 1.0], [9, 9, 9], [1, 1, 1]),
        (4, [], [], []),
    ],
)
def test_budget_is_shared_by_claim(budget: int, claims: list[float], limits: list[int], expected: list[int]) -> None:
    assert share(budget, claims, limits) == expected


def test_more_claimants_than_connections_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="claimants"):
        share(1, [1.0, 1.0], [1, 1])


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 50)), min_size=1, max_size=30),
    st.integers(0, 100),
)
def test_shares_never_exceed_budget_or_limits_and_leave_nothing_that_is_wanted(
    claimants: list[tuple[float, int]], more: int
) -> None:
    claims, limits = [c for c, _ in claimants], [limit for _, limit in claimants]
    budget = len(claimants) + more
    quotas = share(budget, claims, limits)
    assert all(1 <= quota <= limit for quota, limit in zip(quotas, limits, strict=True))
    assert sum(quotas) == min(budget, sum(limits))


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (EngineError("3D000"), FailureKind.PERMANENT),
        (EngineError("28P01"), FailureKind.PERMANENT),
        (EngineError("28000"), FailureKind.PERMANENT),
        (EngineError("42501"), FailureKind.PERMANENT),
        (EngineError("55000"), FailureKind.PERMANENT),
        (EngineError("55006"), FailureKind.BLOCK),
        (EngineError("53300"), FailureKind.BLOCK),
        (EngineError("57P03"), FailureKind.ENGINE),
        (EngineError("57P01"), FailureKind.ENGINE),
        (TimeoutError(), FailureKind.BLOCK),
        (ConnectionRefusedError(), FailureKind.ENGINE),
        (FileNotFoundError(), FailureKind.ENGINE),
        (EOFError(), FailureKind.ENGINE),
        (ValueError("a bug"), FailureKind.PERMANENT),
    ],
    ids=str,
)
def test_failure_is_judged_by_its_sqlstate(exc: BaseException, kind: FailureKind) -> None:
    assert classify_failure(exc) is kind


def test_attempts_after_failures_come_ever_slower_and_one_at_a_time() -> None:
    backoff = Backoff(random.Random(1))
    now, delays = 0.0, []
    assert backoff.may_try(now)
    for _ in range(8):
        backoff.failed(now, OSError())
        delays.append(backoff.retry_at - now)
        assert not backoff.may_try(now)
        now = backoff.retry_at
        assert backoff.may_try(now)
        backoff.is_probing = True
        assert not backoff.may_try(now)
    assert all(0.5 <= delay / min(0.05 * 2**i, 1.0) <= 1.0 for i, delay in enumerate(delays))
    backoff.succeeded()
    assert backoff.may_try(0.0)


def test_burst_that_fails_together_counts_once() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(10):
        backoff.failed(1.0, OSError())
    assert backoff.failures == 1


def test_circuit_opens_only_when_failures_are_many_and_last() -> None:
    backoff = Backoff(random.Random(1))
    now = 0.0
    for _ in range(6):
        backoff.failed(now, OSError())
        now = backoff.retry_at
    assert not backoff.is_open(now, failures=5, seconds=100.0)
    assert backoff.is_open(now, failures=5, seconds=0.5)
    backoff.failed(now + 3600.0, OSError())
    assert backoff.failures == 1, "an old series is forgotten"


def test_token_bucket_allows_a_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(3, 10.0, now=0.0)
    for _ in range(3):
        bucket.take()
    assert bucket.tokens(0.0) == 0
    assert bucket.tokens(0.1001) == 1
    assert bucket.tokens(100.0) == 3


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="max_backends"):
        PoolSettings(max_backends=0)
