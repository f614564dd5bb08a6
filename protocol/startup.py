"""The packets without a type byte that open a connection, and the version negotiation that answers them.

`decode_startup_packet` takes a body (the bytes behind the length) and tells the four kinds apart by their first
Int32. It does not judge versions: `negotiate` does, as PostgreSQL's ProcessStartupPacket would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.buffer import ReadCursor
from protocol.codes import (
    LATEST_MINOR,
    PROTOCOL_MAJOR,
    PROTOCOL_OPTION_PREFIX,
    BackendCode,
    Direction,
    RequestCode,
)
from protocol.errors import PgError, RemoteProtocolError
from protocol.fields import CancelKey, CString, CStrings32, Int32, ParameterMap, ProcessId, UInt16
from protocol.message import Message, message, startup_packet
from protocol.sqlstate import FEATURE_NOT_SUPPORTED, INVALID_AUTHORIZATION_SPECIFICATION

_SPECIAL_MAJOR: Final = 1234


@startup_packet()
class StartupMessage(Message):
    """The client asks for a session. Parameters keep the client's order; `user` is required by `negotiate`."""

    major: UInt16
    minor: UInt16
    parameters: ParameterMap

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor)."""
        return self.major, self.minor

    @property
    def user(self) -> str | None:
        """The role asked for."""
        return self.parameters.get("user") or None

    @property
    def database(self) -> str | None:
        """The database asked for: the role's name where none is given."""
        return self.parameters.get("database") or self.user

    @property
    def protocol_options(self) -> dict[str, str]:
        """The `_pq_.` options: of the protocol, not of the session."""
        return {name: text for name, text in self.parameters.items() if name.startswith(PROTOCOL_OPTION_PREFIX)}

    @property
    def settings(self) -> dict[str, str]:
        """What is left for the session: without user, database and protocol options (`options`, `replication` stay)."""
        return {
            name: text
            for name, text in self.parameters.items()
            if name not in ("user", "database") and not name.startswith(PROTOCOL_OPTION_PREFIX)
        }


@startup_packet(prefix=RequestCode.SSL)
class SslRequest(Message):
    """May we speak TLS? Answered by one byte, S or N."""


@startup_packet(prefix=RequestCode.GSSENC)
class GssEncRequest(Message):
    """May we speak GSSAPI encryption? Answered by one byte, G or N."""


@startup_packet(prefix=RequestCode.CANCEL)
class CancelRequest(Message):
    """Cancel what the backend of this process id does. Never answered. A secret of 4 bytes in 3.0, 4 to 256 in 3.2."""

    process_id: ProcessId
    secret: CancelKey


@message(BackendCode.NEGOTIATE_PROTOCOL_VERSION, Direction.BACKEND)
class NegotiateProtocolVersion(Message):
    """We speak an older minor version, or do not know some `_pq_.` options.

    `newest_version` holds the major version in its upper 16 bits, as PostgreSQL writes it.
    """

    newest_version: Int32
    unrecognized_options: CStrings32 = ()

    @property
    def newest(self) -> tuple[int, int]:
        """(major, minor)."""
        return self.newest_version >> 16, self.newest_version & 0xFFFF


@message(BackendCode.PARAMETER_STATUS, Direction.BACKEND)
class ParameterStatus(Message):
    """A reported setting has this value now."""

    name: CString
    value: CString


StartupPacket = StartupMessage | SslRequest | GssEncRequest | CancelRequest

_REQUESTS: Final[dict[int, type[SslRequest] | type[GssEncRequest] | type[CancelRequest]]] = {
    RequestCode.SSL: SslRequest,
    RequestCode.GSSENC: GssEncRequest,
    RequestCode.CANCEL: CancelRequest,
}


def decode_startup_packet(body: bytes | bytearray | memoryview) -> StartupPacket:
    """What a client opened the connection with. Raises RemoteProtocolError as PostgreSQL would report it."""
    if len(body) < 4:
        raise RemoteProtocolError("invalid length of startup packet")
    code = ReadCursor(body[:4]).int32()
    kind = _REQUESTS.get(code)
    if kind is not None:
        return kind.decode(body)
    major, minor = code >> 16 & 0xFFFF, code & 0xFFFF
    if major != PROTOCOL_MAJOR:
        # The rest of the packet may have any layout: it is not looked at.
        raise RemoteProtocolError(
            f"unsupported frontend protocol {major}.{minor}: server supports "
            f"{PROTOCOL_MAJOR}.0 to {PROTOCOL_MAJOR}.{LATEST_MINOR}",
            sqlstate=FEATURE_NOT_SUPPORTED,
        )
    try:
        return StartupMessage.decode(body)
    except RemoteProtocolError as error:
        raise RemoteProtocolError("invalid startup packet layout: expected terminator as last byte") from error


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides will speak. `reply`, where there is one, goes out before the first authentication message."""

    version: tuple[int, int]
    reply: NegotiateProtocolVersion | None


def negotiate(
    startup: StartupMessage,
    *,
    latest_minor: int = LATEST_MINOR,
    known_options: frozenset[str] = frozenset(),
) -> Negotiated:
    """Which version to speak with this client, as PostgreSQL 18 decides it.

    A newer minor version or an unknown `_pq_.` option is no error: the reply tells the client what we have.
    3.1 is no version that was ever used; who asks for it gets 3.0's message forms. Raises PgError (28000) where no
    user is named.
    """
    if startup.user is None:
        raise PgError(
            INVALID_AUTHORIZATION_SPECIFICATION, "no PostgreSQL user name specified in startup packet", severity="FATAL"
        )
    unknown = tuple(name for name in startup.protocol_options if name not in known_options)
    minor = min(startup.minor, latest_minor)
    reply = None
    if startup.minor > latest_minor or unknown:
        reply = NegotiateProtocolVersion(PROTOCOL_MAJOR << 16 | minor, unknown)
    return Negotiated((PROTOCOL_MAJOR, minor), reply)
