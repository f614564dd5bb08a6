"""What the server knows about a statement before it runs: plain data, made by the analyser, read on the query path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag, auto


class Kind(Enum):
    """Coarse kind of one statement. READ never writes; WRITE is DML (also inside CTEs); OPAQUE could not be understood."""

    READ = auto()
    WRITE = auto()
    TRANSACTION = auto()
    SET = auto()
    DDL = auto()
    UTILITY = auto()
    COPY = auto()
    CALL = auto()  # CALL and DO
    PREPARED = auto()  # SQL-level PREPARE, EXECUTE, DEALLOCATE
    EMPTY = auto()
    ADMIN = auto()
    OPAQUE = auto()


class EffectKind(Enum):
    """What a completed statement changes in the virtual session."""

    BEGIN = auto()
    COMMIT = auto()
    ROLLBACK = auto()
    SAVEPOINT = auto()  # argument: name
    RELEASE = auto()  # argument: name
    ROLLBACK_TO = auto()  # argument: name
    PREPARE_TRANSACTION = auto()
    COMMIT_PREPARED = auto()
    ROLLBACK_PREPARED = auto()
    SET = auto()  # argument: setting name, lower case; `value` the constant text where known
    SET_LOCAL = auto()
    RESET = auto()
    RESET_ALL = auto()
    SESSION_AUTHORIZATION = auto()
    DISCARD_ALL = auto()
    DISCARD_TEMP = auto()
    LISTEN = auto()  # argument: channel
    UNLISTEN = auto()  # argument: channel, "" for all
    NOTIFY = auto()
    DEALLOCATE = auto()  # argument: name, "" for all
    PIN = auto()  # argument: reason, see PinReason
    SETTLE = auto()  # may have ended a pin: ask the engine (unlock, DROP of a temp table, CLOSE)
    CATALOG = auto()  # DDL: statements prepared and analysed before may be out of date
    ROLES = auto()  # role, password, membership, ALTER ROLE|DATABASE ... SET


class PinReason:
    """Words shown in SHOW SESSIONS."""

    TEMP_TABLE = "temporary table"
    ADVISORY_LOCK = "session advisory lock"
    HELD_CURSOR = "cursor WITH HOLD"
    RANDOM_SEED = "random seed"
    LOAD = "loaded library"
    HIDDEN_STATE = "function may set session state"
    COMPUTED_SETTING = "set_config with computed arguments"
    SQL_PREPARE = "SQL PREPARE"
    SESSION_CATALOG = "session catalog"
    SESSION_AUTHORIZATION = "session authorization"
    SEQUENCE_STATE = "currval or lastval"
    LISTEN = "LISTEN in a multi-statement text"


@dataclass(frozen=True, slots=True)
class Effect:
    """`argument` and `value` by kind, see EffectKind. For set_config with parameters, `parameter` are the 1-based $n of name, value, is_local (0: constant)."""

    kind: EffectKind
    argument: str = ""
    value: str | None = None
    parameters: tuple[int, int, int] = (0, 0, 0)


class Needs(IntFlag):
    """What must happen before the text may be forwarded."""

    NOTHING = 0
    MATERIALISE = auto()  # real names for prepared statements: SQL PREPARE/EXECUTE/DEALLOCATE name, pg_prepared_statements, pg_cursors, pg_listening_channels()
    REWRITE_PIDS = auto()  # pg_backend_pid(), pg_cancel_backend(), pg_terminate_backend(), pg_stat_activity ...
    LISTENER = auto()  # a lone LISTEN / UNLISTEN: answered by the shared listener
    MAKE_WAY = auto()  # CREATE / DROP / ALTER ... RENAME DATABASE: idle backends of `databases` are closed first
    ADMIN = auto()  # goes to the admin console
    REFUSE = auto()  # `refusal` says why


@dataclass(frozen=True, slots=True)
class StatementInfo:
    """One statement of a text. Names are as written, lower-cased where unquoted: (schema or "", name)."""

    kind: Kind
    tag: str  # first word(s) for logs and statistics, e.g. "SELECT", "CREATE TABLE"
    effects: tuple[Effect, ...] = ()
    relations_read: frozenset[tuple[str, str]] = frozenset()
    relations_written: frozenset[tuple[str, str]] = frozenset()
    functions: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class QueryInfo:
    """One Query or Parse text. `is_plain`: no effect, no need: the common path looks at nothing else."""

    statements: tuple[StatementInfo, ...]
    is_plain: bool
    needs: Needs = Needs.NOTHING
    databases: tuple[str, ...] = ()
    refusal: tuple[str, str] | None = None  # (SQLSTATE, message)
    template_id: int = 0  # the same for texts that differ in constants only; 0 where unknown
    has_effects: bool = False
    begins_transaction: bool = False
