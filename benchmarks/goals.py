"""What RustyDB has to reach, workload by workload: the figures of the project's first issue."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.target import ENGINE, PGBOUNCER

CPU = "cpu"
FIGURE = "figure"


@dataclass(frozen=True, slots=True)
class Goal:
    """`of` is a target's name or another workload's (RustyDB's ratio to it is at least `value`), or one of "cpu"
    (microseconds per statement at most) and "figure" (at least; at most where less is better)."""

    of: str
    value: float


MODES = ("simple", "extended", "prepared")
# PgBouncer 1.24 was seen at 0.58 to 0.68 of the bare engine at 16 clients: 0.55 of it stands in for an older one.
GOALS: dict[str, tuple[Goal, ...]] = {
    **{f"select-{mode}-1": (Goal(ENGINE, 0.70),) for mode in MODES},
    **{f"select-{mode}-16": (Goal(ENGINE, 0.55), Goal(PGBOUNCER, 0.85)) for mode in MODES},
    "select-simple-16": (Goal(ENGINE, 0.55), Goal(PGBOUNCER, 0.85), Goal(CPU, 45.0)),
    "rows-100-bytes": (Goal(ENGINE, 0.85),),
    "rows-one-integer": (Goal(ENGINE, 0.60),),
    "copy-out-100-bytes": (Goal(ENGINE, 0.85),),
    "copy-out-one-integer": (Goal(ENGINE, 0.60),),
    "copy-in-100-bytes": (Goal(ENGINE, 0.85),),
    "copy-in-one-integer": (Goal(ENGINE, 0.60),),
    "connects": (Goal(FIGURE, 1000.0),),
    "idle-client-memory-tls": (Goal(FIGURE, 50.0),),
    "start": (Goal(FIGURE, 3.0),),
    "select-simple-16-tls": (Goal("select-simple-16", 0.80),),
    "rows-100-bytes-tls": (Goal("rows-100-bytes", 0.80),),
}
