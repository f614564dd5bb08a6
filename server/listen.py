"""LISTEN for pooled sessions: one listening connection a database, shared by all of its sessions.

A `ListenHub` owns that connection (outside the pool's budget, made when the first session listens, closed with the
last). Channels are counted by subscription. When the engine comes back after a loss the channels are listened to
again; what was
sent in between is lost, as it is for any client of a crashed PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.expectations import HiddenReplies
from protocol.scan import B_NOTIFICATION, message
from server.hidden import hidden

_log = logging.getLogger("rustydb.listen")

_RETRY_SECONDS = 0.5


class Listener(Protocol):
    """A session that listens."""

    def notify(self, message: bytes) -> None:
        """Give the client a NotificationResponse, when the protocol allows."""


class ListenHub:
    """The shared listener of one database."""

    def __init__(self, connect: Callable[[], Awaitable[BackendConnection]], virtual_pid: Callable[[int], int]) -> None:
        self._connect = connect
        self._virtual_pid = virtual_pid
        self._connection: BackendConnection | None = None
        self._subscribers: dict[str, set[Listener]] = {}
        self._lock = asyncio.Lock()
        self._recovery: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def channels(self) -> frozenset[str]:
        """Channels with a subscriber."""
        return frozenset(self._subscribers)

    async def hear(self, channel: str) -> None:
        """Return when the engine delivers this channel to us. Raises PgError."""
        async with self._lock:
            connection = await self._connected()
            if channel not in self._subscribers:
                await hidden(connection, f"LISTEN {quote_identifier(channel)}")

    def subscribe(self, listener: Listener, channel: str) -> None:
        """From now on `listener` gets what is sent to `channel`, which is already heard."""
        self._subscribers.setdefault(channel, set()).add(listener)

    def unsubscribe(self, listener: Listener, channel: str = "") -> None:
        """Drop one subscription of `listener`, or all of them."""
        for name in [channel] if channel else list(self._subscribers):
            listeners = self._subscribers.get(name)
            if listeners is None:
                continue
            listeners.discard(listener)
            if not listeners:
                del self._subscribers[name]
                if self._connection is not None and not self._connection.is_lost:
                    self._connection.send_hidden(f"UNLISTEN {quote_identifier(name)}", _ignore)
        if not self._subscribers:
            self.close_connection()

    def sync(self, then: Callable[[], None]) -> None:
        """Call `then` when everything sent before now has been handed to the subscribers."""
        if self._connection is None or self._connection.is_lost:
            then()
            return
        self._connection.send_hidden("", lambda _: then())

    def close_connection(self) -> None:
        """Let go of the connection (no subscriber left, or the database is about to go)."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.owner = None
            connection.close()

    def close(self) -> None:
        """For good."""
        self._is_closed = True
        if self._recovery is not None:
            self._recovery.cancel()
        self.close_connection()

    async def _connected(self) -> BackendConnection:
        if self._connection is None or self._connection.is_lost:
            connection = await self._connect()
            connection.owner = self
            for channel in self._subscribers:
                await hidden(connection, f"LISTEN {quote_identifier(channel)}")
            self._connection = connection
        return self._connection

    async def _recover(self) -> None:
        while self._subscribers and not self._is_closed:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                async with self._lock:
                    await self._connected()
            except PgError as error:
                _log.debug("the shared listener is not back yet: %s", error.message)
                continue
            return

    # -- BackendOwner ----------------------------------------------------------------------------------------------

    def backend_chunk(self, chunk: bytes) -> None:
        """A message while idle: only notifications are of interest."""
        if chunk[0] != B_NOTIFICATION:
            return
        channel = chunk[9 : chunk.index(0, 9)].decode(errors="replace")
        for listener in list(self._subscribers.get(channel, ())):
            listener.notify(chunk)

    def backend_notifier(self, pid: int) -> int:
        """The session that sent it."""
        return self._virtual_pid(pid)

    def backend_ready(self, chunk: bytes, status: int) -> None:
        """Nothing of a client's runs here."""

    def backend_complete(self, tag: bytes | None) -> None:
        """Nothing of a client's runs here."""

    def backend_error(self, error: PgError, raw: bytes) -> bytes:
        """Nothing of a client's runs here."""
        return raw

    def backend_parameter(self, name: str, value: str) -> None:
        """Of no interest."""

    def backend_copy_in(self) -> None:
        """Nothing of a client's runs here."""

    def backend_pressure(self, *, is_high: bool) -> None:
        """We send little."""

    def backend_lost(self, error: PgError | None) -> None:
        """Come back as soon as the engine does."""
        self._connection = None
        if self._subscribers and not self._is_closed:
            self._recovery = asyncio.get_running_loop().create_task(self._recover(), name="shared listener recovery")


def quote_identifier(name: str) -> str:
    """As PostgreSQL quotes one."""
    return '"' + name.replace('"', '""') + '"'


def _ignore(reply: HiddenReplies) -> None:
    """UNLISTEN cannot fail in a way that matters: what is heard without a subscriber is dropped."""


class Listening(Listener, Protocol):
    """A session with its subscriptions."""

    channels: set[str] | None


def transcoded(notification: bytes, encoding: str) -> bytes:
    """A NotificationResponse, which the shared listener hears in UTF-8, in a client's encoding."""
    return message(
        b"A", notification[5:9] + notification[9:].decode(errors="replace").encode(encoding, errors="replace")
    )


class ListenHubs:
    """The shared listeners of all databases."""

    def __init__(self, dial: Callable[[str], Awaitable[BackendConnection]], virtual_pid: Callable[[int], int]) -> None:
        self._dial = dial
        self._virtual_pid = virtual_pid
        self._hubs: dict[str, ListenHub] = {}

    async def hear(self, database: str, channel: str) -> None:
        """Make the listener of a database hear a channel."""
        hub = self._hubs.get(database)
        if hub is None:
            hub = self._hubs[database] = ListenHub(lambda: self._dial(database), self._virtual_pid)
        await hub.hear(channel)

    def subscribe(self, database: str, session: Listening, channel: str, *, on: bool) -> None:
        """Add or drop ("": all) a subscription."""
        hub = self._hubs.get(database)
        if on:
            if session.channels is None:
                session.channels = set()
            session.channels.add(channel)
            if hub is not None:
                hub.subscribe(session, channel)
        elif session.channels:
            if hub is not None:
                hub.unsubscribe(session, channel)
            if channel:
                session.channels.discard(channel)
            else:
                session.channels.clear()

    def sync(self, database: str, then: Callable[[], None]) -> None:
        """Call `then` when what was sent before now has been handed out."""
        hub = self._hubs.get(database)
        if hub is None:
            then()
        else:
            hub.sync(then)

    def make_way(self, database: str) -> None:
        """Leave a database that is about to go. Sessions elsewhere keep their subscriptions."""
        hub = self._hubs.get(database)
        if hub is not None:
            hub.close_connection()

    def close(self) -> None:
        """For good."""
        for hub in self._hubs.values():
            hub.close()
