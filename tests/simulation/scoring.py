"""Scores of 0 to 100 for what a simulation measured.

A figure is laid between four landmarks worth 100, 90, 60 and 0 points, linearly (Gel scores its pool this way). A
scenario's score is the weighted mean of its figures; the whole table is printed by `pytest -s`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

POINTS = (100.0, 90.0, 60.0, 0.0)


def landmark_score(value: float, landmarks: Sequence[float]) -> float:
    """`landmarks` rise or fall; beyond the first is 100, beyond the last is 0."""
    sign = 1.0 if landmarks[-1] > landmarks[0] else -1.0
    marks = [sign * mark for mark in landmarks]
    x = sign * value
    if x <= marks[0]:
        return POINTS[0]
    for i in range(3):
        if x <= marks[i + 1]:
            part = (x - marks[i]) / (marks[i + 1] - marks[i])
            return POINTS[i] + part * (POINTS[i + 1] - POINTS[i])
    return POINTS[3]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured: what it is, its value, the values worth 100, 90, 60 and 0, and its weight."""

    name: str
    value: float
    landmarks: tuple[float, float, float, float]
    weight: float = 1.0

    @property
    def score(self) -> float:
        return landmark_score(self.value, self.landmarks)


def total(figures: Sequence[Figure]) -> float:
    return sum(f.score * f.weight for f in figures) / sum(f.weight for f in figures)


def table(scenario: str, figures: Sequence[Figure]) -> str:
    lines = [f"{scenario}: {total(figures):.1f}"]
    lines += [f"    {f.name:<58} {f.value:>10.4f}  {f.score:>5.1f}  x{f.weight:g}" for f in figures]
    return "\n".join(lines)


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100.0))]


def unevenness(groups: Iterable[Sequence[float]]) -> float:
    """How much the groups' distributions differ: the mean coefficient of variation of their deciles from the median up.

    Below the median a wait is often no wait, and the coefficient of nothing says nothing.
    """
    deciles = [statistics.quantiles(values, n=10)[4:] for values in groups]
    columns = [column for column in zip(*deciles, strict=True) if statistics.fmean(column) > 1e-4]
    if not columns:
        return 0.0
    return statistics.fmean(statistics.pstdev(column) / statistics.fmean(column) for column in columns)


def fairness(amounts: Sequence[float]) -> float:
    """Jain's index: 1 where all got the same, 1/n where one got everything."""
    square = sum(amounts) ** 2
    return square / (len(amounts) * sum(a * a for a in amounts)) if square else 0.0
