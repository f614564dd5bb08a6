"""Delivery of events.

Two kinds of subscribers, never blurred:

- INLINE: called while the server waits, in the order of subscription. May be a plain function or return an awaitable;
  what it returns is awaited only if it is one, so a subscriber that has nothing to wait for costs one call. When it
  raises, its policy decides: DENY (the caller gets the error, after every other subscriber was called) or CONTINUE.
- BUFFERED: gets lists of events, off the query path. Each subscriber owns a bounded queue and a task. A full queue
  drops the newest event and counts it; a subscriber that raises loses that list, and nobody else notices. Delivery is
  at most once.

The query path asks a plain attribute before it builds an event: `if bus.wants_query_events: ...`.

Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from server.extension.events import (
    ALL_EVENTS,
    BackendAcquired,
    BackendReleased,
    Event,
    FeatureFailed,
    QueryFinished,
    QueryStarted,
    TransactionEnded,
)
from server.extension.failure import FailurePolicy

E = TypeVar("E", bound=Event)

InlineHandler = Callable[[E], Awaitable[None] | None]
BatchHandler = Callable[[Sequence[E]], Awaitable[None] | None]

DEFAULT_BUFFER_SIZE = 65536
DEFAULT_BATCH_SIZE = 4096
DEFAULT_LINGER_SECONDS = 0.05


class Delivery(enum.Enum):
    """How a subscriber gets its events."""

    INLINE = "inline"
    BUFFERED = "buffered"


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """One row of SHOW EVENTS. Counters are totals since the subscription began."""

    subscriber: str
    events: tuple[str, ...]
    delivery: Delivery
    on_error: FailurePolicy
    queued: int
    capacity: int  # 0 for inline
    delivered: int
    dropped: int
    failed: int  # calls that raised
    last_error: str | None


class Subscription:
    """Handle of one subscriber: its queue, its task, its counters. Made by `EventBus.subscribe`."""

    __slots__ = (
        "_bus",
        "_is_waiting",
        "_stopping",
        "_task",
        "_wakeup",
        "batch_size",
        "capacity",
        "delivered",
        "delivery",
        "dropped",
        "event_types",
        "failed",
        "handler",
        "last_error",
        "linger_seconds",
        "on_error",
        "queue",
        "subscriber",
    )

    def __init__(
        self,
        bus: EventBus,
        event_types: tuple[type[Event], ...],
        handler: Callable[[Any], Awaitable[None] | None],
        delivery: Delivery,
        on_error: FailurePolicy,
        subscriber: str,
        capacity: int,
        batch_size: int,
        linger_seconds: float,
    ) -> None:
        self._bus = bus
        self._task: asyncio.Task[None] | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._stopping = asyncio.Event()
        self._is_waiting = False  # the task sleeps on _wakeup: the next event has to wake it
        self.event_types = event_types
        self.handler = handler
        self.delivery = delivery
        self.on_error = on_error
        self.subscriber = subscriber
        self.capacity = capacity
        self.batch_size = batch_size
        self.linger_seconds = linger_seconds
        self.queue: deque[Event] = deque()
        self.delivered = 0
        self.dropped = 0
        self.failed = 0
        self.last_error: str | None = None

    def put(self, event: Event) -> None:
        """Queue an event, or count it as dropped."""
        if len(self.queue) >= self.capacity:
            self.dropped += 1
            return
        self.queue.append(event)
        if self._is_waiting:
            self._wake()

    def cancel(self) -> None:
        """Stop getting events. What is queued is thrown away."""
        self._bus._remove(self)
        self.queue.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def stats(self) -> SubscriptionStats:
        return SubscriptionStats(
            self.subscriber,
            tuple(event_type.__name__ for event_type in self.event_types),
            self.delivery,
            self.on_error,
            len(self.queue),
            self.capacity if self.delivery is Delivery.BUFFERED else 0,
            self.delivered,
            self.dropped,
            self.failed,
            self.last_error,
        )

    def _start(self) -> None:
        if self.delivery is Delivery.BUFFERED and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"events:{self.subscriber}")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stopping = self._stopping
        while True:
            if not self.queue:
                if stopping.is_set():
                    return
                self._wakeup = loop.create_future()
                self._is_waiting = True
                await self._wakeup
            if len(self.queue) < self.batch_size and self.linger_seconds and not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), self.linger_seconds)
            await self._deliver_batch()

    def _finish(self) -> asyncio.Task[None]:
        """Deliver the rest without lingering, then end the task."""
        self._start()
        assert self._task is not None
        self._stopping.set()
        self._wake()
        return self._task

    def _wake(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            if self._wakeup is not None and not self._wakeup.done():
                self._wakeup.set_result(None)

    async def _deliver_batch(self) -> None:
        queue = self.queue
        if len(queue) <= self.batch_size:
            batch = list(queue)
            queue.clear()
        else:
            batch = [queue.popleft() for _ in range(self.batch_size)]
        if not batch:
            return
        try:
            pending = self.handler(batch)
            if pending is not None:
                await pending
        except Exception as error:  # noqa: BLE001 - a feature may raise anything
            self._note_failure(error, batch[0])
        else:
            self.delivered += len(batch)

    def _note_failure(self, error: BaseException, event: Event) -> None:
        self.failed += 1
        self.last_error = f"{type(error).__name__}: {error}"
        self._bus._report(self, event, error)


class EventBus:
    """The bus. Hangs from the server object.

    The `wants_...` attributes are plain and kept by (un)subscribing: read them, never set them.
    """

    __slots__ = (
        "_default_capacity",
        "_is_running",
        "_on_failure",
        "_plans",
        "_subscriptions",
        "is_query_inline",
        "wants_backend_events",
        "wants_query_events",
        "wants_query_finished",
        "wants_query_started",
        "wants_transaction_ended",
    )

    def __init__(
        self,
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        on_failure: Callable[[str, str, BaseException], None] | None = None,
    ) -> None:
        """`buffer_size`:

        events a buffered subscriber may have waiting, unless it asks for another. `on_failure(subscriber, where,
        error)` logs.
        """
        self._default_capacity = buffer_size
        self._on_failure = on_failure
        self._subscriptions: list[Subscription] = []
        self._plans: dict[type[Event], tuple[tuple[Subscription, ...], tuple[Subscription, ...]]] = {}
        self._is_running = False
        self.wants_query_started = False
        self.wants_query_finished = False
        self.wants_query_events = False  # either of the two above
        self.is_query_inline = False  # an inline subscriber of either: use publish_inline, not publish
        self.wants_transaction_ended = False
        self.wants_backend_events = False  # BackendAcquired, BackendReleased
        self._replan()

    @overload
    def subscribe(
        self,
        event_type: type[E],
        handler: InlineHandler[E],
        delivery: Literal[Delivery.INLINE],
        *,
        subscriber: str,
        on_error: FailurePolicy = ...,
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        event_type: type[E],
        handler: BatchHandler[E],
        delivery: Literal[Delivery.BUFFERED] = ...,
        *,
        subscriber: str,
        buffer_size: int | None = ...,
        batch_size: int = ...,
        linger_seconds: float = ...,
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        event_type: Iterable[type[Event]],
        handler: InlineHandler[Event],
        delivery: Literal[Delivery.INLINE],
        *,
        subscriber: str,
        on_error: FailurePolicy = ...,
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        event_type: Iterable[type[Event]],
        handler: BatchHandler[Event],
        delivery: Literal[Delivery.BUFFERED] = ...,
        *,
        subscriber: str,
        buffer_size: int | None = ...,
        batch_size: int = ...,
        linger_seconds: float = ...,
    ) -> Subscription: ...

    def subscribe(
        self,
        event_type: type[Event] | Iterable[type[Event]],
        handler: Callable[[Any], Awaitable[None] | None],
        delivery: Delivery = Delivery.BUFFERED,
        *,
        subscriber: str,
        on_error: FailurePolicy = FailurePolicy.CONTINUE,
        buffer_size: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        linger_seconds: float = DEFAULT_LINGER_SECONDS,
    ) -> Subscription:
        """Subscribe to one event type, or to several through one queue (then their order is kept across types).

        INLINE handlers get one event; BUFFERED handlers get a list, at most `batch_size` long, collected for
        `linger_seconds`. Raises ValueError for a type that is not an event, or an inline subscription to an event
        nobody can wait for.
        """
        event_types = (event_type,) if isinstance(event_type, type) else tuple(event_type)
        for one in event_types:
            if one not in self._plans:
                raise ValueError(f"{one!r} is not an event of this server")
            if delivery is Delivery.INLINE and not one.inline:
                raise ValueError(f"{one.__name__} cannot be subscribed inline: nothing waits where it is published")
        if not subscriber:
            raise ValueError("a subscription needs the name of its subscriber")
        capacity = self._default_capacity if buffer_size is None else buffer_size
        if capacity < 1 or batch_size < 1 or linger_seconds < 0:
            raise ValueError("buffer_size and batch_size must be positive and linger_seconds not negative")
        subscription = Subscription(
            self, event_types, handler, delivery, on_error, subscriber, capacity, batch_size, linger_seconds
        )
        self._subscriptions.append(subscription)
        self._replan()
        if self._is_running:
            subscription._start()
        return subscription

    def has_subscribers(self, event_type: type[Event]) -> bool:
        inline, buffered = self._plans[event_type]
        return bool(inline or buffered)

    def publish(self, event: Event) -> None:
        """Queue an event for its buffered subscribers.

        Inline subscribers are not called: use publish_inline where the type may have some.
        """
        for subscription in self._plans[type(event)][1]:
            subscription.put(event)

    def publish_inline(self, event: Event) -> Awaitable[None] | None:
        """Call the inline subscribers in order, then queue for the buffered ones. Returns None when it is all done,
        else what to await.

        Raises, or the awaitable raises, the first error of a subscriber whose policy is DENY, after all subscribers
        have been called. From a coroutine: `await bus.publish(event)` is wrong, `pending = bus.publish_inline(event)`
        and `if pending is not None: await pending` is right; `deliver` is the same as a coroutine.
        """
        inline, buffered = self._plans[type(event)]
        for subscription in buffered:
            subscription.put(event)
        error: Exception | None = None
        for index, subscription in enumerate(inline):
            try:
                pending = subscription.handler(event)
            except Exception as raised:  # noqa: BLE001 - a feature may raise anything
                error = self._inline_failed(subscription, event, raised, error)
                continue
            if pending is not None:
                return self._finish_inline(event, inline, index, pending, error)
            subscription.delivered += 1
        if error is not None:
            raise error
        return None

    async def deliver(self, event: Event) -> None:
        """publish_inline as a coroutine."""
        pending = self.publish_inline(event)
        if pending is not None:
            await pending

    async def _finish_inline(
        self,
        event: Event,
        inline: tuple[Subscription, ...],
        index: int,
        pending: Awaitable[None] | None,
        error: Exception | None,
    ) -> None:
        for subscription in inline[index:]:
            try:
                if pending is None:
                    pending = subscription.handler(event)
                if pending is not None:
                    await pending
            except Exception as raised:  # noqa: BLE001 - a feature may raise anything
                error = self._inline_failed(subscription, event, raised, error)
            else:
                subscription.delivered += 1
            pending = None
        if error is not None:
            raise error

    def _inline_failed(
        self, subscription: Subscription, event: Event, raised: Exception, first: Exception | None
    ) -> Exception | None:
        subscription._note_failure(raised, event)
        if first is None and subscription.on_error is FailurePolicy.DENY:
            return raised
        return first

    def start(self) -> None:
        """Start the tasks of the buffered subscribers. Events published before were queued."""
        self._is_running = True
        for subscription in self._subscriptions:
            subscription._start()

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Deliver what is queued, for at most `timeout_seconds`, and end every task.

        A stopped bus is not started again.
        """
        self._is_running = False
        buffered = [one for one in self._subscriptions if one.delivery is Delivery.BUFFERED]
        tasks = [one._finish() for one in buffered]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in buffered:
            one.dropped += len(one.queue)
            one.queue.clear()

    def stats(self) -> list[SubscriptionStats]:
        return [subscription.stats() for subscription in self._subscriptions]

    @property
    def event_types(self) -> tuple[type[Event], ...]:
        return tuple(self._plans)

    def remove_feature(self, feature: str) -> None:
        """Cancel the subscriptions of a feature that does not run."""
        for subscription in [one for one in self._subscriptions if one.subscriber == feature]:
            subscription.cancel()

    def _remove(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._replan()

    def _replan(self) -> None:
        for event_type in ALL_EVENTS:
            mine = [one for one in self._subscriptions if event_type in one.event_types]
            self._plans[event_type] = (
                tuple(one for one in mine if one.delivery is Delivery.INLINE),
                tuple(one for one in mine if one.delivery is Delivery.BUFFERED),
            )
        self.wants_query_started = self.has_subscribers(QueryStarted)
        self.wants_query_finished = self.has_subscribers(QueryFinished)
        self.wants_query_events = self.wants_query_started or self.wants_query_finished
        self.is_query_inline = bool(self._plans[QueryStarted][0] or self._plans[QueryFinished][0])
        self.wants_transaction_ended = self.has_subscribers(TransactionEnded)
        self.wants_backend_events = self.has_subscribers(BackendAcquired) or self.has_subscribers(BackendReleased)

    def _report(self, subscription: Subscription, event: Event, error: BaseException) -> None:
        where = f"event {type(event).__name__}"
        if self._on_failure is not None:
            self._on_failure(subscription.subscriber, where, error)
        if isinstance(event, FeatureFailed):
            return  # a subscriber that fails on failures must not feed itself
        is_fatal = subscription.delivery is Delivery.INLINE and subscription.on_error is FailurePolicy.DENY
        self.publish(
            FeatureFailed(subscription.subscriber, where, f"{type(error).__name__}: {error}", is_fatal, time.time())
        )
