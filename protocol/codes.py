"""Every number and letter of the PostgreSQL frontend/backend protocol, versions 3.0 and 3.2.

Message type bytes are integers (`IntEnum`), because indexing bytes gives integers. The same byte means different
messages in the two directions, so there is one enum a direction.
"""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from typing import Final

# Lengths count themselves (4) but not the type byte. The limits are PostgreSQL's own.
LENGTH_BYTES: Final = 4
HEADER_BYTES: Final = 5
MAX_STARTUP_PACKET_LENGTH: Final = 10_000
MAX_SMALL_MESSAGE_LENGTH: Final = 10_000
MAX_LARGE_MESSAGE_LENGTH: Final = 0x3FFF_FFFE
MAX_AUTH_TOKEN_LENGTH: Final = 65_535
MAX_SASL_MESSAGE_LENGTH: Final = 1_024
MIN_CANCEL_KEY_LENGTH: Final = 4
MAX_CANCEL_KEY_LENGTH: Final = 256

ALPN_PROTOCOL: Final = "postgresql"


class Direction(StrEnum):
    """Who sends a message; the letters are those of PQtrace."""

    FRONTEND = "F"
    BACKEND = "B"


class Phase(Enum):
    """Where in the conversation a frontend message arrives: decides what the byte 'p' means."""

    STARTUP = "startup"
    PASSWORD = "password"
    SASL_INITIAL = "sasl initial"
    SASL = "sasl"
    GSS = "gss"
    SESSION = "session"


class FrontendCode(IntEnum):
    """Type bytes of what a client sends."""

    BIND = ord("B")
    CLOSE = ord("C")
    COPY_DATA = ord("d")
    COPY_DONE = ord("c")
    COPY_FAIL = ord("f")
    DESCRIBE = ord("D")
    EXECUTE = ord("E")
    FLUSH = ord("H")
    FUNCTION_CALL = ord("F")
    PARSE = ord("P")
    PASSWORD = ord("p")  # PasswordMessage, SASLInitialResponse, SASLResponse or GSSResponse: see Phase
    QUERY = ord("Q")
    SYNC = ord("S")
    TERMINATE = ord("X")


class BackendCode(IntEnum):
    """Type bytes of what a server sends."""

    AUTHENTICATION = ord("R")
    BACKEND_KEY_DATA = ord("K")
    BIND_COMPLETE = ord("2")
    CLOSE_COMPLETE = ord("3")
    COMMAND_COMPLETE = ord("C")
    COPY_BOTH_RESPONSE = ord("W")
    COPY_DATA = ord("d")
    COPY_DONE = ord("c")
    COPY_IN_RESPONSE = ord("G")
    COPY_OUT_RESPONSE = ord("H")
    DATA_ROW = ord("D")
    EMPTY_QUERY_RESPONSE = ord("I")
    ERROR_RESPONSE = ord("E")
    FUNCTION_CALL_RESPONSE = ord("V")
    NEGOTIATE_PROTOCOL_VERSION = ord("v")
    NO_DATA = ord("n")
    NOTICE_RESPONSE = ord("N")
    NOTIFICATION_RESPONSE = ord("A")
    PARAMETER_DESCRIPTION = ord("t")
    PARAMETER_STATUS = ord("S")
    PARSE_COMPLETE = ord("1")
    PORTAL_SUSPENDED = ord("s")
    READY_FOR_QUERY = ord("Z")
    ROW_DESCRIPTION = ord("T")


class TxStatus(IntEnum):
    """The byte of ReadyForQuery."""

    IDLE = ord("I")
    IN_TRANSACTION = ord("T")
    FAILED = ord("E")


class Target(IntEnum):
    """What Describe and Close name."""

    STATEMENT = ord("S")
    PORTAL = ord("P")


class Format(IntEnum):
    """Format codes of parameters, columns and COPY."""

    TEXT = 0
    BINARY = 1


class AuthCode(IntEnum):
    """The Int32 behind the header of an Authentication message."""

    OK = 0
    KERBEROS_V5 = 2
    CLEARTEXT_PASSWORD = 3
    MD5_PASSWORD = 5
    GSS = 7
    GSS_CONTINUE = 8
    SSPI = 9
    SASL = 10
    SASL_CONTINUE = 11
    SASL_FINAL = 12


class RequestCode(IntEnum):
    """The first Int32 of a startup packet that is not a StartupMessage: 'version' 1234.x."""

    CANCEL = 1234 << 16 | 5678
    SSL = 1234 << 16 | 5679
    GSSENC = 1234 << 16 | 5680


class EncryptionAnswer(IntEnum):
    """The one byte that answers SSLRequest or GSSENCRequest. `ERROR` starts an ErrorResponse of an old server."""

    TLS = ord("S")
    GSS = ord("G")
    REFUSED = ord("N")
    ERROR = ord("E")


PROTOCOL_MAJOR: Final = 3
PROTOCOL_3_0: Final = (3, 0)
PROTOCOL_3_2: Final = (3, 2)
LATEST_MINOR: Final = 2
# libpq's "grease" value: a client that asks for it checks that servers negotiate down.
GREASE_MINOR: Final = 9999
PROTOCOL_OPTION_PREFIX: Final = "_pq_."
