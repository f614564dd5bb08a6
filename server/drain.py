"""How sessions end that do not end by themselves: idle for too long, or because the server stops."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING

from protocol.errors import PgError
from protocol.scan import READY_IDLE
from server.session_state import Phase

if TYPE_CHECKING:
    from server.config import Config
    from server.hub import SessionHub
    from server.session import ClientSession

_log = logging.getLogger("rustydb.session")

_STEP_SECONDS = 0.05


def sweep(hub: SessionHub, config: Config) -> None:
    """End the sessions that were idle for longer than their limit. A limit of 0 is off. Called once a second."""
    now = perf_counter()
    for session in list(hub.sessions.values()):
        if session.phase is Phase.IDLE and (error := _overdue(session, config, now - session.idle_since)):
            session.fatal(error)


def _overdue(session: ClientSession, config: Config, idle_seconds: float) -> PgError | None:
    if session.status != READY_IDLE:
        if 0 < config.session.idle_transaction_timeout < idle_seconds:
            return PgError("25P03", "terminating connection due to idle-in-transaction timeout", severity="FATAL")
        return None
    if session.pins and 0 < config.session.pin_timeout < idle_seconds:
        return PgError(
            "57P05",
            "terminating connection due to pin timeout",
            detail=f"The session kept a database connection for itself: {', '.join(sorted(session.pins))}.",
            severity="FATAL",
        )
    if 0 < config.server.client_idle_timeout < idle_seconds:
        return PgError("57P05", "terminating connection due to idle-session timeout", severity="FATAL")
    return None


class Drain:
    """The end of all sessions, in one of PgBouncer's modes: `wait_for_servers` or `wait_for_clients`."""

    def __init__(self) -> None:
        self.mode = "wait_for_servers"
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Wait for nobody any more."""
        self._hurry.set()

    async def run(self, hub: SessionHub, timeout_seconds: float) -> None:
        """End idle sessions and wait for the others, at most so long (for clients: as long as they stay)."""
        deadline = perf_counter() + timeout_seconds
        waits_for_clients = self.mode == "wait_for_clients"
        while hub.sessions and not self._hurry.is_set():
            if not waits_for_clients:
                for session in list(hub.sessions.values()):
                    if session.phase is Phase.IDLE and session.status == READY_IDLE:
                        hub.kill(session)
                if perf_counter() > deadline:
                    _log.warning("%d sessions did not end within the shutdown timeout", len(hub.sessions))
                    return
            try:
                async with asyncio.timeout(_STEP_SECONDS):
                    await self._hurry.wait()
            except TimeoutError:
                continue
