"""Why a waiter did not get a connection. The session turns each into the SQLSTATE its client sees."""

from __future__ import annotations


class PoolError(Exception):
    """A waiter cannot be served."""


class PoolTimeout(PoolError):
    """`query_wait_timeout` passed before a connection was free."""

    def __init__(self, waited_seconds: float) -> None:
        super().__init__(f"query_wait_timeout: no connection for {waited_seconds:.1f} seconds")
        self.waited_seconds = waited_seconds


class PoolClosed(PoolError):
    """The pool is closed or draining."""

    def __init__(self) -> None:
        super().__init__("the pool is closed")


class PoolUnavailable(PoolError):
    """Connecting has failed again and again; `last_error` says with what. Raised without trying (circuit breaker)."""

    def __init__(self, last_error: BaseException) -> None:
        super().__init__(f"connecting keeps failing: {last_error}")
        self.last_error = last_error


class PoolMisuse(RuntimeError):
    """Our own code broke the pool's contract, such as releasing a connection twice."""
