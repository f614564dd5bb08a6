"""What a client asks for in its startup packet: version, role, database, replication, settings. Pure.

`read_request` turns a StartupMessage into a `StartupRequest`, or raises the PgError that PostgreSQL 18 raises
(ProcessStartupPacket, pg_split_opts, process_postgres_switches). Nothing here has been proved yet: settings are only
carried along, and reach the engine after the login, as the client's own statements would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.codes import PROTOCOL_3_0, PROTOCOL_3_2, PROTOCOL_MAJOR
from protocol.errors import PgError, ProtocolError
from protocol.startup import (
    CancelRequest,
    GssEncRequest,
    SslRequest,
    StartupMessage,
    StartupPacket,
    decode_startup_packet,
    negotiate,
)

MAX_IDENTIFIER_BYTES: Final = 63  # NAMEDATALEN - 1
PHYSICAL_REPLICATION: Final = "true"
LOGICAL_REPLICATION: Final = "database"

# Encodings in which the byte of a quote or backslash can be the second half of a character: what we read as a string's
# end and what the engine reads could differ. Keys as PostgreSQL's clean_encoding_name writes them.
_REFUSED_ENCODINGS: Final = {
    alias: name
    for name, aliases in {
        "SJIS": ("sjis", "mskanji", "shiftjis", "win932", "windows932"),
        "SHIFT_JIS_2004": ("shiftjis2004",),
        "BIG5": ("big5", "win950", "windows950"),
        "GBK": ("gbk", "win936", "windows936"),
        "UHC": ("uhc", "win949", "windows949"),
        "GB18030": ("gb18030",),
        "JOHAB": ("johab",),
    }.items()
    for alias in aliases
}

# Switches of the `postgres` program that stand for a setting of a session. The others are the server's own.
_SETTING_SWITCHES: Final = {"d": "log_min_messages", "S": "work_mem"}
_FLAG_SWITCHES: Final = {"e": ("datestyle", "euro"), "s": ("log_statement_stats", "true")}


@dataclass(frozen=True, slots=True)
class StartupRequest:
    """A startup packet that makes sense."""

    version: tuple[int, int]  # (3, 0) or (3, 2)
    role: str
    database: str  # "" for physical replication
    replication: str | None  # PHYSICAL_REPLICATION, LOGICAL_REPLICATION or None
    settings: dict[str, str]  # `options` are split into them; without user, database, replication and _pq_ options
    reply: bytes  # NegotiateProtocolVersion where the client must hear of it, else empty

    @property
    def is_physical_replication(self) -> bool:
        return self.replication == PHYSICAL_REPLICATION

    @property
    def application_name(self) -> str:
        return self.settings.get("application_name", "")


def decode_packet(body: bytes) -> StartupMessage | CancelRequest:
    """The packet of a connection whose encryption is settled. Raises ProtocolError, or PgError 0A000."""
    packet: StartupPacket = decode_startup_packet(body)
    if isinstance(packet, SslRequest | GssEncRequest):
        # Asked for twice, or inside TLS: PostgreSQL then takes it for a version number.
        raise unsupported_version(body)
    return packet


def unsupported_version(body: bytes) -> ProtocolError:
    """0A000 for the version that a startup packet begins with."""
    major, minor = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
    supported = f"server supports {PROTOCOL_MAJOR}.0 to {PROTOCOL_MAJOR}.{PROTOCOL_3_2[1]}"
    return ProtocolError(f"unsupported frontend protocol {major}.{minor}: {supported}", sqlstate="0A000")


def error_in_form_of(body: bytes, error: PgError) -> bytes:
    """The error as this client can read it: before protocol 3 it was a text."""
    if body[:2] in (b"\0\1", b"\0\2"):
        return b"E" + f"{error.severity}:  {error.message}\n".encode("utf-8", "replace") + b"\0"
    return error.to_error_response()


def read_request(message: StartupMessage) -> StartupRequest:
    """Raises PgError, FATAL."""
    negotiated = negotiate(message)
    role = _identifier(message.user or "")
    database = _identifier(message.database or "")
    replication = None
    settings: dict[str, str] = {}
    for name, value in message.settings.items():
        if name == "replication":
            replication = parse_replication(value)
        elif name == "options":
            # They come first in PostgreSQL whatever their place, so that a setting of its own wins over them.
            settings = _merge(parse_options(value), settings)
        else:
            settings = _merge(settings, {name: value})
    if replication == PHYSICAL_REPLICATION:
        database = ""
    return StartupRequest(
        version=PROTOCOL_3_2 if negotiated.version >= PROTOCOL_3_2 else PROTOCOL_3_0,
        role=role,
        database=database,
        replication=replication,
        settings={name: _text(name, value) for name, value in settings.items()},
        reply=negotiated.reply.encode() if negotiated.reply is not None else b"",
    )


def parse_replication(value: str) -> str | None:
    """PHYSICAL_REPLICATION, LOGICAL_REPLICATION or None (off). Raises PgError 22023."""
    if value == "database":
        return LOGICAL_REPLICATION
    is_on = _boolean(value)
    if is_on is None:
        raise _fatal(
            "22023",
            f'invalid value for parameter "replication": "{value}"',
            hint='Valid values are: "false", 0, "true", 1, "database".',
        )
    return PHYSICAL_REPLICATION if is_on else None


def split_options(options: str) -> list[str]:
    """Words of the `options` parameter: split at white space, a backslash takes the next character as it is."""
    words: list[str] = []
    word: list[str] | None = None
    characters = iter(options)
    for character in characters:
        if character in " \t\n\v\f\r":
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        word = [] if word is None else word
        if character == "\\":
            character = next(characters, "")
        word.append(character)
    if word is not None:
        words.append("".join(word))
    return words


def parse_options(options: str) -> dict[str, str]:
    """Settings in an `options` parameter: `-c name=value`, `-cname=value`, `--name=value`, and the old switches.

    Raises PgError 42601 for what is no setting.
    """
    settings: dict[str, str] = {}
    words = iter(split_options(options))
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, value = _assignment(word[2:], f"--{word[2:]} requires a value")
        elif word.startswith("-c"):
            text = word[2:] or next(words, "")
            if not text:
                raise _invalid_switch(word)
            name, value = _assignment(text, f"-c {text} requires a value")
        elif word.startswith("-") and word[1:2] in _SETTING_SWITCHES:
            name, value = _SETTING_SWITCHES[word[1]], word[2:] or next(words, "")
            if not value:
                raise _invalid_switch(word)
        elif len(word) == 2 and word[0] == "-" and word[1] in _FLAG_SWITCHES:
            name, value = _FLAG_SWITCHES[word[1]]
        else:
            raise _invalid_switch(word)
        settings = _merge(settings, {name: value})
    return settings


def check_client_encoding(settings: dict[str, str]) -> None:
    """Raises PgError 22023 where the client asks for an encoding that cannot be scanned safely."""
    for name, value in settings.items():
        if name.lower() == "client_encoding" and (encoding := refused_encoding(value)):
            raise _fatal(
                "22023",
                f'client encoding "{encoding}" is not supported',
                hint="A byte of a character in it can look like a quote. Use UTF8, and convert in the client.",
            )


def refused_encoding(name: str) -> str | None:
    """PostgreSQL's name of a client encoding that is refused, by any of its aliases; None for the others."""
    return _REFUSED_ENCODINGS.get("".join(char for char in name.lower() if char.isascii() and char.isalnum()))


def _identifier(name: str) -> str:
    """A name cut as PostgreSQL cuts it, without half a character at the end (stored names are cut so)."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= MAX_IDENTIFIER_BYTES:
        return name
    return raw[:MAX_IDENTIFIER_BYTES].decode("utf-8", "ignore")


def _merge(settings: dict[str, str], later: dict[str, str]) -> dict[str, str]:
    """`settings` with `later` on top; names are the same whatever their case."""
    replaced = {name.lower() for name in later}
    return {name: value for name, value in settings.items() if name.lower() not in replaced} | later


def _assignment(text: str, complaint: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise _fatal("42601", complaint)
    return name.replace("-", "_"), value


def _invalid_switch(word: str) -> PgError:
    return _fatal(
        "42601",
        f"invalid command-line argument for server process: {word}",
        hint='Try "postgres --help" for more information.',
    )


def _text(name: str, value: str) -> str:
    """A value that the engine's encoding can hold. application_name is cleaned, as PostgreSQL cleans it."""
    if name.lower() == "application_name":
        raw = value.encode("utf-8", "surrogateescape")
        return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in raw)
    for text in (name, value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = ord(text[error.start]) & 0xFF
            raise _fatal("22021", f'invalid byte sequence for encoding "UTF8": 0x{byte:02x}') from None
    return value


def _boolean(value: str) -> bool | None:
    """PostgreSQL's parse_bool: any beginning of a word that is not ambiguous."""
    text = value.lower()
    if not text:
        return None
    if text == "1" or "true".startswith(text) or "yes".startswith(text) or text == "on":
        return True
    if text == "0" or "false".startswith(text) or "no".startswith(text) or (len(text) > 1 and "off".startswith(text)):
        return False
    return None


def _fatal(sqlstate: str, message: str, *, hint: str | None = None) -> PgError:
    return PgError(sqlstate, message, hint=hint, severity="FATAL")
