"""A front door in a thread of its own, with roles from a dictionary and sessions that echo.

Clients in tests are blocking sockets; the door runs on uvloop or asyncio as it would in the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.scram import ScramVerifier
from server.config import Config
from server.front_door import AuthenticatedClient
from server.listener import FrontDoor
from server.settings_table import AuthSettings, ServerSettings, TlsSettings
from tests.support.wire_client import WireClient

T = TypeVar("T")

READY = b"Z\0\0\0\5I"
PASSWORD = "secret"
SALT = bytes(range(16))
VERIFIER = str(ScramVerifier.build(PASSWORD, salt=SALT))


def role_row(name: str, oid: int, **changes: Any) -> dict[str, Any]:
    """A row as server.roles reads it; by default a role that may log in with PASSWORD."""
    row = {
        "oid": oid,
        "rolname": name,
        "rolsuper": False,
        "rolcanlogin": True,
        "rolreplication": False,
        "rolconnlimit": -1,
        "rolpassword": VERIFIER,
        "valid_until": None,
        "member_of": [name],
    }
    return row | changes


def database_row(name: str, oid: int, **changes: Any) -> dict[str, Any]:
    return {"oid": oid, "datname": name, "datallowconn": True, "datconnlimit": -1, "can_connect": True} | changes


class Catalog:
    """What the two look-ups of server.roles find."""

    def __init__(self, roles: Sequence[dict[str, Any]] = (), databases: Sequence[dict[str, Any]] = ()) -> None:
        self.roles = {row["rolname"]: row for row in roles}
        self.databases = {row["datname"]: row for row in databases}
        self.queries: list[tuple[object, ...]] = []
        self.gate: asyncio.Event | None = None  # look-ups wait for it
        self.error: Exception | None = None

    async def fetch(self, sql: str, *args: object) -> Sequence[Mapping[str, Any]]:
        self.queries.append(args)
        rows = self.roles if "pg_authid r WHERE" in sql else self.databases
        found = rows.get(str(args[0]))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [] if found is None else [dict(found)]


class EchoSession(asyncio.Protocol):
    """Sends back what it gets."""

    def __init__(self, client: AuthenticatedClient) -> None:
        self.transport = client.transport
        self.slot = client.slot

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.slot.release()


class EchoOpener:
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.clients: list[AuthenticatedClient] = []
        self.cancels: list[tuple[int, bytes]] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.cancelled = 0
        self.keeps_clients = True

    async def open(self, client: AuthenticatedClient) -> None:
        if self.keeps_clients:
            self.clients.append(client)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        client.transport.set_protocol(EchoSession(client))
        client.transport.write(b"".join(client.pending_output) + READY + client.received)
        client.pending_output.clear()

    def cancel(self, pid: int, secret: bytes) -> None:
        self.cancels.append((pid, secret))


class DoorThread:
    """The event loop of one server."""

    def __init__(self, kind: str = "uvloop") -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()
        self.loop_errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.loop_errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Door:
    """One front door under test."""

    def __init__(self, thread: DoorThread, config: Config, catalog: Catalog, opener: Any, **options: Any) -> None:
        self.thread = thread
        self.config = config
        self.catalog = catalog
        self.opener = opener
        self.failures: list[Any] = []
        self._wire_clients: list[WireClient] = []
        self._sockets: list[socket.socket] = []
        self.front_door = FrontDoor(config, catalog, opener, report_failure=self._report, **options)

    async def _report(self, event: Any) -> None:
        self.failures.append(event)

    @property
    def port(self) -> int:
        return self.front_door.port

    @property
    def unix_path(self) -> str:
        return next(str(address) for address in self.front_door.addresses if address.is_local)

    def connect(self) -> WireClient:
        client = WireClient("127.0.0.1", self.port, 10.0)
        self._wire_clients.append(client)
        return client

    def connect_locally(self) -> WireClient:
        """Through the Unix socket."""
        client = self.connect()
        client.socket.close()
        client.socket = socket.socket(socket.AF_UNIX)
        client.socket.settimeout(10.0)
        client.socket.connect(self.unix_path)
        return client

    def raw(self, data: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), 10.0)
        self._sockets.append(sock)
        sock.sendall(data)
        return sock

    def hang_up(self) -> None:
        """Close every client."""
        for sock in (*(client.socket for client in self._wire_clients), *self._sockets):
            sock.close()

    def settled(self) -> tuple[int, int]:
        """(connections that are no sessions, clients under the limits), once nothing changes any more."""

        async def wait() -> tuple[int, int]:
            seen = (-1, -1)
            for _ in range(200):
                now = (self.front_door.connecting, self.front_door.limits.clients)
                if now == seen == (0, 0):
                    break
                seen = now
                await asyncio.sleep(0.01)
            return seen

        return self.thread.run(wait())


def make_config(data_dir: Path, **sections: dict[str, Any]) -> Config:
    server = {
        "data_dir": data_dir,
        "host": "127.0.0.1",
        "port": 0,
        "http_port": 0,
        "unix_socket_dir": data_dir / "s",
        "authentication_timeout": 5.0,
    }
    return Config(
        server=ServerSettings(**(server | sections.get("server", {}))),
        tls=TlsSettings(**sections.get("tls", {})),
        auth=AuthSettings(**sections.get("auth", {})),
    )


@contextlib.contextmanager
def running_door(
    data_dir: Path,
    *,
    loop: str = "uvloop",
    catalog: Catalog | None = None,
    opener: Any = None,
    options: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> Iterator[Door]:
    """A started door; checked afterwards for errors on its loop and for tasks left behind."""
    thread = DoorThread(loop)
    found = catalog or Catalog(
        [role_row("alice", 100), role_row("bob", 101, rolcanlogin=False)],
        [database_row("alice", 200), database_row("app", 201)],
    )
    door = Door(thread, make_config(data_dir, **sections), found, opener or EchoOpener(), **(options or {}))
    try:
        thread.run(door.front_door.start())
        try:
            yield door
        finally:
            door.hang_up()
            thread.run(door.front_door.close())
        assert thread.loop_errors == []
        assert thread.run(_other_tasks()) == []
    finally:
        thread.close()


def write_client_authority(folder: Path) -> tuple[Path, Callable[[str], tuple[Path, Path]]]:
    """An authority for client certificates: its file, and a function that issues (certificate, key) for a name."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def sign(name: x509.Name, public_key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> bytes:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=7))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue(name: str) -> tuple[Path, Path]:
        client_key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
        certificate_path.write_bytes(sign(subject, client_key.public_key(), is_authority=False))
        key_path.write_bytes(
            client_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_path, key_path

    authority = folder / "authority.crt"
    authority.write_bytes(sign(issuer, key.public_key(), is_authority=True))
    return authority, issue


async def _other_tasks() -> list[str]:
    return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
