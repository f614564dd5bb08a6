"""The errors of the wire: who broke the protocol, and what a server tells a client.

Two families live here. `ProtocolError` says that bytes or message order were wrong: `RemoteProtocolError` when the
peer did it, `LocalProtocolError` when our own code asked for something that cannot be sent. `PgError` is an error or
notice as PostgreSQL reports it, with every field of ErrorResponse as an attribute; its identity is its SQLSTATE.

Texts are kept as `str` decoded with surrogateescape, so a message in any client encoding survives a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protocol.sqlstate import INTERNAL_ERROR, PROTOCOL_VIOLATION

# Field letter -> attribute of PgError, in the order PostgreSQL writes them. 'S' and 'V' share `severity`, see below.
ERROR_FIELDS: Final[tuple[tuple[str, str], ...]] = (
    ("S", "severity_localized"),
    ("V", "severity"),
    ("C", "sqlstate"),
    ("M", "message"),
    ("D", "detail"),
    ("H", "hint"),
    ("P", "position"),
    ("p", "internal_position"),
    ("q", "internal_query"),
    ("W", "where"),
    ("s", "schema_name"),
    ("t", "table_name"),
    ("c", "column_name"),
    ("d", "data_type_name"),
    ("n", "constraint_name"),
    ("F", "file"),
    ("L", "line"),
    ("R", "routine"),
)
_NUMBERS: Final = frozenset({"position", "internal_position", "line"})
_MAX_NUMBER_DIGITS: Final = 10


class ProtocolError(Exception):
    """Bytes or messages that the protocol does not allow. Nothing else may escape from decoding."""

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str = PROTOCOL_VIOLATION,
        detail: str | None = None,
        hint: str | None = None,
        fatal: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.fatal = fatal

    def to_pg_error(self) -> PgError:
        """What PostgreSQL would report for it: FATAL where the stream cannot be followed any further."""
        severity = "FATAL" if self.fatal else "ERROR"
        return PgError(self.sqlstate, self.message, detail=self.detail, hint=self.hint, severity=severity)


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""


class LocalProtocolError(ProtocolError):
    """We were asked to send what the protocol does not allow now, or at all."""


class PgError(Exception):
    """An error (or notice) with PostgreSQL's fields. Compare `sqlstate`, never `message`.

    `position` and `internal_position` count characters from 1. `severity` is never localized; `severity_localized`
    is what the wire's 'S' field says, the same word unless the engine's lc_messages is not English.
    """

    def __init__(
        self,
        sqlstate: str,
        message: str,
        *,
        detail: str | None = None,
        hint: str | None = None,
        position: int | None = None,
        severity: str = "ERROR",
        severity_localized: str | None = None,
        internal_position: int | None = None,
        internal_query: str | None = None,
        where: str | None = None,
        schema_name: str | None = None,
        table_name: str | None = None,
        column_name: str | None = None,
        data_type_name: str | None = None,
        constraint_name: str | None = None,
        file: str | None = None,
        line: int | None = None,
        routine: str | None = None,
        unknown_fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint
        self.position = position
        self.severity = severity
        self.severity_localized = severity_localized or severity
        self.internal_position = internal_position
        self.internal_query = internal_query
        self.where = where
        self.schema_name = schema_name
        self.table_name = table_name
        self.column_name = column_name
        self.data_type_name = data_type_name
        self.constraint_name = constraint_name
        self.file = file
        self.line = line
        self.routine = routine
        self.unknown_fields = unknown_fields

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.severity} {self.sqlstate}: {self.message!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own would call PgError(message) alone, and copying or pickling would fail.
        return (PgError.from_fields, (self.to_fields(),))

    @property
    def is_fatal(self) -> bool:
        """Does the session end with it?"""
        return self.severity in ("FATAL", "PANIC")

    @property
    def sqlstate_class(self) -> str:
        """The first two characters: PostgreSQL's class of the error."""
        return self.sqlstate[:2]

    def to_fields(self) -> tuple[tuple[str, str], ...]:
        """The (letter, text) pairs of the wire, without the fields that are not set."""
        fields = [(letter, str(value)) for letter, name in ERROR_FIELDS if (value := getattr(self, name)) is not None]
        fields.extend(self.unknown_fields)
        return tuple(fields)

    def to_error_response(self) -> bytes:
        """The whole ErrorResponse message."""
        return self._to_message(b"E")

    def to_notice_response(self) -> bytes:
        """The whole NoticeResponse message."""
        return self._to_message(b"N")

    def _to_message(self, type_byte: bytes) -> bytes:
        # An error must always be sendable: a NUL or a lone surrogate in a quoted piece of input is made harmless.
        body = pack_error_fields((letter, _harmless(text)) for letter, text in self.to_fields())
        return type_byte + (len(body) + 4).to_bytes(4, "big") + body

    @classmethod
    def from_fields(cls, fields: Iterable[tuple[str, str]]) -> PgError:
        """From the pairs of the wire. Missing SQLSTATE and message become XX000 and an empty text, as in libpq."""
        names = dict(ERROR_FIELDS)
        known: dict[str, str] = {}
        unknown: list[tuple[str, str]] = []
        for letter, text in fields:
            if letter in names:
                known[names[letter]] = text
            else:
                unknown.append((letter, text))
        severity = known.pop("severity", "") or known.get("severity_localized", "") or "ERROR"
        error = cls(
            known.pop("sqlstate", INTERNAL_ERROR),
            known.pop("message", ""),
            severity=severity,
            unknown_fields=tuple(unknown),
        )
        for name, text in known.items():
            setattr(error, name, _number(text) if name in _NUMBERS else text)
        return error

    @classmethod
    def from_body(cls, body: bytes | bytearray | memoryview) -> PgError:
        """From the body of an ErrorResponse or NoticeResponse. Raises ProtocolError."""
        return cls.from_fields(unpack_error_fields(bytes(body)))


def pack_error_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Letter, text, NUL, and so on, and a closing NUL."""
    out = bytearray()
    for letter, text in fields:
        try:
            code = letter.encode("latin-1")
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"error field {letter!r} cannot be encoded") from error
        if len(code) != 1 or code == b"\0" or b"\0" in raw:
            raise LocalProtocolError(f"error field {letter!r} cannot be sent")
        out += code + raw + b"\0"
    out += b"\0"
    return bytes(out)


def unpack_error_fields(body: bytes) -> tuple[tuple[str, str], ...]:
    """The inverse of pack_error_fields. The whole body must be used up."""
    fields: list[tuple[str, str]] = []
    at = 0
    while True:
        if at >= len(body):
            raise RemoteProtocolError("invalid message format", detail="The list of error fields has no end.")
        if body[at] == 0:
            break
        end = body.find(b"\0", at + 1)
        if end < 0:
            raise RemoteProtocolError("invalid string in message", detail="An error field has no end.")
        fields.append((chr(body[at]), body[at + 1 : end].decode("utf-8", "surrogateescape")))
        at = end + 1
    if at + 1 != len(body):
        raise RemoteProtocolError("invalid message format", detail="Bytes behind the list of error fields.")
    return tuple(fields)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_NUMBER_DIGITS else None


def _harmless(text: str) -> str:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "")
