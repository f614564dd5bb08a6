"""How one field of a message is read, written, traced and invented.

A message declares its fields as annotated types (`name: CString`); everything else about the field comes from the
codec in the annotation:

    read    from a ReadCursor; raises RemoteProtocolError
    write   to a WriteBuffer; raises LocalProtocolError
    trace   the text PQtrace prints for it, with a leading space ('' for nothing)
    sample  a random value of the field's domain, for fuzzing and property tests

`Trace` says what a trace hides: `regress` replaces what differs between two runs, `reveal` shows secrets.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import Annotated, Any, Final, Generic, TypeVar

from protocol.buffer import INTEGERS, ReadCursor, WriteBuffer
from protocol.codes import MAX_CANCEL_KEY_LENGTH, MIN_CANCEL_KEY_LENGTH, Target, TxStatus
from protocol.errors import LocalProtocolError, RemoteProtocolError, pack_error_fields, unpack_error_fields

T = TypeVar("T")
E = TypeVar("E", bound=IntEnum)

_SAMPLE_TEXT: Final = ("", "a", "select 1", "täble", 'q"uote\\', "\udcff\udc80", "x" * 300, "\n\t", "$1")
_SAMPLE_BYTES: Final = (b"", b"a", b"\x00\xff", b"42", bytes(range(256)), b"y" * 1000)


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace shows."""

    regress: bool = False
    reveal: bool = False


class Codec(ABC, Generic[T]):
    """One kind of field. `min_size` is the least number of bytes it takes: counts are checked against it.

    `wire_type` says what it is on the wire, in the words of PostgreSQL's documentation.
    """

    min_size: int = 0
    wire_type: str = ""

    @abstractmethod
    def read(self, cursor: ReadCursor) -> T:
        """The value at the cursor."""

    @abstractmethod
    def write(self, out: WriteBuffer, value: T) -> None:
        """Append the value."""

    @abstractmethod
    def trace(self, value: T, how: Trace) -> str:
        """As PQtrace prints it."""

    @abstractmethod
    def sample(self, rng: Random) -> T:
        """Some legal value."""


class Integer(Codec[int]):
    """Int16 or Int32. A volatile one (an OID, a process id) differs from run to run."""

    def __init__(self, size: int, *, signed: bool = True, volatile: bool = False) -> None:
        self.min_size = size
        self._layout: struct.Struct = INTEGERS[size, signed]
        self._low, self._high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
        self._volatile = volatile
        self.wire_type = f"Int{8 * size}"

    def read(self, cursor: ReadCursor) -> int:
        return cursor.integer(self._layout)

    def write(self, out: WriteBuffer, value: int) -> None:
        out.integer(self._layout, value)

    def trace(self, value: int, how: Trace) -> str:
        if how.regress and self._volatile:
            return " NNNN"
        # As C's int prints what was read: 16 bits without a sign, 32 bits with one.
        return f" {value & 0xFFFF}" if self.min_size == 2 else f" {(value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000}"

    def sample(self, rng: Random) -> int:
        return rng.choice((0, 1, 2, self._low, self._high, rng.randint(self._low, self._high)))


class EnumByte(Codec[E]):
    """One byte out of an enum."""

    min_size = 1
    wire_type = "Byte1"

    def __init__(self, enum: type[E], complaint: str) -> None:
        self._enum = enum
        self._complaint = complaint

    def read(self, cursor: ReadCursor) -> E:
        value = cursor.byte()
        try:
            return self._enum(value)
        except ValueError:
            raise RemoteProtocolError(self._complaint.format(value)) from None

    def write(self, out: WriteBuffer, value: E) -> None:
        out.byte(value)

    def trace(self, value: E, how: Trace) -> str:
        return f" {chr(value)}"

    def sample(self, rng: Random) -> E:
        return rng.choice(list(self._enum))


class Byte(Codec[int]):
    """One byte, any. PQtrace prints COPY's overall format this way."""

    min_size = 1
    wire_type = "Int8"

    def read(self, cursor: ReadCursor) -> int:
        return cursor.byte()

    def write(self, out: WriteBuffer, value: int) -> None:
        out.byte(value)

    def trace(self, value: int, how: Trace) -> str:
        return f" {chr(value)}" if 32 <= value < 127 else f" \\x{value:02x}"

    def sample(self, rng: Random) -> int:
        return rng.randrange(256)


class Text(Codec[str]):
    """A C string."""

    min_size = 1
    wire_type = "String"

    def __init__(self, *, secret: bool = False) -> None:
        self._secret = secret

    def read(self, cursor: ReadCursor) -> str:
        return cursor.cstring()

    def write(self, out: WriteBuffer, value: str) -> None:
        out.cstring(value)

    def trace(self, value: str, how: Trace) -> str:
        return ' "****"' if self._secret and not how.reveal else _trace_text(value)

    def sample(self, rng: Random) -> str:
        return rng.choice(_SAMPLE_TEXT)


class Rest(Codec[bytes]):
    """Everything up to the end of the message, between `low` and `high` bytes."""

    def __init__(
        self, *, low: int = 0, high: int | None = None, secret: bool = False, complaint: str = "invalid message format"
    ) -> None:
        self.min_size = low
        self._high = high
        self.wire_type = f"Byte{low}" if low == high else f"Byte{low}..{high}" if high is not None else "Byten"
        self._secret = secret
        self._complaint = complaint

    def _fits(self, value: bytes) -> bool:
        return self.min_size <= len(value) and (self._high is None or len(value) <= self._high)

    def read(self, cursor: ReadCursor) -> bytes:
        value = cursor.rest()
        if not self._fits(value):
            raise RemoteProtocolError(self._complaint)
        return value

    def write(self, out: WriteBuffer, value: bytes) -> None:
        if not self._fits(value):
            raise LocalProtocolError(f"{self._complaint}: {len(value)} bytes")
        out.raw(value)

    def trace(self, value: bytes, how: Trace) -> str:
        return _trace_bytes(value, self._secret and not how.reveal)

    def sample(self, rng: Random) -> bytes:
        if self._high is None:
            return rng.choice(_SAMPLE_BYTES)
        return rng.randbytes(rng.choice((self.min_size, self._high, rng.randint(self.min_size, self._high))))


class Value(Codec["bytes | None"]):
    """An Int32 length and that many bytes, or length -1 for NULL."""

    min_size = 4
    wire_type = "Int32 length, Byten"

    def __init__(self, *, secret: bool = False) -> None:
        self._secret = secret

    def read(self, cursor: ReadCursor) -> bytes | None:
        length = cursor.int32()
        if length == -1:
            return None
        return cursor.take(length)

    def write(self, out: WriteBuffer, value: bytes | None) -> None:
        if value is None:
            out.int32(-1)
        else:
            out.int32(len(value))
            out.raw(value)

    def trace(self, value: bytes | None, how: Trace) -> str:
        if value is None:
            return " -1"
        return f" {len(value)}" + _trace_bytes(value, self._secret and not how.reveal)

    def sample(self, rng: Random) -> bytes | None:
        return rng.choice((None, *_SAMPLE_BYTES))


class Counted(Codec["tuple[T, ...]"]):
    """A count (Int16, read as unsigned, or Int32) and that many items."""

    def __init__(self, item: Codec[T], *, size: int = 2) -> None:
        self.min_size = size
        self._item = item
        self._count = INTEGERS[size, size == 4]
        self.wire_type = f"Int{8 * size} count, each {item.wire_type}"

    def read(self, cursor: ReadCursor) -> tuple[T, ...]:
        count = cursor.integer(self._count)
        # Checked before anything is allocated for it.
        if count < 0 or count * self._item.min_size > cursor.remaining:
            raise RemoteProtocolError("insufficient data left in message")
        read = self._item.read
        return tuple([read(cursor) for _ in range(count)])

    def write(self, out: WriteBuffer, value: tuple[T, ...]) -> None:
        out.integer(self._count, len(value))
        for item in value:
            self._item.write(out, item)

    def trace(self, value: tuple[T, ...], how: Trace) -> str:
        return f" {len(value)}" + "".join(self._item.trace(item, how) for item in value)

    def sample(self, rng: Random) -> tuple[T, ...]:
        return tuple(self._item.sample(rng) for _ in range(rng.choice((0, 1, 2, 5))))


class TextList(Codec["tuple[str, ...]"]):
    """C strings, ended by an empty one: SASL mechanisms."""

    min_size = 1
    wire_type = "String each, Byte1 zero"

    def read(self, cursor: ReadCursor) -> tuple[str, ...]:
        items: list[str] = []
        while item := cursor.cstring():
            items.append(item)
        return tuple(items)

    def write(self, out: WriteBuffer, value: tuple[str, ...]) -> None:
        for item in value:
            if not item:
                raise LocalProtocolError("an empty string would end the list")
            out.cstring(item)
        out.byte(0)

    def trace(self, value: tuple[str, ...], how: Trace) -> str:
        return "".join(_trace_text(item) for item in (*value, ""))

    def sample(self, rng: Random) -> tuple[str, ...]:
        return tuple(text for text in rng.sample(_SAMPLE_TEXT, 3) if text)


class Parameters(Codec["dict[str, str]"]):
    """Names and values, ended by an empty name: the startup parameters. A name given twice keeps its last value."""

    min_size = 1
    wire_type = "String name and String value each, Byte1 zero"

    def read(self, cursor: ReadCursor) -> dict[str, str]:
        parameters: dict[str, str] = {}
        while name := cursor.cstring():
            parameters[name] = cursor.cstring()
        return parameters

    def write(self, out: WriteBuffer, value: dict[str, str]) -> None:
        for name, text in value.items():
            if not name:
                raise LocalProtocolError("an empty name would end the parameters")
            out.cstring(name)
            out.cstring(text)
        out.byte(0)

    def trace(self, value: dict[str, str], how: Trace) -> str:
        return "".join(_trace_text(name) + _trace_text(text) for name, text in value.items()) + ' ""'

    def sample(self, rng: Random) -> dict[str, str]:
        names = rng.sample(("user", "database", "options", "_pq_.x", "é"), 3)
        return {name: rng.choice(_SAMPLE_TEXT) for name in names}


class ErrorFieldList(Codec["tuple[tuple[str, str], ...]"]):
    """The fields of ErrorResponse and NoticeResponse: letter and text, ended by a zero byte."""

    min_size = 1
    wire_type = "Byte1 letter and String each, Byte1 zero"

    def read(self, cursor: ReadCursor) -> tuple[tuple[str, str], ...]:
        return unpack_error_fields(cursor.rest())

    def write(self, out: WriteBuffer, value: tuple[tuple[str, str], ...]) -> None:
        out.raw(pack_error_fields(value))

    def trace(self, value: tuple[tuple[str, str], ...], how: Trace) -> str:
        # Where in PostgreSQL's source an error was raised changes with its version.
        parts = [
            f' {letter} "SSSS"' if how.regress and letter in "FLR" else f" {letter}{_trace_text(text)}"
            for letter, text in value
        ]
        return "".join(parts) + " \\x00"

    def sample(self, rng: Random) -> tuple[tuple[str, str], ...]:
        return tuple((letter, rng.choice(_SAMPLE_TEXT)) for letter in rng.sample("SVCMDHPpqWstcdnFLRz", 6))


class Nested(Codec[T]):
    """A record inside a message, with fields of its own."""

    def __init__(self, make: Callable[..., T], fields: tuple[tuple[str, Codec[Any]], ...]) -> None:
        self.min_size = sum(codec.min_size for _, codec in fields)
        self._make = make
        self._fields = fields
        self.wire_type = "(" + ", ".join(f"{codec.wire_type} {name}" for name, codec in fields) + ")"

    def read(self, cursor: ReadCursor) -> T:
        return self._make(*[codec.read(cursor) for _, codec in self._fields])

    def write(self, out: WriteBuffer, value: T) -> None:
        for name, codec in self._fields:
            codec.write(out, getattr(value, name))

    def trace(self, value: T, how: Trace) -> str:
        return "".join(codec.trace(getattr(value, name), how) for name, codec in self._fields)

    def sample(self, rng: Random) -> T:
        return self._make(*[codec.sample(rng) for _, codec in self._fields])


def _trace_text(value: str) -> str:
    """Quoted; what would break the line or cannot be printed (unlike in PQtrace) as `\\xNN`."""
    if value.isprintable():
        return f' "{value}"'
    shown = [
        char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in value
    ]
    return f' "{"".join(shown)}"'


def _trace_bytes(value: bytes, hidden: bool) -> str:
    if hidden:
        return " '****'"
    return " '" + "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in value) + "'"


# The types messages are declared with.
Int16 = Annotated[int, Integer(2)]
Int32 = Annotated[int, Integer(4)]
UInt16 = Annotated[int, Integer(2, signed=False)]
Oid = Annotated[int, Integer(4, signed=False, volatile=True)]
ProcessId = Annotated[int, Integer(4, volatile=True)]
RawByte = Annotated[int, Byte()]
CString = Annotated[str, Text()]
SecretCString = Annotated[str, Text(secret=True)]
Remainder = Annotated[bytes, Rest()]
SecretRemainder = Annotated[bytes, Rest(secret=True)]
CancelKey = Annotated[
    bytes,
    Rest(
        low=MIN_CANCEL_KEY_LENGTH,
        high=MAX_CANCEL_KEY_LENGTH,
        secret=True,
        complaint="invalid length of query cancel key",
    ),
]
Salt = Annotated[bytes, Rest(low=4, high=4)]
NullableBytes = Annotated["bytes | None", Value()]
SecretNullableBytes = Annotated["bytes | None", Value(secret=True)]
Int16s = Annotated["tuple[int, ...]", Counted(Integer(2))]
Oids = Annotated["tuple[int, ...]", Counted(Integer(4, signed=False, volatile=True))]
Values = Annotated["tuple[bytes | None, ...]", Counted(Value())]
CStrings32 = Annotated["tuple[str, ...]", Counted(Text(), size=4)]
CStringList = Annotated["tuple[str, ...]", TextList()]
ParameterMap = Annotated["dict[str, str]", Parameters()]
ErrorFields = Annotated["tuple[tuple[str, str], ...]", ErrorFieldList()]
TxStatusByte = Annotated[TxStatus, EnumByte(TxStatus, "invalid transaction status {}")]
DescribeTarget = Annotated[Target, EnumByte(Target, "invalid DESCRIBE message subtype {}")]
CloseTarget = Annotated[Target, EnumByte(Target, "invalid CLOSE message subtype {}")]
