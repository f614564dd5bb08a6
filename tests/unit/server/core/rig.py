"""A session and a backend without sockets: real objects of the core over wires that keep what is written."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from engine.connection import BackendConnection
from protocol.scan import length_at
from server.context import ContextRegistry
from server.database import DatabaseState
from server.session import ClientSession
from server.statement import Analyzer
from server.statement_info import Needs, QueryInfo


class Wire:
    """As much of a transport as sessions and backends use."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_gone = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.is_gone

    def close(self) -> None:
        self.is_gone = True

    abort = close

    def pause_reading(self) -> None:
        """Nothing reads."""

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0

    def take(self) -> bytes:
        """What was written since the last call."""
        data = bytes(self.sent)
        self.sent.clear()
        return data


class Block:
    """A pool block with the backends it is given."""

    def __init__(self, *backends: BackendConnection) -> None:
        self.idle = list(backends)
        self.gone: list[BackendConnection] = []
        self.waiters: list[Any] = []

    def try_acquire(self, context: object) -> BackendConnection | None:
        return self.idle.pop() if self.idle else None

    def release(self, backend: BackendConnection, *, reusable: bool = True) -> None:
        (self.idle if reusable else self.gone).append(backend)

    def wait(self, waiter: Any) -> None:
        self.waiters.append(waiter)

    def cancel(self, waiter: Any) -> bool:
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            return True
        return False

    def mark_long_held(self, backend: BackendConnection) -> None:
        """Only statistics."""


class Rig:
    """One database, as many sessions and backends as a test makes."""

    def __init__(self, max_prepared_statements: int = 3) -> None:
        self.contexts = ContextRegistry()
        self.stats = SimpleNamespace(
            parses=0, waited=lambda _: None, statement_ended=lambda _: None, count_error=lambda _: None
        )
        self.database = DatabaseState(
            "d",
            contexts=self.contexts,
            analyzer=Analyzer(),
            reader=cast(Any, None),
            stats=cast(Any, self.stats),
            max_prepared_statements=max_prepared_statements,
        )
        self.host = SimpleNamespace(
            observer=SimpleNamespace(is_active=False),
            max_message_bytes=1 << 20,
            statement_settled=lambda session, tracker: None,
        )
        self.block = Block()

    def backend(self) -> BackendConnection:
        """An idle backend with the server's settings."""
        made = BackendConnection(
            transport=cast(asyncio.Transport, Wire()),
            database="d",
            role="r",
            pid=7,
            secret=b"",
            reported={"client_encoding": "UTF8", "DateStyle": "ISO, MDY"},
            connected_at=0.0,
        )
        made.context = self.contexts.empty
        return made

    def session(self, **baseline: str) -> ClientSession:
        """A session that was just logged in."""
        identity = SimpleNamespace(role="r", role_oid=10, is_superuser=False, auth_method="x", client_addr="")
        return ClientSession(
            host=cast(Any, self.host),
            transport=cast(asyncio.Transport, Wire()),
            identity=cast(Any, identity),
            protocol_version=(3, 0),
            database=self.database,
            block=cast(Any, self.block),
            context=self.contexts.intern(baseline),
            reported={"client_encoding": "UTF8", "DateStyle": "ISO, MDY"},
            defaults={"client_encoding": "UTF8", "DateStyle": "ISO, MDY"},
            pid=10_000_000,
            serial=1,
            secret=b"",
            now=0.0,
        )


def sent(wire: asyncio.Transport) -> bytes:
    """What went over a wire since the last call."""
    return cast(Any, wire).take()


def messages(data: bytes) -> list[tuple[str, bytes]]:
    """Type and body of each message."""
    found = []
    pos = 0
    while pos < len(data):
        end = pos + 1 + length_at(data, pos + 1)[0]
        found.append((chr(data[pos]), data[pos + 5 : end]))
        pos = end
    return found


def plain_info(needs: Needs = Needs.NOTHING) -> QueryInfo:
    return QueryInfo((), is_plain=True, needs=needs)
