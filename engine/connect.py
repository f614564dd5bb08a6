"""Dial PostgreSQL and log in: from an address to a `BackendConnection`.

The handshake is a short conversation before the connection is relayed, so it uses typed messages and one task. Errors
of the engine come back as its own `PgError` (3D000, 28P01, 53300, 57P03 ...); a socket that cannot be reached is
`PgError` 08001, a handshake that takes too long 08001 as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from engine.cluster import EngineAddress
from engine.connection import BackendConnection
from protocol.errors import PgError, ProtocolError
from protocol.scan import B_AUTHENTICATION, B_BACKEND_KEY, B_ERROR, B_PARAMETER_STATUS, B_READY, length_at, message
from protocol.scram import ScramClient, ScramKeys

CANCEL_CODE = 80877102
SSL_CODE = 80877103

PINNED_SETTINGS: Mapping[str, str] = {
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "client_encoding": "UTF8",
}
"""Settings every backend starts with: what the lexer does must not depend on who used the connection before."""

_MAX_HANDSHAKE_MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a backend proves its role. Peer authentication needs neither."""

    password: str | None = None
    keys: ScramKeys | None = None


class _Handshake(asyncio.Protocol):
    """Collects bytes until the login is over; then gives the transport away."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.arrived = asyncio.Event()
        self.is_closed = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self.arrived.set()

    async def next_message(self) -> tuple[int, bytes]:
        """Type and body of the next message."""
        while True:
            if len(self.buffer) >= 5:
                length = length_at(self.buffer, 1)[0]
                if length < 4 or length > _MAX_HANDSHAKE_MESSAGE_BYTES:
                    raise PgError("08P01", "the database engine sent a message of impossible length")
                if len(self.buffer) > length:
                    kind, body = self.buffer[0], bytes(self.buffer[5 : length + 1])
                    del self.buffer[: length + 1]
                    return kind, body
            await self._more()

    async def next_byte(self) -> int:
        """The engine's one-byte answer to SSLRequest."""
        while not self.buffer:
            await self._more()
        return self.buffer.pop(0)

    async def _more(self) -> None:
        if self.is_closed:
            raise PgError("08006", "the database engine closed the connection during login")
        self.arrived.clear()
        await self.arrived.wait()


async def dial(
    address: EngineAddress,
    *,
    database: str,
    role: str,
    credentials: Credentials | None = None,
    settings: Mapping[str, str] | None = None,
    replication: str | None = None,
    timeout_seconds: float = 15.0,
) -> BackendConnection:
    """Connect and log in as `role`; the result is idle, with its reported settings known."""
    try:
        async with asyncio.timeout(timeout_seconds):
            transport, handshake = await _open(address)
            try:
                return await _log_in(
                    transport, handshake, database, role, credentials or Credentials(), settings, replication
                )
            except BaseException:
                transport.abort()
                raise
    except TimeoutError:
        raise PgError("08001", f"login at the database engine took longer than {timeout_seconds:g} s") from None
    except OSError as error:
        raise PgError("08001", f"could not connect to the database engine: {error}") from error


async def _open(address: EngineAddress) -> tuple[asyncio.Transport, _Handshake]:
    loop = asyncio.get_running_loop()
    path = address.socket_path
    if path is not None:
        transport, handshake = await loop.create_unix_connection(_Handshake, path)
        return transport, handshake
    transport, handshake = await loop.create_connection(_Handshake, address.host, address.port)
    if address.tls is not None:
        transport.write((8).to_bytes(4, "big") + SSL_CODE.to_bytes(4, "big"))
        if await handshake.next_byte() != 0x53 or handshake.buffer:
            raise PgError("08001", "the database engine does not offer TLS")
        hostname = address.tls_hostname or address.host
        upgraded = await loop.start_tls(transport, handshake, address.tls, server_hostname=hostname)
        if upgraded is None:
            raise PgError("08006", "the database engine closed the connection during TLS")
        transport = upgraded
        handshake.transport = upgraded
    return transport, handshake


async def _log_in(
    transport: asyncio.Transport,
    handshake: _Handshake,
    database: str,
    role: str,
    credentials: Credentials,
    settings: Mapping[str, str] | None,
    replication: str | None,
) -> BackendConnection:
    parameters = {"user": role, "database": database}
    if replication is not None:
        parameters["replication"] = replication
    parameters.update(PINNED_SETTINGS)
    parameters.update(settings or {})
    body = (196608).to_bytes(4, "big")
    body += b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
    transport.write((len(body) + 4).to_bytes(4, "big") + body)
    await _authenticate(transport, handshake, role, credentials)
    reported: dict[str, str] = {}
    pid, secret = 0, b""
    while True:
        kind, body = await handshake.next_message()
        if kind == B_PARAMETER_STATUS:
            name, _, rest = body.partition(b"\0")
            reported[name.decode()] = rest[:-1].decode()
        elif kind == B_BACKEND_KEY:
            pid, secret = int.from_bytes(body[:4], "big"), body[4:]
        elif kind == B_ERROR:
            raise PgError.from_body(body)
        elif kind == B_READY:
            break
    connection = BackendConnection(
        transport=transport,
        database=database,
        role=role,
        pid=pid,
        secret=secret,
        reported=reported,
        connected_at=time.time(),
    )
    transport.set_protocol(connection)
    if handshake.buffer:
        connection.data_received(bytes(handshake.buffer))
    return connection


async def _authenticate(
    transport: asyncio.Transport, handshake: _Handshake, role: str, credentials: Credentials
) -> None:
    scram: ScramClient | None = None
    is_verified = True
    while True:
        kind, body = await handshake.next_message()
        if kind == B_ERROR:
            raise PgError.from_body(body)
        if kind != B_AUTHENTICATION:
            continue
        code = int.from_bytes(body[:4], "big")
        try:
            if code == 0:
                if not is_verified:
                    raise PgError("28000", "the database engine did not prove that it knows the role's secret")
                return
            if code == 3 and credentials.password is not None and transport.get_extra_info("ssl_object") is not None:
                transport.write(message(b"p", credentials.password.encode() + b"\0"))
            elif code == 10 and (credentials.password is not None or credentials.keys is not None):
                offered = [name.decode(errors="replace") for name in body[4:].split(b"\0") if name]
                scram = ScramClient(role, password=credentials.password, keys=credentials.keys)
                is_verified = False
                mechanism, first = scram.first(offered)
                answer = mechanism.encode() + b"\0" + len(first).to_bytes(4, "big") + first
                transport.write(message(b"p", answer))
            elif code == 11 and scram is not None:
                transport.write(message(b"p", scram.respond(body[4:])))
            elif code == 12 and scram is not None:
                scram.verify(body[4:])
                is_verified = True
            else:
                raise PgError(
                    "28000",
                    f'no credentials to log in at the database engine as role "{role}"',
                    detail=f"The engine asked for authentication method {code}.",
                )
        except ProtocolError as error:
            raise PgError("28000", f"login at the database engine failed: {error}") from error


async def cancel(address: EngineAddress, pid: int, secret: bytes, timeout_seconds: float = 15.0) -> None:
    """Send a CancelRequest and wait until the engine has closed that connection, so that the signal has been sent."""
    body = CANCEL_CODE.to_bytes(4, "big") + pid.to_bytes(4, "big") + secret
    try:
        async with asyncio.timeout(timeout_seconds):
            transport, handshake = await _open(address)
            try:
                transport.write((len(body) + 4).to_bytes(4, "big") + body)
                while not handshake.is_closed:
                    handshake.arrived.clear()
                    await handshake.arrived.wait()
            finally:
                transport.abort()
    except (TimeoutError, OSError):
        return
