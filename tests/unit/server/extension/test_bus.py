"""Delivery of events: inline in order and able to refuse, buffered bounded and harmless."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from protocol.errors import PgError
from server.extension.bus import Delivery, EventBus
from server.extension.events import (
    ALL_EVENTS,
    BackendReleased,
    ConfigReloaded,
    EngineLost,
    EngineStarted,
    Event,
    FeatureFailed,
    QueryFinished,
    QueryStarted,
    SessionClosed,
    TransactionEnded,
)
from server.extension.failure import FailurePolicy


def reloaded(name: str = "log.level") -> ConfigReloaded:
    return ConfigReloaded((name,), (), "SIGHUP", 0.0)


def lost(number: int) -> EngineLost:
    return EngineLost("test", number, True, 0.0)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_buffered_subscriber_gets_events_in_batches_and_in_order() -> None:
    bus = EventBus()
    batches: list[list[int]] = []

    async def take(events: Sequence[EngineLost]) -> None:
        batches.append([event.epoch for event in events])

    bus.subscribe(EngineLost, take, subscriber="test", batch_size=3, linger_seconds=0)
    for number in range(5):
        bus.publish(lost(number))
    bus.start()
    await settle()
    assert batches == [[0, 1, 2], [3, 4]]
    bus.publish(lost(5))
    await settle()
    assert batches[2:] == [[5]]
    await bus.stop()


async def test_events_that_arrive_while_it_lingers_come_in_one_batch() -> None:
    bus = EventBus()
    batches: list[int] = []
    bus.subscribe(EngineLost, lambda events: batches.append(len(events)), subscriber="test", linger_seconds=0.02)
    bus.start()
    await settle()
    bus.publish(lost(1))
    await asyncio.sleep(0.005)
    bus.publish(lost(2))
    await asyncio.sleep(0.04)
    assert batches == [2]
    await bus.stop()


async def test_one_queue_over_several_types_keeps_their_order() -> None:
    bus = EventBus()
    names: list[str] = []

    def take(events: Sequence[Event]) -> None:
        names.extend(type(event).__name__ for event in events)

    bus.subscribe((EngineLost, EngineStarted), take, subscriber="test", linger_seconds=0)
    bus.publish(lost(1))
    bus.publish(EngineStarted("18", 180000, "7", 2, 3, 0.0))
    bus.publish(lost(2))
    bus.start()
    await bus.stop()
    assert names == ["EngineLost", "EngineStarted", "EngineLost"]


async def test_a_full_queue_drops_the_newest_and_counts_it() -> None:
    bus = EventBus(buffer_size=2)
    seen: list[int] = []
    bus.subscribe(EngineLost, lambda events: seen.extend(one.epoch for one in events), subscriber="test")
    for number in range(5):
        bus.publish(lost(number))
    (stats,) = bus.stats()
    assert (stats.queued, stats.capacity, stats.dropped) == (2, 2, 3)
    bus.start()
    await bus.stop()
    assert seen == [0, 1]


async def test_a_failing_buffered_subscriber_hurts_nobody_and_is_reported() -> None:
    told: list[tuple[str, str]] = []
    bus = EventBus(on_failure=lambda subscriber, where, error: told.append((subscriber, where)))
    failures: list[FeatureFailed] = []
    good: list[int] = []

    def bad(events: Sequence[EngineLost]) -> None:
        raise KeyError("broken")

    bus.subscribe(EngineLost, bad, subscriber="bad", linger_seconds=0)
    bus.subscribe(EngineLost, lambda events: good.append(len(events)), subscriber="good", linger_seconds=0)
    bus.subscribe(FeatureFailed, lambda events: failures.extend(events), subscriber="watch", linger_seconds=0)
    bus.start()
    bus.publish(lost(1))
    await settle()
    bus.publish(lost(2))
    await settle()
    await bus.stop()
    assert good == [1, 1]
    assert told == [("bad", "event EngineLost")] * 2
    assert [(one.feature, one.is_fatal) for one in failures] == [("bad", False)] * 2
    assert bus.stats()[0].failed == 2
    assert bus.stats()[0].last_error == "KeyError: 'broken'"


async def test_a_subscriber_that_fails_on_failures_does_not_feed_itself() -> None:
    bus = EventBus()
    calls = 0

    def bad(events: Sequence[FeatureFailed]) -> None:
        nonlocal calls
        calls += 1
        raise ValueError

    bus.subscribe(FeatureFailed, bad, subscriber="bad", linger_seconds=0)
    bus.start()
    bus.publish(FeatureFailed("x", "start", "boom", False, 0.0))
    await settle()
    await settle()
    await bus.stop()
    assert calls == 1


async def test_inline_subscribers_run_in_order_and_need_no_await_when_plain() -> None:
    bus = EventBus()
    seen: list[str] = []
    bus.subscribe(ConfigReloaded, lambda event: seen.append("first"), Delivery.INLINE, subscriber="a")
    bus.subscribe(ConfigReloaded, lambda event: seen.append("second"), Delivery.INLINE, subscriber="b")
    assert bus.publish_inline(reloaded()) is None
    assert seen == ["first", "second"]
    assert [one.delivered for one in bus.stats()] == [1, 1]


async def test_inline_subscriber_that_waits_is_waited_for_before_the_next() -> None:
    bus = EventBus()
    seen: list[str] = []

    async def slow(event: ConfigReloaded) -> None:
        await asyncio.sleep(0)
        seen.append("slow")

    bus.subscribe(ConfigReloaded, slow, Delivery.INLINE, subscriber="a")
    bus.subscribe(ConfigReloaded, lambda event: seen.append("next"), Delivery.INLINE, subscriber="b")
    pending = bus.publish_inline(reloaded())
    assert pending is not None
    await pending
    assert seen == ["slow", "next"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_inline_deny_raises_after_every_other_subscriber_was_called(is_async: bool) -> None:
    bus = EventBus()
    seen: list[str] = []
    refusal = PgError("58030", "could not write audit record")

    def plain(event: ConfigReloaded) -> None:
        raise refusal

    async def waiting(event: ConfigReloaded) -> None:
        await asyncio.sleep(0)
        raise refusal

    handler = waiting if is_async else plain
    bus.subscribe(ConfigReloaded, handler, Delivery.INLINE, subscriber="audit", on_error=FailurePolicy.DENY)
    bus.subscribe(ConfigReloaded, lambda event: seen.append("other"), Delivery.INLINE, subscriber="b")
    with pytest.raises(PgError) as caught:
        await bus.deliver(reloaded())
    assert caught.value is refusal
    assert seen == ["other"]


async def test_inline_continue_swallows_counts_and_reports() -> None:
    bus = EventBus()

    def bad(event: ConfigReloaded) -> None:
        raise OSError("disk")

    bus.subscribe(ConfigReloaded, bad, Delivery.INLINE, subscriber="a")
    await bus.deliver(reloaded())
    assert bus.stats()[0].failed == 1


async def test_buffered_subscribers_get_what_is_published_inline_too() -> None:
    bus = EventBus()
    seen: list[int] = []
    bus.subscribe(ConfigReloaded, lambda events: seen.append(len(events)), subscriber="a", linger_seconds=0)
    bus.start()
    assert bus.publish_inline(reloaded()) is None
    await settle()
    assert seen == [1]
    await bus.stop()


def test_inline_is_refused_for_events_that_nobody_can_wait_for() -> None:
    with pytest.raises(ValueError, match="cannot be subscribed inline"):
        EventBus().subscribe(SessionClosed, lambda event: None, Delivery.INLINE, subscriber="a")


@pytest.mark.parametrize("options", [{"buffer_size": 0}, {"batch_size": 0}, {"linger_seconds": -1.0}])
def test_unusable_bounds_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        EventBus().subscribe(EngineLost, lambda events: None, subscriber="a", **options)  # type: ignore[call-overload]


def test_a_type_that_is_no_event_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="not an event"):
        EventBus().subscribe(Event, lambda events: None, subscriber="a")
    with pytest.raises(ValueError, match="name of its subscriber"):
        EventBus().subscribe(EngineLost, lambda events: None, subscriber="")


@pytest.mark.parametrize(
    ("event_type", "attributes"),
    [
        (QueryStarted, {"wants_query_started", "wants_query_events"}),
        (QueryFinished, {"wants_query_finished", "wants_query_events"}),
        (TransactionEnded, {"wants_transaction_ended"}),
        (BackendReleased, {"wants_backend_events"}),
        (EngineLost, set()),
    ],
)
async def test_plain_attributes_follow_subscribing_and_cancelling(
    event_type: type[Event], attributes: set[str]
) -> None:
    bus = EventBus()
    names = {name for name in EventBus.__slots__ if name.startswith("wants_")}
    subscription = bus.subscribe(event_type, lambda events: None, subscriber="a")
    assert {name for name in names if getattr(bus, name)} == attributes
    assert bus.has_subscribers(event_type)
    assert bus.is_query_inline is False
    subscription.cancel()
    assert not any(getattr(bus, name) for name in names)
    assert not bus.has_subscribers(event_type)


def test_inline_query_subscriber_shows_in_an_attribute() -> None:
    bus = EventBus()
    bus.subscribe(QueryStarted, lambda event: None, Delivery.INLINE, subscriber="audit")
    assert bus.is_query_inline is True
    bus.remove_feature("audit")
    assert bus.is_query_inline is False


async def test_a_cancelled_subscriber_gets_nothing_more() -> None:
    bus = EventBus()
    seen: list[int] = []
    subscription = bus.subscribe(EngineLost, lambda events: seen.append(1), subscriber="a", linger_seconds=0)
    bus.start()
    await settle()
    subscription.cancel()
    bus.publish(lost(1))
    await settle()
    assert seen == []
    assert bus.stats() == []
    await bus.stop()


async def test_stop_delivers_what_is_queued_without_lingering() -> None:
    bus = EventBus()
    seen: list[int] = []
    bus.subscribe(EngineLost, lambda events: seen.append(len(events)), subscriber="a", linger_seconds=60, batch_size=4)
    bus.start()
    await settle()
    for number in range(10):
        bus.publish(lost(number))
    await settle()
    await asyncio.wait_for(bus.stop(), 2)
    assert sum(seen) == 10
    assert max(seen) == 4


async def test_stop_gives_up_on_a_subscriber_that_hangs_and_counts_its_events_as_dropped() -> None:
    bus = EventBus()

    async def hang(events: Sequence[EngineLost]) -> None:
        await asyncio.Event().wait()

    bus.subscribe(EngineLost, hang, subscriber="a", linger_seconds=0, batch_size=1)
    bus.start()
    bus.publish(lost(1))
    bus.publish(lost(2))
    await settle()
    await bus.stop(timeout_seconds=0.05)
    assert bus.stats()[0].dropped == 1


async def test_a_subscriber_may_subscribe_while_it_is_called() -> None:
    bus = EventBus()
    seen: list[str] = []

    def first(event: ConfigReloaded) -> None:
        seen.append("first")
        bus.subscribe(ConfigReloaded, lambda event: seen.append("late"), Delivery.INLINE, subscriber="late")

    bus.subscribe(ConfigReloaded, first, Delivery.INLINE, subscriber="a")
    await bus.deliver(reloaded())
    assert seen == ["first"]
    await bus.deliver(reloaded())
    assert seen == ["first", "first", "late"]


def test_every_event_is_documented_and_its_fields_are_slots() -> None:
    assert len({event.__name__ for event in ALL_EVENTS}) == len(ALL_EVENTS)
    for event in ALL_EVENTS:
        assert event.__doc__, event
        assert not event.__doc__.startswith(event.__name__ + "("), f"{event.__name__} has no docstring of its own"
        assert not hasattr(event, "__dict__") or "__dict__" not in dir(event), event


def test_all_events_names_every_event_class() -> None:
    assert set(ALL_EVENTS) == set(Event.__subclasses__()) - {one for one in Event.__subclasses__() if _is_shadow(one)}


def _is_shadow(event: type[Event]) -> bool:
    # dataclass(slots=True) makes a second class; the first stays a subclass until it is collected.
    return event not in ALL_EVENTS and any(event.__name__ == one.__name__ for one in ALL_EVENTS)
