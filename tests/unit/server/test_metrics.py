"""Histograms, counters and the collector."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from server.extension.bus import EventBus
from server.extension.context import SessionInfo
from server.extension.events import (
    AdminCommandRun,
    AuthenticationFailed,
    BackendConnected,
    BackendLost,
    EngineLost,
    FeatureFailed,
    Outcome,
    QueryCancelled,
    SessionClosed,
    SessionOpened,
)
from server.loop_lag import LoopLagMonitor
from server.metrics import (
    MAX_LABEL_VALUES,
    OTHER,
    Counts,
    LogHistogram,
    ServerMetrics,
    bucket_bound,
)
from server.metrics_collector import BUCKET_BOUNDS_US, METRICS, PROCESS_METRICS, CacheCounters, MetricsCollector
from server.snapshots import PoolStats
from tests.unit.server.admin.support import RecordingControl

ROOT = Path(__file__).resolve().parents[3]


@given(st.lists(st.integers(min_value=-5, max_value=2**61)))
def test_a_histogram_counts_every_value_at_or_below_each_power_of_two(values: list[int]) -> None:
    histogram = LogHistogram()
    for value in values:
        histogram.observe(value)
    bounds = [2**exponent for exponent in range(2, 62)]
    assert histogram.cumulative(bounds) == [sum(value <= bound for value in values) for bound in bounds]
    assert histogram.count == len(values)
    assert histogram.sum == sum(max(value, 0) for value in values)


@given(st.integers(min_value=1, max_value=2**61))
def test_a_bucket_is_at_most_a_quarter_wider_than_its_values(value: int) -> None:
    histogram = LogHistogram()
    histogram.observe(value)
    bound = histogram.quantile(0.5)
    assert value <= bound <= max(value * 1.25, value + 1)
    assert bound == bucket_bound(histogram.counts.index(1))


def test_quantiles_of_nothing_are_zero_and_of_many_in_order() -> None:
    histogram = LogHistogram()
    assert histogram.quantile(0.99) == 0
    for value in range(1, 1001):
        histogram.observe(value)
    assert 450 <= histogram.quantile(0.5) <= 640
    assert histogram.quantile(0.5) <= histogram.quantile(0.9) <= histogram.quantile(0.99) <= 1024


def test_label_values_that_clients_choose_are_bounded() -> None:
    counts = Counts()
    metrics = ServerMetrics()
    for number in range(MAX_LABEL_VALUES + 5):
        counts.add(f"role{number}")
        metrics.database(f"db{number}").wait_us.observe(1)
    assert counts.by_labels[OTHER,] == 5
    assert len(counts.by_labels) == MAX_LABEL_VALUES + 1
    assert metrics.databases()[OTHER].wait_us.count == 5
    assert metrics.database("db1") is metrics.database("db1")


def session() -> SessionInfo:
    return SessionInfo(1, 1, "a", 1, False, "shop", "", "scram-sha-256", "", -1, "", None, (3, 0), False, 0.0)


async def test_what_the_bus_tells_is_counted() -> None:
    bus = EventBus()
    metrics = ServerMetrics()
    metrics.subscribe(bus)
    assert not bus.wants_query_events
    assert not bus.wants_backend_events
    for event in (
        SessionOpened(session(), 0.0),
        SessionClosed(session(), "terminate", None, 1, 1, 1, 1, 1, False, 0.0),
        AuthenticationFailed("a", "b", "scram-sha-256", "", 1, None, "", "28P01", "wrong password", False, 0.0),
        QueryCancelled(session(), None, "client", 0.0),
        BackendConnected(1, "a", "b", 2000, 0.0),
        BackendLost(1, "a", "b", None, "gone", False, 0.0),
        EngineLost("test", 1, True, 0.0),
        AdminCommandRun("PAUSE", "PAUSE", "a", 1, Outcome.DENIED, "42501", 0, 1, 0.0),
        FeatureFailed("audit", "start", "disk", True, 0.0),
    ):
        bus.publish(event)
    bus.start()
    await bus.stop()
    metrics.count_error("42P01")
    assert metrics.sessions_opened.by_labels == {("shop",): 1}
    assert metrics.sessions_closed.by_labels == {("terminate",): 1}
    assert metrics.authentication_failures.by_labels == {("28P01",): 1}
    assert metrics.cancels.by_labels == {("no",): 1}
    assert metrics.backend_connect_us.count == 1
    assert metrics.backends_lost.by_labels == {("no",): 1}
    assert metrics.engine_losses.by_labels == {("yes",): 1}
    assert metrics.admin_commands.by_labels == {("PAUSE", "denied"): 1}
    assert metrics.feature_failures.by_labels == {("audit",): 1}
    assert metrics.errors.by_labels == {("42",): 1}


def make_registry(metrics: ServerMetrics, control: RecordingControl) -> CollectorRegistry:
    registry = CollectorRegistry()
    bus = EventBus()
    metrics.subscribe(bus)
    registry.register(MetricsCollector(metrics, control, bus, analysis_cache=lambda: CacheCounters(90, 10, 7)))
    return registry


def test_every_family_is_scraped_under_its_documented_name_and_labels() -> None:
    metrics = ServerMetrics()
    metrics.count_error("42P01")
    metrics.database("shop").statement_us.observe(100)
    registry = make_registry(metrics, RecordingControl())
    families = {family.name: family for family in registry.collect()}
    for spec in METRICS:
        family = families.pop(spec.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (spec.kind.value, spec.doc)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), spec.name
    assert set(families) <= {spec.name.removesuffix("_total") for spec in PROCESS_METRICS}


def test_what_is_scraped_can_be_parsed_as_text_and_as_openmetrics() -> None:
    metrics = ServerMetrics()
    histogram = metrics.database('we"ird\n\\db').statement_us
    for value in (64, 65, 10**9):
        histogram.observe(value)
    registry = make_registry(metrics, RecordingControl())
    assert b"rustydb_statements_total" in generate_latest(registry)
    text = openmetrics_latest(registry).decode()  # type: ignore[no-untyped-call]
    families = {one.name: one for one in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    samples = families["rustydb_statement_duration_seconds"].samples
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert (buckets["6.4e-05"], buckets["0.000128"], buckets["+Inf"]) == (1, 2, 3)
    assert samples[0].labels["database"] == 'we"ird\n\\db'
    assert next(sample.value for sample in samples if sample.name.endswith("_sum")) == pytest.approx(1000.000129)
    assert len(buckets) == len(BUCKET_BOUNDS_US) + 1


def test_values_come_from_the_server() -> None:
    registry = make_registry(ServerMetrics(), RecordingControl())

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("rustydb_sessions", database="shop", state="pinned") == 2
    assert value("rustydb_backends", database="shop", state="idle") == 1
    assert value("rustydb_pool_max_wait_seconds", database="shop", role="alice") == pytest.approx(2.000005)
    assert value("rustydb_pool_backends", database="shop", role="alice", use="pinned") == 1
    assert value("rustydb_transaction_seconds_total", database="shop") == 5
    assert value("rustydb_event_loop_lag_seconds", quantile="0.99") == 0.004
    assert value("rustydb_ready") == 1
    assert value("rustydb_analysis_cache_hits_total") == 90
    assert value("rustydb_events_dropped_total", subscriber="metrics") == 0


def test_databases_beyond_the_bound_are_summed() -> None:
    stats = [PoolStats(f"db{n}", 1, 1, 1, 1, 1, 1, 1, 1, 1, 1) for n in range(MAX_LABEL_VALUES + 3)]
    registry = make_registry(ServerMetrics(), RecordingControl(all_stats=stats))
    assert registry.get_sample_value("rustydb_statements_total", {"database": OTHER}) == 3


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert [spec.name for spec in (*METRICS, *PROCESS_METRICS) if f"`{spec.name}`" not in text] == []


async def test_loop_lag_is_measured() -> None:
    monitor = LoopLagMonitor(interval_seconds=0.01, window_seconds=0.2)
    assert monitor.quantiles_us() == (0, 0)
    monitor.start()
    await asyncio.sleep(0.05)
    _hold_the_loop(0.06)
    await asyncio.sleep(0.03)
    median, worst = monitor.quantiles_us()
    monitor.stop()
    assert worst >= 40_000
    assert median < worst
    assert monitor.max_us == worst
    monitor.stop()


def _hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)
