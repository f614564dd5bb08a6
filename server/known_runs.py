"""The short way for the two runs that drivers send most: a known statement bound and executed, in one go.

    Bind (unnamed portal, named statement), [Describe], Execute, Sync
    Parse (unnamed), Bind (unnamed portal), [Describe], Execute, Sync

Where the statement is plain, the backend has it and nothing else is special, such a run needs one name replaced or
nothing at all, and
every reply is the client's. `start_known_run` sends it; where anything is different it does nothing and says so, and
the
general way (`server.extended`) takes the run. It must never do what the general way would not.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from protocol.expectations import PASS
from protocol.scan import F_BIND, F_PARSE, HEADER_BYTES, length_at, pack_length
from server.session_state import ACTIVE

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.session import ClientSession

_EXECUTE_SYNC: Final = b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00S\x00\x00\x00\x04"
_TAILS: Final = frozenset({_EXECUTE_SYNC, b"D\x00\x00\x00\x06P\x00" + _EXECUTE_SYNC})


def start_known_run(session: ClientSession, run: bytes) -> bool:
    """Send `run` if it is one of these and nothing about it is special. The session is idle."""
    if (
        session.is_materialised
        or session.local_names is not None
        or session.effects is not None
        or not session.database.is_current
        or session.host.observer.is_active
    ):
        return False
    kind = run[0]
    end = 1 + length_at(run, 1)[0]
    if kind == F_BIND:
        return run[end:] in _TAILS and _start_named(session, run)
    return kind == F_PARSE and end + HEADER_BYTES < len(run) and _start_unnamed(session, run, end)


def _start_named(session: ClientSession, run: bytes) -> bool:
    prepared = session.prepared
    if not prepared or run[5]:
        return False
    name_end = run.index(0, 6)
    statement = prepared.get(run[6:name_end])
    if statement is None or not statement.info.is_plain:
        return False
    backend = _backend(session)
    shared = statement.shared
    if backend is None or shared not in backend.prepared:
        return False
    backend.prepared.move_to_end(shared)
    name = shared.name
    length = length_at(run, 1)[0] - (name_end - 6) + len(name)
    _send(session, backend, run, b"B" + pack_length(length) + b"\0" + name + run[name_end:])
    return True


def _start_unnamed(session: ClientSession, run: bytes, parse_end: int) -> bool:
    if run[5] or run[parse_end] != F_BIND or run[parse_end + 5] or run[parse_end + 6]:
        return False
    if run[parse_end + 1 + length_at(run, parse_end + 1)[0] :] not in _TAILS or session.encoding is not None:
        return False
    text_and_types = run[6:parse_end]
    info = session.database.parses.get(text_and_types)
    if info is None or not info.is_plain:
        return False
    backend = _backend(session)
    if backend is None:
        return False
    session.database.stats.parses += 1
    session.unnamed = backend.unnamed = (text_and_types, info)
    _send(session, backend, run, run)
    return True


def _backend(session: ClientSession) -> BackendConnection | None:
    """The session's backend, or an idle one, if it is in the session's context already."""
    backend = session.backend
    if backend is None:
        backend = session.block.try_acquire(session.context)
        if backend is None:
            return None
        backend.owner = session
        backend.last_session_pid = session.pid
        session.backend = backend
    return backend if backend.context is session.context else None


def _send(session: ClientSession, backend: BackendConnection, run: bytes, data: bytes) -> None:
    session.was_open = False
    session.statements += 1
    session.run_started = session.last_request_at = session.idle_since = perf_counter()
    session.reply_started = False
    session.request = run
    session.run_names = ()
    session.run_is_extended = True
    if session.portals:
        session.portals.pop(b"", None)
    session.phase = ACTIVE
    backend.statements += 1
    backend.send(data, PASS)
