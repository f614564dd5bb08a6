"""Who gets how much: pure functions and small state machines, without clocks, connections or callbacks of their own.

The rule that shares the budget is Gel's: a block's claim is the work in its queue, people waiting or served times how
long one of them holds a connection. Sharing by it evens out how long each queue takes to clear.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence


def share(budget: int, claims: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Divide `budget` whole connections in proportion to `claims`, at least 1 and at most `limits[i]` each.

    The claimants must not outnumber the budget. What proportion leaves over goes to the largest remainders.
    """
    count = len(claims)
    if count > budget:
        raise ValueError("more claimants than connections")
    quotas = [1] * count
    left = budget - count
    open_ones = [i for i in range(count) if limits[i] > 1]
    while left > 0 and open_ones:
        total = sum(claims[i] for i in open_ones)
        # What each should have in all, seen from what those still open share between them.
        pot = left + sum(quotas[i] for i in open_ones)
        ideal = {i: pot * claims[i] / total if total > 0 else pot / len(open_ones) for i in open_ones}
        filled = [i for i in open_ones if ideal[i] >= limits[i]]
        if filled:
            for i in filled:
                grant = min(limits[i] - quotas[i], left)
                quotas[i] += grant
                left -= grant
            open_ones = [i for i in open_ones if quotas[i] < limits[i]]
            continue
        # Nobody hits a limit any more: hand out one by one to whoever is furthest below.
        while left > 0 and open_ones:
            neediest = max(open_ones, key=lambda i: ideal[i] - quotas[i])
            quotas[neediest] += 1
            left -= 1
            if quotas[neediest] >= limits[neediest]:
                open_ones.remove(neediest)
        break
    return quotas


class FailureKind(enum.Enum):
    """What a failed login says about the next one."""

    PERMANENT = "this login can never work"
    BLOCK = "this database or role cannot be reached now"
    ENGINE = "the engine cannot be reached now"


_ENGINE_SQLSTATES = frozenset({"57P01", "57P02", "57P03", "08001", "08004", "08006"})
_TRANSIENT_SQLSTATES = frozenset({"55006"})  # object in use: the database is being renamed, moved or copied
_TRANSIENT_CLASSES = frozenset({"08", "40", "53", "57", "58"})


def classify_failure(exc: BaseException) -> FailureKind:
    """By SQLSTATE where there is one (attribute `sqlstate`); other I/O errors are transient, the rest are not."""
    sqlstate = getattr(exc, "sqlstate", None)
    if isinstance(sqlstate, str):
        if sqlstate in _ENGINE_SQLSTATES:
            return FailureKind.ENGINE
        is_transient = sqlstate[:2] in _TRANSIENT_CLASSES or sqlstate in _TRANSIENT_SQLSTATES
        return FailureKind.BLOCK if is_transient else FailureKind.PERMANENT
    if isinstance(exc, TimeoutError):  # one database may hang in a login trigger while the others are well
        return FailureKind.BLOCK
    if isinstance(exc, (OSError, EOFError)):
        return FailureKind.ENGINE
    return FailureKind.PERMANENT


class Backoff:
    """Paces attempts after failures, one at a time, and says when to stop hoping (circuit breaker).

    Closed: no failures. After one: a single attempt at a time, at growing intervals with jitter. Open (`is_open`): the
    failures are many and span `breaker_seconds`; who asks is refused until an attempt (half-open) succeeds.
    """

    FIRST_SECONDS = 0.05
    MAX_SECONDS = 1.0
    FORGET_SECONDS = 30.0  # without an attempt for so long, the next failure is the first of a new series

    __slots__ = ("_rng", "failing_since", "failures", "is_probing", "last_error", "retry_at")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.failures = 0
        self.failing_since = 0.0
        self.retry_at = 0.0
        self.is_probing = False
        self.last_error: BaseException | None = None

    def may_try(self, now: float) -> bool:
        return not self.failures or (not self.is_probing and now >= self.retry_at)

    def failed(self, now: float, exc: BaseException) -> None:
        self.is_probing = False
        if self.failures and now < self.retry_at:  # a burst that fails together counts once
            self.last_error = exc
            return
        if not self.failures or now - self.retry_at > self.FORGET_SECONDS:
            self.failures = 0
            self.failing_since = now
        self.failures += 1
        self.last_error = exc
        delay = min(self.FIRST_SECONDS * 2.0 ** min(self.failures - 1, 16), self.MAX_SECONDS)
        self.retry_at = now + delay * self._rng.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        self.failures = 0
        self.is_probing = False
        self.last_error = None

    def is_open(self, now: float, failures: int, seconds: float) -> bool:
        return self.failures >= failures and now - self.failing_since >= seconds


class TokenBucket:
    """At most `capacity` at a stroke and `rate` a second after it; a rate of 0 is without limit."""

    __slots__ = ("_at", "_tokens", "capacity", "rate")

    def __init__(self, capacity: int, rate: float, now: float) -> None:
        self.capacity = capacity
        self.rate = rate
        self._tokens = float(capacity)
        self._at = now

    def tokens(self, now: float) -> int:
        if not self.rate:
            return self.capacity
        self._tokens = min(self.capacity, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return int(self._tokens)

    def take(self) -> None:
        if self.rate:
            self._tokens -= 1.0
