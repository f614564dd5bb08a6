"""Connections to the engine, shared by sessions under one budget.

`Pool` holds the budget, `Block` the connections of one (database, role). A session takes its block once and then
calls `try_acquire`, `wait` and `release`, all synchronous. What a connection must have is in `Pooled`, who waits is a
`Waiter`. How it decides is in docs/pooling.md. Reading order: block, waiter, seat; then pool, connector, allotment,
keeper, policy.
"""

from server.pool.block import Block
from server.pool.errors import PoolClosed, PoolError, PoolMisuse, PoolTimeout, PoolUnavailable
from server.pool.policy import FailureKind, classify_failure
from server.pool.pool import Pool
from server.pool.seat import CloseReason, Pooled, Seat
from server.pool.settings import PoolKey, PoolSettings
from server.pool.stats import PoolCounters, PoolObserver, SilentObserver
from server.pool.waiter import Waiter

__all__ = [
    "Block",
    "CloseReason",
    "FailureKind",
    "Pool",
    "PoolClosed",
    "PoolCounters",
    "PoolError",
    "PoolKey",
    "PoolMisuse",
    "PoolObserver",
    "PoolSettings",
    "PoolTimeout",
    "PoolUnavailable",
    "Pooled",
    "Seat",
    "SilentObserver",
    "Waiter",
    "classify_failure",
]
