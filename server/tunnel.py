"""Replication connections: a raw tunnel between one client and one engine connection of its own.

The engine's own walsender speaks to the client; we only logged it in. Both directions are forwarded as they come, under
backpressure. Never pooled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.connect import Credentials, dial
from protocol.scan import message

if TYPE_CHECKING:
    from engine.address import EngineAddress
    from engine.connection import BackendConnection
    from server.front_door import AuthenticatedClient


class TunnelSide(asyncio.Protocol):
    """One end: what it receives is written to the other end."""

    def __init__(self, transport: asyncio.Transport, on_lost: Callable[[], None]) -> None:
        self.transport = transport
        self.peer: TunnelSide | None = None
        self._on_lost = on_lost

    def data_received(self, data: bytes) -> None:
        """Forward."""
        if self.peer is not None:
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        """This end is slow: stop reading the other."""
        if self.peer is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """This end has caught up."""
        if self.peer is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Then the other end goes too, with what was written to it."""
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer.transport.close()
            self._on_lost()


def splice(
    client: asyncio.Transport, engine: asyncio.Transport, on_lost: Callable[[], None]
) -> tuple[TunnelSide, TunnelSide]:
    """Tie two transports together."""
    left, right = TunnelSide(client, on_lost), TunnelSide(engine, on_lost)
    left.peer, right.peer = right, left
    client.set_protocol(left)
    engine.set_protocol(right)
    return left, right


async def open_tunnel(
    client: AuthenticatedClient,
    address: EngineAddress,
    credentials: Credentials,
    key: tuple[int, bytes],
    on_lost: Callable[[], None],
) -> BackendConnection:
    """Log in to the engine for replication as the client's role and splice; `key` is what the client may cancel with.

    The result tells process id and key at the engine; nothing is received by it any more. Raises PgError.
    """
    identity = client.identity
    backend = await dial(
        address,
        database=identity.database or "replication",
        role=identity.role,
        credentials=credentials,
        settings=client.parameters,
        replication=client.replication,
    )
    burst = b"".join(client.pending_output)
    client.pending_output.clear()
    burst += b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in backend.reported.items())
    pid, secret = key
    burst += message(b"K", pid.to_bytes(4, "big") + secret) + b"Z\0\0\0\x05I"
    splice(client.transport, backend.transport, on_lost)
    client.transport.write(burst)
    if client.received:
        backend.transport.write(client.received)
    return backend
