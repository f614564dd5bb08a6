"""The only place that packs and unpacks integers and C strings.

`ReadCursor` walks a message body and checks, before every read, that the bytes are there; what is wrong raises
RemoteProtocolError with PostgreSQL's own message text (pqformat.c). `WriteBuffer` builds messages; what cannot be
expressed on the wire (a NUL in a C string, a number too large) raises LocalProtocolError.
"""

from __future__ import annotations

import struct
from typing import Final

from protocol.errors import LocalProtocolError, RemoteProtocolError

_INT16: Final = struct.Struct("!h")
_UINT16: Final = struct.Struct("!H")
_INT32: Final = struct.Struct("!i")
_UINT32: Final = struct.Struct("!I")

INTEGERS: Final[dict[tuple[int, bool], struct.Struct]] = {
    (2, True): _INT16,
    (2, False): _UINT16,
    (4, True): _INT32,
    (4, False): _UINT32,
}


class ReadCursor:
    """A position in a message body. Nothing is read past the end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytes(data)
        self._at = 0

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def byte(self) -> int:
        """One byte."""
        if self._at >= len(self._data):
            raise RemoteProtocolError("no data left in message")
        value = self._data[self._at]
        self._at += 1
        return value

    def integer(self, layout: struct.Struct) -> int:
        """One integer in network byte order."""
        if self.remaining < layout.size:
            raise RemoteProtocolError("insufficient data left in message")
        value: int = layout.unpack_from(self._data, self._at)[0]
        self._at += layout.size
        return value

    def int32(self) -> int:
        """A signed Int32."""
        return self.integer(_INT32)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        if count < 0 or count > self.remaining:
            raise RemoteProtocolError("insufficient data left in message")
        value = self._data[self._at : self._at + count]
        self._at += count
        return value

    def rest(self) -> bytes:
        """Whatever is left."""
        return self.take(self.remaining)

    def cstring(self) -> str:
        """Text up to a NUL. Bytes that are not UTF-8 become surrogate escapes: see WriteBuffer.cstring."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise RemoteProtocolError("invalid string in message")
        value = self._data[self._at : end].decode("utf-8", "surrogateescape")
        self._at = end + 1
        return value

    def expect_end(self) -> None:
        """The body must be used up."""
        if self._at != len(self._data):
            raise RemoteProtocolError("invalid message format")


class WriteBuffer:
    """Messages under construction."""

    __slots__ = ("_data", "_length_at")

    def __init__(self) -> None:
        self._data = bytearray()
        self._length_at = 0

    def begin(self, type_byte: int | None) -> None:
        """Start a message; startup packets have no type byte."""
        if type_byte is not None:
            self._data.append(type_byte)
        self._length_at = len(self._data)
        self._data += b"\0\0\0\0"

    def end(self) -> None:
        """Write the length of the message that `begin` started."""
        length = len(self._data) - self._length_at
        try:
            _INT32.pack_into(self._data, self._length_at, length)
        except struct.error as error:
            raise LocalProtocolError("message is longer than the protocol can say") from error

    def byte(self, value: int) -> None:
        """One byte."""
        try:
            self._data.append(value)
        except ValueError as error:
            raise LocalProtocolError(f"{value} is no byte") from error

    def integer(self, layout: struct.Struct, value: int) -> None:
        """One integer in network byte order."""
        try:
            self._data += layout.pack(value)
        except struct.error as error:
            raise LocalProtocolError(f"{value} does not fit in {layout.size} bytes") from error

    def int32(self, value: int) -> None:
        """A signed Int32."""
        self.integer(_INT32, value)

    def raw(self, value: bytes | bytearray | memoryview) -> None:
        """Bytes as they are."""
        self._data += value

    def cstring(self, value: str) -> None:
        """Text and a NUL. Surrogate escapes turn back into the bytes they came from, so any encoding passes through."""
        try:
            raw = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise LocalProtocolError("text cannot be encoded") from error
        if b"\0" in raw:
            raise LocalProtocolError("text with a NUL cannot be sent")
        self._data += raw
        self._data.append(0)

    def getvalue(self) -> bytes:
        """Everything written so far."""
        return bytes(self._data)
