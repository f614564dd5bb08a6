"""The metrics of the core as Prometheus reads them.

`METRICS` declares every family once: name, kind, labels, documentation; docs/metrics.md is made from it.
`MetricsCollector.collect` reads `ServerMetrics`, `ServerControl` and the bus at that moment, on the event loop, and
returns plain families: rendering them is somebody else's work, in a thread (`server.http.app`).

Labels whose values clients choose (database, role) are bounded as in `server.metrics`.
"""

from __future__ import annotations

import enum
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from server.extension.bus import EventBus
from server.metrics import MAX_LABEL_VALUES, OTHER, Counts, LogHistogram, ServerMetrics
from server.snapshots import PoolSnapshot, PoolStats, ServerControl

_SECOND_US: Final = 1_000_000
BUCKET_BOUNDS_US: Final = tuple(2**exponent for exponent in range(6, 27))  # 64 microseconds to 67 seconds
Labels: TypeAlias = tuple[str, ...]
Samples: TypeAlias = Mapping[Labels, float]
L = TypeVar("L", bound=tuple[str, ...])


class MetricKind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One family. The name of a counter has its `_total` here, as it is scraped."""

    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    doc: str


def _counter(name: str, doc: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, MetricKind.COUNTER, labels, doc)


def _gauge(name: str, doc: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, MetricKind.GAUGE, labels, doc)


def _histogram(name: str, doc: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, MetricKind.HISTOGRAM, labels, doc)


METRICS: Final[tuple[MetricSpec, ...]] = (
    _gauge("rustydb_build_info", "1; the labels say what runs.", "version", "engine_version", "python_version"),
    _gauge("rustydb_ready", "1 while the engine is reachable and clients are accepted."),
    _gauge("rustydb_start_time_seconds", "When the server started, seconds since the epoch."),
    _gauge("rustydb_sessions", "Client sessions now, by state as in SHOW SESSIONS.", "database", "state"),
    _counter("rustydb_sessions_opened_total", "Sessions that logged in.", "database"),
    _counter("rustydb_sessions_closed_total", "Sessions that ended, by what ended them.", "reason"),
    _counter("rustydb_authentication_failures_total", "Logins refused, by the SQLSTATE given.", "sqlstate"),
    _counter("rustydb_cancels_total", "Cancels carried out; `hit` is no where nothing ran any more.", "hit"),
    _gauge("rustydb_backends", "Connections to the engine now, by state as in SHOW BACKENDS.", "database", "state"),
    _histogram("rustydb_backend_connect_seconds", "Time to connect and log in to the engine."),
    _counter("rustydb_backends_lost_total", "Connections to the engine that ended.", "expected"),
    _counter("rustydb_engine_losses_total", "How often the engine stopped accepting connections.", "expected"),
    _gauge("rustydb_pool_waiting_sessions", "Sessions that wait for a backend of this pool.", "database", "role"),
    _gauge("rustydb_pool_max_wait_seconds", "The longest of these waits.", "database", "role"),
    _gauge("rustydb_pool_backends", "Backends of this pool, by use.", "database", "role", "use"),
    _gauge("rustydb_pool_size", "Backends this pool may have now.", "database", "role"),
    _gauge("rustydb_pool_paused", "1 while PAUSE is in force.", "database", "role"),
    _counter("rustydb_transactions_total", "Transactions ended.", "database"),
    _counter("rustydb_statements_total", "Statements ended.", "database"),
    _counter("rustydb_statement_errors_total", "Errors sent to clients.", "database"),
    _counter(
        "rustydb_errors_total", "Errors sent to clients, by class (the first two characters) of SQLSTATE.", "class"
    ),
    _counter("rustydb_received_bytes_total", "Bytes from clients.", "database"),
    _counter("rustydb_sent_bytes_total", "Bytes to clients.", "database"),
    _counter("rustydb_transaction_seconds_total", "Time spent in transactions.", "database"),
    _counter("rustydb_statement_seconds_total", "Time spent in statements.", "database"),
    _counter("rustydb_backend_wait_seconds_total", "Time that sessions waited for a backend.", "database"),
    _counter("rustydb_client_parses_total", "Statements that clients prepared (Parse).", "database"),
    _counter("rustydb_backend_prepares_total", "Statements prepared on backends.", "database"),
    _histogram(
        "rustydb_statement_duration_seconds",
        "From the last byte of a request to the last byte of its reply.",
        "database",
    ),
    _histogram("rustydb_backend_wait_duration_seconds", "Waits for a backend, where one had to wait.", "database"),
    _counter("rustydb_analysis_cache_hits_total", "Texts whose analysis was known already."),
    _counter("rustydb_analysis_cache_misses_total", "Texts that had to be analysed."),
    _gauge("rustydb_analysis_cache_entries", "Analyses that are kept."),
    _gauge(
        "rustydb_event_loop_lag_seconds",
        "How late the event loop runs its callbacks, over the last minute.",
        "quantile",
    ),
    _counter("rustydb_events_delivered_total", "Events that a subscriber took.", "subscriber"),
    _counter("rustydb_events_dropped_total", "Events lost because the subscriber's queue was full.", "subscriber"),
    _counter("rustydb_event_failures_total", "Calls of a subscriber that raised an error.", "subscriber"),
    _gauge("rustydb_events_queued", "Events that wait in the subscriber's queue.", "subscriber"),
    _counter("rustydb_admin_commands_total", "Admin commands, by outcome.", "command", "outcome"),
    _counter("rustydb_feature_failures_total", "Errors raised by a feature's hooks and subscribers.", "feature"),
)


PROCESS_METRICS: Final[tuple[MetricSpec, ...]] = (
    _counter("process_cpu_seconds_total", "CPU time of this process; the engine's is its own."),
    _gauge("process_resident_memory_bytes", "Memory of this process that is in RAM."),
    _gauge("process_virtual_memory_bytes", "Address space of this process."),
    _gauge("process_open_fds", "Open file descriptors: sockets of clients and backends, mostly."),
    _gauge("process_max_fds", "Most file descriptors it may have open."),
    _gauge("process_start_time_seconds", "When the process started, seconds since the epoch."),
)
"""Families of prometheus_client's ProcessCollector, under the names that every exporter gives them. Linux only."""


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """Totals of the statement analysis cache."""

    hits: int
    misses: int
    entries: int


class MetricsCollector(Collector):
    """Makes the families of `METRICS`. Register it with the server's own CollectorRegistry."""

    def __init__(
        self,
        metrics: ServerMetrics,
        control: ServerControl,
        bus: EventBus,
        *,
        session_counts: Callable[[], Mapping[tuple[str, str], int]] | None = None,
        analysis_cache: Callable[[], CacheCounters] | None = None,
    ) -> None:
        """`session_counts()` gives sessions by (database, state); without it they are counted from
        `control.sessions()`.

        With thousands of sessions that takes milliseconds of the event loop, so the core should give it.
        """
        self._metrics = metrics
        self._control = control
        self._bus = bus
        self._session_counts = session_counts or self._count_sessions
        self._analysis_cache = analysis_cache
        self._process = ProcessCollector(registry=None)

    def describe(self) -> Iterable[Metric]:
        """Names without values, so that registering collects nothing."""
        return [*(self._empty(spec) for spec in METRICS), *self._process.collect()]

    def collect(self) -> Iterable[Metric]:
        """All families with their values now."""
        samples = {
            **self._server(),
            **self._counted(),
            **self._by_database(self._control.stats()),
            **self._by_pool(self._control.pools()),
            **self._by_subscriber(),
        }
        histograms = self._histograms()
        families: list[Metric] = []
        for spec in METRICS:
            family = self._empty(spec)
            if isinstance(family, HistogramMetricFamily):
                for labels, histogram in histograms[spec.name].items():
                    family.add_metric(labels, list(histogram_buckets(histogram)), histogram.sum / _SECOND_US)
            elif spec.name in samples:
                for labels, value in samples[spec.name].items():
                    family.add_metric(labels, value)
            else:
                continue  # its source was not given
            families.append(family)
        families.extend(self._process.collect())
        return families

    # Where the values come from

    def _server(self) -> dict[str, Samples]:
        control = self._control
        median_us, worst_us = control.loop_lag_us()
        backends = Counter((backend.database, backend.state) for backend in control.backends())
        found: dict[str, Samples] = {
            "rustydb_build_info": {(control.version(), control.engine_version(), platform.python_version()): 1},
            "rustydb_ready": {(): int(control.is_ready())},
            "rustydb_start_time_seconds": {(): control.started_at()},
            "rustydb_sessions": _bounded(self._session_counts()),
            "rustydb_backends": _bounded(backends),
            "rustydb_event_loop_lag_seconds": {
                ("0.5",): median_us / _SECOND_US,
                ("0.99",): worst_us / _SECOND_US,
            },
        }
        if self._analysis_cache is not None:
            counters = self._analysis_cache()
            found["rustydb_analysis_cache_hits_total"] = {(): counters.hits}
            found["rustydb_analysis_cache_misses_total"] = {(): counters.misses}
            found["rustydb_analysis_cache_entries"] = {(): counters.entries}
        return found

    def _counted(self) -> dict[str, Samples]:
        metrics = self._metrics
        counts: dict[str, Counts] = {
            "rustydb_sessions_opened_total": metrics.sessions_opened,
            "rustydb_sessions_closed_total": metrics.sessions_closed,
            "rustydb_authentication_failures_total": metrics.authentication_failures,
            "rustydb_cancels_total": metrics.cancels,
            "rustydb_backends_lost_total": metrics.backends_lost,
            "rustydb_engine_losses_total": metrics.engine_losses,
            "rustydb_errors_total": metrics.errors,
            "rustydb_admin_commands_total": metrics.admin_commands,
            "rustydb_feature_failures_total": metrics.feature_failures,
        }
        return {name: count.by_labels for name, count in counts.items()}

    def _histograms(self) -> dict[str, dict[Labels, LogHistogram]]:
        databases = self._metrics.databases().items()
        return {
            "rustydb_backend_connect_seconds": {(): self._metrics.backend_connect_us},
            "rustydb_statement_duration_seconds": {(name,): one.statement_us for name, one in databases},
            "rustydb_backend_wait_duration_seconds": {(name,): one.wait_us for name, one in databases},
        }

    def _by_database(self, stats: list[PoolStats]) -> dict[str, Samples]:
        def each(value: Callable[[PoolStats], float]) -> Samples:
            return _bounded({(one.database,): value(one) for one in stats})

        return {
            "rustydb_transactions_total": each(lambda one: one.transactions),
            "rustydb_statements_total": each(lambda one: one.statements),
            "rustydb_statement_errors_total": each(lambda one: one.errors),
            "rustydb_received_bytes_total": each(lambda one: one.bytes_received),
            "rustydb_sent_bytes_total": each(lambda one: one.bytes_sent),
            "rustydb_transaction_seconds_total": each(lambda one: one.transaction_time_us / _SECOND_US),
            "rustydb_statement_seconds_total": each(lambda one: one.statement_time_us / _SECOND_US),
            "rustydb_backend_wait_seconds_total": each(lambda one: one.wait_time_us / _SECOND_US),
            "rustydb_client_parses_total": each(lambda one: one.parses),
            "rustydb_backend_prepares_total": each(lambda one: one.prepares),
        }

    def _by_pool(self, pools: list[PoolSnapshot]) -> dict[str, Samples]:
        def each(value: Callable[[PoolSnapshot], float]) -> Samples:
            return _bounded({(one.database, one.role): value(one) for one in pools})

        backends: dict[Labels, float] = {}
        for one in pools:
            uses = {
                "active": one.backends_active,
                "idle": one.backends_idle,
                "pinned": one.backends_pinned,
                "connecting": one.backends_connecting,
            }
            backends.update({(one.database, one.role, use): count for use, count in uses.items()})
        return {
            "rustydb_pool_waiting_sessions": each(lambda one: one.sessions_waiting),
            "rustydb_pool_max_wait_seconds": each(lambda one: one.max_wait_us / _SECOND_US),
            "rustydb_pool_backends": _bounded(backends),
            "rustydb_pool_size": each(lambda one: one.pool_size),
            "rustydb_pool_paused": each(lambda one: int(one.paused)),
        }

    def _by_subscriber(self) -> dict[str, Samples]:
        # A feature may subscribe several times under one name: its counters are summed.
        delivered: Counter[Labels] = Counter()
        dropped: Counter[Labels] = Counter()
        failed: Counter[Labels] = Counter()
        queued: Counter[Labels] = Counter()
        for one in self._bus.stats():
            labels = (one.subscriber,)
            delivered[labels] += one.delivered
            dropped[labels] += one.dropped
            failed[labels] += one.failed
            queued[labels] += one.queued
        return {
            "rustydb_events_delivered_total": delivered,
            "rustydb_events_dropped_total": dropped,
            "rustydb_event_failures_total": failed,
            "rustydb_events_queued": queued,
        }

    def _count_sessions(self) -> Mapping[tuple[str, str], int]:
        return Counter((session.database, session.state) for session in self._control.sessions())

    # Making families

    def _empty(self, spec: MetricSpec) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
        if spec.kind is MetricKind.COUNTER:
            return CounterMetricFamily(spec.name, spec.doc, labels=spec.labels)
        if spec.kind is MetricKind.GAUGE:
            return GaugeMetricFamily(spec.name, spec.doc, labels=spec.labels)
        return HistogramMetricFamily(spec.name, spec.doc, labels=spec.labels)


def histogram_buckets(histogram: LogHistogram) -> Iterator[tuple[str, float]]:
    """Cumulative counts of a histogram of microseconds under bounds in seconds, +Inf last."""
    for bound, count in zip(BUCKET_BOUNDS_US, histogram.cumulative(BUCKET_BOUNDS_US), strict=True):
        yield repr(bound / _SECOND_US), count
    yield "+Inf", histogram.count


def _bounded(samples: Mapping[L, float]) -> Samples:
    """At most MAX_LABEL_VALUES samples; the rest is one sample under OTHER."""
    kept: dict[Labels, float] = {}
    for labels, value in samples.items():
        if len(kept) < MAX_LABEL_VALUES:
            kept[labels] = value
        else:
            rest = (OTHER,) * len(labels)
            kept[rest] = kept.get(rest, 0) + value
    return kept
