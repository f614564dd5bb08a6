"""A client between `accept` and its first packet, on the bare socket: the first bytes decide about encryption.

0x16 is a TLS record (direct TLS); 8 bytes more are read of anything else, and never a byte beyond them, so that
whatever follows an encryption request is still in the kernel when TLS starts. Bytes that are there before we have
answered such a request were not protected by it: they end the connection (CVE-2021-3935 and its kin).
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from protocol.codes import RequestCode
from protocol.errors import PgError
from protocol.sqlstate import PROTOCOL_VIOLATION
from server.handshake import DoorServices, Handshake
from server.tls import TlsState

TLS_RECORD_HANDSHAKE: Final = b"\x16"
READY_BATCH: Final = 32  # clients looked at before the loop does something else
GREETING_BYTES: Final = 8  # length and code: every first packet has at least these

_GREETING: Final = struct.Struct("!II")
_SSL_REQUEST: Final = _GREETING.pack(GREETING_BYTES, RequestCode.SSL)
_GSSENC_REQUEST: Final = _GREETING.pack(GREETING_BYTES, RequestCode.GSSENC)


class Lobby:
    """Waits on many sockets with one reader of the loop.

    An epoll (or kqueue) of its own, because uvloop's readers are not told of a reset connection: libuv stops watching
    a descriptor in error without a call, and the socket would stay until its timeout. It also costs less than a
    reader a socket.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._selector = selectors.DefaultSelector()
        loop.add_reader(self._selector.fileno(), self._on_ready)

    def add(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, on_readable)

    def remove(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def close(self) -> None:
        """Nobody may be in it any more."""
        self._loop.remove_reader(self._selector.fileno())
        self._selector.close()

    def _on_ready(self) -> None:
        # What is left stays ready, and is called for in the loop's next round.
        for key, _ in self._selector.select(0)[:READY_BATCH]:
            key.data()


class Arrival:
    """A fresh connection whose first packet has not come yet. No task, no transport: a socket, a timer, 8 bytes."""

    __slots__ = ("_asked", "_greeting", "_lobby", "_loop", "_on_done", "_services", "_sock", "_timer", "accepted_at")

    def __init__(
        self,
        services: DoorServices,
        lobby: Lobby,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_done: Callable[[Arrival, Handshake | None], None],
    ) -> None:
        """`on_done` is called once, later: with the handshake to run, or None where the socket was closed."""
        self._services = services
        self._lobby = lobby
        self._loop = loop
        self._sock = sock
        self._on_done = on_done
        self._greeting = b""
        self._asked: set[bytes] = set()
        self.accepted_at = time.monotonic()
        self._timer = loop.call_later(services.config.server.authentication_timeout, self._expire)

    def start(self) -> None:
        """Begin to wait."""
        self._lobby.add(self._sock, self.on_readable)

    def close(self) -> None:
        """Give up this connection."""
        self._leave()
        self._sock.close()
        self._on_done(self, None)

    def _leave(self) -> None:
        self._timer.cancel()
        self._lobby.remove(self._sock)

    def _expire(self) -> None:
        self._services.counters.timeouts += 1
        self.close()

    def on_readable(self) -> None:
        """Bytes, the end, or an error."""
        try:
            if not self._greeting and self._sock.recv(1, socket.MSG_PEEK) == TLS_RECORD_HANDSHAKE:
                self._begin_direct_tls()
                return
            data = self._sock.recv(GREETING_BYTES - len(self._greeting))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        self._greeting += data
        if len(self._greeting) < GREETING_BYTES:
            return
        if self._greeting in (_SSL_REQUEST, _GSSENC_REQUEST) and self._greeting not in self._asked:
            self._answer_encryption_request(self._greeting)
        else:
            self._begin(None, is_direct=False)

    def _answer_encryption_request(self, request: bytes) -> None:
        """One byte: S, N. Whatever was sent behind the request, before the answer, is an attack or a bug."""
        self._asked.add(request)
        self._greeting = b""
        tls = self._services.tls.current if request == _SSL_REQUEST and self._sock.family != socket.AF_UNIX else None
        try:
            if self._has_unread_bytes():
                kind = "SSL" if request == _SSL_REQUEST else "GSSAPI encryption"
                self._sock.send(_unencrypted_data(kind).to_error_response())
                self._services.counters.refused += 1
                self.close()
                return
            self._sock.send(b"N" if tls is None else b"S")
        except OSError:
            self.close()
            return
        if tls is not None:
            self._begin(tls, is_direct=False)

    def _has_unread_bytes(self) -> bool:
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except (BlockingIOError, InterruptedError):
            return False

    def _begin_direct_tls(self) -> None:
        tls = self._services.tls.current
        if tls is None or self._asked or self._sock.family == socket.AF_UNIX:
            self.close()
        else:
            self._begin(tls, is_direct=True)

    def _begin(self, tls: TlsState | None, *, is_direct: bool) -> None:
        self._leave()
        handshake = Handshake(self._services, self._loop, self._sock, self._greeting, tls, self.accepted_at)
        handshake.is_direct_tls = is_direct
        self._on_done(self, handshake)


def _unencrypted_data(kind: str) -> PgError:
    return PgError(
        PROTOCOL_VIOLATION,
        f"received unencrypted data after {kind} request",
        detail="This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
        severity="FATAL",
    )
