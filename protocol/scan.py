"""Message boundaries over raw buffers: the part of the protocol that the query path uses.

A relay must know where each message starts and ends, and nothing else of most of them. These helpers find boundaries
without an object per message and without copying bodies. Offsets are byte positions in the buffer given.

Callers: `engine.connection` (replies) and `server.session` (requests). No I/O, no state.
"""

from __future__ import annotations

import struct
from typing import Final

length_at = struct.Struct("!I").unpack_from
"""The length word at an offset, as a 1-tuple; it counts itself but not the type byte."""

pack_length = struct.Struct("!I").pack
pack_header = struct.Struct("!cI").pack

HEADER_BYTES: Final = 5

READY_IDLE: Final = 0x49  # 'I'
READY_IN_TRANSACTION: Final = 0x54  # 'T'
READY_FAILED: Final = 0x45  # 'E'

# Frontend message types, as the integers that indexing a bytes object gives.
F_BIND: Final = 0x42
F_CLOSE: Final = 0x43
F_DESCRIBE: Final = 0x44
F_EXECUTE: Final = 0x45
F_FUNCTION_CALL: Final = 0x46
F_FLUSH: Final = 0x48
F_PARSE: Final = 0x50
F_QUERY: Final = 0x51
F_SYNC: Final = 0x53
F_TERMINATE: Final = 0x58
F_COPY_DONE: Final = 0x63
F_COPY_DATA: Final = 0x64
F_COPY_FAIL: Final = 0x66
F_PASSWORD: Final = 0x70

# Backend message types.
B_PARSE_COMPLETE: Final = 0x31
B_BIND_COMPLETE: Final = 0x32
B_CLOSE_COMPLETE: Final = 0x33
B_NOTIFICATION: Final = 0x41
B_COMMAND_COMPLETE: Final = 0x43
B_DATA_ROW: Final = 0x44
B_ERROR: Final = 0x45
B_COPY_IN: Final = 0x47
B_COPY_OUT: Final = 0x48
B_EMPTY_QUERY: Final = 0x49
B_BACKEND_KEY: Final = 0x4B
B_NOTICE: Final = 0x4E
B_AUTHENTICATION: Final = 0x52
B_PARAMETER_STATUS: Final = 0x53
B_ROW_DESCRIPTION: Final = 0x54
B_FUNCTION_RESULT: Final = 0x56
B_COPY_BOTH: Final = 0x57
B_READY: Final = 0x5A
B_COPY_DONE: Final = 0x63
B_COPY_DATA: Final = 0x64
B_NO_DATA: Final = 0x6E
B_PORTAL_SUSPENDED: Final = 0x73
B_PARAMETER_DESCRIPTION: Final = 0x74

STREAMED: Final = frozenset({B_DATA_ROW, B_COPY_DATA, B_ROW_DESCRIPTION, B_FUNCTION_RESULT})
"""Replies whose bodies may be passed on in parts: nobody on the path reads them."""

FRONTEND_TYPES: Final = frozenset(b"BCDEFHPQSXcdfp")
SYNC_BYTES: Final = b"S\x00\x00\x00\x04"
FLUSH_BYTES: Final = b"H\x00\x00\x00\x04"

_RUN_MIN: Final = 16
_WALK_AFTER_SHORT_RUN: Final = 64


def skip_same_type(data: bytes, pos: int, kind: int) -> int:
    """First position at or after `pos` that does not start a complete message of type `kind`.

    Rows of one result often have one length. Where they do, a run of k of them is checked with five strided
    comparisons in C instead of k steps in Python: if the header at p says length L, the next header is at p + L,
    so equal type and length bytes at every stride prove every boundary of the run.
    """
    end_of_data = len(data)
    walk = 0
    unpack = length_at
    while end_of_data - pos >= HEADER_BYTES and data[pos] == kind:
        stride = unpack(data, pos + 1)[0] + 1
        after = pos + stride
        if after > end_of_data:
            break
        if walk:
            walk -= 1
            pos = after
            continue
        run = _run_length(data, pos, stride, _RUN_MIN)
        if run == _RUN_MIN:
            run = _run_length(data, pos, stride, (end_of_data - pos) // stride)
        else:
            walk = _WALK_AFTER_SHORT_RUN
        pos += run * stride
    return pos


def _run_length(data: bytes, pos: int, stride: int, most: int) -> int:
    """How many whole messages from `pos` on repeat its header every `stride` bytes: 1 to `most`."""
    run = min(most, (len(data) - pos) // stride)
    for first in range(pos, pos + HEADER_BYTES):
        column = data[first : first + stride * run : stride]
        run = len(column) - len(column.lstrip(column[:1]))
    return run


def message(kind: bytes, body: bytes) -> bytes:
    """One whole message."""
    return pack_header(kind, len(body) + 4) + body
