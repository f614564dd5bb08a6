"""What one database's functions may do to a session, as far as its catalog proves it, and the caches that hang on that.

A function is *proved* when nothing it can reach sets session state that outlives the transaction: it is a harmless
built-in, or its whole body was read and calls proved functions only. Everything else is unproved. A relation is
unproved, for reading or for writing, when touching it can run an unproved function: through a trigger, rule, default,
constraint, policy, index expression, domain, cascade or partition. Before the first load, and while a change is known
but not yet read, nothing is proved.

Owned by the server, one a database; read on every new statement text by `server.statement`; loaded over a control
connection. It knows nothing of parsing: the reader of routine bodies is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.builtin_functions import PRECISE_STATE_FUNCTIONS

Name = tuple[str, str]
"""(schema, name); schema "" where a statement left it to the search path."""

Info = TypeVar("Info")

_SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema"})
_NO_NAMES: frozenset[Name] = frozenset()


@dataclass(frozen=True, slots=True)
class RoutineSource:
    """One user-defined routine as the catalog has it. `definition` is its whole CREATE text, "" where it has none."""

    oid: int
    schema: str
    name: str
    language: str
    kind: str  # pg_proc.prokind
    extension: str
    source: str
    definition: str


@dataclass(frozen=True, slots=True)
class RoutineFacts:
    """What a routine's body mentions; `is_unproved` where the body alone already shows or hides a lasting effect."""

    is_unproved: bool
    functions: frozenset[Name] = _NO_NAMES
    relations_read: frozenset[Name] = _NO_NAMES
    relations_written: frozenset[Name] = _NO_NAMES
    operators: frozenset[Name] = _NO_NAMES
    types: frozenset[Name] = _NO_NAMES
    attributes: frozenset[str] = frozenset()


RoutineReader = Callable[[RoutineSource], RoutineFacts]


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """One reading of the catalog. Names are matched without their schema where a statement gives none."""

    proved_functions: frozenset[str] = frozenset()  # every function of that name, in whatever schema, is proved
    unproved_functions: frozenset[Name] = _NO_NAMES  # user-defined ones
    unproved_reads: frozenset[Name] = _NO_NAMES
    unproved_writes: frozenset[Name] = _NO_NAMES
    unproved_operators: frozenset[str] = frozenset()
    unproved_types: frozenset[Name] = _NO_NAMES
    sequence_relations: frozenset[Name] = _NO_NAMES  # an INSERT advances a sequence
    sequence_functions: frozenset[Name] = _NO_NAMES
    unproved_anywhere: bool = False  # an unproved cast, comparison or operator class: any expression may run it
    unproved_ddl: bool = False  # an event trigger


class DatabaseCatalog(Generic[Info]):
    """The current snapshot of one database and the statement analyses that depend on it.

    `cache` maps a statement's exact bytes to its analysis; the query path reads it directly. It is bounded by entries
    and by bytes, and emptied whenever `generation` grows.
    """

    def __init__(self, database: str, *, max_entries: int = 4096, max_bytes: int = 16 << 20) -> None:
        self.database = database
        self.generation = 0
        self.cache: dict[bytes, Info] = {}
        self.templates: dict[int, Info] = {}
        self.is_current = False
        self._snapshot = CatalogSnapshot()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._cached_bytes = 0

    @property
    def snapshot(self) -> CatalogSnapshot:
        """The last reading; proves nothing while `is_current` is false."""
        return self._snapshot

    def remember(self, text: bytes, info: Info) -> None:
        """Keep the analysis of `text`. The oldest make way."""
        cache = self.cache
        size = len(text)
        if text in cache:
            cache[text] = info
            return
        self._cached_bytes += size
        while cache and (len(cache) >= self._max_entries or self._cached_bytes > self._max_bytes):
            oldest = next(iter(cache))
            del cache[oldest]
            self._cached_bytes -= len(oldest)
        cache[text] = info

    def remember_template(self, template_id: int, info: Info) -> None:
        """Keep the analysis of a template."""
        if len(self.templates) >= self._max_entries:
            del self.templates[next(iter(self.templates))]
        self.templates[template_id] = info

    def invalidate(self) -> None:
        """The catalog changed or is about to: prove nothing until it is loaded again."""
        self.is_current = False
        self._forget()

    def install(self, snapshot: CatalogSnapshot) -> None:
        """Take a new reading into use."""
        self._snapshot = snapshot
        self.is_current = True
        self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self.cache.clear()
        self.templates.clear()
        self._cached_bytes = 0

    def may_hide_state(
        self,
        functions: Set[Name] = _NO_NAMES,
        relations_read: Set[Name] = _NO_NAMES,
        relations_written: Set[Name] = _NO_NAMES,
        *,
        operators: Set[Name] = _NO_NAMES,
        types: Set[Name] = _NO_NAMES,
        attributes: Set[str] = frozenset(),
        is_ddl: bool = False,
    ) -> bool:
        """Whether a statement with these names may set session state that neither its text nor the engine's messages
        show.
        """
        snapshot = self._snapshot
        if functions and any(self.is_unproved_function(name) for name in functions):
            return True
        if not self.is_current:
            return is_ddl or any(schema not in _SYSTEM_SCHEMAS for schema, _ in relations_read | relations_written)
        return (
            snapshot.unproved_anywhere
            or (is_ddl and snapshot.unproved_ddl)
            or _overlaps(relations_read, snapshot.unproved_reads)
            or _overlaps(relations_written, snapshot.unproved_writes)
            or _overlaps(types, snapshot.unproved_types)
            or any(name in snapshot.unproved_operators for _, name in operators)
            or (bool(attributes) and any(name in attributes for _, name in snapshot.unproved_functions))
        )

    def is_unproved_function(self, name: Name) -> bool:
        """Whether a call of `name` may hide state. Direct calls in PRECISE_STATE_FUNCTIONS hide nothing: their
        effects are known.
        """
        schema, function = name
        if not self.is_current:
            return not (schema in ("", "pg_catalog") and function in PRECISE_STATE_FUNCTIONS)
        snapshot = self._snapshot
        if function in snapshot.proved_functions:
            return False
        if schema == "":
            if any(function == unproved for _, unproved in snapshot.unproved_functions):
                return True
        elif name in snapshot.unproved_functions:
            return True
        return not (schema in ("", "pg_catalog") and function in PRECISE_STATE_FUNCTIONS)

    def advances_sequence(self, relations: Set[Name], functions: Set[Name] = _NO_NAMES) -> bool:
        """Whether an INSERT into `relations` or a call of `functions` may call nextval."""
        if not self.is_current:
            return bool(relations)
        snapshot = self._snapshot
        return _overlaps(relations, snapshot.sequence_relations) or _overlaps(functions, snapshot.sequence_functions)


def _overlaps(names: Set[Name], known: frozenset[Name]) -> bool:
    """Whether one of `names` may be one of `known`; a name without a schema may be in any."""
    if not known or not names:
        return False
    if any(name in known for name in names):
        return True
    bare = {name for schema, name in names if schema == ""}
    return bool(bare) and any(name in bare for _, name in known)
