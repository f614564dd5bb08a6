"""A remote engine: reached by connection string, over TCP with SCRAM, through TLS, with failover, and lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engine.bootstrap import PREDEFINED_ROLES
from engine.cluster import Cluster
from engine.errors import ConninfoError, DataDirectoryInUse, EngineStartError, EngineUnavailable
from engine.remote import RemoteCluster
from tests.integration.engine.conftest import Witness
from tests.support.engine_process import PASSWORD, SUPERUSER, BareEngine

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bare() -> Iterator[BareEngine]:
    server = BareEngine({"fsync": "off", "shared_buffers": "16MB"}).start()
    yield server
    server.close()


def dsn(server: BareEngine, *, port: int | None = None, user: str = SUPERUSER, options: str = "sslmode=disable") -> str:
    return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{port or server.port}/postgres?{options}"


def remote(text: str, witness: Witness | None = None, **environ: str) -> RemoteCluster:
    return RemoteCluster(text, witness, environ=environ, watch_seconds=0.1)


async def test_the_control_database_is_made_and_capabilities_are_probed(bare: BareEngine) -> None:
    cluster: Cluster = remote(dsn(bare))
    await cluster.start()
    assert cluster.is_running
    assert await cluster.control.fetchval("SELECT current_database()") == "rustydb"
    roles = {row["rolname"] for row in await cluster.control.fetch("SELECT rolname FROM pg_roles")}
    assert set(PREDEFINED_ROLES) <= roles
    assert cluster.capabilities.is_superuser
    assert not cluster.capabilities.can_login_as_any_role
    assert not cluster.capabilities.is_exclusive
    assert not cluster.capabilities.has_citus
    assert cluster.address.socket_path is None
    await cluster.stop()
    assert not cluster.is_running
    again = remote(dsn(bare))
    await again.start()
    await again.stop()


async def test_a_role_that_may_not_gets_the_statements_to_run(bare: BareEngine) -> None:
    admin = remote(dsn(bare))
    await admin.start()
    await admin.stop()
    maker = remote(dsn(bare))
    await maker.start()
    await maker.control.run_script(
        f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'; DROP OWNED BY rustydb_monitor; DROP ROLE rustydb_monitor"
    )
    await maker.stop()
    plain = remote(dsn(bare, user="plain"))
    with pytest.raises(EngineStartError) as caught:
        await plain.start()
    assert "CREATE ROLE rustydb_monitor NOLOGIN" in str(caught.value)


async def test_a_wrong_password_is_the_engines_word(bare: BareEngine) -> None:
    cluster = remote(dsn(bare).replace(PASSWORD, "wrong"))
    with pytest.raises(EngineUnavailable, match="password authentication failed") as caught:
        await cluster.start()
    assert "wrong@" not in str(caught.value)


async def test_an_engine_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        await remote("postgresql://u@127.0.0.1:1/d?sslmode=disable").start()
    assert "127.0.0.1:1" in str(caught.value)


async def test_the_first_host_that_fits_is_taken(bare: BareEngine) -> None:
    text = f"postgresql://{SUPERUSER}:{PASSWORD}@127.0.0.1:1,127.0.0.1:{bare.port}/postgres?sslmode=disable"
    cluster = remote(text + "&target_session_attrs=primary")
    await cluster.start()
    assert cluster.address.port == bare.port
    await cluster.stop()
    with pytest.raises(EngineUnavailable, match="is not standby"):
        await remote(text + "&target_session_attrs=standby").start()
    fallback = remote(text + "&target_session_attrs=prefer-standby")
    await fallback.start()
    await fallback.stop()


async def test_passwords_of_roles_come_from_the_passfile(bare: BareEngine, place: Path) -> None:
    passfile = place / "pass"
    passfile.write_text(f"127.0.0.1:*:*:{SUPERUSER}:{PASSWORD}\n127.0.0.1:*:*:alice:hers\n")
    passfile.chmod(0o600)
    text = f"host=127.0.0.1 port={bare.port} user={SUPERUSER} dbname=postgres sslmode=disable"
    cluster = remote(text, PGPASSFILE=str(passfile))
    await cluster.start()
    secret = cluster.address.user_secret
    assert secret is not None
    assert (secret("alice"), secret("bob"), secret(SUPERUSER)) == ("hers", None, PASSWORD)
    await cluster.stop()


async def test_a_passfile_that_others_can_read_is_not_used(bare: BareEngine, place: Path) -> None:
    passfile = place / "pass"
    passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
    passfile.chmod(0o644)
    text = f"host=127.0.0.1 port={bare.port} user={SUPERUSER} dbname=postgres sslmode=disable"
    with pytest.raises(EngineUnavailable):
        await remote(text, PGPASSFILE=str(passfile)).start()


async def test_a_service_names_the_engine(bare: BareEngine, place: Path) -> None:
    services = place / "services"
    services.write_text(f"[db]\nhost=127.0.0.1\nport={bare.port}\nuser={SUPERUSER}\nsslmode=disable\n")
    cluster = remote("service=db dbname=postgres", PGSERVICEFILE=str(services), PGPASSWORD=PASSWORD, PGPORT="1")
    await cluster.start()
    await cluster.stop()
    with pytest.raises(ConninfoError, match="other"):
        remote("service=other", PGSERVICEFILE=str(services))


async def test_a_lost_engine_is_told_and_found_again(witness: Witness) -> None:
    server = BareEngine({"fsync": "off", "shared_buffers": "16MB"}).start()
    try:
        cluster = remote(dsn(server), witness)
        await cluster.start()
        await asyncio.to_thread(server.kill)
        await until(lambda: bool(witness.lost))
        assert not cluster.is_running
        await asyncio.to_thread(server.start)
        await until(lambda: len(witness.ready) == 2)
        assert [info.epoch for info in witness.ready] == [1, 2]
        assert await cluster.control.fetchval("SELECT 1") == 1
        await cluster.stop()
    finally:
        server.close()


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


@dataclass
class TlsFront:
    """Speaks TLS before an engine that is built without: SSLRequest, handshake, then the bytes as they are."""

    port: int = 0
    certificate: Path = Path()
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
async def tls_front(bare: BareEngine, place: Path) -> AsyncIterator[TlsFront]:
    certificate, key = self_signed(place, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    front = TlsFront(certificate=certificate)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(8) != (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"):
            writer.close()
            return
        writer.write(b"S")
        await writer.drain()
        try:
            await writer.start_tls(context)
        except (OSError, ssl.SSLError):
            writer.close()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", bare.port)
        for one, other in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(pump(one, other))
            front.tasks.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    yield front
    server.close()
    for task in front.tasks:
        task.cancel()
    await asyncio.gather(*front.tasks, return_exceptions=True)


@pytest.mark.parametrize("options", ["sslmode=require", "sslmode=prefer", "sslmode=verify-full&sslrootcert={cert}"])
async def test_the_connection_is_encrypted(bare: BareEngine, tls_front: TlsFront, options: str) -> None:
    cluster = remote(dsn(bare, port=tls_front.port, options=options.format(cert=tls_front.certificate)))
    await cluster.start()
    assert cluster.address.tls is not None
    assert await cluster.control.fetchval("SELECT 1") == 1
    await cluster.stop()


async def test_a_certificate_nobody_vouches_for_is_refused(bare: BareEngine, tls_front: TlsFront) -> None:
    with pytest.raises(EngineUnavailable, match="certificate verify failed"):
        await remote(dsn(bare, port=tls_front.port, options="sslmode=verify-full")).start()


async def test_no_downgrade_to_plain_text_where_tls_is_required(bare: BareEngine) -> None:
    with pytest.raises(EngineUnavailable):
        await remote(dsn(bare, options="sslmode=require")).start()
    plain = remote(dsn(bare, options="sslmode=prefer"))
    await plain.start()
    assert plain.address.tls is None
    await plain.stop()


def test_a_certificate_file_that_is_missing_is_named() -> None:
    with pytest.raises(ConninfoError, match="certificate"):
        remote("host=h sslmode=verify-full sslrootcert=/nonexistent")


async def test_a_data_directory_is_taken_for_keys_and_certificates(bare: BareEngine, place: Path) -> None:
    cluster = RemoteCluster(dsn(bare), environ={}, data_dir=place / "data")
    cluster.prepare()
    cluster.give_up_root()
    await cluster.start()
    assert {path.name for path in (place / "data").iterdir()} == {"audit", "keys", "tls", "rustydb.lock"}
    with pytest.raises(DataDirectoryInUse):
        RemoteCluster(dsn(bare), environ={}, data_dir=place / "data").prepare()
    await cluster.stop()
