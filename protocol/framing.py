"""From a stream of bytes, cut anywhere, to frames: a type byte (or none) and a body.

A frame's length is judged as soon as its header is there, before a byte of its body is waited for. Which types exist
and how long each may be is the registry's business, passed in as `limit_of`. Cost is linear in the bytes: whatever is
left of a message is kept in one growing buffer and looked at again only when its header or its whole body is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocol.codes import HEADER_BYTES, LENGTH_BYTES, MAX_STARTUP_PACKET_LENGTH
from protocol.errors import ProtocolError, RemoteProtocolError

_COMPACT_ABOVE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Frame:
    """One message, undecoded. `code` is None for a startup packet."""

    code: int | None
    body: bytes

    @property
    def length(self) -> int:
        """The length field's value."""
        return len(self.body) + LENGTH_BYTES


class FrameDecoder:
    """Feed bytes, take frames. After an error every further call raises it again: the stream is lost."""

    __slots__ = ("_at", "_data", "_error")

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._error: ProtocolError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append what arrived."""
        self._data += data

    @property
    def buffered(self) -> int:
        """Bytes that are not part of a frame taken yet."""
        return len(self._data) - self._at

    def next_frame(self, limit_of: Callable[[int], int]) -> Frame | None:
        """The next whole message, or None. `limit_of(code)`: its greatest length field; may raise ProtocolError."""
        self._check()
        if self.buffered == 0:
            return None
        code = self._data[self._at]
        try:
            limit = limit_of(code)
        except ProtocolError as error:
            self._error = error
            raise
        if self.buffered < HEADER_BYTES:
            return None
        length = self._length_at(self._at + 1)
        if not LENGTH_BYTES <= length <= limit:
            raise self._broken("invalid message length")
        return self._take(code, self._at + HEADER_BYTES, length - LENGTH_BYTES)

    def next_startup_packet(self) -> Frame | None:
        """The next packet without a type byte, or None."""
        self._check()
        if self.buffered < LENGTH_BYTES:
            return None
        length = self._length_at(self._at)
        if not 2 * LENGTH_BYTES <= length <= MAX_STARTUP_PACKET_LENGTH + LENGTH_BYTES:
            raise self._broken("invalid length of startup packet")
        return self._take(None, self._at + LENGTH_BYTES, length - LENGTH_BYTES)

    def next_byte(self) -> int | None:
        """One raw byte: the answer to SSLRequest or GSSENCRequest."""
        if self.buffered == 0:
            return None
        self._at += 1
        return self._data[self._at - 1]

    def peek_byte(self) -> int | None:
        """The byte that comes next, not taken."""
        return self._data[self._at] if self.buffered else None

    def take_rest(self) -> bytes:
        """Everything not taken yet, for whoever reads on; the decoder is empty afterwards."""
        rest = bytes(memoryview(self._data)[self._at :])
        self._data = bytearray()
        self._at = 0
        return rest

    def _length_at(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + LENGTH_BYTES], "big", signed=True)

    def _take(self, code: int | None, start: int, size: int) -> Frame | None:
        end = start + size
        if len(self._data) < end:
            return None
        with memoryview(self._data) as view:
            body = bytes(view[start:end])
        self._at = end
        if end == len(self._data) or end > _COMPACT_ABOVE:
            del self._data[:end]
            self._at = 0
        return Frame(code, body)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _broken(self, text: str) -> ProtocolError:
        self._error = RemoteProtocolError(text)
        return self._error
