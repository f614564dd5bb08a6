"""Statements that the server answers itself, as the extended protocol sees them: prepared, bound, described, closed."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.scan import message
from server.admin import encode
from server.admin.console import BoundCommand
from server.prepared import bind_values
from server.statement_info import QueryInfo

_NO_DATA = b"n\0\0\0\4"
_STATEMENT = 0x53


@dataclass(frozen=True, slots=True)
class LocalStatement:
    """A prepared statement of ours: an admin command, LISTEN or UNLISTEN."""

    info: QueryInfo


@dataclass(frozen=True, slots=True)
class LocalPortal:
    """A bound one. Formats as in Bind: none, one for all, or one each."""

    statement: LocalStatement
    values: tuple[bytes | None, ...]
    parameter_formats: tuple[int, ...]
    result_formats: tuple[int, ...]

    def row_description(self) -> bytes:
        """The answer to Describe of the portal."""
        bound = self.statement.info.console_command
        if not isinstance(bound, BoundCommand) or not bound.columns:
            return _NO_DATA
        return encode.row_description(bound.columns, self.result_formats)


@dataclass(slots=True)
class LocalNames:
    """The local statements and portals of one session, by name."""

    statements: dict[bytes, LocalStatement] = field(default_factory=dict)
    portals: dict[bytes, LocalPortal] = field(default_factory=dict)

    def refers(self, run: bytes, pos: int, end: int) -> bool:
        """Whether the message at `pos` names one of them."""
        kind = run[pos]
        if kind == 0x42:  # Bind
            start = run.index(0, pos + 5, end) + 1
            return run[start : run.index(0, start, end)] in self.statements
        if kind == 0x45:  # Execute
            return run[pos + 5 : run.index(0, pos + 5, end)] in self.portals
        name = run[pos + 6 : end - 1]
        return name in (self.statements if run[pos + 5] == _STATEMENT else self.portals)

    def describe(self, raw: bytes) -> bytes | None:
        """The answer to a Describe, None where it is not ours."""
        name = raw[6:-1]
        if raw[5] != _STATEMENT:
            portal = self.portals.get(name)
            return None if portal is None else portal.row_description()
        statement = self.statements.get(name)
        if statement is None:
            return None
        bound = statement.info.console_command
        oids = bound.parameter_oids if isinstance(bound, BoundCommand) else ()
        parameters = len(oids).to_bytes(2, "big") + b"".join(oid.to_bytes(4, "big") for oid in oids)
        return message(b"t", parameters) + LocalPortal(statement, (), (), ()).row_description()

    def close(self, raw: bytes) -> bytes | None:
        """The answer to a Close, None where it is not ours."""
        names: dict[bytes, LocalStatement] | dict[bytes, LocalPortal]
        names = self.statements if raw[5] == _STATEMENT else self.portals
        return None if names.pop(raw[6:-1], None) is None else b"3\0\0\0\4"


def bind_local(names: LocalNames, raw: bytes) -> LocalPortal | None:
    """Bind one of ours; None where the statement is not."""
    end = len(raw)
    portal_end = raw.index(0, 5)
    name_end = raw.index(0, portal_end + 1)
    statement = names.statements.get(raw[portal_end + 1 : name_end])
    if statement is None:
        names.portals.pop(raw[5:portal_end], None)
        return None
    values = tuple(bind_values(raw, 0, end))
    formats, _ = read_formats(raw, name_end + 1)
    cursor = name_end + 1 + 2 + 2 * len(formats) + 2
    for value in values:
        cursor += 4 + (0 if value is None else len(value))
    result_formats, _ = read_formats(raw, cursor)
    portal = LocalPortal(statement, values, formats, result_formats)
    names.portals[raw[5:portal_end]] = portal
    return portal


def read_formats(raw: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """The format codes of a Bind at `at`, and where they end."""
    count = int.from_bytes(raw[at : at + 2], "big")
    end = at + 2 + 2 * count
    return tuple(int.from_bytes(raw[i : i + 2], "big") for i in range(at + 2, end, 2)), end
