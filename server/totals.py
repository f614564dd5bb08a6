"""Totals of one database, kept by the query path in plain integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from server.metrics import DatabaseMetrics
from server.snapshots import PoolStats


class SessionCounts(Protocol):
    """What a session counts itself."""

    transactions: int
    received_bytes: int
    sent_bytes: int


class DatabaseTotals:
    """Since the server started. Times are microseconds. Bytes and transactions of live sessions are the sessions'
    own.
    """

    __slots__ = (
        "_count_error",
        "bytes_received",
        "bytes_sent",
        "errors",
        "histograms",
        "parses",
        "prepares",
        "statement_time_us",
        "statements",
        "transactions",
        "wait_time_us",
    )

    def __init__(self, histograms: DatabaseMetrics, count_error: Callable[[str], None]) -> None:
        self._count_error = count_error
        self.histograms = histograms
        self.bytes_received = 0
        self.bytes_sent = 0
        self.errors = 0
        self.parses = 0
        self.prepares = 0
        self.statement_time_us = 0
        self.statements = 0
        self.transactions = 0
        self.wait_time_us = 0

    def statement_ended(self, duration_seconds: float) -> None:
        """One run was answered."""
        microseconds = int(duration_seconds * 1e6)
        self.statements += 1
        self.statement_time_us += microseconds
        self.histograms.statement_us.observe(microseconds)

    def waited(self, duration_seconds: float) -> None:
        """A run had to wait for a backend."""
        microseconds = int(duration_seconds * 1e6)
        self.wait_time_us += microseconds
        self.histograms.wait_us.observe(microseconds)

    def count_error(self, sqlstate: str) -> None:
        """A client was sent an ErrorResponse."""
        self.errors += 1
        self._count_error(sqlstate)

    def add_session(self, session: SessionCounts) -> None:
        """A session ended: what it counted itself is kept here from now on."""
        self.transactions += session.transactions
        self.bytes_received += session.received_bytes
        self.bytes_sent += session.sent_bytes

    def snapshot(self, database: str, live: Iterable[SessionCounts] = ()) -> PoolStats:
        """As SHOW STATS has it; `live` are the database's sessions."""
        sessions = list(live)
        return PoolStats(
            database=database,
            transactions=self.transactions + sum(one.transactions for one in sessions),
            statements=self.statements,
            bytes_received=self.bytes_received + sum(one.received_bytes for one in sessions),
            bytes_sent=self.bytes_sent + sum(one.sent_bytes for one in sessions),
            transaction_time_us=self.statement_time_us,
            statement_time_us=self.statement_time_us,
            wait_time_us=self.wait_time_us,
            errors=self.errors,
            parses=self.parses,
            prepares=self.prepares,
        )
