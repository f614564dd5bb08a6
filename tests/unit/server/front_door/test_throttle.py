"""server.throttle: who has failed too often."""

from __future__ import annotations

from server.config import Config
from server.settings_table import AuthSettings
from server.throttle import FailureThrottle


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(failures: int = 3, seconds: float = 10.0, **options: int) -> tuple[FailureThrottle, Clock]:
    clock = Clock()
    config = Config(auth=AuthSettings(throttle_failures=failures, throttle_seconds=seconds))
    return FailureThrottle(config, clock=clock, **options), clock


def test_blocks_after_the_allowed_failures_and_lets_go_after_the_window() -> None:
    throttle, clock = make()
    for _ in range(2):
        throttle.failed("10.0.0.1", "alice")
        assert throttle.blocked_for("10.0.0.1", "alice") == 0
    throttle.failed("10.0.0.1", "alice")
    assert throttle.blocked_for("10.0.0.1", "alice") == 10.0
    clock.now += 9.5
    assert throttle.blocked_for("10.0.0.1", "alice") == 0.5
    clock.now += 0.6
    assert throttle.blocked_for("10.0.0.1", "alice") == 0


def test_failures_further_apart_than_the_window_do_not_add_up() -> None:
    throttle, clock = make()
    for _ in range(10):
        throttle.failed("10.0.0.1", "alice")
        clock.now += 10.1
    assert throttle.blocked_for("10.0.0.1", "alice") == 0


def test_success_forgets_the_failures() -> None:
    throttle, _ = make()
    throttle.failed("10.0.0.1", "alice")
    throttle.failed("10.0.0.1", "alice")
    throttle.succeeded("10.0.0.1", "alice")
    throttle.failed("10.0.0.1", "alice")
    assert throttle.blocked_for("10.0.0.1", "alice") == 0


def test_other_addresses_and_roles_are_not_blocked() -> None:
    throttle, _ = make(failures=1)
    throttle.failed("10.0.0.1", "alice")
    assert throttle.blocked_for("10.0.0.1", "alice") > 0
    assert throttle.blocked_for("10.0.0.2", "alice") == 0
    assert throttle.blocked_for("10.0.0.1", "bob") == 0


def test_ipv6_addresses_of_one_site_count_together() -> None:
    throttle, _ = make(failures=2)
    throttle.failed("2001:db8::1", "alice")
    throttle.failed("2001:db8::ffff", "alice")
    assert throttle.blocked_for("2001:db8::77", "alice") > 0
    assert throttle.blocked_for("2001:db8:0:1::77", "alice") == 0
    assert throttle.blocked_for("fe80::1%eth0", "alice") == 0


def test_memory_is_bounded_and_the_oldest_pair_is_forgotten() -> None:
    throttle, _ = make(failures=1, max_pairs=100)
    for number in range(1000):
        throttle.failed("10.0.0.1", f"role{number}")
    assert len(throttle) == 100
    assert throttle.blocked_for("10.0.0.1", "role0") == 0
    assert throttle.blocked_for("10.0.0.1", "role999") > 0


def test_zero_turns_it_off() -> None:
    throttle, _ = make(failures=0)
    for _ in range(100):
        throttle.failed("10.0.0.1", "alice")
    assert throttle.blocked_for("10.0.0.1", "alice") == 0
    assert len(throttle) == 0
