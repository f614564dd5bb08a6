"""PostgreSQL's units for settings: durations and sizes as text, both ways.

`30s`, `5min`, `1.5h` and `64MB` mean what they mean in postgresql.conf; a bare number is seconds or bytes. As there,
the case of a unit matters (`kB`, `MB`). Pure.
"""

from __future__ import annotations

import math
import re
from typing import Final

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*([A-Za-z]*)\s*\Z")

SECONDS_PER_UNIT: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES_PER_UNIT: Final = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}


def parse_seconds(value: object) -> float:
    """A duration in seconds. Raises ValueError saying what was expected."""
    return _parse(value, SECONDS_PER_UNIT, "s")


def parse_byte_count(value: object) -> int:
    """A size in bytes, rounded to a whole byte. Raises ValueError saying what was expected."""
    return round(_parse(value, {unit: float(size) for unit, size in BYTES_PER_UNIT.items()}, "B"))


def _parse(value: object, units: dict[str, float], base: str) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a number with or without a unit is expected")
    if not isinstance(value, str):
        number = float(value)
    else:
        match = _NUMBER.match(value)
        if match is None:
            raise ValueError("a number with or without a unit is expected")
        unit = match.group(2) or base
        if unit not in units:
            raise ValueError(f"unknown unit {unit!r}: valid units are {', '.join(units)}")
        number = float(match.group(1)) * units[unit]
    if not math.isfinite(number):
        raise ValueError("a finite number is expected")
    return number


def format_seconds(seconds: float) -> str:
    """The shortest exact text in PostgreSQL's units: 300.0 is `5min`, 0.1 is `100ms`."""
    if seconds == 0:
        return "0"
    for unit in ("d", "h", "min", "s", "ms", "us"):
        count = seconds / SECONDS_PER_UNIT[unit]
        if count >= 1 and math.isclose(count, round(count), rel_tol=1e-9):
            return f"{round(count)}{unit}"
    return f"{seconds:g}s"


def format_byte_count(count: int) -> str:
    """The shortest exact text in PostgreSQL's units: 67108864 is `64MB`."""
    for unit in ("TB", "GB", "MB", "kB"):
        size = BYTES_PER_UNIT[unit]
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}B" if count else "0"
