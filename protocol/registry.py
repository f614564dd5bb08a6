"""Which message a type byte means: the table that decoding, tracing, documentation and fuzzing go through.

A byte is not enough to know a message. The direction decides (`D` is Describe or DataRow), for `p` the phase of the
conversation, for `R` the Int32 behind the header.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol import auth_messages as auth
from protocol import backend_messages as backend
from protocol import copy_messages as copy
from protocol import frontend_messages as frontend
from protocol import startup
from protocol.codes import (
    MAX_AUTH_TOKEN_LENGTH,
    MAX_LARGE_MESSAGE_LENGTH,
    MAX_SASL_MESSAGE_LENGTH,
    AuthCode,
    BackendCode,
    Direction,
    FrontendCode,
    Phase,
)
from protocol.errors import RemoteProtocolError
from protocol.message import Message

STARTUP_PACKETS: Final[tuple[type[Message], ...]] = (
    startup.StartupMessage,
    startup.SslRequest,
    startup.GssEncRequest,
    startup.CancelRequest,
)

# What 'p' means, by phase. Outside of authentication it means nothing.
PASSWORD_MESSAGES: Final[Mapping[Phase, type[Message]]] = MappingProxyType(
    {
        Phase.PASSWORD: auth.PasswordMessage,
        Phase.SASL_INITIAL: auth.SASLInitialResponse,
        Phase.SASL: auth.SASLResponse,
        Phase.GSS: auth.GSSResponse,
    }
)

AUTHENTICATION_MESSAGES: Final[Mapping[AuthCode, type[Message]]] = MappingProxyType(
    {
        AuthCode.OK: auth.AuthenticationOk,
        AuthCode.KERBEROS_V5: auth.AuthenticationKerberosV5,
        AuthCode.CLEARTEXT_PASSWORD: auth.AuthenticationCleartextPassword,
        AuthCode.MD5_PASSWORD: auth.AuthenticationMD5Password,
        AuthCode.GSS: auth.AuthenticationGSS,
        AuthCode.GSS_CONTINUE: auth.AuthenticationGSSContinue,
        AuthCode.SSPI: auth.AuthenticationSSPI,
        AuthCode.SASL: auth.AuthenticationSASL,
        AuthCode.SASL_CONTINUE: auth.AuthenticationSASLContinue,
        AuthCode.SASL_FINAL: auth.AuthenticationSASLFinal,
    }
)

FRONTEND_MESSAGES: Final[tuple[type[Message], ...]] = (
    frontend.Query,
    frontend.Parse,
    frontend.Bind,
    frontend.Describe,
    frontend.Execute,
    frontend.Close,
    frontend.Flush,
    frontend.Sync,
    frontend.FunctionCall,
    frontend.Terminate,
    copy.CopyData,
    copy.CopyDone,
    copy.CopyFail,
)

BACKEND_MESSAGES: Final[tuple[type[Message], ...]] = (
    startup.NegotiateProtocolVersion,
    startup.ParameterStatus,
    backend.BackendKeyData,
    backend.ReadyForQuery,
    backend.RowDescription,
    backend.DataRow,
    backend.CommandComplete,
    backend.EmptyQueryResponse,
    backend.ErrorResponse,
    backend.NoticeResponse,
    backend.NotificationResponse,
    backend.ParseComplete,
    backend.BindComplete,
    backend.ParameterDescription,
    backend.NoData,
    backend.PortalSuspended,
    backend.CloseComplete,
    backend.FunctionCallResponse,
    copy.CopyInResponse,
    copy.CopyOutResponse,
    copy.CopyBothResponse,
    copy.CopyData,
    copy.CopyDone,
)

ALL_MESSAGES: Final[tuple[type[Message], ...]] = tuple(
    dict.fromkeys(
        (
            *STARTUP_PACKETS,
            *AUTHENTICATION_MESSAGES.values(),
            *PASSWORD_MESSAGES.values(),
            *FRONTEND_MESSAGES,
            *BACKEND_MESSAGES,
        )
    )
)


def _by_code(kinds: tuple[type[Message], ...]) -> Mapping[int, type[Message]]:
    table: dict[int, type[Message]] = {}
    for kind in kinds:
        if kind.code is None or kind.code in table:
            raise TypeError(f"{kind.__name__} has no type byte of its own")
        table[kind.code] = kind
    return MappingProxyType(table)


_FRONTEND: Final = _by_code(FRONTEND_MESSAGES)
_BACKEND: Final = _by_code(BACKEND_MESSAGES)
# Auth answers have limits of their own, far below those of a session: the client is not known yet.
_PHASE_LIMITS: Final = {
    Phase.PASSWORD: MAX_AUTH_TOKEN_LENGTH,
    Phase.SASL_INITIAL: MAX_SASL_MESSAGE_LENGTH,
    Phase.SASL: MAX_SASL_MESSAGE_LENGTH,
    Phase.GSS: MAX_AUTH_TOKEN_LENGTH,
}


def length_limit(direction: Direction, code: int, phase: Phase, most: int = MAX_LARGE_MESSAGE_LENGTH) -> int:
    """The greatest length field a message may have, at most `most`. Raises RemoteProtocolError for an unknown type."""
    if direction is Direction.BACKEND:
        if code == BackendCode.AUTHENTICATION:
            return min(MAX_AUTH_TOKEN_LENGTH, most)
        kind = _BACKEND.get(code)
        if kind is None:
            raise RemoteProtocolError(f"invalid backend message type {code}")
        return min(kind.limit, most)
    if phase in PASSWORD_MESSAGES:
        if code != FrontendCode.PASSWORD:
            wanted = {Phase.PASSWORD: "password", Phase.GSS: "GSS"}.get(phase, "SASL")
            raise RemoteProtocolError(f"expected {wanted} response, got message type {code}")
        return min(_PHASE_LIMITS[phase], most)
    kind = _FRONTEND.get(code)
    if kind is None or phase is Phase.STARTUP:
        raise RemoteProtocolError(f"invalid frontend message type {code}")
    return min(kind.limit, most)


def message_class(direction: Direction, code: int, body: bytes, phase: Phase = Phase.SESSION) -> type[Message]:
    """The class of a typed message. Raises RemoteProtocolError where there is none."""
    kind: type[Message] | None
    if direction is Direction.FRONTEND:
        kind = PASSWORD_MESSAGES.get(phase) if code == FrontendCode.PASSWORD else _FRONTEND.get(code)
    elif code == BackendCode.AUTHENTICATION:
        return _authentication_class(body)
    else:
        kind = _BACKEND.get(code)
    if kind is None:
        raise RemoteProtocolError(f"invalid {direction.name.lower()} message type {code}")
    return kind


def _authentication_class(body: bytes) -> type[Message]:
    number = int.from_bytes(body[:4], "big")
    try:
        return AUTHENTICATION_MESSAGES[AuthCode(number)]
    except ValueError:
        raise RemoteProtocolError(f"authentication method {number} not supported") from None


def decode(direction: Direction, code: int | None, body: bytes, phase: Phase = Phase.SESSION) -> Message:
    """The message in a frame. Raises RemoteProtocolError, and nothing else."""
    if code is None:
        return startup.decode_startup_packet(body)
    return message_class(direction, code, body, phase).decode(body)
