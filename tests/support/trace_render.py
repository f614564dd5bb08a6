"""Messages as text for golden traces: everything a client can see, less what differs from run to run.

Masked: process ids (a connection's own is written as its name), cancel keys, SCRAM's nonces, oids of a database's own
tables and types, and the place in the server's source that raised an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from tests.support.wire_client import Message

FIRST_USER_OID = 16384
HIDDEN_ERROR_FIELDS = frozenset("FLR")
HIDDEN_PARAMETERS = frozenset({"server_version"})
AUTHENTICATION = {0: "Ok", 3: "CleartextPassword", 5: "MD5Password", 10: "SASL", 11: "SASLContinue", 12: "SASLFinal"}
WITHOUT_BODY = {
    "1": "ParseComplete",
    "2": "BindComplete",
    "3": "CloseComplete",
    "n": "NoData",
    "s": "PortalSuspended",
    "I": "EmptyQueryResponse",
    "c": "CopyDone",
}
COPY_RESPONSES = {"G": "CopyInResponse", "H": "CopyOutResponse", "W": "CopyBothResponse"}
NAMES_TO_KINDS = {
    "ReadyForQuery": "Z",
    "CommandComplete": "C",
    "ErrorResponse": "E",
    "NoticeResponse": "N",
    "NotificationResponse": "A",
    "ParameterStatus": "S",
    "DataRow": "D",
    "RowDescription": "T",
    "ParameterDescription": "t",
    "CopyInResponse": "G",
    "CopyOutResponse": "H",
    "FunctionCallResponse": "V",
    "NegotiateProtocolVersion": "v",
    "BackendKeyData": "K",
    "AuthenticationSASL": "R",
    **{name: kind for kind, name in WITHOUT_BODY.items()},
}


def value_text(value: bytes | None, pids: Mapping[str, int]) -> str:
    """A column's value: text quoted, other bytes in hexadecimal, a process id of the trace by its connection's name."""
    if value is None:
        return "NULL"
    try:
        decoded = value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
    for name, pid in pids.items():
        if decoded == str(pid):
            return f"pid({name})"
    return repr(decoded) if decoded.isprintable() or "\n" in decoded or "\t" in decoded else f"0x{value.hex()}"


def oid_text(oid: int) -> str:
    return "own" if oid >= FIRST_USER_OID else str(oid)


class Renderer:
    """Renders the messages of one trace; knows the process ids of its connections."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self._by_kind: dict[str, Callable[[Message], str]] = {
            "R": self._authentication,
            "K": self._backend_key,
            "S": self._parameter_status,
            "Z": lambda found: f"ReadyForQuery({found.text})",
            "C": lambda found: f"CommandComplete({found.text})",
            "T": self._row_description,
            "D": self._data_row,
            "t": self._parameter_description,
            "E": self._fields,
            "N": self._fields,
            "A": self._notification,
            "d": lambda found: f"CopyData({value_text(found.body, {})})",
            "V": self._function_result,
            "v": self._negotiate,
        }

    def render(self, found: Message) -> str:
        """One line for one backend message."""
        if found.kind in WITHOUT_BODY:
            return WITHOUT_BODY[found.kind]
        if found.kind in COPY_RESPONSES:
            return self._copy_response(found)
        renderer = self._by_kind.get(found.kind)
        return renderer(found) if renderer is not None else f"Unknown({found.kind!r}, {found.body!r})"

    def _pid(self, pid: int) -> str:
        return next((name for name, known in self.pids.items() if known == pid), "other")

    def _authentication(self, found: Message) -> str:
        (code,) = struct.unpack_from("!I", found.body)
        name = AUTHENTICATION.get(code, str(code))
        if code == 10:
            mechanisms = [part.decode() for part in found.body[4:].split(b"\0") if part]
            return f"AuthenticationSASL({', '.join(mechanisms)})"
        return f"Authentication{name}"

    def _backend_key(self, found: Message) -> str:
        return f"BackendKeyData(key of {len(found.body) - 4} bytes)"

    def _parameter_status(self, found: Message) -> str:
        name, _, value = found.text.partition("\0")
        return f"ParameterStatus({name}, {'*' if name in HIDDEN_PARAMETERS else repr(value)})"

    def _row_description(self, found: Message) -> str:
        (count,) = struct.unpack_from("!H", found.body)
        offset = 2
        columns: list[str] = []
        for _ in range(count):
            end = found.body.index(b"\0", offset)
            name = found.body[offset:end].decode()
            table, column, oid, size, modifier, code = struct.unpack_from("!IhIhih", found.body, end + 1)
            offset = end + 19
            origin = f" column={column}" if table else ""
            columns.append(f"{name} type={oid_text(oid)} size={size} mod={modifier} format={code}{origin}")
        return f"RowDescription({'; '.join(columns)})"

    def _data_row(self, found: Message) -> str:
        return f"DataRow({', '.join(value_text(value, self.pids) for value in found.values)})"

    def _parameter_description(self, found: Message) -> str:
        (count,) = struct.unpack_from("!H", found.body)
        oids = struct.unpack_from(f"!{count}I", found.body, 2)
        return f"ParameterDescription({', '.join(map(oid_text, oids))})"

    def _fields(self, found: Message) -> str:
        name = "ErrorResponse" if found.kind == "E" else "NoticeResponse"
        fields = [f"{code}={value!r}" for code, value in found.fields.items() if code not in HIDDEN_ERROR_FIELDS]
        return f"{name}({' '.join(fields)})"

    def _notification(self, found: Message) -> str:
        (pid,) = struct.unpack_from("!I", found.body)
        channel, payload = found.body[4:].decode().split("\0")[:2]
        return f"NotificationResponse(pid({self._pid(pid)}), {channel!r}, {payload!r})"

    def _copy_response(self, found: Message) -> str:
        overall, count = struct.unpack_from("!BH", found.body)
        formats = struct.unpack_from(f"!{count}H", found.body, 3)
        return f"{COPY_RESPONSES[found.kind]}(format={overall} columns={list(formats)})"

    def _function_result(self, found: Message) -> str:
        (length,) = struct.unpack_from("!i", found.body)
        return f"FunctionCallResponse({value_text(None if length < 0 else found.body[4:], {})})"

    def _negotiate(self, found: Message) -> str:
        version, count = struct.unpack_from("!II", found.body)
        names = [part.decode() for part in found.body[8:].split(b"\0")[:count]]
        return f"NegotiateProtocolVersion({version >> 16}.{version & 0xFFFF}, {names})"


def sort_parameter_runs(lines: list[str]) -> list[str]:
    """Neighbouring ParameterStatus lines in alphabetical order: PostgreSQL's own order is that of a hash table."""
    sorted_lines: list[str] = []
    run: list[str] = []
    for line in lines:
        if "ParameterStatus(" in line:
            run.append(line)
            continue
        sorted_lines += sorted(run)
        run = []
        sorted_lines.append(line)
    return sorted_lines + sorted(run)
