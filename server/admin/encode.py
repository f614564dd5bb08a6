"""Admin results as wire bytes, for the simple and the extended protocol alike.

The session core calls `row_description` (Describe, or the head of a simple reply), `rows` (all DataRow messages) and
`command_complete`; or `simple_reply` for all of it but ReadyForQuery. `data_rows` gives the messages one by one, for an
Execute with a row limit. `decode_parameters` turns the values of a Bind into what `AdminConsole.run` takes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import struct
from collections.abc import Callable, Sequence
from typing import Final

from protocol import values
from protocol.backend_messages import CommandComplete, RowDescription
from protocol.errors import PgError
from server.admin.console import FLOAT8_OID, INT8_OID, BoundCommand
from server.extension.commands import AdminColumn, AdminResult, ColumnType
from server.extension.grammar import Value

ROWS_IN_A_TURN: Final = 100
"""Rows encoded before the event loop may turn: about a millisecond of SHOW SESSIONS."""

Formats = Sequence[int]
"""Result format codes as in Bind: () all text, (f,) the same for all, else one a column."""


Encoder = Callable[[object], bytes | None]
Encoding = str | None
"""Python's name of the client encoding; None for UTF-8."""


def expand_formats(formats: Formats, count: int) -> tuple[int, ...]:
    """One format a column.

    Raises PgError 08P01 where the number fits neither rule, 22023 for a code that does not exist.
    """
    if any(code not in (0, 1) for code in formats):
        raise PgError("22023", f"unsupported format code: {next(code for code in formats if code not in (0, 1))}")
    if not formats:
        return (0,) * count
    if len(formats) == 1:
        return (formats[0],) * count
    if len(formats) != count:
        raise PgError("08P01", f"bind message has {len(formats)} result formats but query has {count} columns")
    return tuple(formats)


def row_description(columns: Sequence[AdminColumn], formats: Formats = ()) -> bytes:
    """The RowDescription message; b"" where there are no columns (Describe then answers NoData)."""
    if not columns:
        return b""
    codes = expand_formats(formats, len(columns))
    fields = tuple(
        values.column(column.name, column.type_oid, format=code) for column, code in zip(columns, codes, strict=True)
    )
    return RowDescription(fields).encode()


def data_rows(
    result: AdminResult, columns: Sequence[AdminColumn], formats: Formats = (), encoding: Encoding = None
) -> list[bytes]:
    """One DataRow message a row."""
    codes = expand_formats(formats, len(columns))
    encoders = [_encoder(column.type_oid, code, encoding) for column, code in zip(columns, codes, strict=True)]
    return [_data_row(row, encoders) for row in result.rows]


def rows(
    result: AdminResult, columns: Sequence[AdminColumn], formats: Formats = (), encoding: Encoding = None
) -> bytes:
    """All DataRow messages in one piece."""
    return b"".join(data_rows(result, columns, formats, encoding)) if columns else b""


def command_complete(bound: BoundCommand, result: AdminResult) -> bytes:
    return CommandComplete(result.tag or bound.tag).encode()


def notices(result: AdminResult) -> bytes:
    """NoticeResponse messages, to be sent before anything else of the reply."""
    return b"".join(notice.to_notice_response() for notice in result.notices)


def simple_reply(bound: BoundCommand, result: AdminResult, encoding: Encoding = None) -> bytes:
    """The whole reply to a simple Query but ReadyForQuery."""
    return b"".join(
        (
            notices(result),
            row_description(bound.columns),
            rows(result, bound.columns, (), encoding),
            command_complete(bound, result),
        )
    )


def execute_reply(bound: BoundCommand, result: AdminResult, formats: Formats, encoding: Encoding = None) -> bytes:
    """The whole reply to an Execute without row limit."""
    return b"".join((notices(result), rows(result, bound.columns, formats, encoding), command_complete(bound, result)))


async def reply_in_turns(
    bound: BoundCommand,
    result: AdminResult,
    *,
    is_simple: bool,
    formats: Formats = (),
    encoding: Encoding = None,
) -> bytes:
    """`simple_reply` or `execute_reply` for results of any length: lets the event loop turn between slices of rows."""
    parts = [notices(result)]
    if is_simple:
        parts.append(row_description(bound.columns))
    if bound.columns:
        for start in range(0, len(result.rows), ROWS_IN_A_TURN):
            part = AdminResult(result.rows[start : start + ROWS_IN_A_TURN])
            parts.append(rows(part, bound.columns, formats, encoding))
            await asyncio.sleep(0)
    parts.append(command_complete(bound, result))
    return b"".join(parts)


def decode_parameters(
    bound: BoundCommand, raw: Sequence[bytes | None], formats: Formats, encoding: Encoding = None
) -> tuple[Value | None, ...]:
    """Values of $1, $2, ... from a Bind. Raises PgError as PostgreSQL would: 08P01, 22P02, 22P03, 22021, 22003."""
    oids = bound.parameter_oids
    if len(raw) != len(oids):
        raise PgError("08P01", f"bind message supplies {len(raw)} parameters, but the command requires {len(oids)}")
    if len(formats) not in (0, 1, len(oids)):
        raise PgError("08P01", f"bind message has {len(formats)} parameter formats but {len(oids)} parameters")
    codes = expand_formats(formats, len(oids))
    return tuple(_decode(value, oid, code, encoding) for value, oid, code in zip(raw, oids, codes, strict=True))


# Values

_COUNT: Final = struct.Struct("!h")
_LENGTH: Final = struct.Struct("!i")
_INTEGER_LAYOUTS: Final = {2: "!h", 4: "!i", 8: "!q"}
_FLOAT_LAYOUTS: Final = {4: "!f", 8: "!d"}


def _encoder(type_oid: int, code: int, encoding: Encoding) -> Encoder:
    """The function for one column. Columns of SHOW SESSIONS times thousands of sessions: the common ones are direct."""
    if type_oid == ColumnType.TEXT:
        # Its binary form is the same. What the client cannot write is shown as a question mark: it reads, it does not
        # store.
        codec, errors = (encoding, "replace") if encoding is not None else ("utf-8", "surrogateescape")
        return lambda value: None if value is None else str(value).encode(codec, errors)
    convert = _CONVERSIONS.get(type_oid, _same)
    if code:
        return lambda value: None if value is None else values.encode_binary(convert(value), type_oid)
    if type_oid == ColumnType.INT8:
        return lambda value: None if value is None else str(value).encode()
    return lambda value: None if value is None else values.encode_text(convert(value))


def _same(value: object) -> object:
    return value


def _float(value: object) -> object:
    return float(value) if isinstance(value, int) else value


def _moment(value: object) -> object:
    return dt.datetime.fromtimestamp(value, dt.UTC) if isinstance(value, (int, float)) else value


_CONVERSIONS: Final[dict[int, Callable[[object], object]]] = {
    ColumnType.FLOAT8: _float,
    ColumnType.TIMESTAMPTZ: _moment,
}


def _data_row(row: Sequence[object], encoders: Sequence[Encoder]) -> bytes:
    parts = [_COUNT.pack(len(encoders))]
    for value, encode in zip(row, encoders, strict=True):
        raw = encode(value)
        if raw is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts.append(_LENGTH.pack(len(raw)))
            parts.append(raw)
    body = b"".join(parts)
    return b"D" + _LENGTH.pack(len(body) + 4) + body


def _decode(value: bytes | None, oid: int, code: int, encoding: Encoding) -> Value | None:
    if value is None:
        return None
    if code and oid in (INT8_OID, FLOAT8_OID):
        # A client may have declared a narrower type in Parse (psycopg sends 5 as int2): the width says which.
        layout = (_INTEGER_LAYOUTS if oid == INT8_OID else _FLOAT_LAYOUTS).get(len(value))
        if layout is None:
            raise PgError("22P03", "incorrect binary data format in bind parameter")
        decoded: int | float = struct.unpack(layout, value)[0]
        return decoded
    try:
        text = value.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        raise PgError("22021", 'invalid byte sequence for encoding "UTF8"') from error
    if oid == INT8_OID:
        return _parse_integer(text)
    if oid == FLOAT8_OID:
        try:
            return float(text)
        except ValueError as error:
            raise PgError("22P02", f'invalid input syntax for type double precision: "{text}"') from error
    return text


def _parse_integer(text: str) -> int:
    digits = text.strip().lstrip("+-")
    if not digits.isascii() or not digits.isdigit() or len(text.strip()) - len(digits) > 1:
        raise PgError("22P02", f'invalid input syntax for type bigint: "{text}"')
    if len(digits.lstrip("0")) > 19 or not -(2**63) <= int(text) < 2**63:
        raise PgError("22003", f'value "{text}" is out of range for type bigint')
    return int(text)
