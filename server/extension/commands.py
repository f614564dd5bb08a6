"""Admin commands: statements that PostgreSQL's grammar does not have, answered by this server.

A command is declared once: its syntax line (which is its parser, see `grammar.py`), the role it needs, its columns, its
handler and its documentation. Registration refuses what would go wrong later: a missing role, a name taken twice, a
command that would take a statement away from PostgreSQL. The dispatcher (`server.admin.console`) checks the role, for
all commands alike; a handler need not.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from protocol.errors import PgError
from server.extension.grammar import Arguments, GrammarError, compile_syntax, head_of, readable
from server.extension.grammar import Sequence as Grammar

PUBLIC: Final = "public"
"""The role of commands that everybody may run."""

ADMIN_ROLE: Final = "rustydb_admin"
MONITOR_ROLE: Final = "rustydb_monitor"


class ColumnType(enum.IntEnum):
    """The types that result columns of admin commands have, by OID."""

    BOOL = 16
    INT8 = 20
    TEXT = 25
    FLOAT8 = 701
    TIMESTAMPTZ = 1184


@dataclass(frozen=True, slots=True)
class AdminColumn:
    """A result column.

    Values are bool, int, str, float and, for TIMESTAMPTZ, an aware datetime or seconds since the epoch; None is NULL.
    """

    name: str
    type_oid: int = ColumnType.TEXT
    doc: str = ""


AdminValue: TypeAlias = object


@dataclass(frozen=True, slots=True)
class AdminResult:
    """What a handler returns. `tag` replaces the command's own; `notices` are sent before the rows."""

    rows: Sequence[Sequence[AdminValue]] = ()
    tag: str | None = None
    notices: tuple[PgError, ...] = ()


@dataclass(frozen=True, slots=True)
class AdminCaller:
    """Who runs a command. `role` is current_user: the role whose memberships count."""

    role: str
    session_id: int
    is_superuser: bool
    database: str = ""
    in_transaction: bool = False


@dataclass(frozen=True, slots=True)
class CommandCall:
    """What a handler gets."""

    caller: AdminCaller
    arguments: Arguments
    text: str


Handler = Callable[[CommandCall], Awaitable[AdminResult] | AdminResult]


@dataclass(frozen=True, slots=True)
class AdminCommand:
    """One command.

    `name` is what logs, audit and CommandComplete call it; by default the fixed words its syntax begins with.
    """

    syntax: str
    role: str
    columns: tuple[AdminColumn, ...]
    handler: Handler
    doc: str
    name: str = ""
    tag: str = ""  # of CommandComplete; by default "SHOW" for commands that begin so, else the name
    feature: str = "core"
    alias_of: str = ""  # name of the command that this is another spelling of
    in_transaction_block: bool = True  # False: 25001 inside one, as for VACUUM


@dataclass(frozen=True, slots=True)
class RegisteredCommand:
    """A command with what registration derived from it."""

    command: AdminCommand
    name: str
    tag: str
    head: tuple[str, ...]  # upper-case words
    grammar: Grammar
    readable_syntax: str


class CommandError(ValueError):
    """A command that cannot be registered: a mistake in a feature, found at start."""


POSTGRESQL_FIRST_WORDS: Final = frozenset(
    """ABORT ALTER ANALYSE ANALYZE BEGIN CALL CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE
    DELETE DISCARD DO DROP END EXECUTE EXPLAIN FETCH GRANT IMPORT INSERT LISTEN LOAD LOCK MERGE MOVE NOTIFY PREPARE
    REASSIGN REFRESH REINDEX RELEASE REPACK RESET REVOKE ROLLBACK SAVEPOINT SECURITY SELECT SET SHOW START TABLE
    TRUNCATE UNLISTEN UPDATE VACUUM VALUES WAIT WITH BASE_BACKUP CREATE_REPLICATION_SLOT ALTER_REPLICATION_SLOT
    DROP_REPLICATION_SLOT IDENTIFY_SYSTEM READ_REPLICATION_SLOT START_REPLICATION TIMELINE_HISTORY
    UPLOAD_MANIFEST""".split()  # noqa: SIM905 - a list of 50 words reads worse
)
"""First words of statements of PostgreSQL and of its replication protocol."""

_POSTGRESQL_OBJECTS: Final = frozenset(
    """ACCESS AGGREGATE CAST COLLATION CONSTRAINT CONVERSION DATABASE DEFAULT DOMAIN EVENT EXTENSION FOREIGN FUNCTION
    GLOBAL GROUP INDEX LANGUAGE LARGE LOCAL MATERIALIZED OPERATOR OR OWNED POLICY PROCEDURAL PROCEDURE PUBLICATION
    RECURSIVE ROLE ROUTINE RULE SCHEMA SEQUENCE SERVER STATISTICS SUBSCRIPTION SYSTEM TABLE TABLESPACE TEMP TEMPORARY
    TEXT TRANSFORM TRIGGER TRUSTED TYPE UNIQUE UNLOGGED USER VIEW""".split()  # noqa: SIM905
)

POSTGRESQL_SHOWS: Final = (
    ("SHOW", "ALL"),
    ("SHOW", "TIME", "ZONE"),
    ("SHOW", "TRANSACTION", "ISOLATION"),
    ("SHOW", "SESSION", "AUTHORIZATION"),
)
"""Beginnings of SHOW that are PostgreSQL's own beyond `SHOW name`."""

_EXPLAIN_WORDS: Final = POSTGRESQL_FIRST_WORDS | {"VERBOSE", "("}


def _steals(head: tuple[str, ...]) -> bool:
    """Whether a command with this head would take statements away from PostgreSQL."""
    first = head[0]
    if first not in POSTGRESQL_FIRST_WORDS:
        return False
    if len(head) == 1:
        return True
    second = head[1]
    if first in ("CREATE", "ALTER", "DROP"):
        return second in _POSTGRESQL_OBJECTS
    if first == "SHOW":
        return any(head[: len(own)] == own for own in POSTGRESQL_SHOWS)
    if first == "EXPLAIN":
        return second in _EXPLAIN_WORDS
    # COPY (word ...) where the word begins no query; of the rest too much can be PostgreSQL's.
    return not (first == "COPY" and second == "(" and len(head) > 2 and head[2] not in POSTGRESQL_FIRST_WORDS)


class CommandRegistry:
    """All commands, by the words they begin with."""

    __slots__ = ("_by_first_word", "_by_name")

    def __init__(self, commands: Iterable[AdminCommand] = ()) -> None:
        self._by_name: dict[str, RegisteredCommand] = {}
        self._by_first_word: dict[str, tuple[RegisteredCommand, ...]] = {}
        for command in commands:
            self.register(command)

    def register(self, command: AdminCommand) -> None:
        """Raises CommandError for a command without role, syntax or documentation, or whose words are taken."""
        try:
            grammar = compile_syntax(command.syntax)
        except GrammarError as error:
            raise CommandError(str(error)) from error
        head = head_of(grammar)
        if not head or not head[0].isidentifier():
            raise CommandError(f"{command.syntax!r} must begin with a keyword")
        name = command.name or " ".join(head)
        if not command.role:
            raise CommandError(f"{name} needs a role; {PUBLIC!r} lets everybody run it")
        if not command.doc.strip():
            raise CommandError(f"{name} needs documentation")
        if _steals(head):
            raise CommandError(f"{name} would hide a statement of PostgreSQL")
        names = [column.name for column in command.columns]
        if len(set(names)) != len(names):
            raise CommandError(f"{name} has two columns of one name")
        if name in self._by_name:
            raise CommandError(f"{name} is registered twice")
        if any(head == other.head for other in self._by_first_word.get(head[0].lower(), ())):
            raise CommandError(f"{name} begins as another command does: {' '.join(head)}")
        tag = command.tag or ("SHOW" if head[0] == "SHOW" else name)
        registered = RegisteredCommand(command, name, tag, head, grammar, readable(command.syntax))
        self._by_name[name] = registered
        first = head[0].lower()
        # Longest first, so that the most specific command is found first.
        same = sorted((*self._by_first_word.get(first, ()), registered), key=lambda one: -len(one.head))
        self._by_first_word[first] = tuple(same)

    def remove_feature(self, feature: str) -> None:
        """Forget the commands of a feature that does not run."""
        gone = [name for name, one in self._by_name.items() if one.command.feature == feature]
        for name in gone:
            del self._by_name[name]
        for first, commands in list(self._by_first_word.items()):
            kept = tuple(one for one in commands if one.command.feature != feature)
            if kept:
                self._by_first_word[first] = kept
            else:
                del self._by_first_word[first]

    def starting_with(self, word: str) -> tuple[RegisteredCommand, ...]:
        """Commands whose first word, in lower case, is `word`; the ones with the longest head first."""
        return self._by_first_word.get(word, ())

    def find(self, name: str) -> RegisteredCommand | None:
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[RegisteredCommand]:
        return iter(sorted(self._by_name.values(), key=lambda one: one.name))

    def __len__(self) -> int:
        return len(self._by_name)
