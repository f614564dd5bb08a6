"""Runs that need work before they may be forwarded: the one place of the query path that uses a task.

Administrative commands and LISTEN are answered here; statements that look at a backend's own state first get one that
really is theirs (`materialise`); process ids are translated; idle backends make way for CREATE and DROP DATABASE.
What is left is forwarded as any other run, with our own answers at their places in the reply order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from protocol.errors import PgError
from protocol.scan import (
    F_BIND,
    F_CLOSE,
    F_DESCRIBE,
    F_EXECUTE,
    F_PARSE,
    F_SYNC,
    READY_FAILED,
    READY_IDLE,
    SYNC_BYTES,
    length_at,
    pack_length,
)
from server.admin import encode
from server.admin.console import AdminConsole, BoundCommand
from server.extended import examine
from server.extension.commands import AdminCaller, AdminResult
from server.local_statement import LocalPortal, LocalStatement, bind_local
from server.own_backend import OwnBackend, bound_numbers, must_not_be_within, numbers_in
from server.session_state import IDLE, OPEN
from server.statement_info import EffectKind, Needs, PinReason, QueryInfo

if TYPE_CHECKING:
    from server.observer import QueryObserver
    from server.session import ClientSession

_log = logging.getLogger("rustydb.session")

_FAILED_BLOCK = "current transaction is aborted, commands ignored until end of transaction block"
_FORWARDED_NEEDS = Needs.MATERIALISE | Needs.REWRITE_PIDS | Needs.MAKE_WAY | Needs.SEQUENCE


class SpecialHost(Protocol):
    """What special runs need of the server."""

    @property
    def console(self) -> AdminConsole: ...
    @property
    def observer(self) -> QueryObserver: ...

    async def make_way(self, session: ClientSession, text: bytes, databases: tuple[str, ...]) -> None:
        """Close idle backends (and our own connections) in these databases."""

    async def listen(self, session: ClientSession, channel: str) -> None:
        """Make the shared listener of the session's database hear the channel."""

    def subscribe(self, session: ClientSession, channel: str, *, on: bool) -> None:
        """Add or drop ("": all) a subscription that the listener already hears."""

    async def rewrite_pids(self, session: ClientSession, text: bytes) -> bytes:
        """The text with virtual process ids in it."""

    async def lend_backends(self, session: ClientSession, pids: set[int]) -> None:
        """Give the idle sessions among `pids` a backend for a moment, so that the engine can signal it."""


class SpecialRuns:
    """Runs the special ones, each in a task of its session's."""

    def __init__(self, host: SpecialHost) -> None:
        self._host = host
        self._own = OwnBackend(host)

    async def run(self, session: ClientSession, request: bytes, info: QueryInfo | None) -> None:
        """Do what the run needs and set the session on its way. Never raises."""
        try:
            database = session.database
            if not database.is_current:
                await database.load_catalog()
            if info is not None:
                await database.read_ahead(request[5:-1], session.encoding)
                info = database.analyse(request[5:-1], session.encoding)
                if not session.needs_of(info) and not self._host.observer.is_active:
                    self._forward(session, request, info)
                    return
            else:
                await self._read_ahead(session, request)
            if info is not None:
                await self._query(session, request, info)
            else:
                await self._extended(session, request)
        except PgError as error:
            self._refused(session, request, error)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - one client's bug must not reach another
            _log.exception("a special run failed")
            session.fatal(PgError("XX000", "internal error of the server; its log has the details"))

    async def judged(
        self, session: ClientSession, request: bytes, answer: Awaitable[bytes | None] | bytes | None
    ) -> None:
        """A simple Query after the hooks: forwarded, rewritten, answered or refused. Never raises."""
        try:
            allowed = await answer if isinstance(answer, Awaitable) else answer
            if not session.is_open:
                return
            if allowed is None:
                pending = self._host.observer.after_run(session, None)
                if pending is not None:
                    await pending
                self._answer(session, b"")
                return
            info = session.database.analyse(allowed[5:-1], session.encoding)
            if session.needs_of(info):
                await self._query(session, allowed, info)
            else:
                self._forward(session, allowed, info)
        except PgError as error:
            self._refused(session, request, error)

    async def after(self, session: ClientSession, pending: Awaitable[None], chunk: bytes) -> None:
        """Those who must know before the client does have been told; then the client. Their failure ends the
        session.
        """
        try:
            await pending
        except PgError as error:
            session.fatal(error)
            return
        if session.is_open and chunk:
            session.end_run(chunk)

    def _refused(self, session: ClientSession, request: bytes, error: PgError) -> None:
        if session.is_open:
            session.phase = OPEN if session.was_open else IDLE
            session.request = request
            session.refuse_run(error)

    # -- simple protocol -------------------------------------------------------------------------------------------

    async def _query(self, session: ClientSession, request: bytes, info: QueryInfo) -> None:
        observer = self._host.observer
        if observer.is_active and session.observed is None:
            judged = observer.before_query(session, request, info)
            allowed = await judged if isinstance(judged, Awaitable) else judged
            if allowed is None:
                self._answer(session, b"")
                return
            if allowed is not request:
                request, info = allowed, session.database.analyse(allowed[5:-1], session.encoding)
        needs = session.needs_of(info)
        if needs & Needs.REFUSE and info.refusal is not None:
            raise PgError(*info.refusal[:2], detail=info.refusal[2])
        if needs & (Needs.ADMIN | Needs.LISTENER | Needs.MATERIALISE) and session.status != READY_FAILED:
            must_not_be_within(session)
        if needs & Needs.ADMIN:
            bound = info.console_command
            assert isinstance(bound, BoundCommand)
            result = await self._command(session, bound)
            if session.observed is not None:
                session.observed.completed((result.tag or bound.tag).encode())
            self._answer(session, await encode.reply_in_turns(bound, result, is_simple=True, encoding=session.encoding))
            return
        if needs & Needs.LISTENER:
            self._answer(session, await self._listen(session, info))
            return
        if self._is_local_deallocate(session, info):
            self._answer(session, b"C\0\0\0\x0fDEALLOCATE\0" if info.statements[0].name else _deallocate_all_tag(info))
            return
        text = await self._prepare(session, request[5:-1], info)
        if text != request[5:-1]:
            request = b"Q" + pack_length(len(text) + 5) + text + b"\0"
        self._forward(session, request, info)

    def _forward(self, session: ClientSession, request: bytes, info: QueryInfo) -> None:
        if session.is_open:
            session.phase = OPEN if session.was_open else IDLE
            session.request = request
            session.request_info = info
            session.with_backend(session.send_query)

    def _answer(self, session: ClientSession, reply: bytes) -> None:
        self._host.observer.after_run(session, None)
        if session.is_open:
            session.send(reply)
            session.send_ready()
            session.go_idle()

    def _is_local_deallocate(self, session: ClientSession, info: QueryInfo) -> bool:
        """A lone DEALLOCATE of statements that only we know by these names."""
        if session.is_materialised or session.status == READY_FAILED or len(info.statements) != 1:
            return False
        effects = info.statements[0].effects
        if len(effects) != 1 or effects[0].kind is not EffectKind.DEALLOCATE:
            return False
        name = effects[0].argument
        if not name:
            session.prepared = None
            session.unnamed = None
            return True
        if session.prepared is None or session.prepared.pop(name.encode(), None) is None:
            raise PgError("26000", f'prepared statement "{name}" does not exist')
        return True

    # -- what several kinds need -----------------------------------------------------------------------------------

    async def _prepare(self, session: ClientSession, text: bytes, info: QueryInfo) -> bytes:
        """Do what a text needs before it is forwarded; returns the text to forward."""
        if info.needs & Needs.MAKE_WAY:
            await self._host.make_way(session, text, info.databases)
        if info.needs & Needs.MATERIALISE and session.status != READY_FAILED:
            await self._own.materialise(session)
        if info.reads_sequence and PinReason.SEQUENCE_STATE not in session.pins:
            await self._own.bind_to_sequences(session)
        if info.needs & Needs.REWRITE_PIDS:
            await self._host.lend_backends(session, numbers_in(text))
            text = await self._host.rewrite_pids(session, text)
        return text

    async def _command(
        self, session: ClientSession, bound: BoundCommand, parameters: tuple[object, ...] = ()
    ) -> AdminResult:
        if session.status == READY_FAILED:
            raise PgError("25P02", _FAILED_BLOCK)
        caller = AdminCaller(
            role=session.context.settings.get("role", session.identity.role),
            session_id=session.pid,
            is_superuser=session.identity.is_superuser,
            database=session.database.name,
            in_transaction=session.status != READY_IDLE,
        )
        return await self._host.console.run(bound, caller, parameters)  # type: ignore[arg-type]

    async def _listen(self, session: ClientSession, info: QueryInfo) -> bytes:
        """LISTEN or UNLISTEN, by the shared listener; inside a transaction block it takes effect at its end."""
        if session.status == READY_FAILED:
            raise PgError("25P02", _FAILED_BLOCK)
        effect = info.statements[0].effects[0]
        is_listen = effect.kind is EffectKind.LISTEN
        if is_listen:
            await self._host.listen(session, effect.argument)
        if session.status == READY_IDLE:
            self._host.subscribe(session, effect.argument, on=is_listen)
        else:
            session.tracker().listens.append(effect)
        return b"C\0\0\0\x0bLISTEN\0" if is_listen else b"C\0\0\0\x0dUNLISTEN\0"

    # -- extended protocol -----------------------------------------------------------------------------------------

    async def _extended(self, session: ClientSession, request: bytes) -> None:
        """Answer the local messages of a run, prepare the rest; forward what is left."""
        observer = self._host.observer
        judged = await observer.before_run(session, request) if observer.is_active else {}
        answers: dict[int, bytes | PgError] = {}
        if _needs(session, request) & Needs.REWRITE_PIDS:
            await self._host.lend_backends(session, bound_numbers(request))
        out: list[bytes] = []
        offset = pos = 0
        needs_engine = has_failed = False
        while pos < len(request):
            kind = request[pos]
            end = pos + 1 + length_at(request, pos + 1)[0]
            raw = request[pos:end]
            answer: bytes | PgError | None = judged.get(pos)
            if kind == F_SYNC:
                session.local.portals.clear()
            elif answer is None and not has_failed:
                try:
                    answer = await self._local(session, kind, raw)
                    if answer is None and kind == F_PARSE:
                        raw = await self._parse(session, raw)
                except PgError as error:
                    answer = error
            if answer is not None:
                answers[offset] = answer
                has_failed = has_failed or isinstance(answer, PgError)  # what follows will be skipped
            else:
                needs_engine = needs_engine or kind in (F_PARSE, F_BIND, F_DESCRIBE, F_EXECUTE, F_CLOSE)
            out.append(raw)
            offset += len(raw)
            pos = end
        if not session.is_open:
            return
        session.phase = OPEN if session.was_open else IDLE
        session.request = request
        needs_engine = needs_engine or session.was_open
        if not needs_engine and not has_failed:
            session.send(b"".join(answer for answer in answers.values() if isinstance(answer, bytes)))
            observer.after_run(session, None)
            if request[-5:] == SYNC_BYTES:
                session.send_ready()
            session.go_idle()
            return
        session.request = b"".join(out)
        session.local_answers = answers
        session.with_backend(session.send_extended)

    async def _read_ahead(self, session: ClientSession, request: bytes) -> None:
        """Read the long texts of a run in a thread."""
        pos = 0
        while pos < len(request):
            end = pos + 1 + length_at(request, pos + 1)[0]
            if request[pos] == F_PARSE:
                start = request.index(0, pos + 5) + 1
                await session.database.read_ahead(request[start : request.index(0, start)], session.encoding)
            pos = end

    async def _parse(self, session: ClientSession, raw: bytes) -> bytes:
        """A Parse that goes to the engine, with what its text needs done."""
        name_end = raw.index(0, 5)
        tail = raw[name_end + 1 :]
        info = session.database.info_of_parse(tail, session.encoding)
        if info.needs & Needs.REFUSE and info.refusal is not None:
            raise PgError(*info.refusal[:2], detail=info.refusal[2])
        if not session.needs_of(info) & _FORWARDED_NEEDS:
            return raw
        text_end = tail.index(0)
        text = await self._prepare(session, tail[:text_end], info)
        if text == tail[:text_end]:
            return raw
        new_tail = text + tail[text_end:]
        session.database.adopt(new_tail, info)
        body = raw[5 : name_end + 1] + new_tail
        return b"P" + pack_length(len(body) + 4) + body

    async def _local(self, session: ClientSession, kind: int, raw: bytes) -> bytes | None:
        """The answer to one message if it is ours to answer."""
        local = session.local
        if kind == F_PARSE:
            name_end = raw.index(0, 5)
            name = raw[5:name_end]
            info = session.database.info_of_parse(raw[name_end + 1 :], session.encoding)
            if name and name in local.statements:
                raise PgError("42P05", f'prepared statement "{name.decode(errors="replace")}" already exists')
            if not info.needs & (Needs.ADMIN | Needs.LISTENER):
                local.statements.pop(name, None)
                return None
            bound = info.console_command
            if isinstance(bound, BoundCommand) and (error := bound.error) is not None:
                raise error
            local.statements[name] = LocalStatement(info)
            return b"1\0\0\0\4"
        if kind == F_BIND:
            bound_portal = bind_local(local, raw)
            return None if bound_portal is None else b"2\0\0\0\4"
        if kind == F_DESCRIBE:
            return local.describe(raw)
        if kind == F_CLOSE:
            return local.close(raw)
        if kind == F_EXECUTE:
            portal = local.portals.pop(raw[5:-5], None)
            return None if portal is None else await self._execute(session, portal)
        return None

    async def _execute(self, session: ClientSession, portal: LocalPortal) -> bytes:
        info = portal.statement.info
        bound = info.console_command
        if not isinstance(bound, BoundCommand):
            return await self._listen(session, info)
        encoding = session.encoding
        parameters = encode.decode_parameters(bound, portal.values, portal.parameter_formats, encoding)
        result = await self._command(session, bound, tuple(parameters))
        if session.observed is not None:
            session.observed.completed((result.tag or bound.tag).encode())
        return await encode.reply_in_turns(
            bound, result, is_simple=False, formats=portal.result_formats, encoding=encoding
        )


def _needs(session: ClientSession, request: bytes) -> Needs:
    facts = examine(session, request)
    return Needs.NOTHING if facts is None else facts[0]


def _deallocate_all_tag(info: QueryInfo) -> bytes:
    return b"C\0\0\0\x13DEALLOCATE ALL\0"
