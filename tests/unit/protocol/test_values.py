"""Text and binary forms; what is expected here was compared with PostgreSQL 18's own output."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import pytest

from protocol import values
from protocol.backend_messages import DataRow
from protocol.errors import LocalProtocolError

UTC = dt.UTC
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (True, b"t"),
        (False, b"f"),
        (-7, b"-7"),
        ("täxt", "täxt".encode()),
        ("\udcff", b"\xff"),
        (b"\x00\xff", b"\\x00ff"),
        (0.0, b"0"),
        (-0.0, b"-0"),
        (1.0, b"1"),
        (0.1, b"0.1"),
        (1e14, b"100000000000000"),
        (1e15, b"1e+15"),
        (1e-4, b"0.0001"),
        (1e-5, b"1e-05"),
        (-2.5e-7, b"-2.5e-07"),
        (1.5e300, b"1.5e+300"),
        (5e-324, b"5e-324"),
        (123456789012345.0, b"123456789012345"),
        (float("inf"), b"Infinity"),
        (float("-inf"), b"-Infinity"),
        (float("nan"), b"NaN"),
        (Decimal("1E+2"), b"100"),
        (Decimal("1.50"), b"1.50"),
        (Decimal("NaN"), b"NaN"),
        (Decimal("-Infinity"), b"-Infinity"),
        (dt.date(2026, 2, 3), b"2026-02-03"),
        (dt.datetime.fromisoformat("2026-02-03T04:05:06"), b"2026-02-03 04:05:06"),
        (dt.datetime(2026, 2, 3, 4, 5, 6, 120000, UTC), b"2026-02-03 04:05:06.12+00"),
        (
            dt.datetime(2026, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
            b"2026-02-03 00:00:00-03:30",
        ),
        (dt.timedelta(0), b"00:00:00"),
        (dt.timedelta(days=1), b"1 day"),
        (dt.timedelta(days=3, hours=5, seconds=7, microseconds=80), b"3 days 05:00:07.00008"),
        (dt.timedelta(seconds=-5), b"-00:00:05"),
        (-dt.timedelta(days=2, hours=3, milliseconds=5), b"-2 days -03:00:00.005"),
        (UUID, b"12345678-1234-5678-1234-567812345678"),
        ({"a": [1, None, "ä"]}, '{"a": [1, null, "ä"]}'.encode()),
        ([], b"{}"),
        ([1, None, 3], b"{1,NULL,3}"),
        ([[1], [2]], b"{{1},{2}}"),
        (["a", "b c", "NULL", "", 'x"y\\', "{", None], b'{a,"b c","NULL","","x\\"y\\\\","{",NULL}'),
    ],
)
def test_text_form(value: object, text: bytes | None) -> None:
    assert values.encode_text(value) == text


@pytest.mark.parametrize(
    ("value", "oid", "raw"),
    [
        (None, values.INT4, None),
        (True, values.BOOL, b"\1"),
        (-7, values.INT2, b"\xff\xf9"),
        (1, values.INT4, b"\0\0\0\1"),
        (-1, values.INT8, b"\xff" * 8),
        (0xFFFF_FFFF, values.OID, b"\xff" * 4),
        (1.5, values.FLOAT4, b"\x3f\xc0\0\0"),
        (1.5, values.FLOAT8, b"\x3f\xf8\0\0\0\0\0\0"),
        ("a", values.TEXT, b"a"),
        (b"\0\1", values.BYTEA, b"\0\1"),
        (UUID, values.UUID, UUID.bytes),
        (str(UUID), values.UUID, UUID.bytes),
        (dt.date(1999, 12, 31), values.DATE, b"\xff\xff\xff\xff"),
        (dt.datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC), values.TIMESTAMPTZ, b"\0\0\0\0\0\x0f\x42\x40"),
        (dt.datetime.fromisoformat("2000-01-01T00:00:01"), values.TIMESTAMP, b"\0\0\0\0\0\x0f\x42\x40"),
        (dt.timedelta(days=1, seconds=1), values.INTERVAL, b"\0\0\0\0\0\x0f\x42\x40\0\0\0\1\0\0\0\0"),
        (dt.timedelta(seconds=-1), values.INTERVAL, b"\xff\xff\xff\xff\xff\xf0\xbd\xc0\0\0\0\0\0\0\0\0"),
        (Decimal("12345678.12345678"), values.NUMERIC, b"\0\4\0\1\0\0\0\x08\x04\xd2\x16\x2e\x04\xd2\x16\x2e"),
        (Decimal("-0.0001"), values.NUMERIC, b"\0\1\xff\xff\x40\0\0\4\0\1"),
        (Decimal("0.00"), values.NUMERIC, b"\0\0\0\0\0\0\0\2"),
        (10000, values.NUMERIC, b"\0\1\0\1\0\0\0\0\0\1"),
        (Decimal("NaN"), values.NUMERIC, b"\0\0\0\0\xc0\0\0\0"),
        ({"a": 1}, values.JSONB, b'\1{"a": 1}'),
        ({"a": 1}, values.JSON, b'{"a": 1}'),
        ([], values.INT4_ARRAY, b"\0\0\0\0\0\0\0\0\0\0\0\x17"),
        (
            [1, None],
            values.INT4_ARRAY,
            b"\0\0\0\1\0\0\0\1\0\0\0\x17\0\0\0\2\0\0\0\1\0\0\0\4\0\0\0\1\xff\xff\xff\xff",
        ),
    ],
)
def test_binary_form(value: object, oid: int, raw: bytes | None) -> None:
    assert values.encode_binary(value, oid) == raw


@pytest.mark.parametrize(
    ("value", "oid"),
    [
        ("x", values.INT4),
        (1 << 40, values.INT4),
        ("x", values.DATE),
        ("nonsense", values.UUID),
        (object(), values.TEXT),
    ],
)
def test_value_of_another_type_is_a_local_error(value: object, oid: int) -> None:
    with pytest.raises(LocalProtocolError):
        values.encode_binary(value, oid)


def test_unknown_python_type_has_no_text() -> None:
    with pytest.raises(LocalProtocolError):
        values.encode_text(object())


@pytest.mark.parametrize(
    ("formats", "row"),
    [
        ((), (b"1", b"a", None)),
        ((0,), (b"1", b"a", None)),
        ((1,), (b"\0\0\0\1", b"a", None)),
        ((1, 0, 1), (b"\0\0\0\1", b"a", None)),
        ((0, 1, 1), (b"1", b"a", None)),
    ],
)
def test_row_follows_the_formats_of_bind(formats: tuple[int, ...], row: tuple[bytes | None, ...]) -> None:
    assert values.encode_row((1, "a", None), (values.INT4, values.TEXT, values.BOOL), formats) == DataRow(row)


def test_column_knows_the_size_of_its_type() -> None:
    assert values.column("n", values.INT8).type_size == 8
    assert values.column("n").type_oid == values.TEXT
    assert values.type_size(values.TEXT_ARRAY) == -1
