"""A backend that really is the session's own: leased, with its prepared statements under their real names, with its
sequences.

Some statements look at state that PostgreSQL keeps in the backend. Before one of them runs, the session gets a
backend on
which that state is what the client believes it to be.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Protocol

from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.expectations import Expected, HiddenReplies, MixedReplies, Reply
from protocol.scan import F_BIND, READY_FAILED, READY_IDLE, SYNC_BYTES, length_at, message
from server.effects import pin_deferred
from server.hidden import hidden
from server.injected import Compared, HiddenRun, close_message
from server.listen import quote_identifier
from server.prepared import VirtualStatement, bind_values
from server.session_state import BUSY, IDLE, OPEN
from server.statement_info import PinReason

if TYPE_CHECKING:
    from server.session import ClientSession

_SAVEPOINT = "rustydb_materialise"
_PID_LIKE = re.compile(rb"[0-9]{8,10}")
"""Only tells which sessions might be meant; what a statement does with them is the engine's to say."""


class Subscriptions(Protocol):
    """Where a session's shared subscriptions are dropped when it listens itself."""

    def subscribe(self, session: ClientSession, channel: str, *, on: bool) -> None:
        """Add or drop ("": all) a subscription."""


class OwnBackend:
    """Makes a leased backend a session's own."""

    def __init__(self, host: Subscriptions) -> None:
        self._host = host

    async def materialise(self, session: ClientSession) -> None:
        """Give the session a backend of its own that has its prepared statements, and listens, under their real
        names.
        """
        if session.is_materialised:
            return
        if session.was_open:
            session.wants_own_names = True  # within the pipeline, where the statement stands
            return
        backend = await self.lease(session)
        session.pins.add(PinReason.SQL_PREPARE)
        session.block.mark_long_held(backend)
        await hidden(backend, "DEALLOCATE ALL")
        backend.prepared.clear()
        backend.unnamed = None
        if session.prepared:
            await self._prepare_by_name(backend, session.prepared)
            if sum(pin_deferred(session, statement.info) for statement in session.prepared.values()):
                await self.bind_to_sequences(session)
        for channel in sorted(session.channels or ()):
            await hidden(backend, f"LISTEN {quote_identifier(channel)}")
        if session.channels:
            session.pins.add(PinReason.LISTEN)
            self._host.subscribe(session, "", on=False)
        session.is_materialised = True

    async def _prepare_by_name(self, backend: BackendConnection, prepared: dict[bytes, VirtualStatement]) -> None:
        """Prepare a session's statements under the client's names. One whose tables are gone, or whose result type is
        not what the client saw, stays unprepared: it could only fail, but must not make the statement at hand fail.
        """
        in_block = backend.status != READY_IDLE
        for name, statement in prepared.items():
            if in_block:
                await hidden(backend, f"SAVEPOINT {_SAVEPOINT}")
            changes: list[PgError] = []
            replies = MixedReplies()
            replies.push(Expected(Reply.PARSE))
            replies.push(Expected(Reply.DESCRIBE, on_answer=Compared(statement, changes)))
            replies.push(Expected(Reply.SYNC))
            messages = statement.shared.parse_message(name) + message(b"D", b"S" + name + b"\0")
            try:
                await hidden_run(backend, messages, replies)
            except PgError:
                if backend.is_lost:
                    raise
            if changes and statement.description is not None:
                await self._close(backend, name)
            if in_block:  # what is prepared stays; the error, and locks on the tables that it reads, go
                await hidden(backend, f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}; RELEASE SAVEPOINT {_SAVEPOINT}")

    @staticmethod
    async def _close(backend: BackendConnection, name: bytes) -> None:
        replies = MixedReplies()
        replies.push(Expected(Reply.CLOSE))
        replies.push(Expected(Reply.SYNC))
        await hidden_run(backend, close_message(name), replies)

    async def bind_to_sequences(self, session: ClientSession) -> None:
        """currval and lastval: the backend where this session advanced a sequence last, if nobody was there since.

        From now on sessions of this role stay on the backend on which they advance a sequence.
        """
        session.database.sequence_readers.add(session.identity.role)
        known = session.sequence_backend
        is_ours = known is not None and known.last_session_pid == session.pid
        if session.backend is None and known is not None and is_ours and session.block.try_acquire_this(known):
            known.owner = session
            session.backend = known
        backend = await self.lease(session)
        if session.status == READY_FAILED:
            return
        is_under_way = session.was_open and session.effects is not None and session.effects.advances_sequence
        if not is_under_way and (backend is not known or not is_ours):
            must_not_be_within(session)
            await hidden(backend, "DISCARD SEQUENCES")
        session.pins.add(PinReason.SEQUENCE_STATE)
        session.block.mark_long_held(backend)

    async def lease(self, session: ClientSession) -> BackendConnection:
        """The session's backend, leased now if it has none."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ready() -> None:
            if not future.done():
                future.set_result(None)

        session.phase = OPEN if session.was_open else IDLE
        session.with_backend(ready)
        await future
        if session.is_open:
            session.phase = BUSY
        backend = session.backend
        if backend is None:
            raise PgError("08006", "connection to the database engine was lost")
        return backend


async def hidden_run(backend: BackendConnection, messages: bytes, replies: MixedReplies) -> None:
    """Run our own extended messages (without Sync) on a leased backend and wait for them. Raises their PgError."""
    future: asyncio.Future[HiddenReplies] = asyncio.get_running_loop().create_future()
    run = HiddenRun(replies, lambda reply: None if future.done() else future.set_result(reply))
    backend.send(messages + SYNC_BYTES, run)
    reply = await future
    if reply.error is not None:
        raise reply.error


def numbers_in(text: bytes) -> set[int]:
    """Whole numbers that stand in a text and could be virtual process ids."""
    return {int(found) for found in _PID_LIKE.findall(text)}


def bound_numbers(run: bytes) -> set[int]:
    """Values bound in a run that could be virtual process ids, as text or binary integers."""
    numbers: set[int] = set()
    pos = 0
    while pos < len(run):
        end = pos + 1 + length_at(run, pos + 1)[0]
        if run[pos] == F_BIND:
            for value in bind_values(run, pos, end):
                if value is not None and _PID_LIKE.fullmatch(value):
                    numbers.add(int(value))
                elif value is not None and len(value) in (4, 8):
                    numbers.add(int.from_bytes(value, "big"))
        pos = end
    return numbers


def must_not_be_within(session: ClientSession) -> None:
    """What takes words of our own with the engine cannot happen while replies to a pipeline are under way."""
    if session.was_open:
        raise PgError(
            "0A000",
            "this statement cannot be run in the middle of a pipeline",
            hint="End what was sent before it with a Sync.",
        )
