"""Rounds, medians and ratios. A workload runs on each target in turn, round by round: a slow minute hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from benchmarks.goals import GOALS, Goal
from tests.support.processes import cpu_seconds
from tests.support.target import Target

Figures = dict[str, float]


class WorkloadFailed(Exception):
    """A workload could not be measured on one target; the message is shown in the table's notes."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`run` gives the figure and, in `statements`, how many statements that took (0: not counted).

    `prepare` is called once per target before the first round. `skip` names targets that cannot do this, and why.
    """

    name: str
    unit: str
    run: Callable[[Target], tuple[float, int]]
    prepare: Callable[[Target], None] | None = None
    is_higher_better: bool = True
    skip: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """Every round's figure of one workload, by target; `cpu_us` is the server process's CPU time per statement."""

    workload: Workload
    figures: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        values = self.figures.get(name)
        return statistics.median(values) if values else None

    def median_cpu_us(self, name: str) -> float | None:
        values = self.cpu_us.get(name)
        return statistics.median(values) if values else None

    def ratio(self, name: str, to: str) -> float | None:
        """How good `name` is in units of `to`: above 1 is better than it."""
        own, other = self.median(name), self.median(to)
        if own is None or other is None or not own or not other:
            return None
        return own / other if self.workload.is_higher_better else other / own

    @property
    def goals(self) -> tuple[Goal, ...]:
        return GOALS.get(self.workload.name, ())


def measure(workload: Workload, targets: Mapping[str, Target], rounds: int, say: Callable[[str], None]) -> Result:
    """Run a workload on every target in turn, `rounds` times. A target that fails is left out of further rounds."""
    result = Result(workload)
    usable = {name: target for name, target in targets.items() if name not in workload.skip}
    result.failures |= {name: reason for name, reason in workload.skip.items() if name in targets}
    for name, target in list(usable.items()):
        if workload.prepare is not None:
            _guarded(result, usable, name, partial(workload.prepare, target))
    for number in range(rounds):
        for name, target in list(usable.items()):
            _guarded(result, usable, name, partial(_round, result, name, target))
        shown = ", ".join(f"{name} {values[-1]:,.6g}" for name, values in result.figures.items() if values)
        say(f"{workload.name} round {number + 1}: {shown} {workload.unit}")
    return result


def _round(result: Result, name: str, target: Target) -> None:
    before = cpu_seconds(target.pid)
    figure, statements = result.workload.run(target)
    spent = cpu_seconds(target.pid) - before
    result.figures.setdefault(name, []).append(figure)
    if statements:
        result.cpu_us.setdefault(name, []).append(spent / statements * 1e6)
    time.sleep(0.2)


def _guarded(result: Result, usable: dict[str, Target], name: str, step: Callable[[], object]) -> None:
    try:
        step()
    except (WorkloadFailed, OSError) as error:
        result.failures[name] = str(error)
        del usable[name]
