"""server.tls: certificates, channel binding, hot reload."""

from __future__ import annotations

import datetime
import hashlib
import logging
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from server.config import Config
from server.settings_table import TlsSettings
from server.tls import TlsError, TlsStore, channel_binding, ensure_self_signed, load_state

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def make_certificate(
    key: Key, algorithm: hashes.HashAlgorithm | None, *, pss: bool = False, days: int = 90
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=100))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    if pss:
        assert algorithm is not None
        return builder.sign(key, algorithm, rsa_padding=padding.PSS(padding.MGF1(algorithm), 32))
    return builder.sign(key, algorithm)  # type: ignore[arg-type]


def write_pair(folder: Path, name: str = "x", *, days: int = 90) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, hashes.SHA256(), days=days)
    certificate_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    key_path.chmod(0o600)
    return certificate_path, key_path


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [(hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384"), (hashes.SHA512(), "sha512")],
)
def test_channel_binding_is_the_certificates_hash(algorithm: hashes.HashAlgorithm, digest: str) -> None:
    certificate = make_certificate(ec.generate_private_key(ec.SECP256R1()), algorithm)
    assert channel_binding(certificate) == hashlib.new(digest, der(certificate)).digest()


def test_sha1_signatures_are_bound_by_sha256(tmp_path: Path) -> None:
    path = tmp_path / "sha1.crt"
    made = subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -sha1 -subj /CN=x -days 5 -keyout {path}.key -out {path}".split(),
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("this machine's openssl makes no SHA-1 certificates")
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    assert channel_binding(certificate) == hashlib.sha256(der(certificate)).digest()


def test_ed25519_and_pss_certificates_have_no_channel_binding() -> None:
    assert channel_binding(make_certificate(ed25519.Ed25519PrivateKey.generate(), None)) is None
    key = rsa.generate_private_key(65537, 2048)
    assert channel_binding(make_certificate(key, hashes.SHA256(), pss=True)) is None
    assert channel_binding(make_certificate(key, hashes.SHA256())) is not None


def test_the_first_start_makes_a_certificate_and_later_ones_keep_it(tmp_path: Path) -> None:
    certificate_path, key_path = ensure_self_signed(tmp_path / "tls")
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    first = certificate_path.read_bytes()
    assert ensure_self_signed(tmp_path / "tls") == (certificate_path, key_path)
    assert certificate_path.read_bytes() == first
    certificate = x509.load_pem_x509_certificate(first)
    public_key = certificate.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert public_key.curve.name == "secp256r1"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    state = load_state(certificate_path, key_path, None, "TLSv1.2")
    assert state.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["server.crt", "server.key"]


def test_an_interrupted_first_start_is_made_again(tmp_path: Path) -> None:
    certificate_path, key_path = ensure_self_signed(tmp_path)
    certificate_path.unlink()
    ensure_self_signed(tmp_path)
    load_state(certificate_path, key_path, None, "TLSv1.2")
    key_path.unlink()
    ensure_self_signed(tmp_path)
    load_state(certificate_path, key_path, None, "TLSv1.3")


def config_of(**settings: object) -> Config:
    return Config(tls=TlsSettings(**settings))


def test_reload_takes_the_new_pair(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    store = TlsStore(config_of(cert_file=certificate, key_file=key), tmp_path / "tls")
    store.load()
    first = store.current
    write_pair(tmp_path)
    store.load()
    assert first is not None
    assert store.current is not None
    assert store.current.channel_binding != first.channel_binding
    assert not (tmp_path / "tls").exists()


def test_a_bad_pair_is_refused_and_the_old_stays(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    other_certificate, _ = write_pair(tmp_path, "other")
    store = TlsStore(config_of(cert_file=certificate, key_file=key), tmp_path)
    store.load()
    kept = store.current
    for damage, message in [
        (lambda: certificate.write_bytes(other_certificate.read_bytes()), "KEY_VALUES_MISMATCH"),
        (lambda: certificate.write_text("nonsense"), "could not read the certificate"),
        (lambda: certificate.write_text(""), "could not read the certificate"),
        (certificate.unlink, "No such file"),
    ]:
        damage()
        with pytest.raises(TlsError, match=message) as caught:
            store.load()
        assert str(certificate) in str(caught.value)
        assert store.current is kept


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    for mode in (0o640, 0o604, 0o660):
        key.chmod(mode)
        with pytest.raises(TlsError, match="group or world access"):
            load_state(certificate, key, None, "TLSv1.2")
    key.chmod(0o400)
    load_state(certificate, key, None, "TLSv1.2")


def test_a_key_behind_a_passphrase_is_refused_and_never_asked_for(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsError, match="cannot be used together"):
        load_state(certificate, key, None, "TLSv1.2")


def test_wrong_authorities_are_refused(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    (tmp_path / "ca.crt").write_text("nonsense")
    for name in ("ca.crt", "missing.crt"):
        with pytest.raises(TlsError, match="could not load the client authorities"):
            load_state(certificate, key, tmp_path / name, "TLSv1.2")


def test_a_certificate_about_to_expire_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_state(*write_pair(tmp_path, days=3), None, "TLSv1.2")
        load_state(*write_pair(tmp_path, days=-3), None, "TLSv1.2")
    assert [" expires on " in record.message for record in caplog.records] == [True, False]
    assert " expired on " in caplog.records[1].message


def test_disabled_tls_reads_no_file(tmp_path: Path) -> None:
    store = TlsStore(config_of(mode="disable"), tmp_path / "tls")
    store.load()
    assert store.current is None
    assert not (tmp_path / "tls").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("in the way")
    with pytest.raises(TlsError, match="could not make a certificate in"):
        ensure_self_signed(tmp_path / "tls")
