"""A session of the simplest kind, so that drivers can be driven through the front door alone: one backend a client.

It logs in to the engine's private socket as the client's own role and then passes bytes both ways.
"""

from __future__ import annotations

import asyncio

from engine.address import EngineAddress
from protocol.errors import PgError
from protocol.startup import StartupMessage
from server.front_door import AuthenticatedClient, Identity


class _Side(asyncio.Protocol):
    """Writes what it gets to the other side, and closes it at the end."""

    def __init__(self) -> None:
        self.other: asyncio.WriteTransport | None = None

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.close()


class _ClientSide(_Side):
    def __init__(self, client: AuthenticatedClient) -> None:
        super().__init__()
        self._slot = client.slot

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._slot.release()


class _BackendSide(_Side):
    """Holds back the engine's answer to the login, which is ours, up to the message that decides it."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.get_running_loop().create_future()
        self._held = b""

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            super().data_received(data)
            return
        self._held += data
        length = int.from_bytes(self._held[1:5], "big") + 1
        if len(self._held) < 5 or len(self._held) < length:
            return
        if self._held[:1] == b"E":
            self.answer.set_exception(PgError.from_body(self._held[5:length]))
        else:
            self.answer.set_result(self._held[length:])

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.answer.done():
            self.answer.set_exception(PgError("08006", "the engine closed the connection"))


class RelayOpener:
    """SessionOpener over the engine's socket. `identities` has everybody who came in."""

    def __init__(self, address: EngineAddress) -> None:
        self._address = address
        self.identities: list[Identity] = []
        self.cancels: list[tuple[int, bytes]] = []

    async def open(self, client: AuthenticatedClient) -> None:
        self.identities.append(client.identity)
        loop = asyncio.get_running_loop()
        transport, backend = await loop.create_unix_connection(_BackendSide, self._address.socket_path)
        parameters = {"user": client.identity.role, **client.parameters}
        if client.identity.database:
            parameters["database"] = client.identity.database
        if client.replication is not None:
            parameters["replication"] = client.replication
        transport.write(StartupMessage(*client.protocol_version, parameters).encode())
        rest = await backend.answer
        front = _ClientSide(client)
        front.other, backend.other = transport, client.transport
        client.transport.set_protocol(front)
        client.transport.write(b"".join(client.pending_output) + rest)
        client.pending_output.clear()
        transport.write(client.received)

    def cancel(self, pid: int, secret: bytes) -> None:
        self.cancels.append((pid, secret))
