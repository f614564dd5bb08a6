"""What the server counts, and how Prometheus reads it.

The query path adds to plain integers and to `LogHistogram`s of `ServerMetrics` (0.2 microseconds each); rare things are
counted by a buffered subscriber of the bus. `server.metrics_collector` turns it into Prometheus' families when somebody
asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from server.extension.bus import EventBus
from server.extension.events import (
    AdminCommandRun,
    AuthenticationFailed,
    BackendConnected,
    BackendLost,
    EngineLost,
    Event,
    FeatureFailed,
    QueryCancelled,
    SessionClosed,
    SessionOpened,
)

_SUB_BITS: Final = 2  # four buckets an octave: a quantile is at most 25 % off
_LARGEST_BITS: Final = 62
MAX_LABEL_VALUES: Final = 1000
"""Values of one label that are counted apart; what comes after goes to OTHER.

Databases and roles are named by clients.
"""
OTHER: Final = "(other)"


class LogHistogram:
    """Counts of whole numbers (microseconds, bytes) in buckets that grow with the logarithm.

    `observe` is O(1), allocates nothing and takes 0.2 microseconds. Memory: 2 KiB.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * ((_LARGEST_BITS << _SUB_BITS) + 4)
        self.sum = 0

    def observe(self, value: int) -> None:
        """Count `value`; a negative one counts as 0."""
        # Bucket n holds (lower, upper], as Prometheus' `le` has it: so value - 1 is what is looked at.
        below = value - 1
        if below < 4:
            self.counts[below if below > 0 else 0] += 1
            if value > 0:
                self.sum += value
            return
        bits = below.bit_length()
        self.counts[((bits - 2) << 2) + ((below >> (bits - 3)) & 3)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self, bounds: Sequence[int]) -> list[int]:
        """How many values were at most each of `bounds`, which must be ascending powers of two from 4 on."""
        found: list[int] = []
        total, index = 0, 0
        for bound in bounds:
            end = bucket_after(bound)
            total += sum(self.counts[index:end])
            index = end
            found.append(total)
        return found

    def quantile(self, fraction: float) -> int:
        """The upper bound of the bucket that holds this quantile; 0 where nothing was counted."""
        counts = self.counts
        rank = fraction * sum(counts)
        seen = 0
        for index, count in enumerate(counts):
            seen += count
            if count and seen >= rank:
                return bucket_bound(index)
        return 0


def bucket_bound(index: int) -> int:
    """The largest value of bucket `index`."""
    if index < 4:
        return index + 1
    bits, sub = (index >> 2) + 2, index & 3
    return (1 << (bits - 1)) + ((sub + 1) << (bits - 3))


def bucket_after(power_of_two: int) -> int:
    """The first bucket whose values are all larger than `power_of_two` (at least 4)."""
    return (power_of_two.bit_length() - 2) << 2


class DatabaseMetrics:
    """What the query path counts for one database."""

    __slots__ = ("statement_us", "wait_us")

    def __init__(self) -> None:
        self.statement_us = LogHistogram()  # duration of each statement, as QueryFinished.duration_us
        self.wait_us = LogHistogram()  # each wait for a backend; those that had not to wait are not counted


class Counts:
    """Totals by label values, bounded: beyond MAX_LABEL_VALUES combinations everything counts as OTHER."""

    __slots__ = ("by_labels",)

    def __init__(self) -> None:
        self.by_labels: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str) -> None:
        counts = self.by_labels
        if labels not in counts and len(counts) >= MAX_LABEL_VALUES:
            labels = (OTHER,) * len(labels)
        counts[labels] = counts.get(labels, 0) + 1


class ServerMetrics:
    """Everything the server counts itself. One object a server; the core adds to it directly."""

    __slots__ = (
        "_databases",
        "admin_commands",
        "authentication_failures",
        "backend_connect_us",
        "backends_lost",
        "cancels",
        "engine_losses",
        "errors",
        "feature_failures",
        "sessions_closed",
        "sessions_opened",
    )

    def __init__(self) -> None:
        self._databases: dict[str, DatabaseMetrics] = {}
        self.errors = Counts()  # (class of SQLSTATE,)
        self.sessions_opened = Counts()  # (database,)
        self.sessions_closed = Counts()  # (reason,)
        self.authentication_failures = Counts()  # (SQLSTATE,)
        self.cancels = Counts()  # ("yes" where something ran, else "no",)
        self.backend_connect_us = LogHistogram()
        self.backends_lost = Counts()  # ("yes" where expected, else "no",)
        self.engine_losses = Counts()  # ("yes" where expected, else "no",)
        self.admin_commands = Counts()  # (command, outcome)
        self.feature_failures = Counts()  # (feature,)

    def database(self, name: str) -> DatabaseMetrics:
        """The counters of one database. Keep the object in the session: asking again costs a dictionary look-up."""
        found = self._databases.get(name)
        if found is None:
            if len(self._databases) >= MAX_LABEL_VALUES:
                name = OTHER
            found = self._databases.setdefault(name, DatabaseMetrics())
        return found

    def databases(self) -> Mapping[str, DatabaseMetrics]:
        return self._databases

    def count_error(self, sqlstate: str) -> None:
        """Count an ErrorResponse that a client was sent, by the class of its SQLSTATE."""
        self.errors.add(sqlstate[:2])

    def subscribe(self, bus: EventBus) -> None:
        """Count what the bus tells. None of these events happens for a statement that goes well."""
        bus.subscribe(
            (
                SessionOpened,
                SessionClosed,
                AuthenticationFailed,
                QueryCancelled,
                BackendConnected,
                BackendLost,
                EngineLost,
                AdminCommandRun,
                FeatureFailed,
            ),
            self.take,
            subscriber="metrics",
        )

    def take(self, events: Sequence[Event]) -> None:
        """Count a batch of events."""
        for event in events:
            match event:
                case SessionOpened():
                    self.sessions_opened.add(event.session.database)
                case SessionClosed():
                    self.sessions_closed.add(event.reason)
                case AuthenticationFailed():
                    self.authentication_failures.add(event.sqlstate)
                case QueryCancelled():
                    self.cancels.add(_yes(event.query_id is not None))
                case BackendConnected():
                    self.backend_connect_us.observe(event.duration_us)
                case BackendLost():
                    self.backends_lost.add(_yes(event.is_expected))
                case EngineLost():
                    self.engine_losses.add(_yes(event.is_expected))
                case AdminCommandRun():
                    self.admin_commands.add(event.command, event.outcome.value)
                case FeatureFailed():
                    self.feature_failures.add(event.feature)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
