"""What the pool remembers of one connection.

A connection of the pool is any object with a `context` and a `seat`: it makes an empty `Seat` when it is created, and
the pool fills it in when the connection joins. Nobody else writes to it.
"""

from __future__ import annotations

import enum
from typing import Protocol

NEW = 0  # not in a pool yet
IDLE = 1
LEASED = 2
LONG_HELD = 3  # leased, and idle in transaction or pinned
CLOSED = 4  # given up

RETIRED = -1
"""Generation of a connection that is to be closed on release, whatever the block's generation."""


class CloseReason(enum.Enum):
    """Why a connection left the pool."""

    UNUSABLE = "released as not reusable"
    LOST = "lost"
    STALE = "reconnect, eviction or lifetime"
    IDLE = "server_idle_timeout"
    STOLEN = "made way for another block"
    UNWANTED = "pool closed, paused or smaller"


class Seat:
    """Bookkeeping of one connection. Times are readings of the pool's clock."""

    __slots__ = (
        "block",
        "created_at",
        "expires_at",
        "generation",
        "granted_at",
        "leased_at",
        "released_at",
        "replacing",
        "since",
        "state",
    )

    def __init__(self) -> None:
        self.block: object | None = None
        self.state = NEW
        self.generation = 0
        self.created_at = 0.0
        self.expires_at = 0.0
        self.leased_at = 0.0
        self.released_at = 0.0
        self.granted_at = -1.0  # equals leased_at where a waiter got it; `since` is then when it began to wait
        self.since = 0.0
        self.replacing = False  # a successor is being connected

    @property
    def is_leased(self) -> bool:
        return self.state == LEASED or self.state == LONG_HELD


class Pooled(Protocol):
    """What the pool needs of a connection."""

    @property
    def context(self) -> object:
        """The session context the connection is in; compared by identity."""

    @property
    def seat(self) -> Seat: ...
