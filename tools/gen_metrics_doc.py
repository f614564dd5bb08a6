"""Writes docs/metrics.md from the table of metrics.

    .venv/bin/python tools/gen_metrics_doc.py [--check]

`--check` changes nothing and fails where the file is out of date, as tests/unit/server/test_metrics.py does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from server.metrics import MAX_LABEL_VALUES, OTHER  # noqa: E402
from server.metrics_collector import BUCKET_BOUNDS_US, METRICS, PROCESS_METRICS, MetricSpec  # noqa: E402

TARGET = ROOT / "docs" / "metrics.md"

TEXT = """\
<!-- made by tools/gen_metrics_doc.py: change that, or server/metrics_collector.py -->
# Metrics

The HTTP port (`server.http_host`, `server.http_port`) answers:

| path | answer |
|---|---|
| `/metrics` | everything below, as Prometheus text, or OpenMetrics for a scraper that asks for it |
| `/livez` | 200 `ok` while the event loop runs: a reason to restart the process where it does not |
| `/readyz` | 200 `ready` while the engine is reachable and clients are accepted, else 503 and the reason |

It has neither a password nor TLS: bind it to an address that only the scraper and the health checks reach. A feature adds
routes through `server/extension/http_routes.py`. `deploy/` has a scrape configuration.

Counters begin at 0 when the server starts. `database` and `role` are names that clients bring: beyond {limit} values of a
label the rest is counted under `{other}`. Histograms have {buckets} buckets, powers of two from {low} to {high}
seconds. Memory and CPU of the engine's processes are not in here: they are the engine's own.

| metric | kind | labels | meaning |
|---|---|---|---|
{metrics}

## The process

Under the names that every exporter gives them; Linux only.

| metric | kind | labels | meaning |
|---|---|---|---|
{process}

## Questions they answer

| question | query |
|---|---|
| statements a second | `sum(rate(rustydb_statements_total[1m]))` |
| 99th percentile of statement time | `histogram_quantile(0.99, sum by (le) (rate(rustydb_statement_duration_seconds_bucket[5m])))` |
| do sessions wait for backends | `max(rustydb_pool_max_wait_seconds) > 1` |
| how often an analysis is reused | `rate(rustydb_analysis_cache_hits_total[5m]) / (rate(rustydb_analysis_cache_hits_total[5m]) + rate(rustydb_analysis_cache_misses_total[5m]))` |
| is a subscriber losing events | `rate(rustydb_events_dropped_total[5m]) > 0` |
| does something hold the event loop | `rustydb_event_loop_lag_seconds{{quantile="0.99"}} > 0.005` |
| is somebody guessing passwords | `sum(rate(rustydb_authentication_failures_total[5m]))` |
"""  # noqa: E501 - a row of a table is one line


def render() -> str:
    """What docs/metrics.md should hold."""
    return TEXT.format(
        limit=MAX_LABEL_VALUES,
        other=OTHER,
        buckets=len(BUCKET_BOUNDS_US) + 1,
        low=f"{BUCKET_BOUNDS_US[0] / 1e6:f}",
        high=f"{BUCKET_BOUNDS_US[-1] / 1e6:.1f}",
        metrics=_rows(METRICS),
        process=_rows(PROCESS_METRICS),
    )


def _rows(specs: Iterable[MetricSpec]) -> str:
    return "\n".join(
        f"| `{one.name}` | {one.kind.value} | {', '.join(f'`{label}`' for label in one.labels)} | {one.doc} |"
        for one in specs
    )


def main() -> int:
    text = render()
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{TARGET.relative_to(ROOT)} is out of date: run tools/gen_metrics_doc.py")
        return 1
    TARGET.write_text(text)
    print(f"wrote {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
