"""Waiting for a state of the pool that releases and logins bring about: every lease ended, nothing idle any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Settling:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._awaited: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def until(self, is_done: Callable[[], bool]) -> None:
        """Return once `is_done` holds. It is asked now and at each `check`."""
        if is_done():
            return
        entry = (is_done, self._loop.create_future())
        self._awaited.append(entry)
        try:
            await entry[1]
        finally:
            self._awaited.remove(entry)

    def check(self) -> None:
        """Something changed."""
        for is_done, future in self._awaited:
            if not future.done() and is_done():
                future.set_result(None)
