"""Hooks and query events on the query path.

Only asked while somebody registered (`QueryObserver.is_active`). What hooks answer at once costs calls, no task;
what they wait for gets one. A
simple Query is one execution; in the extended protocol each Execute is one, with the values bound to its portal.
Verdicts
become answers at the execution's place in the run (`ClientSession.local_answers`): bytes for an Answer, a PgError
for a Deny.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from protocol.errors import PgError
from protocol.scan import F_BIND, F_EXECUTE, F_PARSE, SYNC_BYTES, length_at, pack_length
from server.extension.bus import EventBus
from server.extension.context import NO_PARAMETERS, Conversation, Parameters, QueryContext, SessionInfo
from server.extension.events import CacheUse, Outcome, QueryFinished, QueryStarted, Verdict
from server.extension.hooks import CONTINUE, Answer, Deny, Hooks, Judgement, Rewrite
from server.local_statement import read_formats
from server.prepared import bind_values
from server.statement_info import QueryInfo

if TYPE_CHECKING:
    from server.session import ClientSession


@dataclass(slots=True)
class BoundPortal:
    """What an Execute of this portal will run."""

    text: bytes
    info: QueryInfo
    statement_name: str
    parameters: Parameters
    result_formats: tuple[int, ...]


class ObservedRun:
    """The executions of one run that are to be told of when it is over."""

    __slots__ = ("_done", "_waiting", "contexts", "is_denied", "received", "sent", "started", "tags", "wait_us")

    def __init__(self, received: int) -> None:
        self.contexts: list[QueryContext] = []
        self.tags: list[tuple[str, bool]] = []  # of completed executions: tag, and whether a row limit ended it
        self.is_denied = False  # the last of `contexts` was
        self.started = perf_counter()
        self.received = received
        self.sent = 0
        self.wait_us = 0

    def completed(self, tag: bytes | None) -> None:
        """One statement completed, or reached its row limit (None)."""
        self.tags.append(("" if tag is None else tag.decode(errors="replace"), tag is None))


class QueryObserver:
    """Asks hooks and publishes query events. One a server."""

    def __init__(self, hooks: Hooks, bus: EventBus) -> None:
        self._hooks = hooks
        self._bus = bus
        self._query_ids = itertools.count(1)

    @property
    def is_active(self) -> bool:
        """Whether anybody wants to know of statements."""
        hooks, bus = self._hooks, self._bus
        return bool(hooks.before_query or hooks.after_query or bus.wants_query_started or bus.wants_query_finished)

    # -- before ----------------------------------------------------------------------------------------------------

    def before_query(
        self, session: ClientSession, request: bytes, info: QueryInfo
    ) -> Awaitable[bytes | None] | bytes | None:
        """Ask about a simple Query; the request to go on with, None where it was answered. Raises PgError for a
        Deny.
        """
        context = self._context(session, _decode(session, request[5:-1]), info, Conversation.SIMPLE)
        run = session.observed = ObservedRun(len(request))
        judgement = self._ask(context)
        if isinstance(judgement, Judgement):
            started = self._started(judgement)
            if started is None:
                return self._obey(session, run, request, judgement)
            return self._obey_later(session, run, request, judgement, started)
        return self._judge_later(session, run, request, judgement)

    async def _judge_later(
        self, session: ClientSession, run: ObservedRun, request: bytes, pending: Awaitable[Judgement]
    ) -> bytes | None:
        judgement = await pending
        started = self._started(judgement)
        if started is not None:
            await started
        return self._obey(session, run, request, judgement)

    async def _obey_later(
        self, session: ClientSession, run: ObservedRun, request: bytes, judgement: Judgement, started: Awaitable[None]
    ) -> bytes | None:
        await started
        return self._obey(session, run, request, judgement)

    def _obey(self, session: ClientSession, run: ObservedRun, request: bytes, judgement: Judgement) -> bytes | None:
        decision = judgement.decision
        run.contexts.append(judgement.context)
        if isinstance(decision, Deny):
            run.is_denied = True
            raise decision.error
        if isinstance(decision, Answer):
            if session.was_open:
                raise PgError(
                    "0A000", "a simple query behind a pipeline without a Sync cannot be answered by a feature"
                )
            run.completed(decision.command_tag.encode())
            session.send(decision.row_description + decision.body)
            return None
        if isinstance(decision, Rewrite):
            text = judgement.context.text.encode()
            return b"Q" + pack_length(len(text) + 5) + text + b"\0"
        return request

    async def before_run(self, session: ClientSession, request: bytes) -> dict[int, bytes | PgError]:
        """Ask about every Execute of an extended run; answers by the offset of their message."""
        run = session.observed
        if run is None or not session.was_open:
            run = session.observed = ObservedRun(0)
        run.received += len(request)
        answers: dict[int, bytes | PgError] = {}
        for pos, portal_name, row_limit, portal in executions(session, request):
            context = self._context(
                session,
                _decode(session, portal.text),
                portal.info,
                Conversation.EXTENDED,
                portal,
                portal_name,
                row_limit,
            )
            asked = self._ask(context)
            judgement = asked if isinstance(asked, Judgement) else await asked
            started = self._started(judgement)
            if started is not None:
                await started
            run.contexts.append(judgement.context)
            decision = judgement.decision
            if isinstance(decision, Deny):
                run.is_denied = True
                answers[pos] = decision.error
                break
            if isinstance(decision, Answer):
                answers[pos] = decision.body
            elif isinstance(decision, Rewrite):
                answers[pos] = PgError(
                    "0A000", "a prepared statement cannot be rewritten", detail=decision.reason or None
                )
                break
        return answers

    def _ask(self, context: QueryContext) -> Judgement | Awaitable[Judgement]:
        if self._hooks.before_query:
            return self._hooks.ask_before_query(context)
        return Judgement(CONTINUE, Verdict.CONTINUE, "", "", context)

    def _started(self, judgement: Judgement) -> Awaitable[None] | None:
        if not self._bus.wants_query_started:
            return None
        return self._bus.publish_inline(
            QueryStarted(judgement.context, judgement.verdict, judgement.decided_by, judgement.reason)
        )

    def _context(
        self,
        session: ClientSession,
        text: str,
        info: QueryInfo,
        conversation: Conversation,
        portal: BoundPortal | None = None,
        portal_name: str = "",
        row_limit: int = 0,
    ) -> QueryContext:
        return QueryContext(
            next(self._query_ids),
            session_info(session),
            session.context.id,
            session.context.settings.get("role", session.identity.role),
            text,
            info,
            conversation,
            NO_PARAMETERS if portal is None else portal.parameters,
            () if portal is None else portal.result_formats,
            row_limit,
            "" if portal is None else portal.statement_name,
            portal_name,
            chr(session.status),
            time.time(),
            time.monotonic_ns(),
            {},
        )

    # -- after -----------------------------------------------------------------------------------------------------

    def after_run(
        self, session: ClientSession, error: PgError | None, *, is_lost: bool = False
    ) -> Awaitable[None] | None:
        """The run is over: tell of its executions. Returns what to await before ReadyForQuery is written, if
        anything.
        """
        run, session.observed = session.observed, None
        if run is None:
            return None
        pending: list[Awaitable[None]] = []
        for finished in self._finished(session, run, error, is_lost=is_lost):
            after = self._hooks.tell_after_query(finished) if self._hooks.after_query else None
            if after is not None:
                pending.append(after)
            if self._bus.wants_query_finished:
                told = self._bus.publish_inline(finished)
                if told is not None:
                    pending.append(told)
        return _all(pending) if pending else None

    def _finished(
        self, session: ClientSession, run: ObservedRun, error: PgError | None, *, is_lost: bool
    ) -> list[QueryFinished]:
        duration = int((perf_counter() - run.started) * 1e6)
        is_simple = bool(run.contexts) and run.contexts[0].conversation is Conversation.SIMPLE
        events = []
        for index, context in enumerate(run.contexts):
            if is_simple:
                tag, suspended = run.tags[-1] if run.tags else ("", False)
                failed = error is not None or is_lost
            else:
                tag, suspended = run.tags[index] if index < len(run.tags) else ("", False)
                failed = index >= len(run.tags)
            outcome = Outcome.OK
            if failed:
                is_first = is_simple or index == len(run.tags)
                outcome = _outcome(error, is_lost=is_lost, is_first=is_first)
                if outcome is Outcome.ERROR and run.is_denied and context is run.contexts[-1]:
                    outcome = Outcome.DENIED
            events.append(
                QueryFinished(
                    context,
                    outcome,
                    error.sqlstate if failed and error is not None else None,
                    tag,
                    _rows(tag),
                    run.sent,
                    run.received,
                    duration,
                    run.wait_us,
                    session.backend.pid if session.backend is not None else None,
                    chr(session.status),
                    CacheUse.BYPASS,
                    suspended,
                )
            )
        return events


async def _all(pending: list[Awaitable[None]]) -> None:
    for one in pending:
        await one


def _outcome(error: PgError | None, *, is_lost: bool, is_first: bool) -> Outcome:
    if is_lost:
        return Outcome.UNKNOWN
    if not is_first or error is None:
        return Outcome.CANCELLED  # skipped, because something before it failed
    return Outcome.CANCELLED if error.sqlstate == "57014" else Outcome.ERROR


def _rows(tag: str) -> int:
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


def _decode(session: ClientSession, text: bytes) -> str:
    return text.decode(session.encoding or "utf-8", errors="replace")


def session_info(session: ClientSession) -> SessionInfo:
    """The session as features see it."""
    if session.info is None:
        identity = session.identity
        session.info = SessionInfo(
            session.pid,
            session.serial,
            identity.role,
            identity.role_oid,
            identity.is_superuser,
            session.database.name,
            session.reported.get("application_name", ""),
            identity.auth_method,
            identity.client_addr,
            identity.client_port,
            identity.local_addr,
            identity.tls,
            session.protocol_version,
            False,
            time.time() - (perf_counter() - session.connected_at),
        )
    return session.info


def executions(session: ClientSession, run: bytes) -> list[tuple[int, str, int, BoundPortal]]:
    """Every Execute of a run: its offset, portal, row limit, and what the portal runs. Remembers portals for
    later runs.
    """
    found: list[tuple[int, str, int, BoundPortal]] = []
    parsed: dict[bytes, tuple[bytes, QueryInfo]] = {}
    bound = session.bound
    if bound is None:
        bound = session.bound = {}
    pos = 0
    while pos < len(run):
        kind = run[pos]
        end = pos + 1 + length_at(run, pos + 1)[0]
        if kind == F_PARSE:
            name_end = run.index(0, pos + 5, end)
            tail = run[name_end + 1 : end]
            info = session.database.info_of_parse(tail, session.encoding)
            parsed[run[pos + 5 : name_end]] = (tail[: tail.index(0)], info)
        elif kind == F_BIND:
            portal_end = run.index(0, pos + 5, end)
            portal = _bound(session, parsed, run, pos, portal_end, end)
            if portal is not None:
                bound[run[pos + 5 : portal_end]] = portal
        elif kind == F_EXECUTE:
            name = run[pos + 5 : end - 5]
            known = bound.get(name)
            if known is not None:
                found.append((pos, name.decode(errors="replace"), int.from_bytes(run[end - 4 : end], "big"), known))
        pos = end
    if run[-5:] == SYNC_BYTES and len(bound) > 64:
        bound.clear()
    return found


def _bound(
    session: ClientSession,
    parsed: dict[bytes, tuple[bytes, QueryInfo]],
    run: bytes,
    pos: int,
    portal_end: int,
    end: int,
) -> BoundPortal | None:
    name_end = run.index(0, portal_end + 1, end)
    name = run[portal_end + 1 : name_end]
    known = parsed.get(name)
    if known is None and name:
        statement = session.prepared.get(name) if session.prepared is not None else None
        if statement is not None:
            tail = statement.shared.text_and_types
            known = (tail[: tail.index(0)], statement.info)
    elif known is None and session.unnamed is not None:
        tail, info = session.unnamed
        known = (tail[: tail.index(0)], info)
    if known is None:
        return None
    values = tuple(bind_values(run, pos, end))
    formats, cursor = read_formats(run, name_end + 1)
    cursor += 2 + sum(4 + len(value or b"") for value in values)
    result_formats, _ = read_formats(run, cursor)
    return BoundPortal(known[0], known[1], name.decode(errors="replace"), Parameters(values, formats), result_formats)
