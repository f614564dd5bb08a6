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

from collections.abc import Set
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.builtin_functions import PRECISE_STATE_FUNCTIONS

Name = tuple[str, str]
"""(schema, name); schema "" where a statement left it to the search path."""

Info = TypeVar("Info")


class CatalogLoader(Protocol):
    """Reads a database's catalog: `engine.catalog_load.CatalogReader`."""

    async def read(self, database: str) -> CatalogSnapshot: ...

    async def signature(self, database: str) -> str:
        """Differs whenever what `read` looks at has changed."""


_SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema"})
_NO_NAMES: frozenset[Name] = frozenset()


class Named(Protocol):
    """Names that a statement or a routine mentions; `attributes` are the last names of `a.b`, which may be a call
    b(a).
    """

    @property
    def functions(self) -> Set[Name]: ...
    @property
    def relations_read(self) -> Set[Name]: ...
    @property
    def relations_written(self) -> Set[Name]: ...
    @property
    def operators(self) -> Set[Name]: ...
    @property
    def types(self) -> Set[Name]: ...
    @property
    def attributes(self) -> Set[str]: ...


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """One reading of the catalog. Names are matched in any schema where a statement gives none."""

    proved_names: frozenset[str] = frozenset()  # every function of that name, in whatever schema, is proved
    proved_functions: frozenset[Name] = _NO_NAMES  # user-defined ones
    unproved_functions: frozenset[Name] = _NO_NAMES  # user-defined ones
    unproved_reads: frozenset[Name] = _NO_NAMES
    unproved_writes: frozenset[Name] = _NO_NAMES
    unproved_attributes: frozenset[str] = frozenset()  # unproved functions of one row, which `a.b` may call
    unproved_operators: frozenset[str] = frozenset()
    unproved_types: frozenset[Name] = _NO_NAMES
    sequence_relations: frozenset[Name] = _NO_NAMES  # an INSERT advances a sequence
    sequence_functions: frozenset[Name] = _NO_NAMES
    unproved_anywhere: bool = False  # an unproved cast, comparison or operator class: any expression may run it
    unproved_ddl: bool = False  # an event trigger

    def may_hide_state(self, named: Named, *, is_ddl: bool = False) -> bool:
        """Whether running something that names these may set lasting session state unseen."""
        return (
            any(self.is_unproved_function(name) for name in named.functions)
            or self.unproved_anywhere
            or (is_ddl and self.unproved_ddl)
            or overlaps(named.relations_read, self.unproved_reads)
            or overlaps(named.relations_written, self.unproved_writes)
            or overlaps(named.types, self.unproved_types)
            or any(name in self.unproved_operators for _, name in named.operators)
            or not self.unproved_attributes.isdisjoint(named.attributes)
        )

    def is_unproved_function(self, name: Name) -> bool:
        """Whether a call of `name` may hide state. PRECISE_STATE_FUNCTIONS hide nothing: their effects are known."""
        function = name[1]
        if function in self.proved_names:
            return False
        if name[0] == "":
            if any(function == unproved for _, unproved in self.unproved_functions):
                return True
        elif name in self.proved_functions:
            return False
        elif name in self.unproved_functions:
            return True
        return not is_precise(name)


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
        self._signature = ""

    @property
    def snapshot(self) -> CatalogSnapshot:
        """The last reading; proves nothing while `is_current` is false."""
        return self._snapshot

    def remember(self, text: bytes, info: Info) -> None:
        """Keep the analysis of `text`. The oldest make way."""
        cache = self.cache
        size = len(text)
        if text in cache or size > self._max_bytes:
            return
        self._cached_bytes += size
        if len(cache) >= self._max_entries or self._cached_bytes > self._max_bytes:
            self._make_room()
        cache[text] = info

    def _make_room(self) -> None:
        """The older half goes at once: taking the first of a dictionary one by one walks over all that were taken."""
        cache = self.cache
        for oldest in list(cache)[: len(cache) // 2 + 1]:
            del cache[oldest]
            self._cached_bytes -= len(oldest)
        if self._cached_bytes > self._max_bytes:
            cache.clear()
            self._cached_bytes = 0

    def remember_template(self, template_id: int, info: Info) -> None:
        """Keep the analysis of a template."""
        if len(self.templates) >= self._max_entries:
            for oldest in list(self.templates)[: len(self.templates) // 2 + 1]:
                del self.templates[oldest]
        self.templates[template_id] = info

    def invalidate(self) -> None:
        """The catalog changed or is about to: prove nothing until it is loaded again."""
        self.is_current = False
        self._forget()

    async def load(self, loader: CatalogLoader) -> bool:
        """Read the catalog again if it changed; True where it did.

        An `invalidate` meanwhile leaves it not current: load again. Cheap where nothing changed, so it may follow every
        statement that could have changed the catalog unseen.
        """
        generation = self.generation
        signature = await loader.signature(self.database)
        if self.is_current and signature == self._signature:
            return False
        snapshot = await loader.read(self.database)
        if generation != self.generation:
            return False
        self._signature = signature
        self.install(snapshot)
        return True

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

    def may_hide_state(self, named: Named, *, is_ddl: bool = False) -> bool:
        """Whether a statement with these names may set session state that neither its text nor the engine shows."""
        if self.is_current:
            return self._snapshot.may_hide_state(named, is_ddl=is_ddl)
        relations = named.relations_read | named.relations_written
        return (
            is_ddl
            or any(not is_precise(name) for name in named.functions)
            or any(schema not in _SYSTEM_SCHEMAS for schema, _ in relations)
        )

    def advances_sequence(self, relations: Set[Name]) -> bool:
        """Whether an INSERT into `relations` may call nextval."""
        return overlaps(relations, self._snapshot.sequence_relations) if self.is_current else bool(relations)

    def calls_sequence(self, functions: Set[Name]) -> bool:
        """Whether a call of `functions` may call nextval in its body. Hidden state says so too, where nothing is
        proved.
        """
        return self.is_current and overlaps(functions, self._snapshot.sequence_functions)


def is_precise(name: Name) -> bool:
    """Whether `name` is a function of PostgreSQL whose effects statement analysis knows from the call."""
    return name[1] in PRECISE_STATE_FUNCTIONS and name[0] in ("", "pg_catalog")


def overlaps(names: Set[Name], known: frozenset[Name]) -> bool:
    """Whether one of `names` may be one of `known`; a name without a schema may be in any."""
    if not known or not names:
        return False
    if any(name in known for name in names):
        return True
    bare = {name for schema, name in names if schema == ""}
    return bool(bare) and any(name in bare for _, name in known)
