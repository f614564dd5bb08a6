"""Reads one database's catalog into a `CatalogSnapshot`: proves its routines, and finds what reaches those not proved.

The proof, a least fixed point:

1. A built-in function is proved by the rule of `engine.builtin_functions`; a C function by its extension; an SQL or
PL/pgSQL routine if its body was understood, shows no lasting effect, and names nothing unproved. Any other language
is unproved. 2. `pg_depend`, followed from the unproved functions upwards through operators, types and constraints,
names the relations, casts and event triggers that can run them. Built-in functions are pinned and have no `pg_depend`
rows: calls of those are searched in the stored expression trees themselves. 3. What was found makes more routines
unproved (an INSERT into a table with such a trigger): repeat until nothing changes.

Bodies are read once: their facts are kept by their text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from engine import catalog_queries as queries
from engine.builtin_functions import (
    HARMLESS_VOLATILE,
    RUNS_QUERY_TEXT,
    SESSION_EXTENSION_FUNCTIONS,
    SHIPPED_EXTENSIONS,
)
from engine.catalog import CatalogSnapshot, Name, overlaps

_NO_NAMES: frozenset[Name] = frozenset()
# Operators that run where no text names them: comparisons (IN, CASE, USING), and a constant's sign, lost in a template.
_UNNAMED_OPERATORS = frozenset({"=", "<>", "<", ">", "<=", ">=", "-"})
_MAX_KEPT_BODIES = 20_000


@dataclass(frozen=True, slots=True)
class RoutineSource:
    """A routine to be read. `text` is its body for an old-style SQL routine, else its whole CREATE statement."""

    language: str  # "sql" or "plpgsql"
    text: str
    is_definition: bool


@dataclass(frozen=True, slots=True)
class RoutineFacts:
    """What a routine's body names; `is_unproved` where the body alone already shows or hides a lasting effect."""

    is_unproved: bool
    functions: frozenset[Name] = _NO_NAMES
    relations_read: frozenset[Name] = _NO_NAMES
    relations_written: frozenset[Name] = _NO_NAMES
    operators: frozenset[Name] = _NO_NAMES
    types: frozenset[Name] = _NO_NAMES
    attributes: frozenset[str] = frozenset()
    advances_sequence: bool = False


RoutineReader = Callable[[RoutineSource], RoutineFacts]
_UNPROVED = RoutineFacts(is_unproved=True)
_HARMLESS = RoutineFacts(is_unproved=False)


class Control(Protocol):
    """The part of `engine.control.EngineControl` that is needed."""

    async def fetch(self, sql: str, *args: object, database: str | None = None) -> Sequence[Mapping[str, Any]]: ...


@dataclass(slots=True)
class _Routine:
    oid: int
    name: Name
    facts: RoutineFacts
    takes_row: bool


@dataclass(slots=True)
class _Reached:
    """Oids by what they are, that can run an unproved function."""

    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    types: set[Name] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    routines: set[int] = field(default_factory=set)
    anywhere: bool = False
    ddl: bool = False


class CatalogReader:
    """Loads snapshots over control connections; one a server. `read_routine` understands bodies."""

    def __init__(self, control: Control, read_routine: RoutineReader) -> None:
        self._control = control
        self._read_routine = read_routine
        self._bodies: dict[RoutineSource, RoutineFacts] = {}

    async def read(self, database: str) -> CatalogSnapshot:
        """A snapshot of `database` as it is now."""

        async def fetch(sql: str, *args: object) -> Sequence[Mapping[str, Any]]:
            return await self._control.fetch(sql, *args, database=database)

        builtins = await fetch(queries.BUILTINS, sorted(HARMLESS_VOLATILE), sorted(RUNS_QUERY_TEXT))
        stateful = [row for row in builtins if not row["is_proved"]]
        stateful_symbols = {row["prosrc"] for row in stateful} | {row["proname"] for row in stateful}
        routines = [
            _Routine(
                row["oid"], (row["nspname"], row["proname"]), self._facts(row, stateful_symbols), bool(row["takes_row"])
            )
            for row in await fetch(queries.ROUTINES)
        ]
        names = {row["oid"]: (row["nspname"], row["relname"]) for row in await fetch(queries.RELATIONS)}
        edges = _Edges(await fetch(queries.RELATION_EDGES))
        sequences = edges.close_writes({row["oid"] for row in await fetch(queries.SEQUENCE_RELATIONS)})
        proof = _Proof(
            builtin_names=_names_all_proved(builtins),
            stateful_oids=[row["oid"] for row in stateful],
            routines=routines,
        )
        while True:
            reached = _sort(await fetch(queries.REACHED, proof.unproved_oids(), proof.stateful_pattern()))
            reached.writes = edges.close_writes(reached.writes | reached.reads)
            reached.reads = edges.close_reads(reached.reads)
            if not proof.learn(reached, names):
                return proof.with_sequences({names[oid] for oid in sequences if oid in names})

    async def signature(self, database: str) -> str:
        """A digest of the row versions of every catalog that `read` looks at, relations and columns apart."""
        rows = await self._control.fetch(queries.SIGNATURE, database=database)
        return str(rows[0]["signature"])

    def _facts(self, row: Mapping[str, Any], stateful_symbols: set[str]) -> RoutineFacts:
        language = row["lanname"]
        if row["proname"] in RUNS_QUERY_TEXT or row["proname"] in SESSION_EXTENSION_FUNCTIONS:
            return _UNPROVED
        if row["prokind"] == b"a":
            return _HARMLESS  # its support functions are found by REACHED
        if language == "c":
            return _HARMLESS if row["extname"] in SHIPPED_EXTENSIONS else _UNPROVED
        if language == "internal":
            return _UNPROVED if row["prosrc"] in stateful_symbols else _HARMLESS
        if language not in ("sql", "plpgsql"):
            return _UNPROVED
        source = RoutineSource(language, row["definition"] or row["prosrc"], bool(row["definition"]))
        facts = self._bodies.get(source)
        if facts is None:
            if len(self._bodies) >= _MAX_KEPT_BODIES:
                self._bodies.clear()
            facts = self._bodies[source] = self._read_routine(source)
        return facts


class _Edges:
    """Which relation is touched by touching which other."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._reads: defaultdict[int, list[int]] = defaultdict(list)
        self._writes: defaultdict[int, list[int]] = defaultdict(list)
        for row in rows:
            self._writes[row["inner_oid"]].append(row["outer_oid"])
            if row["on_read"]:
                self._reads[row["inner_oid"]].append(row["outer_oid"])

    def close_reads(self, oids: set[int]) -> set[int]:
        """`oids` and every relation whose reading reads one of them."""
        return _close(oids, self._reads)

    def close_writes(self, oids: set[int]) -> set[int]:
        """`oids` and every relation whose writing touches one of them."""
        return _close(oids, self._writes)


class _Proof:
    """The fixed point: what is unproved so far."""

    def __init__(self, builtin_names: frozenset[str], stateful_oids: list[int], routines: list[_Routine]) -> None:
        self._builtin_names = builtin_names
        self._stateful_oids = stateful_oids
        self._routines = routines
        self._unproved = {routine.oid for routine in routines if routine.facts.is_unproved}
        self._reached = _Reached()
        self._snapshot = CatalogSnapshot()
        self._spread({})

    def unproved_oids(self) -> list[int]:
        """Every unproved function, built-in ones too."""
        return [*self._stateful_oids, *self._unproved]

    def stateful_pattern(self) -> str:
        """A pattern over PostgreSQL's stored expression trees: a call of an unproved built-in function."""
        numbers = "|".join(str(oid) for oid in self._stateful_oids)
        return f":(funcid|opfuncid|aggfnoid|winfnoid) ({numbers}) "

    def learn(self, reached: _Reached, names: Mapping[int, Name]) -> bool:
        """Take over what was reached; True where that made a routine unproved, so that more may be reached."""
        self._reached = reached
        before = len(self._unproved)
        self._unproved |= reached.routines
        self._spread(names)
        return len(self._unproved) > before

    def with_sequences(self, relations: set[Name]) -> CatalogSnapshot:
        """The finished snapshot."""
        known = frozenset(relations)
        advancing = {r.oid for r in self._routines if _inserts(r.facts, known)}
        calls = {routine.oid: routine.facts.functions for routine in self._routines}
        while True:
            names = frozenset(routine.name for routine in self._routines if routine.oid in advancing)
            more = {oid for oid, functions in calls.items() if oid not in advancing and overlaps(functions, names)}
            if not more:
                return replace(self._snapshot, sequence_relations=known, sequence_functions=names)
            advancing |= more

    def _spread(self, names: Mapping[int, Name]) -> None:
        """Mark every routine that names something unproved, until no more are found."""
        while True:
            self._snapshot = self._build(names)
            more = {
                routine.oid
                for routine in self._routines
                if routine.oid not in self._unproved and self._snapshot.may_hide_state(routine.facts)
            }
            if not more:
                return
            self._unproved |= more

    def _build(self, names: Mapping[int, Name]) -> CatalogSnapshot:
        unproved = frozenset(routine.name for routine in self._routines if routine.oid in self._unproved)
        proved = frozenset(routine.name for routine in self._routines if routine.oid not in self._unproved) - unproved
        bad_names = {name for _, name in unproved}
        stateful = {name for _, name in proved} - self._builtin_names
        reached = self._reached
        writes = frozenset(names[oid] for oid in reached.writes if oid in names)
        return CatalogSnapshot(
            proved_names=(self._builtin_names | stateful) - bad_names,
            proved_functions=proved,
            unproved_functions=unproved,
            unproved_reads=frozenset(names[oid] for oid in reached.reads if oid in names),
            unproved_writes=writes,
            unproved_attributes=frozenset(
                routine.name[1] for routine in self._routines if routine.takes_row and routine.oid in self._unproved
            ),
            unproved_operators=frozenset(reached.operators),
            unproved_types=frozenset(reached.types),
            unproved_anywhere=reached.anywhere or bool(reached.operators & _UNNAMED_OPERATORS),
            unproved_ddl=reached.ddl,
        )


def _sort(rows: Iterable[Mapping[str, Any]]) -> _Reached:
    reached = _Reached()
    for row in rows:
        match row["kind"]:
            case "read":
                reached.reads.add(row["oid"])
            case "write":
                reached.writes.add(row["oid"])
            case "type":
                reached.types.add((row["nspname"], row["name"]))
            case "operator":
                reached.operators.add(row["name"])
            case "routine":
                reached.routines.add(row["oid"])
            case "ddl":
                reached.ddl = True
            case "ignored":
                pass
            case _:
                reached.anywhere = True
    return reached


def _names_all_proved(builtins: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    proved: dict[str, bool] = {}
    for row in builtins:
        name = row["proname"]
        proved[name] = proved.get(name, True) and row["is_proved"]
    return frozenset(name for name, is_proved in proved.items() if is_proved)


def _inserts(facts: RoutineFacts, sequence_relations: frozenset[Name]) -> bool:
    return facts.advances_sequence or overlaps(facts.relations_written, sequence_relations)


def _close(oids: set[int], edges: Mapping[int, list[int]]) -> set[int]:
    found, queue = set(oids), list(oids)
    while queue:
        for oid in edges.get(queue.pop(), ()):
            if oid not in found:
                found.add(oid)
                queue.append(oid)
    return found
