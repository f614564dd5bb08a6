"""What makes a class a protocol message: one declaration, from which encode, decode, trace and fuzz seed follow.

    @message(FrontendCode.DESCRIBE, Direction.FRONTEND, limit=MAX_SMALL_MESSAGE_LENGTH)
    class Describe(Message):
        target: DescribeTarget
        name: CString = ""

The decorator makes it a frozen, slotted dataclass and reads the field codecs out of the annotations, in order.
`prefix` is a constant Int32 in front of the fields: the subtype of an Authentication message, the request code of a
startup packet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform, get_type_hints

from protocol.buffer import ReadCursor, WriteBuffer
from protocol.codes import LENGTH_BYTES, MAX_LARGE_MESSAGE_LENGTH, MAX_STARTUP_PACKET_LENGTH, Direction, FrontendCode
from protocol.errors import RemoteProtocolError
from protocol.fields import Codec, Nested, Trace

M = TypeVar("M", bound="Message")
R = TypeVar("R")

Layout = tuple[tuple[str, Codec[Any]], ...]


class Message:
    """Base of all messages. Decoding takes a body (what follows type byte and length) and uses all of it."""

    __slots__ = ()

    code: ClassVar[int | None]
    prefix: ClassVar[int | None]
    directions: ClassVar[frozenset[Direction]]
    limit: ClassVar[int]
    # Does a malformed body end the conversation? In a session not: the next message can be found.
    malformed_is_fatal: ClassVar[bool]
    layout: ClassVar[Layout]

    def encode(self) -> bytes:
        """The whole message: type byte (if it has one), length, body."""
        out = WriteBuffer()
        out.begin(self.code)
        if self.prefix is not None:
            out.int32(self.prefix)
        for name, codec in self.layout:
            codec.write(out, getattr(self, name))
        out.end()
        return out.getvalue()

    @classmethod
    def decode(cls, body: bytes | bytearray | memoryview) -> Self:
        """The message in a body. Raises RemoteProtocolError, and nothing else."""
        cursor = ReadCursor(body)
        try:
            if cls.prefix is not None and cursor.int32() != cls.prefix:
                raise RemoteProtocolError(f"not a {cls.__name__}")
            values = [codec.read(cursor) for _, codec in cls.layout]
            cursor.expect_end()
        except RemoteProtocolError as error:
            error.fatal = cls.malformed_is_fatal
            raise
        return cls(*values)

    def trace_fields(self, how: Trace) -> str:
        """The fields as PQtrace prints them, each with a leading space."""
        return "".join(codec.trace(getattr(self, name), how) for name, codec in self.layout)

    @classmethod
    def sample(cls, rng: Random) -> Self:
        """Some legal message of this kind: a seed for fuzzing."""
        return cls(*[codec.sample(rng) for _, codec in cls.layout])


@dataclass_transform(frozen_default=True)
def message(
    code: int | None,
    *directions: Direction,
    prefix: int | None = None,
    limit: int = MAX_LARGE_MESSAGE_LENGTH,
) -> Callable[[type[M]], type[M]]:
    """Declare a message with a type byte. `limit` bounds its length field, as PostgreSQL and libpq do."""

    def declare(cls: type[M]) -> type[M]:
        made = dataclasses.dataclass(frozen=True, slots=True)(cls)
        made.code = code
        made.prefix = prefix
        made.directions = frozenset(directions)
        made.limit = limit
        made.malformed_is_fatal = Direction.FRONTEND not in directions or code in (None, FrontendCode.PASSWORD)
        made.layout = _layout(made)
        return made

    return declare


@dataclass_transform(frozen_default=True)
def startup_packet(*, prefix: int | None = None) -> Callable[[type[M]], type[M]]:
    """Declare a packet without a type byte, which only the very start of a connection may hold."""
    return message(None, Direction.FRONTEND, prefix=prefix, limit=MAX_STARTUP_PACKET_LENGTH + LENGTH_BYTES)


@dataclass_transform(frozen_default=True)
def record(cls: type[R]) -> type[R]:
    """Declare a part of a message that has fields of its own."""
    return dataclasses.dataclass(frozen=True, slots=True)(cls)


def nested(cls: type[R]) -> Nested[R]:
    """The codec of a record."""
    return Nested(cls, _layout(cls))


def _layout(cls: type[Any]) -> Layout:
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field.name, _codec_of(cls, field.name, hints[field.name])) for field in dataclasses.fields(cls))


def _codec_of(cls: type[Any], name: str, hint: object) -> Codec[Any]:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Codec):
            return extra
    raise TypeError(f"{cls.__name__}.{name} does not say how it is encoded")
