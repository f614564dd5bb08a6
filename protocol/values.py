"""Text and binary forms of the few types we emit ourselves: admin tables, simulated replies, control parameters.

Results of the engine are relayed as bytes and never come through here. Python types and what they become:
None NULL, bool, int, float, Decimal, str, bytes (bytea), datetime (timestamptz, or timestamp where naive), date,
timedelta (interval), UUID, dict (json; a JSON document that is a list must come as text), list or tuple (an array).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

from protocol.backend_messages import DataRow, FieldDescription
from protocol.errors import LocalProtocolError

BOOL: Final = 16
BYTEA: Final = 17
NAME: Final = 19
INT8: Final = 20
INT2: Final = 21
INT4: Final = 23
TEXT: Final = 25
OID: Final = 26
JSON: Final = 114
FLOAT4: Final = 700
FLOAT8: Final = 701
UNKNOWN: Final = 705
INET: Final = 869
VARCHAR: Final = 1043
DATE: Final = 1082
TIMESTAMP: Final = 1114
TIMESTAMPTZ: Final = 1184
INTERVAL: Final = 1186
NUMERIC: Final = 1700
VOID: Final = 2278
UUID: Final = 2950
JSONB: Final = 3802
BOOL_ARRAY: Final = 1000
INT2_ARRAY: Final = 1005
INT4_ARRAY: Final = 1007
TEXT_ARRAY: Final = 1009
INT8_ARRAY: Final = 1016
FLOAT8_ARRAY: Final = 1022
OID_ARRAY: Final = 1028
TIMESTAMPTZ_ARRAY: Final = 1185

_SIZES: Final = {
    BOOL: 1, NAME: 64, INT8: 8, INT2: 2, INT4: 4, OID: 4, FLOAT4: 4, FLOAT8: 8, UNKNOWN: -2, DATE: 4, TIMESTAMP: 8,
    TIMESTAMPTZ: 8, INTERVAL: 16, VOID: 4, UUID: 16,
}  # fmt: skip
_ELEMENTS: Final = {
    BOOL_ARRAY: BOOL, INT2_ARRAY: INT2, INT4_ARRAY: INT4, TEXT_ARRAY: TEXT, INT8_ARRAY: INT8, FLOAT8_ARRAY: FLOAT8,
    OID_ARRAY: OID, TIMESTAMPTZ_ARRAY: TIMESTAMPTZ,
}  # fmt: skip
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_EPOCH_DATE: Final = dt.date(2000, 1, 1)
_ARRAY_SPECIAL: Final = frozenset(' \t\n\r\v\f{},"\\')
# float8out's shortest form turns to exponents outside of these powers of ten.
_FLOAT_LOW, _FLOAT_HIGH = -4, 15


def type_size(type_oid: int) -> int:
    """pg_type.typlen: bytes, or -1 for a varying length."""
    return _SIZES.get(type_oid, -1)


def column(name: str, type_oid: int = TEXT, *, format: int = 0) -> FieldDescription:  # noqa: A002
    """A result column of this type, belonging to no table."""
    return FieldDescription(name, type_oid=type_oid, type_size=type_size(type_oid), format=format)


def encode_row(values: Sequence[object], type_oids: Sequence[int], formats: Sequence[int] = ()) -> DataRow:
    """A row in the formats a Bind asked for: none (text), one for all, or one for each."""
    chosen = formats if len(formats) == len(values) else (list(formats) or [0]) * len(values)
    return DataRow(
        tuple(
            [
                encode_binary(value, oid) if binary else encode_text(value)
                for value, oid, binary in zip(values, type_oids, chosen, strict=False)
            ]
        )
    )


def encode_text(value: object) -> bytes | None:
    """The text form, in the ISO date style; None is NULL."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return _text(value).encode("utf-8", "surrogateescape")


def _text(value: object) -> str:
    match value:
        case bool():
            return "t" if value else "f"
        case str():
            return value
        case int() | uuid.UUID():
            return str(value)
        case Decimal():
            return _decimal_text(value)
        case float():
            return _float_text(value)
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(value).hex()
        case dt.datetime():
            return _timestamp_text(value)
        case dt.date():
            return value.isoformat()
        case dt.timedelta():
            return _interval_text(value)
        case dict():
            return json.dumps(value, ensure_ascii=False, default=str)
        case list() | tuple():
            return "{" + ",".join(_array_element(item) for item in value) + "}"
    raise LocalProtocolError(f"no text form for {type(value).__name__}")


def _decimal_text(value: Decimal) -> str:
    if value.is_nan():
        return "NaN"
    if value.is_infinite():
        return "Infinity" if value > 0 else "-Infinity"
    return format(value, "f")


def _float_text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)  # neither NaN nor infinite
    power = len(digits) - 1 + exponent
    text = "".join(map(str, digits))
    if value == 0:
        shown = "0"
    elif _FLOAT_LOW <= power < _FLOAT_HIGH:
        shown = format(Decimal((0, digits, exponent)), "f")
    else:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        shown = f"{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return f"-{shown}" if sign else shown


def _timestamp_text(value: dt.datetime) -> str:
    shown = value.replace(tzinfo=None).isoformat(sep=" ")
    if value.microsecond:
        shown = shown.rstrip("0")
    offset = value.utcoffset()
    if offset is None:
        return shown
    sign, total = ("-", -offset) if offset < dt.timedelta(0) else ("+", offset)
    minutes, seconds = divmod(int(total.total_seconds()), 60)
    shown += f"{sign}{minutes // 60:02d}"
    if minutes % 60 or seconds:
        shown += f":{minutes % 60:02d}"
    return shown + (f":{seconds:02d}" if seconds else "")


def _interval_text(value: dt.timedelta) -> str:
    # PostgreSQL's own style: days apart from the time, each with its sign.
    micros = value // dt.timedelta(microseconds=1)
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    days, micros = divmod(micros, 86_400_000_000)
    seconds, micros = divmod(micros, 1_000_000)
    parts = [f"{sign}{days} day{'' if sign == '' and days == 1 else 's'}"] if days else []
    if seconds or micros or not days:
        fraction = f".{micros:06d}".rstrip("0") if micros else ""
        parts.append(f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}")
    return " ".join(parts)


def _array_element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list | tuple):
        return _text(value)
    text = _text(value)
    if text and text.upper() != "NULL" and not _ARRAY_SPECIAL.intersection(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def encode_binary(value: Any, type_oid: int) -> bytes | None:
    """The binary form for this type; None is NULL. Types without one of their own here are sent as text is."""
    if value is None:
        return None
    element = _ELEMENTS.get(type_oid)
    if element is not None:
        return _binary_array(value, element)
    encoder = _BINARY.get(type_oid)
    try:
        return encode_text(value) if encoder is None else encoder(value)
    except (struct.error, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LocalProtocolError(f"{value!r} is no value of type {type_oid}") from error


def _binary_array(value: Sequence[Any], element: int) -> bytes:
    has_null = any(item is None for item in value)
    if not value:
        return struct.pack("!iiI", 0, 0, element)
    out = bytearray(struct.pack("!iiIii", 1, has_null, element, len(value), 1))
    for item in value:
        encoded = encode_binary(item, element)
        out += struct.pack("!i", -1 if encoded is None else len(encoded))
        out += encoded or b""
    return bytes(out)


def _microseconds(value: dt.timedelta) -> int:
    return value // dt.timedelta(microseconds=1)


def _binary_timestamptz(value: dt.datetime) -> bytes:
    return struct.pack("!q", _microseconds(value - _EPOCH))


def _binary_timestamp(value: dt.datetime) -> bytes:
    return struct.pack("!q", _microseconds(value.replace(tzinfo=dt.UTC) - _EPOCH))


def _binary_interval(value: dt.timedelta) -> bytes:
    # Days and time with one sign, as the text form has them (a timedelta has negative days and a positive rest).
    sign, micros = (-1, -_microseconds(value)) if value < dt.timedelta(0) else (1, _microseconds(value))
    days, rest = divmod(micros, 86_400_000_000)
    return struct.pack("!qii", sign * rest, sign * days, 0)


def _binary_numeric(value: int | float | Decimal) -> bytes:
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if number.is_nan():
        return struct.pack("!HhHH", 0, 0, 0xC000, 0)
    if number.is_infinite():
        return struct.pack("!HhHH", 0, 0, 0xD000 if number > 0 else 0xF000, 0x20)
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    scale = max(0, -exponent)
    text = "".join(map(str, digits)) + "0" * max(0, exponent)
    whole, fraction = (text[:-scale], text[-scale:].rjust(scale, "0")) if scale else (text, "")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[at : at + 4]) for at in range(0, len(whole) + len(fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups.pop(0)
        weight -= 1
    while groups and groups[-1] == 0:
        groups.pop()
    if not groups:
        return struct.pack("!HhHH", 0, 0, 0, scale)
    return struct.pack(f"!HhHH{len(groups)}H", len(groups), weight, 0x4000 if sign else 0, scale, *groups)


def _packer(layout: str, convert: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    packed = struct.Struct(layout)
    return lambda value: packed.pack(convert(value))


_BINARY: Final[dict[int, Callable[[Any], bytes]]] = {
    BOOL: _packer("!?", bool),
    INT2: _packer("!h", int),
    INT4: _packer("!i", int),
    INT8: _packer("!q", int),
    OID: _packer("!I", int),
    FLOAT4: _packer("!f", float),
    FLOAT8: _packer("!d", float),
    BYTEA: bytes,
    UUID: lambda value: (value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))).bytes,
    DATE: lambda value: struct.pack("!i", (value - _EPOCH_DATE).days),
    TIMESTAMP: _binary_timestamp,
    TIMESTAMPTZ: _binary_timestamptz,
    INTERVAL: _binary_interval,
    NUMERIC: _binary_numeric,
    JSONB: lambda value: b"\x01" + (encode_text(value) or b""),
}
