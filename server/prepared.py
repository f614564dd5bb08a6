"""Prepared statements of sessions, and how they are shared on backends.

A client's names are virtual. On a backend a statement is known by a counter name and stands for one text under one set
of parameter types, parse context and catalog generation: equal ones of different sessions are prepared once. A fresh
Parse after DDL gets a new identity, because PostgreSQL would analyse it anew; a statement prepared before keeps the
old one, and PostgreSQL itself then says whether its result type changed (0A000).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from protocol.scan import F_PARSE, length_at, pack_length
from server.context import ParseContext
from server.statement_info import QueryInfo

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.session_state import SessionState

BACKEND_NAME_PREFIX = b"rustydb_"


class SharedStatement:
    """One text as it is prepared on backends. Identity is the key; `name` is what backends call it."""

    __slots__ = ("__weakref__", "name", "text_and_types")

    def __init__(self, name: bytes, text_and_types: bytes) -> None:
        self.name = name
        self.text_and_types = text_and_types

    def parse_message(self, name: bytes | None = None) -> bytes:
        """The Parse that prepares it, under its own or a given name."""
        body = (self.name if name is None else name) + b"\0" + self.text_and_types
        return b"P" + pack_length(len(body) + 4) + body


class VirtualStatement:
    """A statement as one session sees it. `description` is the last answer to Describe that its client saw."""

    __slots__ = ("description", "info", "shared")

    def __init__(self, shared: SharedStatement, info: QueryInfo) -> None:
        self.shared = shared
        self.info = info
        self.description: bytes | None = None


class StatementRegistry:
    """All shared statements of one database. What no session and no backend holds is forgotten."""

    def __init__(self) -> None:
        self._statements: WeakValueDictionary[tuple[bytes, ParseContext, int], SharedStatement] = WeakValueDictionary()
        self._numbers: Iterator[int] = itertools.count(1)

    def __len__(self) -> int:
        return len(self._statements)

    def intern(self, text_and_types: bytes, parse: ParseContext, generation: int) -> SharedStatement:
        """The statement for the tail of a Parse message (text, NUL, parameter types)."""
        key = (text_and_types, parse, generation)
        found = self._statements.get(key)
        if found is None:
            name = BACKEND_NAME_PREFIX + str(next(self._numbers)).encode()
            found = self._statements[key] = SharedStatement(name, text_and_types)
        return found


UNKNOWN_STATEMENT: Final = object()
"""Stands in `BackendConnection.unnamed` for an unnamed statement of which nothing is known."""


def forget_unnamed(session: SessionState, backend: BackendConnection) -> None:
    """A run failed: what it parsed as the unnamed statement may have been skipped, and the one before is another's."""
    backend.unnamed = UNKNOWN_STATEMENT
    if session.unnamed is not None and (session.was_open or not _parses_unnamed_first_only(session.request)):
        session.unnamed = None


def _parses_unnamed_first_only(run: bytes) -> bool:
    """Whether the unnamed statement is parsed by the first message, which is never skipped, or by none."""
    pos = 0
    while pos < len(run):
        if pos and run[pos] == F_PARSE and run[pos + 5] == 0:
            return False
        pos += 1 + length_at(run, pos + 1)[0]
    return True


def split_parse(data: bytes, pos: int, end: int) -> tuple[bytes, bytes]:
    """Name, and text with parameter types, of the Parse message at `pos`."""
    assert data[pos] == F_PARSE
    name_end = data.index(0, pos + 5, end)
    return data[pos + 5 : name_end], data[name_end + 1 : end]


def bind_values(data: bytes, pos: int, end: int) -> list[bytes | None]:
    """The parameter values of the Bind message at `pos`, as sent (text or binary)."""
    cursor = data.index(0, data.index(0, pos + 5, end) + 1, end) + 1
    formats = int.from_bytes(data[cursor : cursor + 2], "big")
    cursor += 2 + 2 * formats
    count = int.from_bytes(data[cursor : cursor + 2], "big")
    cursor += 2
    values: list[bytes | None] = []
    for _ in range(count):
        if cursor + 4 > end:
            break
        length = length_at(data, cursor)[0]
        cursor += 4
        if length == 0xFFFFFFFF:
            values.append(None)
            continue
        values.append(data[cursor : min(cursor + length, end)])
        cursor += length
    return values
