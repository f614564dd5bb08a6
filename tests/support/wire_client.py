"""A PostgreSQL client over a raw blocking socket, written apart from `protocol/` on purpose.

It sends exactly the bytes it is told to and returns exactly the messages that came, so that tests can break rules that
drivers keep. `recv_until` and `recv_match` read; `simple` and `login` are the only shortcuts. Not safe for threads.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Self

from tests.support.target import Target

PROTOCOL_3_0 = 3 << 16
PROTOCOL_3_2 = (3 << 16) + 2
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
DEFAULT_TIMEOUT_SECONDS = 20.0


class WireError(Exception):
    """The server refused: an ErrorResponse during login or in `simple`; `fields` are the error's, by their codes."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(f"{fields.get('C')}: {fields.get('M')}")
        self.fields = fields

    @property
    def sqlstate(self) -> str:
        return self.fields.get("C", "")


class ConnectionEnded(OSError):
    """The server closed the connection where a message was due."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its type byte as a character, and its body without the length."""

    kind: str
    body: bytes

    @property
    def fields(self) -> dict[str, str]:
        """Fields of an ErrorResponse or NoticeResponse."""
        parts = self.body.split(b"\0")
        return {part[:1].decode(): part[1:].decode("utf-8", "replace") for part in parts if part}

    @property
    def values(self) -> list[bytes | None]:
        """Values of a DataRow."""
        (count,) = struct.unpack_from("!H", self.body)
        found: list[bytes | None] = []
        offset = 2
        for _ in range(count):
            (length,) = struct.unpack_from("!i", self.body, offset)
            offset += 4
            found.append(None if length < 0 else self.body[offset : offset + length])
            offset += max(length, 0)
        return found

    @property
    def text(self) -> str:
        """The body as text without its terminator: a CommandComplete's tag, ReadyForQuery's status."""
        return self.body.rstrip(b"\0").decode("utf-8", "replace")


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def query(sql: str) -> bytes:
    return message("Q", text(sql))


def parse(sql: str, name: str = "", types: Iterable[int] = ()) -> bytes:
    oids = list(types)
    return message("P", text(name) + text(sql) + struct.pack(f"!H{len(oids)}I", len(oids), *oids))


def bind(
    statement: str = "",
    values: Iterable[bytes | str | None] = (),
    portal: str = "",
    formats: Iterable[int] = (),
    result_formats: Iterable[int] = (),
) -> bytes:
    codes, results, parameters = list(formats), list(result_formats), list(values)
    body = text(portal) + text(statement) + struct.pack(f"!H{len(codes)}H", len(codes), *codes)
    body += struct.pack("!H", len(parameters))
    for value in parameters:
        raw = value.encode() if isinstance(value, str) else value
        body += struct.pack("!i", -1) if raw is None else struct.pack("!I", len(raw)) + raw
    return message("B", body + struct.pack(f"!H{len(results)}H", len(results), *results))


def describe(kind: str = "S", name: str = "") -> bytes:
    return message("D", kind.encode() + text(name))


def close(kind: str = "S", name: str = "") -> bytes:
    return message("C", kind.encode() + text(name))


def execute(portal: str = "", limit: int = 0) -> bytes:
    return message("E", text(portal) + struct.pack("!I", limit))


def sync() -> bytes:
    return message("S")


def flush() -> bytes:
    return message("H")


def terminate() -> bytes:
    return message("X")


def copy_data(data: bytes) -> bytes:
    return message("d", data)


def copy_done() -> bytes:
    return message("c")


def copy_fail(reason: str) -> bytes:
    return message("f", text(reason))


def startup(parameters: dict[str, str], protocol: int = PROTOCOL_3_0) -> bytes:
    body = struct.pack("!I", protocol) + b"".join(text(k) + text(v) for k, v in parameters.items()) + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    return struct.pack("!III", 12 + len(secret), CANCEL_REQUEST, pid) + secret


@cache
def _salted(password: str, salt: bytes, iterations: int) -> bytes:
    """PBKDF2 costs milliseconds: kept, so that a load generator measures the server and not itself."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


class ScramExchange:
    """SCRAM-SHA-256 without channel binding, client's side (RFC 5802)."""

    def __init__(self, password: str) -> None:
        self._password = password
        nonce = base64.b64encode(os.urandom(18)).decode()
        self._client_first_bare = f"n=,r={nonce}"
        self._server_signature = b""

    def first(self) -> bytes:
        initial = ("n,," + self._client_first_bare).encode()
        return message("p", text("SCRAM-SHA-256") + struct.pack("!I", len(initial)) + initial)

    def final(self, server_first: bytes) -> bytes:
        fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
        salted = _salted(self._password, base64.b64decode(fields["s"]), int(fields["i"]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={fields['r']}"
        auth_message = f"{self._client_first_bare},{server_first.decode()},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), auth_message, "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True))).decode()
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self._server_signature = hmac.digest(server_key, auth_message, "sha256")
        return message("p", f"{without_proof},p={proof}".encode())

    def verify(self, server_final: bytes) -> None:
        if server_final != b"v=" + base64.b64encode(self._server_signature):
            raise WireError({"C": "28P01", "M": "the server did not prove that it knows the password"})


class WireClient:
    """One connection. After `login` it is ready for queries; built by hand it has only its socket."""

    def __init__(self, host: str, port: int, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self.socket: socket.socket = socket.create_connection((host, port), timeout_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = (host, port)
        self.parameters: dict[str, str] = {}
        self.pid = 0
        self.secret = b""
        self.status = ""
        self._buffer = bytearray()

    @classmethod
    def login(
        cls,
        target: Target,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        protocol: int = PROTOCOL_3_0,
        parameters: Mapping[str, str] | None = None,
    ) -> Self:
        """Connect (with TLS where the target says so), authenticate and wait for ReadyForQuery."""
        client = cls(target.host, target.port, timeout_seconds)
        try:
            if target.tls:
                client.start_tls()
            client.send(startup({"user": target.user, "database": target.database, **(parameters or {})}, protocol))
            for found in client.authenticate(target.password):
                if found.kind == "E":
                    raise WireError(found.fields)
        except BaseException:
            client.abort()
            raise
        return client

    def start_tls(self) -> None:
        """SSLRequest, and TLS without verification: tests use self-signed certificates."""
        self.socket.sendall(struct.pack("!II", 8, SSL_REQUEST))
        answer = self.socket.recv(1)
        if answer != b"S":
            raise ConnectionEnded(f"the server answered {answer!r} to SSLRequest")
        self.wrap_tls(unverified_context())

    def wrap_tls(self, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def authenticate(self, password: str) -> Iterator[Message]:
        """Answer the server's authentication requests; yields every message up to ReadyForQuery or an error."""
        exchange = ScramExchange(password)
        while True:
            found = self.recv()
            yield found
            if found.kind == "R":
                (code,) = struct.unpack_from("!I", found.body)
                if code == 10:
                    self.send(exchange.first())
                elif code == 11:
                    self.send(exchange.final(found.body[4:]))
                elif code == 12:
                    exchange.verify(found.body[4:])
                elif code == 3:
                    self.send(message("p", text(password)))
            elif found.kind in "ZE":
                return

    def send(self, *parts: bytes) -> None:
        """All parts in one write."""
        self.socket.sendall(b"".join(parts))

    def recv(self) -> Message:
        """The next message, whatever it is. Raises ConnectionEnded at the stream's end, TimeoutError on silence."""
        while True:
            if len(self._buffer) >= 5:
                (length,) = struct.unpack_from("!I", self._buffer, 1)
                if len(self._buffer) > length:
                    found = Message(chr(self._buffer[0]), bytes(self._buffer[5 : length + 1]))
                    del self._buffer[: length + 1]
                    self._note(found)
                    return found
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionEnded(f"the server closed the connection ({len(self._buffer)} bytes of a message left)")
            self._buffer += data

    def recv_until(self, kinds: str) -> list[Message]:
        """Messages up to and with the first whose type is one of `kinds`."""
        found: list[Message] = []
        while True:
            found.append(self.recv())
            if found[-1].kind in kinds:
                return found

    def recv_match(self, *kinds: str) -> list[Message]:
        """Read one message per given type, in this order; notices, ParameterStatus and notifications in
        between are skipped unless they are asked for. Raises AssertionError naming what came instead."""
        matched: list[Message] = []
        for kind in kinds:
            while True:
                found = self.recv()
                if found.kind == kind:
                    matched.append(found)
                    break
                if found.kind not in "NSA":
                    detail = found.fields if found.kind == "E" else found.body[:80]
                    raise AssertionError(f"expected {kind!r} of {kinds}, got {found.kind!r}: {detail!r}")
        return matched

    def is_at_end(self, timeout_seconds: float = 5.0) -> bool:
        """Whether the server closes the connection within the time; what it still sends is thrown away."""
        self.socket.settimeout(timeout_seconds)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def simple(self, sql: str) -> list[list[str | None]]:
        """Run one text by the simple protocol; returns all rows as text. Raises WireError with the first error."""
        self.send(query(sql))
        rows: list[list[str | None]] = []
        error: WireError | None = None
        for found in self.recv_until("Z"):
            if found.kind == "D":
                rows.append([None if value is None else value.decode() for value in found.values])
            elif found.kind == "E" and error is None:
                error = WireError(found.fields)
        if error is not None:
            raise error
        return rows

    def value(self, sql: str) -> str | None:
        """The first value of the first row."""
        return self.simple(sql)[0][0]

    def cancel(self) -> None:
        """Send a CancelRequest for this connection and wait until the server has taken it."""
        with socket.create_connection(self.address, DEFAULT_TIMEOUT_SECONDS) as other:
            other.sendall(cancel_request(self.pid, self.secret))
            while other.recv(1024):
                pass

    def close(self) -> None:
        """Terminate politely."""
        try:
            self.send(terminate())
        except OSError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the socket without a word."""
        self.socket.close()

    def reset(self) -> None:
        """Close with RST, as a client whose machine went away does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, found: Message) -> None:
        if found.kind == "S":
            name, _, value = found.text.partition("\0")
            self.parameters[name] = value
        elif found.kind == "K":
            (self.pid,) = struct.unpack_from("!I", found.body)
            self.secret = found.body[4:]
        elif found.kind == "Z":
            self.status = found.text


@cache
def unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
