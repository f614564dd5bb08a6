"""One client from its first bytes to its session: TLS, startup packet, login, handing over.

A `Handshake` is the one task that a connecting client gets, made by its `Arrival` once encryption is decided. It owns
the transport until `SessionOpener.open` returns, and nothing of it stays behind then. Timeouts and malformed lengths
close without an answer, as PostgreSQL does; what is refused by name gets a FATAL ErrorResponse.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, cast

import asyncpg

from engine.errors import EngineError
from protocol.codes import (
    ALPN_PROTOCOL,
    MAX_SASL_MESSAGE_LENGTH,
    MAX_STARTUP_PACKET_LENGTH,
    FrontendCode,
)
from protocol.errors import PgError, ProtocolError
from protocol.sqlstate import INVALID_AUTHORIZATION_SPECIFICATION, INVALID_PASSWORD, PROTOCOL_VIOLATION
from protocol.startup import CancelRequest
from server.auth import Authenticator, LoginRefused, Peer, Proof
from server.config import Config
from server.errors import as_client_error
from server.extension.events import AuthenticationFailed
from server.front_door import AuthenticatedClient, Identity, SessionOpener
from server.limits import ClientLimits, ClientSlot
from server.roles import DatabaseAccess, Role
from server.startup import (
    StartupRequest,
    check_client_encoding,
    decode_packet,
    error_in_form_of,
    read_request,
)
from server.tls import TlsState, TlsStore

log = logging.getLogger(__name__)

MAX_UNREAD_BYTES: Final = 65_536  # kept of a client that sends before it has logged in
MAX_EARLY_BYTES: Final = 1_048_576  # and before its session is ready; drivers send nothing until then
TLS_SHUTDOWN_SECONDS: Final = 2.0

_PEER_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(slots=True)
class DoorCounters:
    """Totals since start."""

    accepted: int = 0
    opened: int = 0  # sessions
    cancels: int = 0
    refused: int = 0  # clients that got a FATAL error
    failed_logins: int = 0  # of them, for a wrong password
    timeouts: int = 0
    tls_failures: int = 0


@dataclass(slots=True)
class DoorServices:
    """What a handshake works with."""

    config: Config
    tls: TlsStore
    limits: ClientLimits
    authenticator: Authenticator
    opener: SessionOpener
    counters: DoorCounters
    report_failure: Callable[[AuthenticationFailed], Awaitable[None]] | None = None


class _ClientGone(Exception):
    """The connection ended, or cannot be followed: nothing to say, nobody to say it to."""


class Handshake(asyncio.Protocol):
    """The conversation up to the session. `run` is the body of its task."""

    def __init__(
        self,
        services: DoorServices,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        greeting: bytes,
        tls: TlsState | None,
        accepted_at: float,
    ) -> None:
        self.is_direct_tls = False
        self._services = services
        self._loop = loop
        self._sock = sock
        self._tls = tls
        self._accepted_at = accepted_at
        self._unread = bytearray(greeting)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_lost = False
        self._client: AuthenticatedClient | None = None
        self._slot: ClientSlot | None = None
        self._role = ""
        self._is_paused = False

    async def run(self) -> None:
        """Ends when the session is open or the connection is closed. Raises CancelledError alone."""
        self._task = asyncio.current_task()
        is_open = False
        try:
            transport = await self._connect()
            is_open = await self._converse(transport)
        except _ClientGone:
            pass
        except (ssl.SSLError, OSError) as error:
            self._services.counters.tls_failures += self._tls is not None and self._transport is None
            log.debug("connection of %s failed: %s", self._sock, error)
        except Exception as error:
            log.exception("internal error while a client was connecting")
            self._say(PgError("XX000", f"internal error: {type(error).__name__}", severity="FATAL").to_error_response())
        finally:
            self._task = None
            if not is_open:
                self._abandon()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            # Not paused here: the end of the connection has to be noticed while the session opens.
            self._client.received += data
            if len(self._client.received) > MAX_EARLY_BYTES and self._transport is not None:
                self._transport.abort()
            return
        self._unread += data
        self._wake()
        # No packet before the session is as long as this: nobody waits for more until `_open` reads on.
        if len(self._unread) > MAX_UNREAD_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._wake()
        # Whatever `open` waits for, nobody is there for it any more.
        if self._client is not None and self._task is not None:
            self._task.cancel()

    # auth.Exchange

    def write(self, data: bytes) -> None:
        self._say(data)

    async def read_sasl(self) -> bytes:
        header = await self._read(1)
        if header[0] != FrontendCode.PASSWORD:
            raise PgError(PROTOCOL_VIOLATION, f"expected SASL response, got message type {header[0]}", severity="FATAL")
        length = int.from_bytes(await self._read(4), "big", signed=True) - 4
        if not 0 <= length <= MAX_SASL_MESSAGE_LENGTH:
            message = f'password authentication failed for user "{self._role}"'
            raise LoginRefused(INVALID_PASSWORD, message, reason="invalid message length")
        return await self._read(length)

    # The steps

    async def _connect(self) -> asyncio.Transport:
        """A transport over the socket, with TLS where that was decided."""
        if self._tls is None:
            await self._loop.connect_accepted_socket(lambda: self, self._sock)
        else:
            await self._loop.connect_accepted_socket(
                lambda: self,
                self._sock,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._seconds_left(),
                ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
            )
        assert self._transport is not None
        if self.is_direct_tls:
            tls: ssl.SSLObject = self._transport.get_extra_info("ssl_object")
            if tls.selected_alpn_protocol() != ALPN_PROTOCOL:
                raise _ClientGone
        return self._transport

    async def _converse(self, transport: asyncio.Transport) -> bool:
        """Startup packet, login, session. True where the session has taken the transport over."""
        timer = self._loop.call_later(self._seconds_left(), self._expire)
        peer = self._peer(transport)
        request: StartupRequest | None = None
        body = b""
        try:
            body = await self._read_startup_packet()
            packet = decode_packet(body)
            if isinstance(packet, CancelRequest):
                self._services.counters.cancels += 1
                self._services.opener.cancel(packet.process_id, packet.secret)
                return False
            request = read_request(packet)
            proof, role, database = await self._log_in(request, peer)
            timer.cancel()
            await self._open(transport, request, peer, proof, role, database)
        except ProtocolError as error:
            await self._refuse(error.to_pg_error(), body, request, peer)
            return False
        except PgError as error:
            await self._refuse(error, body, request, peer)
            return False
        finally:
            timer.cancel()
        return True

    async def _read_startup_packet(self) -> bytes:
        length = int.from_bytes(await self._read(4), "big") - 4
        if not 4 <= length <= MAX_STARTUP_PACKET_LENGTH - 4:
            raise _ClientGone
        return await self._read(length)

    async def _log_in(self, request: StartupRequest, peer: Peer) -> tuple[Proof, Role, DatabaseAccess | None]:
        services = self._services
        self._role = request.role
        if services.config.tls.mode == "require" and peer.tls is None and not peer.is_local:
            raise LoginRefused(
                INVALID_AUTHORIZATION_SPECIFICATION,
                "connections without TLS are not allowed",
                hint="Connect with sslmode=require, or stronger.",
            )
        self._slot = services.limits.admit(peer.address, is_local=peer.is_local)
        proof = await services.authenticator.authenticate(request, peer, self)
        try:
            role, database = await services.authenticator.authorize(request, services.limits, self._slot)
            check_client_encoding(request.settings)
        except PgError:
            # The client has proved its role: its library expects to be told so before it is refused.
            self._say(proof.output)
            raise
        return proof, role, database

    async def _open(
        self,
        transport: asyncio.Transport,
        request: StartupRequest,
        peer: Peer,
        proof: Proof,
        role: Role,
        database: DatabaseAccess | None,
    ) -> None:
        """Hand the client over. From here on, what it sends belongs to its session."""
        if self._is_lost:
            raise _ClientGone
        assert self._slot is not None
        received, self._unread = bytes(self._unread), bytearray()
        client = self._client = AuthenticatedClient(
            transport=transport,
            identity=Identity(
                role=role.name,
                role_oid=role.oid,
                is_superuser=role.is_superuser,
                database=database.name if database is not None else "",
                auth_method=proof.auth_method,
                client_addr=peer.address,
                client_port=peer.port,
                local_addr=peer.local_address,
                tls=peer.tls,
                scram_client_key=proof.client_key,
                scram_server_key=proof.server_key,
            ),
            protocol_version=request.version,
            parameters=request.settings,
            replication=request.replication,
            slot=self._slot,
            received=received,
            pending_output=[proof.output],
            login_us=int((time.monotonic() - self._accepted_at) * 1e6),
        )
        if self._is_paused and not transport.is_closing():
            transport.resume_reading()
        try:
            await self._services.opener.open(client)
        except (PgError, EngineError, asyncpg.PostgresError) as error:
            self._say(b"".join(client.pending_output))
            raise as_client_error(error) from error
        finally:
            self._client = None
        self._services.counters.opened += 1

    # Helpers

    def _peer(self, transport: asyncio.Transport) -> Peer:
        if self._sock.family == socket.AF_UNIX:
            return Peer("", -1, "", _peer_user_id(self._sock))
        name, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if not name or not own:
            raise _ClientGone
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is None or self._tls is None:
            return Peer(name[0], name[1], own[0])
        cipher = tls.cipher()
        return Peer(
            name[0],
            name[1],
            own[0],
            # Interned: thousands of sessions have the same few.
            tls=sys.intern(f"{tls.version()} {cipher[0] if cipher else ''}"),
            channel_binding=self._tls.channel_binding,
            certificate=tls.getpeercert() if self._tls.asks_client_certificate else None,
        )

    async def _read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises _ClientGone where the connection ends before."""
        while len(self._unread) < count:
            if self._is_lost:
                raise _ClientGone
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _say(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _refuse(self, error: PgError, body: bytes, request: StartupRequest | None, peer: Peer) -> None:
        """Tell the client and the operator. A client that vanishes meanwhile cannot keep him from hearing it."""
        if self._slot is not None:
            self._slot.release()
        error.severity = error.severity_localized = "FATAL"
        services = self._services
        services.counters.refused += 1
        services.counters.failed_logins += error.sqlstate == INVALID_PASSWORD
        reason = error.reason if isinstance(error, LoginRefused) else error.message
        who = request.role if request is not None else None
        log.info("refused %s as %r: %s %s (%s)", peer.shown, who, error.sqlstate, error.message, reason)
        # Answered first: a slow subscriber must not tell the client anything by its time.
        self._say(error_in_form_of(body, error))
        if request is None or services.report_failure is None:
            return
        event = AuthenticationFailed(
            role=request.role,
            database=request.database,
            auth_method=services.config.auth.method,
            client_addr=peer.address,
            client_port=peer.port,
            tls=peer.tls,
            application_name=request.application_name,
            sqlstate=error.sqlstate,
            reason=reason,
            is_throttled=isinstance(error, LoginRefused) and error.is_throttled,
            at=time.time(),
        )
        try:
            await services.report_failure(event)
        except Exception:
            # The client is refused whatever a subscriber makes of it.
            log.exception("a refused login could not be reported")

    def _seconds_left(self) -> float:
        deadline = self._accepted_at + self._services.config.server.authentication_timeout
        return max(0.001, deadline - time.monotonic())

    def _expire(self) -> None:
        """As PostgreSQL: the client is not told."""
        self._services.counters.timeouts += 1
        log.info("canceling authentication due to timeout")
        if self._transport is not None:
            self._transport.abort()
        if self._task is not None:
            self._task.cancel()

    def _abandon(self) -> None:
        if self._slot is not None:
            self._slot.release()
        if self._transport is not None:
            self._transport.close()
        else:
            self._sock.close()


def _peer_user_id(sock: socket.socket) -> int | None:
    """The user that the process behind a Unix socket runs as."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    user_id: int = _PEER_CREDENTIALS.unpack(raw)[1]
    return user_id
