"""Taking part in a commit.

Caches, audit and pools each need an order around a commit. There is one commit coordinator, in the core, and they take
part in it here. For each transaction that may change something the coordinator goes through these steps; for a
read-only one, through none:

1. `needs(scope)`, before COMMIT or the Sync that commits: what a participant has to know. Costs of what nobody needs
   are saved.
2. The coordinator asks the engine, on the backend that holds the transaction, in one round trip for all.
3. `on_transaction_learned(facts)`, in order: the transaction id and the relations truly written are now known.
4. `before_commit(facts)`, in order: put up fences, make intents durable. When the last one has returned, COMMIT is
   forwarded. A PgError raised here refuses the commit: the transaction is rolled back and the client gets that error.
5. `after_outcome(facts, outcome)`, in reverse order, before the client gets ReadyForQuery. Always called once for a
   transaction whose `before_commit` was called, also where a later participant refused, the client is gone or the
   backend was lost (outcome UNKNOWN, which counts as a commit). It must not raise and must not wait for a client.

Steps 3 to 5 may return None or an awaitable, as hooks do.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from server.extension.context import SessionInfo
from server.extension.events import TransactionOutcome


class CommitShape(enum.Enum):
    """How the transaction ends."""

    AUTOCOMMIT = "autocommit"  # one statement, or a pipeline up to its Sync
    BLOCK = "block"  # COMMIT or END of a transaction block, also PREPARE TRANSACTION
    COMMIT_PREPARED = "commit_prepared"
    ROLLBACK_PREPARED = "rollback_prepared"
    SELF_COMMITTING = (
        "self_committing"  # CALL or DO with COMMIT, VACUUM, CREATE DATABASE, CONCURRENTLY: cannot be held back
    )


class CommitNeeds(enum.IntFlag):
    """What a participant has to know before a commit."""

    NOTHING = 0
    TRANSACTION_ID = enum.auto()
    RELATIONS_WRITTEN = enum.auto()  # from the locks the transaction holds


@dataclass(frozen=True, slots=True)
class CommitScope:
    """What is known of a transaction without asking the engine."""

    session: SessionInfo
    database: str
    shape: CommitShape
    gid: str | None  # of a two-phase transaction
    relations_named: frozenset[tuple[str, str]]  # written, as named in the statements
    is_closed: bool  # relations_named, with what the catalog adds, is all it can have written
    changes_catalog: bool
    has_opaque_statements: bool
    query_ids: tuple[int, ...]
    first_statement_at: float


@dataclass(frozen=True, slots=True)
class TransactionFacts:
    """What is known just before COMMIT. `None` is "not asked" or "could not be learned": never "none"."""

    scope: CommitScope
    transaction_id: int | None  # xid8
    relations_written: frozenset[int] | None  # OIDs of relations the backend holds a write lock on
    backend_pid: int
    engine_epoch: int


class CommitParticipant(Protocol):
    """One participant. Registered with `Hooks.add_commit_participant`; the module docstring has the order of calls."""

    @property
    def name(self) -> str:
        """Unique; in logs and in SHOW EVENTS."""

    @property
    def order(self) -> int:
        """Lower comes first before the commit and last after it."""

    def needs(self, scope: CommitScope) -> CommitNeeds:
        """What to learn from the engine. Called on the query path: answer at once, from memory."""

    def on_transaction_learned(self, facts: TransactionFacts) -> Awaitable[None] | None:
        """The answer to `needs` has come. Raising refuses the commit."""

    def before_commit(self, facts: TransactionFacts) -> Awaitable[None] | None:
        """Fence and make durable what has to stand before anybody can see the commit.

        Raising PgError refuses the commit.
        """

    def after_outcome(self, facts: TransactionFacts, outcome: TransactionOutcome) -> Awaitable[None] | None:
        """The engine answered, or cannot be asked any more. Lift fences, record the outcome."""
