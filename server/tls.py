"""TLS of client connections: the certificate, the context, channel binding, and changing them while clients connect.

`TlsStore.current` is an immutable `TlsState`; a handshake takes it once and keeps it, so the channel binding always
belongs to the certificate of that very connection. `reload` builds a new state from the files and only then replaces
the old one. Without `tls.cert_file` a self-signed certificate is made at the first start.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from protocol.codes import ALPN_PROTOCOL
from server.config import Config

log = logging.getLogger(__name__)

SELF_SIGNED_DAYS: Final = 3650
WARN_BEFORE_EXPIRY: Final = datetime.timedelta(days=30)
CERT_NAME: Final = "server.crt"
KEY_NAME: Final = "server.key"


class TlsError(Exception):
    """Certificate, key or authorities cannot be used. The text says which file and why."""


@dataclass(frozen=True, slots=True)
class TlsState:
    """What one handshake uses."""

    context: ssl.SSLContext
    channel_binding: bytes | None  # tls-server-end-point; None where RFC 5929 defines none: no SCRAM-SHA-256-PLUS then
    asks_client_certificate: bool
    expires_at: datetime.datetime


class TlsStore:
    """The state in use. `current` is None where TLS is disabled."""

    def __init__(self, config: Config, directory: Path) -> None:
        """`directory`: where the self-signed certificate lies; made when it is needed."""
        self._config = config
        self._directory = directory
        self.current: TlsState | None = None

    def load(self) -> None:
        """Read the files anew. Raises TlsError, and then keeps what was in use."""
        settings = self._config.tls
        if settings.mode == "disable":
            self.current = None
            return
        if settings.cert_file is None or settings.key_file is None:
            certificate, key = ensure_self_signed(self._directory)
        else:
            certificate, key = settings.cert_file, settings.key_file
        self.current = load_state(certificate, key, settings.ca_file, settings.min_version)


def load_state(certificate: Path, key: Path, authorities: Path | None, min_version: str) -> TlsState:
    """A context from PEM files. Raises TlsError."""
    leaf = _read_leaf(certificate)
    _check_key_file(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if min_version == "TLSv1.3" else ssl.TLSVersion.TLSv1_2
    # As PostgreSQL: no renegotiation, no compression, no session to resume.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN_PROTOCOL])
    try:
        # The empty password keeps OpenSSL from asking on the terminal; a key behind a passphrase fails here.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"certificate {certificate} and key {key} cannot be used together: {_reason(error)}") from error
    if authorities is not None:
        try:
            context.load_verify_locations(cafile=authorities)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"could not load the client authorities {authorities}: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_OPTIONAL
    _warn_about_expiry(leaf, certificate)
    return TlsState(context, channel_binding(leaf), authorities is not None, leaf.not_valid_after_utc)


def channel_binding(certificate: x509.Certificate) -> bytes | None:
    """tls-server-end-point (RFC 5929, section 4.1): the certificate's hash under its signature's hash function.

    MD5 and SHA-1 are replaced by SHA-256. None where the signature has no hash function of its own (Ed25519), or where
    clients do not agree on it (RSA-PSS): a client that is offered binding there fails instead of doing without.
    """
    if certificate.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS:
        return None
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    if algorithm is None:
        return None
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    return certificate.fingerprint(algorithm)


def ensure_self_signed(directory: Path) -> tuple[Path, Path]:
    """Paths of the self-signed certificate and its key, made now if one of them is missing. Raises TlsError."""
    certificate_path, key_path = directory / CERT_NAME, directory / KEY_NAME
    if certificate_path.exists() and key_path.exists():
        return certificate_path, key_path
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # The certificate last: as long as it is missing, an interrupted first start is made again from the beginning.
        certificate_path.unlink(missing_ok=True)
        write_private_file(key_path, pem)
        write_private_file(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    except OSError as error:
        raise TlsError(f"could not make a certificate in {directory}: {_reason(error)}") from error
    log.info("made a self-signed certificate: %s", certificate_path)
    return certificate_path, key_path


def write_private_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file that never exists half or with wider permissions than `mode`. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    host = socket.gethostname()[:64] or "localhost"
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    names: list[x509.GeneralName] = [x509.DNSName(one) for one in dict.fromkeys((host, "localhost")) if one.isascii()]
    names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1")]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )


def _read_leaf(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError, IndexError) as error:
        raise TlsError(f"could not read the certificate {path}: {_reason(error)}") from error


def _check_key_file(path: Path) -> None:
    """PostgreSQL's rule: 0600 or less, or owned by root with at most 0640."""
    try:
        status = path.stat()
    except OSError as error:
        raise TlsError(f"could not read the private key {path}: {_reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise TlsError(f"private key {path} is not a regular file")
    allowed = 0o740 if status.st_uid == 0 and os.geteuid() != 0 else 0o700
    if status.st_mode & 0o777 & ~allowed:
        raise TlsError(
            f"private key {path} has group or world access: it must have permissions u=rw (0600) or less "
            "(0640 where root owns it)"
        )


def _warn_about_expiry(leaf: x509.Certificate, path: Path) -> None:
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left < WARN_BEFORE_EXPIRY:
        log.warning(
            "certificate %s %s on %s", path, "expired" if left.days < 0 else "expires", leaf.not_valid_after_utc
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    return str(error) or type(error).__name__
