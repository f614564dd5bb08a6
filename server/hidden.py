"""Statements of our own on a backend, for those who can wait: the awaited form of `BackendConnection.send_hidden`."""

from __future__ import annotations

import asyncio

from engine.connection import BackendConnection
from protocol.expectations import HiddenReplies


async def hidden(backend: BackendConnection, sql: str) -> HiddenReplies:
    """Run our own statement on a backend that is ours for now, and wait for it. Raises its PgError."""
    future: asyncio.Future[HiddenReplies] = asyncio.get_running_loop().create_future()
    backend.send_hidden(sql, lambda reply: None if future.done() else future.set_result(reply))
    reply = await future
    if reply.error is not None:
        raise reply.error
    return reply
