"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677) as PostgreSQL speaks them, in both roles, as pure steps.

The server side verifies with the StoredKey alone: no PBKDF2 a login (it costs over a millisecond), and no password is
ever seen. What it recovers on the way, the ClientKey, is enough to log in elsewhere under the same verifier.

Server: ScramServer(verifier).mechanisms() -> AuthenticationSASL; .first(mechanism, data) -> SASLContinue;
.final(data) -> SASLFinal. Client: ScramClient(password=...).first(offered) -> SASLInitialResponse;
.respond(data) -> SASLResponse; .verify(data). All raise ScramError, a PgError with PostgreSQL's SQLSTATE and text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import PgError
from protocol.saslprep import prepare_password
from protocol.sqlstate import (
    FEATURE_NOT_SUPPORTED,
    INVALID_AUTHORIZATION_SPECIFICATION,
    INVALID_PASSWORD,
    PROTOCOL_VIOLATION,
)

SCRAM_SHA_256: Final = "SCRAM-SHA-256"
SCRAM_SHA_256_PLUS: Final = "SCRAM-SHA-256-PLUS"
DEFAULT_ITERATIONS: Final = 4096
# A server could make a client compute for hours; PostgreSQL's own default is 4096.
MAX_CLIENT_ITERATIONS: Final = 1_000_000
KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 18
_CHANNEL_BINDING_TYPE: Final = "tls-server-end-point"
_GS2_PLUS: Final = f"p={_CHANNEL_BINDING_TYPE},,"
_MALFORMED: Final = "malformed SCRAM message"
_SHOWN_BYTES: Final = 30
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})


class ScramError(PgError):
    """The exchange failed: 28P01 for a wrong password, 08P01 for a malformed message, 28000 and 0A000 as PostgreSQL."""

    def __init__(self, sqlstate: str, message: str, detail: str | None = None) -> None:
        super().__init__(sqlstate, message, detail=detail, severity="FATAL")


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What stands for a password under one verifier (salt and iterations): enough to log in, so it is a secret."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What pg_authid.rolpassword holds of a SCRAM password. `is_mock` never verifies, whatever the client proves."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    is_mock: bool = False

    @classmethod
    def parse(cls, rolpassword: str | None) -> ScramVerifier | None:
        """From `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; None for anything else (md5, plain)."""
        if rolpassword is None:
            return None
        try:
            scheme, parameters, keys = rolpassword.split("$")
            iterations, salt = parameters.split(":")
            stored_key, server_key = keys.split(":")
        except ValueError:
            return None
        if scheme != SCRAM_SHA_256 or not (iterations.isascii() and iterations.isdigit() and len(iterations) <= 10):
            return None
        raw = [_from_base64(part) for part in (salt, stored_key, server_key)]
        if raw[0] is None or raw[1] is None or raw[2] is None or int(iterations) < 1:
            return None
        if len(raw[1]) != KEY_BYTES or len(raw[2]) != KEY_BYTES:
            return None
        return cls(int(iterations), raw[0], raw[1], raw[2])

    @classmethod
    def build(
        cls, password: str | bytes, iterations: int = DEFAULT_ITERATIONS, *, salt: bytes | None = None
    ) -> ScramVerifier:
        """A new verifier. Runs PBKDF2: keep it off the event loop."""
        chosen = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        keys = derive_keys(password, chosen, iterations)
        return cls(iterations, chosen, _sha256(keys.client_key), keys.server_key)

    def verify_password(self, password: str | bytes) -> bool:
        """Is it the password (for one that was sent in clear)? Runs PBKDF2."""
        keys = derive_keys(password, self.salt, self.iterations)
        return hmac.compare_digest(_sha256(keys.client_key), self.stored_key) and not self.is_mock

    def __str__(self) -> str:
        keys = f"{_to_base64(self.stored_key)}:{_to_base64(self.server_key)}"
        return f"{SCRAM_SHA_256}${self.iterations}:{_to_base64(self.salt)}${keys}"


def mock_verifier(role: str, secret: bytes, *, iterations: int = DEFAULT_ITERATIONS) -> ScramVerifier:
    """For a role that does not exist or has no SCRAM password: a full exchange that always fails.

    The salt depends on the role and the server's secret alone, so asking twice tells nothing.
    """
    name = role.encode("utf-8", "surrogateescape")

    def derive(purpose: bytes) -> bytes:
        return hmac.digest(secret, purpose + b"\0" + name, "sha256")

    return ScramVerifier(iterations, derive(b"salt")[:SALT_BYTES], derive(b"stored"), derive(b"server"), is_mock=True)


def derive_keys(password: str | bytes, salt: bytes, iterations: int) -> ScramKeys:
    """ClientKey and ServerKey of a password. Runs PBKDF2."""
    salted = hashlib.pbkdf2_hmac("sha256", prepare_password(password), salt, iterations)
    return ScramKeys(hmac.digest(salted, b"Client Key", "sha256"), hmac.digest(salted, b"Server Key", "sha256"))


def tls_server_end_point(certificate_der: bytes, signature_hash: str | None) -> bytes | None:
    """RFC 5929's binding of a certificate, given the hash of its signature algorithm ("sha256", "sha384", ...).

    None where the algorithm has no such hash (Ed25519): then no channel binding can be offered.
    """
    if signature_hash is None:
        return None
    name = signature_hash.lower().replace("-", "")
    return hashlib.new("sha256" if name in _WEAK_HASHES else name, certificate_der).digest()


class ScramServer:
    """We verify a client. `channel_binding` is the hash of our TLS certificate, None without TLS or such a hash."""

    def __init__(
        self,
        verifier: ScramVerifier,
        *,
        channel_binding: bytes | None,
        role: str = "",
        server_nonce: str | None = None,
    ) -> None:
        self._verifier = verifier
        self._channel_binding = channel_binding
        self._role = role
        self._nonce = server_nonce or _to_base64(secrets.token_bytes(_NONCE_BYTES))
        self._uses_binding = False
        self._flag = ""
        self._client_first_bare = ""
        self._server_first = ""
        self._client_key: bytes | None = None

    @property
    def client_key(self) -> bytes | None:
        """The recovered ClientKey, once `final` has succeeded."""
        return self._client_key

    @property
    def keys(self) -> ScramKeys | None:
        """What logs in elsewhere under the same verifier, once `final` has succeeded."""
        return None if self._client_key is None else ScramKeys(self._client_key, self._verifier.server_key)

    def mechanisms(self) -> list[str]:
        """What to offer, best first."""
        return [SCRAM_SHA_256] if self._channel_binding is None else [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]

    def first(self, mechanism: str, client_first: bytes | None) -> bytes:
        """Take the client's first message, return ours.

        Without an initial response the answer is an empty challenge; then call `first` again with what comes.
        """
        if mechanism not in self.mechanisms():
            raise ScramError(PROTOCOL_VIOLATION, "client selected an invalid SASL authentication mechanism")
        self._uses_binding = mechanism == SCRAM_SHA_256_PLUS
        if client_first is None:
            return b""
        reader = _Attributes(_text(client_first))
        self._flag = self._read_binding_flag(reader)
        if reader.peek() == "a":
            raise ScramError(FEATURE_NOT_SUPPORTED, "client uses authorization identity, but it is not supported")
        if reader.peek() != ",":
            raise _malformed(f'Unexpected attribute "{_shown(reader.peek())}" in client-first-message.')
        reader.skip()
        self._client_first_bare = reader.rest()
        if reader.peek() == "m":
            raise ScramError(FEATURE_NOT_SUPPORTED, "client requires an unsupported SCRAM extension")
        reader.value("n")  # the user: the startup packet's counts, as in PostgreSQL
        client_nonce = reader.value("r")
        if not _is_printable(client_nonce):
            raise ScramError(PROTOCOL_VIOLATION, "non-printable characters in SCRAM nonce")
        while reader.peek():
            reader.any_value()
        self._nonce = client_nonce + self._nonce
        salt = _to_base64(self._verifier.salt)
        self._server_first = f"r={self._nonce},s={salt},i={self._verifier.iterations}"
        return self._server_first.encode("utf-8", "surrogateescape")

    def _read_binding_flag(self, reader: _Attributes) -> str:
        flag = reader.peek()
        if flag in ("n", "y"):
            if self._uses_binding:
                raise _malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include "
                    "channel binding data."
                )
            if flag == "y" and self._channel_binding is not None:
                # Somebody in between took -PLUS out of our offer.
                raise ScramError(
                    INVALID_AUTHORIZATION_SPECIFICATION,
                    "SCRAM channel binding negotiation error",
                    "The client supports SCRAM channel binding but thinks the server does not.  "
                    "However, this server does support channel binding.",
                )
            reader.skip()
            if reader.peek() != ",":
                raise _malformed(f'Comma expected, but found character "{_shown(reader.peek())}".')
            reader.skip()
            return flag
        if flag == "p":
            if not self._uses_binding:
                raise _malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes "
                    "channel binding data."
                )
            kind = reader.value("p")
            if kind != _CHANNEL_BINDING_TYPE:
                raise ScramError(PROTOCOL_VIOLATION, f'unsupported SCRAM channel-binding type "{_shown_text(kind)}"')
            return flag
        raise _malformed(f'Unexpected channel-binding flag "{_shown(flag)}".')

    def final(self, client_final: bytes) -> bytes:
        """Check the client's proof, return ours. Raises ScramError 28P01 where it does not hold."""
        text = _text(client_final)
        reader = _Attributes(text)
        self._check_binding(reader.value("c"))
        nonce = reader.value("r")
        while True:
            proof_at = reader.at
            name, value = reader.any_value()
            if name == "p":
                break
        proof = _from_base64(value)
        if proof is None or len(proof) != KEY_BYTES:
            raise _malformed("Malformed proof in client-final-message.")
        if reader.peek():
            raise _malformed("Garbage found at the end of client-final-message.")
        if nonce != self._nonce or not self._server_first:
            raise ScramError(PROTOCOL_VIOLATION, "invalid SCRAM response", "Nonce does not match.")
        message = _auth_message(self._client_first_bare, self._server_first, text[: proof_at - 1])
        signature = hmac.digest(self._verifier.stored_key, message, "sha256")
        client_key = _xor(proof, signature)
        proved = hmac.compare_digest(_sha256(client_key), self._verifier.stored_key)
        if not proved or self._verifier.is_mock:
            raise ScramError(INVALID_PASSWORD, f'password authentication failed for user "{self._role}"')
        self._client_key = client_key
        return b"v=" + base64.b64encode(hmac.digest(self._verifier.server_key, message, "sha256"))

    def _check_binding(self, sent: str) -> None:
        if self._uses_binding:
            expected = _to_base64(_GS2_PLUS.encode() + (self._channel_binding or b""))
            if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), expected.encode()):
                raise ScramError(INVALID_AUTHORIZATION_SPECIFICATION, "SCRAM channel binding check failed")
        elif sent != _to_base64(f"{self._flag},,".encode()):
            raise ScramError(PROTOCOL_VIOLATION, "unexpected SCRAM channel-binding attribute in client-final-message")


class ScramClient:
    """We log in. Either a password or the keys recovered from another login under the same verifier.

    `channel_binding` is the hash of the server's TLS certificate; with `require_channel_binding` a server that does
    not offer -PLUS is refused. `user` is not sent: PostgreSQL takes it from the startup packet, libpq leaves it out.
    """

    def __init__(
        self,
        user: str = "",
        password: str | bytes | None = None,
        *,
        keys: ScramKeys | None = None,
        channel_binding: bytes | None = None,
        require_channel_binding: bool = False,
        client_nonce: str | None = None,
    ) -> None:
        if (password is None) == (keys is None):
            raise ValueError("give either a password or keys")
        self.user = user
        self._password = password
        self._keys = keys
        self._channel_binding = channel_binding
        self._require_binding = require_channel_binding
        self._nonce = client_nonce or _to_base64(secrets.token_bytes(_NONCE_BYTES))
        self._gs2 = "n,,"
        self._client_first_bare = f"n=,r={self._nonce}"
        self._server_signature: bytes | None = None

    def first(self, offered: Collection[str] = (SCRAM_SHA_256,)) -> tuple[str, bytes]:
        """The mechanism chosen out of the server's offer, and our first message."""
        mechanism = SCRAM_SHA_256
        if self._channel_binding is not None and SCRAM_SHA_256_PLUS in offered:
            mechanism, self._gs2 = SCRAM_SHA_256_PLUS, _GS2_PLUS
        elif self._require_binding:
            raise ScramError(
                INVALID_AUTHORIZATION_SPECIFICATION, "channel binding is required, but server did not offer it"
            )
        elif SCRAM_SHA_256 not in offered:
            raise ScramError(
                INVALID_AUTHORIZATION_SPECIFICATION, "none of the server's SASL authentication mechanisms are supported"
            )
        elif self._channel_binding is not None:
            # "We could, you do not seem to": lets the server notice that its offer was tampered with.
            self._gs2 = "y,,"
        return mechanism, (self._gs2 + self._client_first_bare).encode()

    def respond(self, server_first: bytes) -> bytes:
        """Our proof. With a password this runs PBKDF2."""
        text = _text(server_first)
        reader = _Attributes(text)
        nonce = reader.value("r")
        if not nonce.startswith(self._nonce) or not _is_printable(nonce):
            raise ScramError(PROTOCOL_VIOLATION, "invalid SCRAM response (nonce mismatch)")
        salt = _from_base64(reader.value("s"))
        iterations = reader.value("i")
        if not salt:
            raise _malformed("Invalid salt.")
        if not (iterations.isascii() and iterations.isdigit()) or _bounded_int(iterations) < 1:
            raise _malformed("Invalid iteration count.")
        if self._keys is None and _bounded_int(iterations) > MAX_CLIENT_ITERATIONS:
            raise ScramError(
                FEATURE_NOT_SUPPORTED, f"server asks for more than {MAX_CLIENT_ITERATIONS} SCRAM iterations"
            )
        keys = self._keys or derive_keys(self._password or b"", salt, int(iterations))
        binding = self._gs2.encode()
        if self._gs2 == _GS2_PLUS:
            binding += self._channel_binding or b""
        without_proof = f"c={_to_base64(binding)},r={nonce}"
        message = _auth_message(self._client_first_bare, text, without_proof)
        signature = hmac.digest(_sha256(keys.client_key), message, "sha256")
        self._server_signature = hmac.digest(keys.server_key, message, "sha256")
        return f"{without_proof},p={_to_base64(_xor(keys.client_key, signature))}".encode()

    def verify(self, server_final: bytes) -> None:
        """Does the server know the verifier? An impostor does not. Raises ScramError."""
        reader = _Attributes(_text(server_final))
        if reader.peek() == "e":
            raise ScramError(INVALID_PASSWORD, f"error received from server in SCRAM exchange: {reader.value('e')}")
        signature = _from_base64(reader.value("v"))
        if signature is None or len(signature) != KEY_BYTES:
            raise _malformed("Invalid server signature.")
        if self._server_signature is None or not hmac.compare_digest(signature, self._server_signature):
            raise ScramError(INVALID_AUTHORIZATION_SPECIFICATION, "incorrect server signature")


class _Attributes:
    """Walks `a=value,b=value`. Errors are worded as PostgreSQL words them."""

    __slots__ = ("_text", "at")

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def peek(self) -> str:
        """The next character, '' at the end."""
        return self._text[self.at : self.at + 1]

    def skip(self) -> None:
        """Pass over one character."""
        self.at += 1

    def rest(self) -> str:
        """What is left, without passing over it."""
        return self._text[self.at :]

    def value(self, name: str) -> str:
        """The value of the attribute that must come next."""
        if self.peek() != name:
            raise _malformed(f'Expected attribute "{name}" but found "{_shown(self.peek())}".')
        self.skip()
        return self._value_of(name)

    def any_value(self) -> tuple[str, str]:
        """Name and value of whatever attribute comes next."""
        name = self.peek()
        if not name:
            raise _malformed("Attribute expected, but found end of string.")
        if not (name.isascii() and name.isalpha()):
            raise _malformed(f'Attribute expected, but found invalid character "{_shown(name)}".')
        self.skip()
        return name, self._value_of(name)

    def _value_of(self, name: str) -> str:
        if self.peek() != "=":
            raise _malformed(f'Expected character "=" for attribute "{name}".')
        self.skip()
        end = self._text.find(",", self.at)
        end = len(self._text) if end < 0 else end
        value = self._text[self.at : end]
        self.at = min(end + 1, len(self._text))
        return value


def _text(data: bytes) -> str:
    if not data:
        raise _malformed("The message is empty.")
    if b"\0" in data:
        raise _malformed("Message length does not match input length.")
    return data.decode("utf-8", "surrogateescape")


def _malformed(detail: str) -> ScramError:
    return ScramError(PROTOCOL_VIOLATION, _MALFORMED, detail)


def _shown(char: str) -> str:
    """One character of input in an error's detail: `'x'`, or its first byte where it is not printable ASCII."""
    if char and 0x21 <= ord(char) <= 0x7E:
        return f"'{char}'"
    return f"0x{char.encode('utf-8', 'surrogateescape')[:1].hex() or '00'}"


def _shown_text(text: str) -> str:
    """The beginning of a piece of input, harmless to print."""
    raw = text.encode("utf-8", "surrogateescape")[:_SHOWN_BYTES]
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E else "?" for byte in raw)


def _is_printable(text: str) -> bool:
    return all(0x21 <= ord(char) <= 0x7E and char != "," for char in text)


def _bounded_int(digits: str) -> int:
    return int(digits) if len(digits) <= 10 else MAX_CLIENT_ITERATIONS + 1


def _auth_message(client_first_bare: str, server_first: str, client_final_without_proof: str) -> bytes:
    joined = f"{client_first_bare},{server_first},{client_final_without_proof}"
    return joined.encode("utf-8", "surrogateescape")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
