"""What a feature sees of a session and of a statement. Plain data, filled by the core.

Nothing here refers to a live session, backend or transport: a feature may keep these objects as long as it likes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.extension.facts import fact

__all__ = [
    "NO_PARAMETERS",
    "Conversation",
    "Parameters",
    "QueryContext",
    "QueryView",
    "SessionInfo",
    "StatementView",
]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """Who speaks, from where, and since when. One object for the life of a session."""

    session_id: int  # the virtual process id the client was given; reused after the session has ended
    serial: int  # counts sessions since the server started; never reused
    role: str  # session_user: who authenticated
    role_oid: int
    is_superuser: bool
    database: str
    application_name: str  # as given at startup; untrusted
    auth_method: str  # "scram-sha-256", "scram-sha-256-plus", "peer", "trust", "cert"
    client_addr: str  # "" for a Unix socket
    client_port: int  # -1 for a Unix socket
    local_addr: str
    tls: str | None  # e.g. "TLSv1.3 TLS_AES_256_GCM_SHA384"; None in the clear
    protocol_version: tuple[int, int]
    is_replication: bool
    connected_at: float  # seconds since the epoch


class Conversation(enum.Enum):
    """How a statement reached us."""

    SIMPLE = "simple"
    EXTENDED = "extended"
    FUNCTION_CALL = "function_call"
    COPY = "copy"
    REPLICATION = "replication"


class StatementView(Protocol):
    """One statement of a text, as far as it was understood. `server.statement_info.StatementInfo` is one."""

    @property
    def kind(self) -> enum.Enum: ...
    @property
    def tag(self) -> str: ...
    @property
    def relations_read(self) -> frozenset[tuple[str, str]]: ...
    @property
    def relations_written(self) -> frozenset[tuple[str, str]]: ...
    @property
    def functions(self) -> frozenset[tuple[str, str]]: ...


class QueryView(Protocol):
    """What is known of a text before it runs.

    `server.statement_info.QueryInfo` is one; shared by all uses of the text.
    """

    @property
    def statements(self) -> Sequence[StatementView]: ...
    @property
    def template_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Parameters:
    """Bound parameters, undecoded:

    `values` as they came on the wire (None is NULL), in `formats` (0 text, 1 binary).
    """

    values: tuple[bytes | None, ...] = ()
    formats: tuple[int, ...] = ()  # empty: all text; one: for all; else one each
    type_oids: tuple[int, ...] = ()  # 0 where the engine chose the type and nobody asked it


NO_PARAMETERS = Parameters()


@fact
class QueryContext:
    """One execution of one text: a simple Query, an Execute, a FunctionCall. The same object goes to every hook and
    event of it.

    `notes` is the one mutable part: a hook leaves there, under "<feature>.<name>", what an audit record or a trace
    should say of its decision ("governance.rule_ids", "compliance.masked_columns").
    """

    query_id: int  # counts executions since the server started; in logs, events and SHOW SESSIONS
    session: SessionInfo
    context_id: int  # interned settings map of the session at this moment; equal ids mean equal settings
    current_role: str  # current_user after SET ROLE
    text: str
    query: QueryView
    conversation: Conversation
    parameters: Parameters
    result_formats: tuple[int, ...]
    row_limit: int  # max_rows of Execute; 0 is no limit
    statement_name: str  # "" for the unnamed statement and for simple queries
    portal_name: str
    transaction_status: str  # "I", "T" or "E" before it runs
    started_at: float  # seconds since the epoch
    started_ns: int  # time.monotonic_ns() when its last message had arrived
    notes: dict[str, object]

    def with_text(self, text: str, query: QueryView) -> QueryContext:
        """The same execution with another text, after a Rewrite."""
        return QueryContext(
            self.query_id,
            self.session,
            self.context_id,
            self.current_role,
            text,
            query,
            self.conversation,
            self.parameters,
            self.result_formats,
            self.row_limit,
            self.statement_name,
            self.portal_name,
            self.transaction_status,
            self.started_at,
            self.started_ns,
            self.notes,
        )


class SessionContexts(Protocol):
    """Service of the core: what a `context_id` stands for."""

    def settings(self, context_id: int) -> Mapping[str, str]:
        """Setting name (lower case) to text value: everything that differs from the role's and database's defaults."""
