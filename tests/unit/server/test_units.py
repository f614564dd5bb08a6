from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.units import format_byte_count, format_seconds, parse_byte_count, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("30s", 30.0),
        ("5min", 300.0),
        ("100ms", 0.1),
        ("1.5h", 5400.0),
        (" 2 d ", 172800.0),
        (7, 7.0),
        ("250us", 0.00025),
    ],
)
def test_durations_are_read_in_the_units_of_postgresql(text: object, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"), [("64MB", 67108864), ("8kB", 8192), ("1GB", 1 << 30), (100, 100), ("100B", 100)]
)
def test_sizes_are_read_in_the_units_of_postgresql(text: object, count: int) -> None:
    assert parse_byte_count(text) == count


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "5MIN", "1e3", "nan", "inf", "--5", "5min 3s", None, True, [1]])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"number|unit"):
        parse_seconds(text)


def test_the_units_are_named_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match="'mb'.*B, kB, MB, GB, TB"):
        parse_byte_count("5mb")


@given(st.integers(min_value=0, max_value=1 << 50))
def test_every_size_survives_being_written_and_read(count: int) -> None:
    assert parse_byte_count(format_byte_count(count)) == count


@given(st.integers(min_value=0, max_value=10_000_000).map(lambda thousandths: thousandths / 1000))
def test_every_duration_survives_being_written_and_read(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=1e-5)
