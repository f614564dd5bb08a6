"""The table and the JSON of a run."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.goals import CPU, FIGURE, Goal
from benchmarks.measure import Result
from tests.support.target import ENGINE, PGBOUNCER, RUSTYDB, TARGET_NAMES

FOLDER = Path("build/benchmarks")


def verdict(result: Result, goal: Goal, results: Mapping[str, Result]) -> tuple[str, bool | None]:
    """A goal in words with what was reached, and whether it is met (None: not measured)."""
    if goal.of == CPU:
        reached = result.median_cpu_us(RUSTYDB)
        return f"cpu <= {goal.value:g} us", None if reached is None else reached <= goal.value
    if goal.of == FIGURE:
        reached = result.median(RUSTYDB)
        higher = result.workload.is_higher_better
        met = None if reached is None else (reached >= goal.value if higher else reached <= goal.value)
        return f"{'>=' if higher else '<='} {goal.value:g} {result.workload.unit}", met
    if goal.of in TARGET_NAMES:
        ratio = result.ratio(RUSTYDB, goal.of)
        return f">= {goal.value:g} {goal.of}", None if ratio is None else ratio >= goal.value
    other = results.get(goal.of)
    own, reference = result.median(RUSTYDB), other.median(RUSTYDB) if other else None
    if own is None or not reference:
        return f">= {goal.value:g} {goal.of}", None
    return f">= {goal.value:g} {goal.of} ({own / reference:.2f})", own / reference >= goal.value


def print_table(results: Sequence[Result], notes: Sequence[str], console: Console) -> None:
    """Medians, ratios above 1 where RustyDB is better, CPU time per statement, goals."""
    by_name = {result.workload.name: result for result in results}
    table = Table(title="RustyDB side by side (medians)")
    for heading in ("workload", "unit", *TARGET_NAMES, "/engine", "/pgbouncer", "cpu us", "goal"):
        table.add_column(heading, justify="left" if heading in ("workload", "unit", "goal") else "right")
    for result in results:
        goals = [verdict(result, goal, by_name) for goal in result.goals]
        marks = {True: "[green]met[/]", False: "[red]missed[/]", None: "-"}
        table.add_row(
            result.workload.name,
            result.workload.unit,
            *(_number(result.median(name)) for name in TARGET_NAMES),
            _number(result.ratio(RUSTYDB, ENGINE), 2),
            _number(result.ratio(RUSTYDB, PGBOUNCER), 2),
            _number(result.median_cpu_us(RUSTYDB), 1),
            "; ".join(f"{text} {marks[met]}" for text, met in goals),
        )
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    for result in results:
        for name, reason in result.failures.items():
            console.print(f"{result.workload.name} on {name}: {reason}", highlight=False, markup=False)


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:,.{digits if digits is not None else (0 if value >= 100 else 2)}f}"


def write_json(results: Sequence[Result], notes: Sequence[str], settings: Mapping[str, str], folder: Path) -> Path:
    """Every round's figure, the machine and the engine's settings."""
    now = datetime.datetime.now(datetime.UTC)
    content = {
        "at": now.isoformat(timespec="seconds"),
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()},
        "notes": list(notes),
        "engine_settings": dict(settings),
        "workloads": {
            result.workload.name: {
                "unit": result.workload.unit,
                "figures": result.figures,
                "cpu_us_per_statement": result.cpu_us,
                "ratio_to_engine": result.ratio(RUSTYDB, ENGINE),
                "ratio_to_pgbouncer": result.ratio(RUSTYDB, PGBOUNCER),
                "failures": result.failures,
            }
            for result in results
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(content, indent=1))
    return path
