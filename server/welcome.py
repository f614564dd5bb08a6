"""What a new session is told before its first ReadyForQuery, learned from the engine once for each way to start.

A session begins without a backend of its own: the ParameterStatus burst for a role, a database and a set of startup
settings is
learned on a leased backend the first time, and kept. Wrong startup settings fail as PostgreSQL fails them.
`application_name` differs from
client to client and needs no check, so it is no part of the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import PgError
from protocol.expectations import HiddenReplies
from protocol.scan import message
from server.context import REPORTED_NAMES, ContextRegistry, SessionContext, quote_literal, replay_sql
from server.effects import REFUSED_ENCODINGS, python_encoding
from server.errors import pool_error
from server.hidden import hidden
from server.pool.settings import PoolKey

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.pool.block import Block

_MAX_ENTRIES = 2000

_Key = tuple[PoolKey, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Welcome:
    """How sessions of one kind start. `reported` and `defaults` are shared: never changed in place."""

    context: SessionContext
    reported: dict[str, str]
    defaults: dict[str, str]
    burst: bytes
    encoding: str | None


class WelcomeBook:
    """The welcomes learned so far."""

    def __init__(self, contexts: ContextRegistry) -> None:
        self._contexts = contexts
        self._known: dict[_Key, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {}
        self._finished: dict[tuple[_Key, str], Welcome] = {}

    def clear(self) -> None:
        """Defaults of roles or databases may have changed."""
        self._known.clear()
        self._finished.clear()

    def forget_database(self, database: str) -> None:
        """The database goes, or becomes another."""
        self._known = {key: value for key, value in self._known.items() if key[0].database != database}
        self._finished = {key: value for key, value in self._finished.items() if key[0][0].database != database}

    def find(self, pool_key: PoolKey, parameters: Mapping[str, str]) -> Welcome | None:
        """The welcome for these startup settings, if it is known."""
        name, rest = _split(parameters)
        key = (pool_key, rest)
        finished = self._finished.get((key, name))
        if finished is not None:
            return finished
        known = self._known.get(key)
        return None if known is None else self._finish(key, name, known)

    def _finish(self, key: _Key, name: str, known: tuple[dict[str, str], dict[str, str], dict[str, str]]) -> Welcome:
        settings, reported, defaults = known
        if name:
            cleaned = "".join(c if " " <= c <= "~" else "?" for c in name)[:63]
            if cleaned != defaults.get("application_name", ""):
                settings = {**settings, "application_name": cleaned}
                reported = {**reported, "application_name": cleaned}
        burst = b"".join(message(b"S", f"{key_}\0{value}\0".encode()) for key_, value in reported.items())
        encoding = python_encoding(reported.get("client_encoding", "UTF8"))
        welcome = Welcome(self._contexts.intern(settings), reported, defaults, burst, encoding)
        if len(self._finished) >= _MAX_ENTRIES:
            self._finished.clear()
        self._finished[key, name] = welcome
        return welcome

    async def learn(
        self, block: Block[BackendConnection], parameters: Mapping[str, str], empty: SessionContext
    ) -> Welcome:
        """Ask a backend. Raises PgError as PostgreSQL would answer such a startup."""
        name, rest = _split(parameters)
        backend = await lease(block, empty)
        reusable = False
        try:
            sql = replay_sql(backend.context, empty)  # type: ignore[arg-type]
            if sql:
                await hidden(backend, sql)
                backend.context = empty
            defaults = dict(backend.reported)
            settings: dict[str, str] = {}
            if rest:
                calls = ", ".join(
                    f"pg_catalog.set_config({quote_literal(key)}, {quote_literal(value)}, false)"
                    for key, value in sorted(rest)
                )
                backend.context = None
                reply = await hidden(backend, "SELECT " + calls)
                settings = _changed(sorted(rest), reply, backend.reported, defaults)
                backend.context = self._contexts.intern(settings)
            reported = dict(backend.reported)
            reusable = True
            _check_lexer(reported)
        except PgError as error:
            reusable = not backend.is_lost
            error.severity = "FATAL"
            raise
        finally:
            backend.owner = None
            block.release(backend, reusable=reusable and backend.is_idle)
        if len(self._known) >= _MAX_ENTRIES:
            self._known.clear()
        key = (block.key, rest)
        self._known[key] = (settings, reported, defaults)
        return self._finish(key, name, self._known[key])


def _split(parameters: Mapping[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
    rest = {name.lower(): value for name, value in parameters.items()}
    name = rest.pop("application_name", "")
    return name, frozenset(rest.items())


def _changed(
    asked: list[tuple[str, str]], reply: HiddenReplies, reported: Mapping[str, str], defaults: Mapping[str, str]
) -> dict[str, str]:
    """The context that the startup settings make: canonical values, without those that change nothing."""
    settings: dict[str, str] = {}
    for (name, _), answer in zip(asked, reply.rows[0], strict=True):
        reported_as = REPORTED_NAMES.get(name)
        if reported_as is None:
            settings[name] = (answer or b"").decode(errors="replace")
        elif reported.get(reported_as) != defaults.get(reported_as):
            settings[name] = reported.get(reported_as, "")
    return settings


def _check_lexer(reported: Mapping[str, str]) -> None:
    encoding = reported.get("client_encoding", "UTF8")
    if encoding in REFUSED_ENCODINGS:
        raise PgError("22023", f'client encoding "{encoding}" is not allowed: its characters can hide quotes')
    if reported.get("standard_conforming_strings") == "off":
        raise PgError("22023", "standard_conforming_strings cannot be turned off")


class _Lease:
    """A waiter with a future."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[BackendConnection] = asyncio.get_running_loop().create_future()

    def granted(self, conn: BackendConnection) -> None:
        """The pool has one."""
        self.future.set_result(conn)

    def failed(self, exc: BaseException) -> None:
        """The pool has none."""
        self.future.set_exception(pool_error(exc))


async def lease(block: Block[BackendConnection], context: object) -> BackendConnection:
    """A backend for work that is not a session's own. Raises PgError."""
    backend = block.try_acquire(context)
    if backend is not None:
        return backend
    waiter = _Lease()
    block.wait(waiter)
    try:
        return await asyncio.shield(waiter.future)
    except asyncio.CancelledError:
        if not block.cancel(waiter) and waiter.future.done() and waiter.future.exception() is None:
            block.release(waiter.future.result())
        raise
