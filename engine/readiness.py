"""Whether the engine accepts connections: a login on its socket, tried every few milliseconds while it starts.

The postmaster answers a startup packet with 57P03 until recovery is over, and with an authentication request when it
takes connections. That is asked by hand here, in two packets: a whole login with asyncpg is dozens of times dearer.
"""

from __future__ import annotations

import asyncio
import struct
from enum import Enum

_PROTOCOL_3_0 = 196608
_REPLY_MAX_BYTES = 8192


class Readiness(Enum):
    READY = "ready"
    STARTING = "starting"  # it answers, but does not take connections yet: recovery
    UNREACHABLE = "unreachable"


async def probe_readiness(socket_path: str, role: str, database: str, timeout_seconds: float = 2.0) -> Readiness:
    """Ask once."""
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_unix_connection(socket_path)
            try:
                writer.write(_startup_packet(role, database))
                return await _first_answer(reader, writer)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return Readiness.UNREACHABLE


async def _first_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Readiness:
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    body = await reader.readexactly(min(max(length - 4, 0), _REPLY_MAX_BYTES))
    if kind == b"E" and b"C57P03\0" in body:
        return Readiness.STARTING
    if kind == b"R" and body == b"\0\0\0\0":
        # Say good-bye only when it has finished its greeting, so that it does not log a broken pipe.
        while kind != b"Z" and kind != b"E":
            kind = await reader.readexactly(1)
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            await reader.readexactly(max(length - 4, 0))
        writer.write(b"X\0\0\0\4")
    # Any other answer, such as a missing database or a request for a password, comes from an engine that is up.
    return Readiness.READY


def _startup_packet(role: str, database: str) -> bytes:
    parameters = b"".join(
        f"{name}\0{value}\0".encode()
        for name, value in (("user", role), ("database", database), ("application_name", "rustydb readiness"))
    )
    body = struct.pack("!I", _PROTOCOL_3_0) + parameters + b"\0"
    return struct.pack("!I", len(body) + 4) + body
