"""What the server knows about a statement before it runs: plain data, made by the analyser, read on the query path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag, auto


class Kind(Enum):
    """Coarse kind of one statement. READ never writes; WRITE is DML, also inside CTEs; OPAQUE is not understood."""

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
    RESET = auto()  # argument: setting name; also SET ... TO DEFAULT
    RESET_LOCAL = auto()  # SET LOCAL ... TO DEFAULT
    RESET_ALL = auto()
    SESSION_AUTHORIZATION = auto()  # argument: role, "" for DEFAULT; `value` "local" for SET LOCAL
    DISCARD_ALL = auto()
    DISCARD_TEMP = auto()
    LISTEN = auto()  # argument: channel
    UNLISTEN = auto()  # argument: channel, "" for all
    NOTIFY = auto()
    DEALLOCATE = auto()  # argument: name, "" for all
    # argument: reason, see PinReason; `value` "transaction" where it ends with the transaction (ON COMMIT DROP)
    PIN = auto()
    SETTLE = auto()  # may have ended a pin: ask the engine (unlock, DROP of a temp table, CLOSE)
    # DDL: statements prepared and analysed before may be out of date. `value` "reload": so is the DatabaseCatalog
    CATALOG = auto()
    # role, password, membership, ALTER ROLE|DATABASE ... SET. argument: the role or database, "" for many
    ROLES = auto()
    SEQUENCE = auto()  # may have advanced a sequence: currval and lastval of this session now live in this backend
    SEQUENCE_READ = auto()  # calls currval or lastval: belongs on the backend of the session's last SEQUENCE effect


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
    """`argument` and `value` by kind, see EffectKind. For set_config with parameters, `parameter` are the 1-based $n
    of name, value, is_local (0: constant).
    """

    kind: EffectKind
    argument: str = ""
    value: str | None = None
    parameters: tuple[int, int, int] = (0, 0, 0)


class Needs(IntFlag):
    """What must happen before the text may be forwarded."""

    NOTHING = 0
    # real names for prepared statements: SQL PREPARE/EXECUTE/DEALLOCATE name, pg_prepared_statements, pg_cursors,
    # pg_listening_channels()
    MATERIALISE = auto()
    REWRITE_PIDS = auto()  # pg_backend_pid(), pg_cancel_backend(), pg_terminate_backend(), pg_stat_activity ...
    LISTENER = auto()  # a lone LISTEN / UNLISTEN: answered by the shared listener
    MAKE_WAY = auto()  # CREATE / DROP / ALTER ... RENAME DATABASE: idle backends of `databases` are closed first
    ADMIN = auto()  # goes to the admin console
    REFUSE = auto()  # `refusal` says why
    SEQUENCE = auto()  # currval or lastval: only the backend of the session's last SEQUENCE effect can answer


@dataclass(frozen=True, slots=True)
class StatementInfo:
    """One statement of a text. Names are as written, lower-cased where unquoted: (schema or "", name)."""

    kind: Kind
    tag: str  # first word(s) for logs and statistics, e.g. "SELECT", "CREATE TABLE"
    effects: tuple[Effect, ...] = ()
    relations_read: frozenset[tuple[str, str]] = frozenset()
    relations_written: frozenset[tuple[str, str]] = frozenset()
    functions: frozenset[tuple[str, str]] = frozenset()
    # of the cursor (DECLARE, FETCH, MOVE, CLOSE) or prepared statement (PREPARE, EXECUTE, DEALLOCATE); "" for ALL
    name: str = ""


@dataclass(frozen=True, slots=True)
class QueryInfo:
    """One Query or Parse text. `is_plain`: no effect, no need: the common path looks at nothing else."""

    statements: tuple[StatementInfo, ...]
    is_plain: bool
    needs: Needs = Needs.NOTHING
    databases: tuple[str, ...] = ()
    refusal: tuple[str, str, str] | None = None  # SQLSTATE, message, detail
    template_id: int = 0  # the same for texts that differ in constants only; 0 where unknown
    has_effects: bool = False
    begins_transaction: bool = False
    reads_sequence: bool = False  # has a SEQUENCE_READ effect
    console_command: object | None = None  # what the console's match returned, where `needs` has ADMIN
