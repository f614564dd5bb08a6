"""Runs of our own within a session's: refusals in the right place, and statements prepared ahead of their use.

A refusal is a Parse that the engine is sure to refuse, with our words in the place of its own: transaction and
pipeline are then as
failed as PostgreSQL would leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protocol.errors import PgError
from protocol.expectations import Action, Expected, HiddenReplies, MixedReplies, Reply
from protocol.scan import F_CLOSE, F_PARSE, SYNC_BYTES, length_at, message, pack_length
from server.effects import pin_deferred
from server.prepared import BACKEND_NAME_PREFIX, VirtualStatement
from server.statement_info import PinReason

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.session import ClientSession

_STATEMENT: Final = 0x53  # 'S' in Close


def refusal_message() -> bytes:
    """A Parse that the engine is sure to refuse: the transaction and the pipeline then fail where ours has to."""
    body = BACKEND_NAME_PREFIX + b"refused\0refused by RustyDB\0\0\0"
    return b"P" + pack_length(len(body) + 4) + body


def refuse_within(plan: MixedReplies, error: PgError, *, is_synced: bool = True) -> None:
    """Expect a refusal as the next thing of a run that is under way."""
    plan.push(Expected(Reply.PARSE, error=error.to_error_response()))
    if is_synced:
        plan.push(Expected(Reply.SYNC))


def refusal_replies(error: PgError, *, is_synced: bool = True) -> MixedReplies:
    """The replies to a refusal alone: our error in the place of the engine's."""
    replies = MixedReplies()
    refuse_within(replies, error, is_synced=is_synced)
    return replies


def statements_to_prepare(
    session: ClientSession, backend: BackendConnection, names: tuple[bytes, ...]
) -> list[VirtualStatement]:
    """Of the named statements that a run uses, those that the backend lacks and whose description the client has
    seen.
    """
    prepared = session.prepared
    if not prepared or session.is_materialised:
        return []
    found: list[VirtualStatement] = []
    for name in names:
        statement = prepared.get(name)
        if statement is None or statement.description is None or statement.shared in backend.prepared:
            continue
        if statement not in found:
            found.append(statement)
    if not found:
        return found
    replaced = _replaced(session.request)
    return [statement for statement in found if not any(prepared.get(name) is statement for name in replaced)]


def _replaced(run: bytes) -> list[bytes]:
    """Names that a run itself prepares or closes: what they stood for before is not asked for."""
    names = []
    pos = 0
    while pos < len(run):
        kind = run[pos]
        end = pos + 1 + length_at(run, pos + 1)[0]
        if kind == F_PARSE:
            names.append(run[pos + 5 : run.index(0, pos + 5, end)])
        elif kind == F_CLOSE and run[pos + 5] == _STATEMENT:
            names.append(run[pos + 6 : end - 1])
        pos = end
    return names


_OWN_NAMES = BACKEND_NAME_PREFIX + b"own_names"
_DEALLOCATE_ALL = (
    message(b"P", _OWN_NAMES + b"\0DEALLOCATE ALL\0\0\0")
    + message(b"B", _OWN_NAMES + b"\0" + _OWN_NAMES + b"\0" + bytes(6))
    + message(b"E", _OWN_NAMES + b"\0" + bytes(4))
)


def own_names_messages(session: ClientSession) -> bytes:
    """Within a pipeline: give the backend the session's prepared statements, and no others, under their real names."""
    statements = (session.prepared or {}).items()
    return _DEALLOCATE_ALL + b"".join(statement.shared.parse_message(name) for name, statement in statements)


def own_names_replies(session: ClientSession, backend: BackendConnection) -> list[Expected]:
    """What `own_names_messages` will be answered with. Where an error before them has them skipped, all is as it
    was.
    """
    before = dict(backend.prepared)
    session.wants_own_names = False
    session.is_materialised = True
    session.pins.add(PinReason.SQL_PREPARE)
    for statement in (session.prepared or {}).values():
        pin_deferred(session, statement.info)
    backend.prepared.clear()

    def deallocated(raw: bytes) -> None:
        if not raw:
            session.is_materialised = False
            backend.prepared.update(before)

    replies = [
        Expected(Reply.PARSE, Action.IGNORE),
        Expected(Reply.BIND, Action.IGNORE),
        Expected(Reply.EXECUTE, Action.IGNORE, on_answer=deallocated),
    ]
    return replies + [Expected(Reply.PARSE, Action.IGNORE) for _ in session.prepared or ()]


def prepare_first(
    backend: BackendConnection,
    statements: list[VirtualStatement],
    max_prepared: int,
    then: Callable[[PgError | None], None],
) -> None:
    """Prepare statements as a run of its own and compare their descriptions with what the client saw.

    A result type that is not what the client saw must fail as PostgreSQL would fail it, before anything is executed.
    """
    messages = []
    replies = MixedReplies()
    failures: list[PgError] = []
    while backend.prepared and len(backend.prepared) + len(statements) > max_prepared:
        messages.append(close_message(backend.prepared.popitem(last=False)[1]))
        replies.push(Expected(Reply.CLOSE, Action.IGNORE))
    for statement in statements:
        name = statement.shared.name
        messages.append(statement.shared.parse_message())
        messages.append(b"D" + pack_length(6 + len(name)) + b"S" + name + b"\0")
        replies.push(Expected(Reply.PARSE, Action.IGNORE))
        replies.push(Expected(Reply.DESCRIBE, Action.IGNORE, on_answer=Compared(statement, failures)))
        backend.prepared[statement.shared] = name

    def prepared(result: HiddenReplies) -> None:
        error = result.error or (failures[0] if failures else None)
        if error is None:
            then(None)
            return
        closed = MixedReplies()
        for statement in statements:
            backend.prepared.pop(statement.shared, None)
            closed.push(Expected(Reply.CLOSE, Action.IGNORE))
        names = [statement.shared.name for statement in statements]
        backend.send(b"".join(map(close_message, names)) + SYNC_BYTES, HiddenRun(closed, lambda _: then(error)))

    backend.send(b"".join(messages) + SYNC_BYTES, HiddenRun(replies, prepared))


def close_message(name: bytes) -> bytes:
    """Close of a statement."""
    return b"C" + pack_length(6 + len(name)) + b"S" + name + b"\0"


class Compared:
    """Compares a fresh description with the one the client saw."""

    __slots__ = ("_failures", "_statement")

    def __init__(self, statement: VirtualStatement, failures: list[PgError]) -> None:
        self._statement = statement
        self._failures = failures

    def __call__(self, raw: bytes) -> None:
        if raw[:1] in (b"T", b"n") and raw != self._statement.description:
            self._failures.append(PgError("0A000", "cached plan must not change result type"))


class HiddenRun(HiddenReplies):
    """Our own extended run: its replies go through an expectation queue, none to the client."""

    __slots__ = ("_replies",)

    def __init__(self, replies: MixedReplies, done: Callable[[HiddenReplies], None]) -> None:
        super().__init__(done)
        self._replies = replies

    def receive(self, kind: int, body: bytes) -> None:
        super().receive(kind, body)
        self._replies.receive(kind, bytes([kind]) + pack_length(len(body) + 4) + body)
