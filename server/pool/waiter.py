"""Who waits for a connection, and the queue they wait in."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, TypeVar

from server.pool.seat import Pooled

C = TypeVar("C", bound=Pooled)
C_contra = TypeVar("C_contra", bound=Pooled, contravariant=True)


class Waiter(Protocol[C_contra]):
    """Gets exactly one of the two calls, unless it leaves the queue first. Told apart as objects are.

    Neither is called before `Block.wait` has returned. They run inside whatever freed the connection (another session's
    `release` as a rule), so they must not block; they may acquire, release and wait again.
    """

    def granted(self, conn: C_contra) -> None:
        """`conn` is leased to this waiter."""

    def failed(self, exc: BaseException) -> None:
        """There will be no connection: a `PoolError`, or what connecting raised."""


class WaitQueue(OrderedDict[Waiter[C], float]):
    """Waiters and when they began to wait, first come, first served; leaving from the middle is O(1)."""

    __slots__ = ()

    def restore(self, waiter: Waiter[C], since: float) -> None:
        """Put a waiter back to the place it had: before everybody who came after `since`."""
        later = [other for other, began in self.items() if began > since]
        self[waiter] = since
        for other in later:
            self.move_to_end(other)

    def oldest(self) -> float:
        """When the first in the queue began to wait. Only where the queue is not empty."""
        return next(iter(self.values()))
