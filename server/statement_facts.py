"""What a text says by itself, before any database is asked: plain data between the walk, the effects and the
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag, auto

from server.statement_info import Effect, Kind, Needs

Name = tuple[str, str]
"""(schema or "", name), lower-cased where it was written unquoted."""


class Scope(IntFlag):
    """What a statement may change in the catalog snapshot, once it has taken effect."""

    NOTHING = 0
    RELATIONS = auto()  # new or changed relations and types: they matter only where they name something unproved
    ROUTINES = auto()  # functions, triggers, rules, operators, casts, extensions: the snapshot must be read again
    SEQUENCES = auto()  # columns that advance sequences: the snapshot must be read again
    DATABASES = auto()


@dataclass(slots=True)
class Mentions:
    """Every name a tree mentions, however deep. `attributes` are the last names of `a.b`, which may be a function
    call f(a).
    """

    relations_read: set[Name] = field(default_factory=set)
    relations_written: set[Name] = field(default_factory=set)
    functions: set[Name] = field(default_factory=set)
    operators: set[Name] = field(default_factory=set)
    types: set[Name] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    writes: bool = False  # holds INSERT, UPDATE, DELETE, MERGE or SELECT INTO

    def add(self, other: Mentions) -> None:
        """Take over all that `other` mentions."""
        self.relations_read |= other.relations_read
        self.relations_written |= other.relations_written
        self.functions |= other.functions
        self.operators |= other.operators
        self.types |= other.types
        self.attributes |= other.attributes
        self.writes = self.writes or other.writes


@dataclass(frozen=True, slots=True)
class StatementFacts:
    """One statement. `effects` are those that follow from the text alone."""

    kind: Kind
    tag: str
    mentions: Mentions
    effects: tuple[Effect, ...] = ()
    needs: Needs = Needs.NOTHING
    scope: Scope = Scope.NOTHING
    databases: tuple[str, ...] = ()
    name: str = ""  # of the cursor or prepared statement
    constant_bound: bool = False  # another constant in its place could change these facts
    refusal: tuple[str, str, str] | None = None  # SQLSTATE, message, detail


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """What a routine's body or a DO block does. `effects` are pins and sequence marks: whatever would outlive the
    transaction.
    """

    mentions: Mentions
    effects: tuple[Effect, ...] = ()
    scope: Scope = Scope.NOTHING
    is_unproved: bool = False  # dynamic SQL, another language, or not understood


@dataclass(frozen=True, slots=True)
class TextFacts:
    """One Query or Parse text. `template_id` is shared by the texts that differ in constants only."""

    statements: tuple[StatementFacts, ...]
    template_id: int = 0
    is_opaque: bool = False

    is_constant_bound: bool = field(init=False)  # these facts may not be used for another text of the same template

    def __post_init__(self) -> None:
        bound = self.is_opaque or any(statement.constant_bound for statement in self.statements)
        object.__setattr__(self, "is_constant_bound", bound)
