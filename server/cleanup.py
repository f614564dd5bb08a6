"""What happens to a backend whose client has left it in the middle of something.

A `BackendCleaner` takes the session's place as owner: it ends the run that is under way (Sync, CopyFail, a cancel where
the client did not say goodbye), rolls back, discards what pinned, and then gives the backend back. A backend that
does not come
to rest in time, or holds state that nothing can reset, is closed instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.expectations import HiddenReplies
from protocol.scan import READY_IDLE, SYNC_BYTES, message
from server.context import SessionContext
from server.statement_info import PinReason

_log = logging.getLogger("rustydb.cleanup")

_NOT_RESETTABLE = frozenset({PinReason.RANDOM_SEED, PinReason.LOAD})
REST_SECONDS = 10.0
"""How long a backend may take to come to rest before it is closed."""


class BackendCleaner:
    """Brings one abandoned backend to rest. `done(reusable)` is called once."""

    __slots__ = ("_backend", "_done", "_empty", "_is_done", "_pins", "_timer", "_was_dirty")

    def __init__(
        self,
        backend: BackendConnection,
        *,
        pins: frozenset[str],
        was_dirty: bool,
        empty: SessionContext,
        done: Callable[[bool], None],
    ) -> None:
        self._backend = backend
        self._pins = pins
        self._was_dirty = was_dirty
        self._empty = empty
        self._done = done
        self._is_done = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, in_copy: bool, wants_sync: bool) -> None:
        """Take over. `in_copy`: the engine waits for CopyData; `wants_sync`: the run has no Sync yet."""
        backend = self._backend
        backend.owner = self
        backend.resume_reading()
        self._timer = asyncio.get_running_loop().call_later(REST_SECONDS, self._too_late)
        if in_copy:
            backend.send_more(message(b"f", b"the client is gone\0"))
        if wants_sync:
            backend.send_more(SYNC_BYTES)
        if backend.plans:
            backend.send_hidden("", self._at_rest)
        else:
            self._reset()

    def _at_rest(self, reply: HiddenReplies) -> None:
        if reply.error is not None and self._backend.is_lost:
            self._finish(reusable=False)
        else:
            self._reset()

    def _reset(self) -> None:
        backend = self._backend
        if backend.is_lost or self._pins & _NOT_RESETTABLE:
            self._finish(reusable=False)
        elif backend.status != READY_IDLE:
            backend.send_hidden("ROLLBACK", self._rolled_back)
        else:
            self._discard()

    def _rolled_back(self, reply: HiddenReplies) -> None:
        if reply.error is not None or self._backend.status != READY_IDLE:
            self._finish(reusable=False)
        else:
            self._discard()

    def _discard(self) -> None:
        if self._pins:
            self._backend.send_hidden("DISCARD ALL", self._discarded)
            return
        if self._was_dirty:
            self._backend.context = None
        self._finish(reusable=True)

    def _discarded(self, reply: HiddenReplies) -> None:
        backend = self._backend
        if reply.error is not None:
            self._finish(reusable=False)
            return
        backend.prepared.clear()
        backend.unnamed = None
        backend.context = self._empty
        self._finish(reusable=True)

    def _too_late(self) -> None:
        _log.warning("backend %d did not come to rest after its client left; it is closed", self._backend.pid)
        self._finish(reusable=False)

    def _finish(self, *, reusable: bool) -> None:
        if self._is_done:
            return
        self._is_done = True
        if self._timer is not None:
            self._timer.cancel()
        self._backend.owner = None
        self._done(reusable)

    # -- BackendOwner: nobody is there to hear --------------------------------------------------------------------

    def backend_chunk(self, chunk: bytes) -> None:
        """Dropped."""

    def backend_ready(self, chunk: bytes, status: int) -> None:
        """The client's run ended; our own statement is behind it."""

    def backend_complete(self, tag: bytes | None) -> None:
        """Of no interest."""

    def backend_error(self, error: PgError, raw: bytes) -> bytes:
        """Of no interest."""
        return raw

    def backend_parameter(self, name: str, value: str) -> None:
        """The backend is not what its context says any more."""
        self._was_dirty = True

    def backend_copy_in(self) -> None:
        """A COPY FROM STDIN began after its client had gone: what is already sent behind it would be read as data."""
        self._finish(reusable=False)

    def backend_notifier(self, pid: int) -> int:
        """Of no interest."""
        return pid

    def backend_lost(self, error: PgError | None) -> None:
        """Then there is nothing to clean."""
        self._finish(reusable=False)

    def backend_pressure(self, *, is_high: bool) -> None:
        """We send little."""
