"""An event loop whose clock jumps to the next timer: hours of pooling in a second, the same every time."""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.AbstractEventLoop):
    """Callbacks, timers, futures and tasks of asyncio, in virtual time; no I/O and no threads."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self.errors: list[dict[str, Any]] = []
        """What would have been logged: exceptions of callbacks, tasks nobody asked about."""

    # What the pool and asyncio's own classes call.

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio counts them; we skip them when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], *, name: object = None, context: Any = None
    ) -> asyncio.Task[T]:
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    # What tests call.

    def run_ready(self) -> None:
        """Run what is due now, and what that makes due, without letting time pass."""
        previous = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while True:
                while self._timers and self._timers[0][0] <= self._now:
                    handle = heapq.heappop(self._timers)[2]
                    self._ready.append(handle)
                if not self._ready:
                    return
                for _ in range(len(self._ready)):
                    ready = self._ready.popleft()
                    if not ready.cancelled():
                        ready._run()
        finally:
            events._set_running_loop(previous)

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self._now + seconds
        self.run_ready()
        while self._timers and self._timers[0][0] <= end:
            self._now = max(self._now, self._timers[0][0])
            self.run_ready()
        self._now = end

    def run(self, coro: Coroutine[Any, Any, T], *, limit_seconds: float = 86400.0) -> T:
        """Run until `coro` is done; fails when it is not within so much virtual time."""
        task = self.create_task(coro)
        end = self._now + limit_seconds
        self.run_ready()
        while not task.done():
            if not self._timers or self._timers[0][0] > end:
                task.cancel()
                self.run_ready()
                raise TimeoutError("not done within the limit of virtual time")
            self._now = max(self._now, self._timers[0][0])
            self.run_ready()
        return task.result()
