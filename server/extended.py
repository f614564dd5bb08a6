"""Extended-protocol runs: virtual statement names made real, what a backend lacks injected, what it has left out.

A `RunBuilder` turns one run of a client's messages into the bytes for one backend and the replies to expect. A run that
needs no change is forwarded as it came. It is built anew for the backend that was leased, because what is prepared
there
decides. Pitfalls 17 to 22 of the pooling notes are handled here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocol.errors import PgError
from protocol.expectations import PASS, Action, Expected, MixedReplies, Reply, ReplyPlan
from protocol.scan import (
    F_BIND,
    F_CLOSE,
    F_DESCRIBE,
    F_EXECUTE,
    F_FLUSH,
    F_PARSE,
    F_SYNC,
    HEADER_BYTES,
    READY_FAILED,
    READY_IDLE,
    length_at,
    pack_length,
)
from server.bound_effects import with_parameters
from server.effects import pin_deferred
from server.injected import own_names_messages, own_names_replies, refusal_message
from server.prepared import (
    BACKEND_NAME_PREFIX,
    UNKNOWN_STATEMENT,
    SharedStatement,
    VirtualStatement,
    split_parse,
)
from server.statement_info import Effect, Needs, QueryInfo

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.session import ClientSession

EXTENDED_TYPES: Final = frozenset({F_PARSE, F_BIND, F_DESCRIBE, F_EXECUTE, F_CLOSE, F_SYNC, F_FLUSH})

_REPLY_OF: Final = {
    F_PARSE: Reply.PARSE,
    F_BIND: Reply.BIND,
    F_DESCRIBE: Reply.DESCRIBE,
    F_EXECUTE: Reply.EXECUTE,
    F_CLOSE: Reply.CLOSE,
    F_SYNC: Reply.SYNC,
}

_PARSE_COMPLETE: Final = b"1\x00\x00\x00\x04"
_CLOSE_COMPLETE: Final = b"3\x00\x00\x00\x04"
_STATEMENT: Final = 0x53  # 'S' in Describe and Close
_MAY_BE_LOCAL: Final = frozenset({F_BIND, F_DESCRIBE, F_EXECUTE, F_CLOSE})
_PORTALS_KEPT: Final = 64


_NOTHING_NEEDED: Final = (Needs.NOTHING, ())


def examine(session: ClientSession, run: bytes) -> tuple[Needs, tuple[bytes, ...]] | None:
    """One walk over a run before a backend is asked for: what it needs, and the named statements it binds or describes.

    None where `run` is not whole extended messages with at most one Sync or Flush, the last.
    """
    needs = Needs.NOTHING
    names: list[bytes] = []
    prepared = session.prepared
    local = session.local_names
    unpack = length_at
    pos = 0
    end_of_run = len(run)
    while end_of_run - pos >= HEADER_BYTES:
        kind = run[pos]
        end = pos + 1 + unpack(run, pos + 1)[0]
        if kind not in EXTENDED_TYPES or end > end_of_run or end < pos + HEADER_BYTES:
            return None
        if kind == F_BIND:
            start = run.index(0, pos + 5, end) + 1
            if prepared and run[start]:
                name = run[start : run.index(0, start, end)]
                names.append(name)
                statement = prepared.get(name)
                if statement is not None and not statement.info.is_plain:
                    needs |= statement.info.needs & Needs.REWRITE_PIDS
        elif kind == F_PARSE:
            info = session.database.info_of_parse(run[run.index(0, pos + 5, end) + 1 : end], session.encoding)
            if not info.is_plain:
                needs |= session.needs_of(info)
        elif kind == F_DESCRIBE and prepared and run[pos + 5] == _STATEMENT:
            names.append(run[pos + 6 : end - 1])
        if local is not None and kind in _MAY_BE_LOCAL and local.refers(run, pos, end):
            needs |= Needs.ADMIN
        pos = end
        if kind == F_SYNC or kind == F_FLUSH:
            break
    if pos != end_of_run:
        return None
    return (needs, tuple(names)) if needs or names else _NOTHING_NEEDED


class RunBuilder:
    """Builds one run for one backend."""

    __slots__ = (
        "_backend",
        "_effects",
        "_has_effects",
        "_is_mixed",
        "_is_synced",
        "_only_prepares",
        "_out",
        "_replies",
        "_session",
        "_unsent",
    )

    def __init__(self, session: ClientSession, backend: BackendConnection) -> None:
        self._session = session
        self._backend = backend
        self._out: list[bytes] = []
        self._replies: list[int | Expected] = []
        self._unsent = 0
        self._effects: list[tuple[Effect, ...]] = []
        self._has_effects = False
        self._is_mixed = False
        self._is_synced = False
        self._only_prepares = True

    def build(self, run: bytes, answers: dict[int, bytes | PgError] | None = None) -> None:
        """Go through the messages of a run. Every message is whole. `answers` are ours, by the offset of what
        they answer.
        """
        pos = 0
        end_of_run = len(run)
        while pos < end_of_run:
            kind = run[pos]
            end = pos + 1 + length_at(run, pos + 1)[0]
            if answers is not None and (answer := answers.get(pos)) is not None:
                if isinstance(answer, PgError):
                    self._refuse(run, pos, end, answer)
                else:
                    self._replace(run, pos, end, b"")
                    self._answer(answer)
            elif kind == F_BIND:
                self._only_prepares = False
                self._bind(run, pos, end)
            elif kind == F_EXECUTE:
                self._only_prepares = False
                self._execute(run, pos, end)
            elif kind == F_PARSE:
                self._parse(run, pos, end)
            elif kind == F_DESCRIBE:
                self._describe(run, pos, end)
            elif kind == F_CLOSE:
                self._close(run, pos, end)
            elif kind == F_SYNC:
                self._is_synced = True
                self._replies.append(kind)
            pos = end
        self._out.append(run[self._unsent :] if self._unsent else run)
        self._expect_effects()

    def finish(self) -> tuple[bytes, bool]:
        """The bytes to send and whether they end in Sync."""
        out = self._out
        return out[0] if len(out) == 1 else b"".join(out), self._is_synced

    @property
    def only_prepares(self) -> bool:
        """Nothing was bound or executed: the run leaves nothing behind but prepared statements."""
        return self._only_prepares

    def plan(self, *, is_synced: bool) -> ReplyPlan:
        """What the backend will owe."""
        if is_synced and not self._is_mixed:
            return PASS
        mixed = MixedReplies()
        self.extend(mixed)
        return mixed

    def extend(self, mixed: MixedReplies) -> None:
        """Add what these messages will be answered with to a run that is under way."""
        for reply in self._replies:
            mixed.push(Expected(_REPLY_OF[reply]) if isinstance(reply, int) else reply)

    # -- message by message ----------------------------------------------------------------------------------------

    def _replace(self, run: bytes, pos: int, end: int, new: bytes) -> None:
        """Send `new` in the place of run[pos:end]."""
        if pos > self._unsent:
            self._out.append(run[self._unsent : pos])
        if new:
            self._out.append(new)
        self._unsent = end

    def _insert(self, run: bytes, pos: int, new: bytes) -> None:
        """Send `new` before run[pos:]."""
        self._replace(run, pos, pos, new)

    def _parse(self, run: bytes, pos: int, end: int) -> None:
        session = self._session
        backend = self._backend
        name, text_and_types = split_parse(run, pos, end)
        info = session.database.info_of_parse(text_and_types, session.encoding)
        if session.wants_own_names and info.needs & Needs.MATERIALISE:
            self._insert(run, pos, own_names_messages(session))
            self._is_mixed = True
            self._replies.extend(own_names_replies(session, backend))
        if not name:
            session.unnamed = backend.unnamed = (text_and_types, info)
            if session.local_names is not None:
                session.local_names.statements.pop(b"", None)
            self._replies.append(F_PARSE)
            return
        if session.is_materialised:
            before = session.prepared.get(name) if session.prepared is not None else None
            pin_deferred(session, info)
            self._virtual(name, text_and_types, info)
            self._is_mixed = True
            self._replies.append(Expected(Reply.PARSE, on_answer=lambda raw: self._parsed_by_name(name, before, raw)))
            return
        prepared = session.prepared
        if prepared is not None and name in prepared:
            # PostgreSQL reads the text before it looks at the name: let it say what is wrong.
            body = self._use(run, pos, prepared[name]) + b"\0" + text_and_types
            self._replace(run, pos, end, b"P" + pack_length(4 + len(body)) + body)
            self._is_mixed = True
            self._replies.append(F_PARSE)
            return
        statement = self._virtual(name, text_and_types, info)
        shared = statement.shared
        if shared in backend.prepared:
            backend.prepared.move_to_end(shared)
            if session.status == READY_FAILED:
                self._parse_for_the_error(run, pos, end, name)
                return
            self._replace(run, pos, end, b"")
            self._answer(_PARSE_COMPLETE)
            return
        self._prepare(run, pos, shared)
        self._replace(run, pos, end, shared.parse_message())
        self._is_mixed = True
        self._replies.append(Expected(Reply.PARSE, on_answer=lambda raw: self._parsed(name, shared, raw)))

    def _parse_for_the_error(self, run: bytes, pos: int, end: int, name: bytes) -> None:
        """In a failed transaction the engine says what may still be prepared: asked by the way of the unnamed one."""
        self._replace(run, pos, end, b"P" + pack_length(end - pos - 1 - len(name)) + run[pos + 5 + len(name) : end])
        self._backend.unnamed = UNKNOWN_STATEMENT
        self._is_mixed = True
        self._replies.append(Expected(Reply.PARSE, on_answer=lambda raw: self._parsed_by_name(name, None, raw)))

    def _virtual(self, name: bytes, text_and_types: bytes, info: QueryInfo) -> VirtualStatement:
        session = self._session
        shared = session.database.statements.intern(text_and_types, session.context.parse, session.database.generation)
        statement = VirtualStatement(shared, info)
        if session.prepared is None:
            session.prepared = {}
        session.prepared[name] = statement
        return statement

    def _parsed(self, name: bytes, shared: SharedStatement, raw: bytes) -> None:
        """The engine's answer to a client's own Parse: b"" where it failed or was skipped."""
        if not raw:
            self._backend.prepared.pop(shared, None)
            prepared = self._session.prepared
            if prepared is not None:
                prepared.pop(name, None)

    def _parsed_by_name(self, name: bytes, before: VirtualStatement | None, raw: bytes) -> None:
        """The same where the backend has the client's names: what the name stood for before, it still does."""
        prepared = self._session.prepared
        if not raw and prepared is not None:
            if before is not None:
                prepared[name] = before
            else:
                prepared.pop(name, None)

    def _prepare(self, run: bytes, pos: int, shared: SharedStatement) -> None:
        """Note that the backend has it, and make room: the least recently used is closed first."""
        prepared = self._backend.prepared
        prepared[shared] = shared.name
        if len(prepared) > self._session.database.max_prepared_statements:
            old, old_name = prepared.popitem(last=False)
            assert isinstance(old_name, bytes)
            body = b"S" + old_name + b"\0"
            self._insert(run, pos, b"C" + pack_length(len(body) + 4) + body)
            self._is_mixed = True

            def closed(raw: bytes) -> None:
                if not raw:  # skipped after an error: it is still there
                    prepared[old] = old_name

            self._replies.append(Expected(Reply.CLOSE, Action.IGNORE, on_answer=closed))

    def _bind(self, run: bytes, pos: int, end: int) -> None:
        session = self._session
        portal_end = run.index(0, pos + 5, end)
        name_end = run.index(0, portal_end + 1, end)
        name = run[portal_end + 1 : name_end]
        info: QueryInfo | None = None
        if not name:
            if session.unnamed is None and self._backend.unnamed is not None:
                self._refuse_unnamed(run, pos, end)
                return
            info = self._use_unnamed(run, pos)
        elif not session.is_materialised:
            statement = session.prepared.get(name) if session.prepared is not None else None
            if isinstance(statement, VirtualStatement):
                info = statement.info
                real = self._use(run, pos, statement)
                tail = run[name_end:end]
                head = run[pos + 5 : portal_end + 1]
                self._replace(
                    run, pos, end, b"B" + pack_length(4 + len(head) + len(real) + len(tail)) + head + real + tail
                )
            elif name.startswith(BACKEND_NAME_PREFIX):
                self._refuse_unknown(run, pos, end, name)
                return
        else:
            statement = session.prepared.get(name) if session.prepared is not None else None
            info = statement.info if isinstance(statement, VirtualStatement) else None
        if info is not None:
            if info.has_effects:
                info = with_parameters(info, run, pos, end)
            if session.portals is None or (
                len(session.portals) > _PORTALS_KEPT and session.status == READY_IDLE and not session.was_open
            ):
                session.portals = {}  # the portals of transactions that have ended are gone
            session.portals[run[pos + 5 : portal_end]] = info
        self._replies.append(F_BIND)

    def _use_unnamed(self, run: bytes, pos: int) -> QueryInfo | None:
        """The unnamed statement is used: parse it again where the backend's is another's."""
        unnamed = self._session.unnamed
        if not isinstance(unnamed, tuple):
            return None
        if self._backend.unnamed is not unnamed:
            body = b"\0" + unnamed[0]
            self._insert(run, pos, b"P" + pack_length(len(body) + 4) + body)
            self._ignore(Reply.PARSE)
            self._backend.unnamed = unnamed
        return unnamed[1]

    def _use(self, run: bytes, pos: int, statement: VirtualStatement) -> bytes:
        """The backend's name of a statement, prepared there first where it is not."""
        backend = self._backend
        shared = statement.shared
        prepared = backend.prepared
        if shared in prepared:
            prepared.move_to_end(shared)
            return shared.name
        self._prepare(run, pos, shared)
        self._insert(run, pos, shared.parse_message())
        self._is_mixed = True

        def parsed(raw: bytes) -> None:
            if not raw:
                prepared.pop(shared, None)

        self._replies.append(Expected(Reply.PARSE, Action.IGNORE, on_answer=parsed))
        return shared.name

    def _describe(self, run: bytes, pos: int, end: int) -> None:
        session = self._session
        if run[pos + 5] != _STATEMENT:
            self._replies.append(F_DESCRIBE)
            return
        name = run[pos + 6 : end - 1]
        if not name:
            if session.unnamed is None and self._backend.unnamed is not None:
                self._refuse_unnamed(run, pos, end)
                return
            self._use_unnamed(run, pos)
            self._replies.append(F_DESCRIBE)
            return
        if session.is_materialised:
            self._replies.append(F_DESCRIBE)
            return
        statement = session.prepared.get(name) if session.prepared is not None else None
        if not isinstance(statement, VirtualStatement):
            if name.startswith(BACKEND_NAME_PREFIX):
                self._refuse_unknown(run, pos, end, name)
            else:
                self._replies.append(F_DESCRIBE)
            return
        real = self._use(run, pos, statement)
        self._replace(run, pos, end, b"D" + pack_length(6 + len(real)) + b"S" + real + b"\0")
        self._is_mixed = True
        self._replies.append(Expected(Reply.DESCRIBE, on_answer=_Described(statement)))

    def _execute(self, run: bytes, pos: int, end: int) -> None:
        session = self._session
        self._replies.append(F_EXECUTE)
        portals = session.portals
        info = portals.get(run[pos + 5 : end - 5]) if portals is not None else None
        if info is not None and info.has_effects:
            self._has_effects = True
            self._effects.append(info.statements[0].effects if info.statements else ())
        else:
            self._effects.append(())

    def _expect_effects(self) -> None:
        """Tell the session's tracker what will complete, in order; nothing where nothing has an effect."""
        session = self._session
        if session.observed is not None:
            self._backend.watch_completions = True
        if self._has_effects or not self._is_synced or session.effects is not None:
            tracker = session.tracker()
            for effects in self._effects:
                tracker.expect(effects)
            self._backend.watch_completions = True

    def _close(self, run: bytes, pos: int, end: int) -> None:
        session = self._session
        name = run[pos + 6 : end - 1]
        if run[pos + 5] != _STATEMENT or session.is_materialised:
            self._replies.append(F_CLOSE)
            if run[pos + 5] == _STATEMENT and session.prepared is not None:
                session.prepared.pop(name, None)
            return
        if not name:
            session.unnamed = None
            self._backend.unnamed = None
            self._replies.append(F_CLOSE)
            return
        if session.prepared is not None:
            session.prepared.pop(name, None)
        self._replace(run, pos, end, b"")
        self._answer(_CLOSE_COMPLETE)

    # -- replies ---------------------------------------------------------------------------------------------------

    def _ignore(self, reply: Reply) -> None:
        self._is_mixed = True
        self._replies.append(Expected(reply, Action.IGNORE))

    def _answer(self, answer: bytes) -> None:
        self._is_mixed = True
        self._replies.append(Expected(Reply.LOCAL, bytes_=answer))

    def _refuse_unknown(self, run: bytes, pos: int, end: int, name: bytes) -> None:
        text = name.decode(errors="replace")
        self._refuse(run, pos, end, PgError("26000", f'prepared statement "{text}" does not exist'))

    def _refuse_unnamed(self, run: bytes, pos: int, end: int) -> None:
        """The unnamed statement on this backend is another session's."""
        self._refuse(run, pos, end, PgError("26000", "unnamed prepared statement does not exist"))

    def _refuse(self, run: bytes, pos: int, end: int, error: PgError) -> None:
        """Let the engine fail here, so that transaction and pipeline are as failed as they should be, in our words."""
        self._replace(run, pos, end, refusal_message())
        self._is_mixed = True
        self._replies.append(Expected(Reply.PARSE, error=error.to_error_response()))


class _Described:
    """Keeps the last RowDescription a client saw for a statement."""

    __slots__ = ("_statement",)

    def __init__(self, statement: VirtualStatement) -> None:
        self._statement = statement

    def __call__(self, raw: bytes) -> None:
        if raw[:1] in (b"T", b"n"):
            self._statement.description = raw
