"""What a pool is told: its key and its limits. Names and units are those of the `pool` section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class PoolKey(NamedTuple):
    """One block of connections: they are logged in to `database` as `role`."""

    database: str
    role: str


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Limits of one pool. Durations are seconds; 0 turns a timeout off."""

    max_backends: int = 100
    """The budget: connections over all blocks, those being made included."""
    default_pool_size: int = 20
    """How many working connections a block may have; see `reserve_pool_timeout`."""
    min_pool_size: int = 0
    """Connections a block with sessions keeps while it is idle."""
    reserve_pool_timeout: float = 0.1
    """For a waiter that has waited this long, long-held leases do not count against `default_pool_size`; 0 is never."""
    query_wait_timeout: float = 120.0
    """The longest wait in the queue; then `PoolTimeout`."""
    server_idle_timeout: float = 600.0
    """Idle connections older than this are closed."""
    server_lifetime: float = 3600.0
    """A connection is replaced at this age, less a random tenth."""
    server_connect_timeout: float = 15.0
    """The longest a login may take."""
    connect_burst: int = 16
    """Logins under way at one time, over all blocks; once so many began at a stroke, 50 times as many a second."""
    breaker_failures: int = 5
    """Failed logins in a row, and ..."""
    breaker_seconds: float = 10.0
    """... the time they must span before waiters without any connection fail at once."""

    def __post_init__(self) -> None:
        if self.max_backends < 1 or self.default_pool_size < 1 or self.connect_burst < 1:
            raise ValueError("max_backends, default_pool_size and connect_burst must be at least 1")
