"""The front door: listening sockets, and everything between `accept` and a session.

`FrontDoor` is what the composition root builds: TLS, host-based rules, roles, limits, throttle, listeners. A
`Listener` is one bound socket; it accepts in batches and hands each client to an `Arrival`, which needs no task until
the client has spoken. Sockets are accepted by hand because the first byte has to be seen before TLS or not is decided.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.control import INTERNAL_ROLE
from protocol.errors import PgError
from protocol.sqlstate import TOO_MANY_CONNECTIONS
from server.arrival import Arrival, Lobby
from server.auth import Authenticator
from server.config import Config
from server.extension.events import AuthenticationFailed
from server.front_door import SessionOpener
from server.handshake import DoorCounters, DoorServices, Handshake
from server.hba import HbaError, HbaRules, default_rules, load_hba
from server.limits import ClientLimits
from server.roles import ControlQueries, RoleDirectory
from server.throttle import FailureThrottle
from server.tls import TlsError, TlsStore, write_private_file

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
ACCEPT_BATCH: Final = 32  # clients accepted before the loop does something else: well under a millisecond
RETRY_ACCEPT_SECONDS: Final = 0.2  # where the process is out of descriptors or memory
MAX_SOCKET_PATH_BYTES: Final = 107  # sizeof(sockaddr_un.sun_path) - 1
NEWCOMER_HEADROOM: Final = 64  # connections that have not named themselves yet, beyond max_clients
MOCK_SECRET_NAME: Final = "scram_mock_secret"
MOCK_SECRET_BYTES: Final = 32
PORT_ATTEMPTS: Final = 5
DEFAULT_PORT: Final = 5432  # names the Unix socket where neither a port is set nor TCP used

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class FrontDoorError(Exception):
    """The front door cannot open. The text is for the operator."""


class SocketUnusable(FrontDoorError):
    """The Unix socket cannot be made. No reason to stay closed where there is a TCP address."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where clients connect to. `host` is an address, or the path of a Unix socket's directory."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        return self.host.startswith("/")

    def __str__(self) -> str:
        if self.is_local:
            return str(socket_path(Path(self.host), self.port))
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener:
    """One listening socket."""

    def __init__(self, sock: socket.socket, address: ListenAddress, on_accept: Callable[[socket.socket], None]) -> None:
        self.address = address
        self._sock = sock
        self._on_accept = on_accept
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._identity = _file_identity(Path(str(address))) if address.is_local else None

    def start(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening. Clients already accepted are not touched."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        # Not where another server has put its own socket there meanwhile.
        path = Path(str(self.address))
        if self._identity is not None and _file_identity(path) == self._identity:
            path.unlink(missing_ok=True)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # The socket stays readable: wait, or this would be a busy loop.
                    log.error("could not accept a client on %s: %s", self.address, error)
                    self._loop.remove_reader(self._sock.fileno())
                    self._retry = self._loop.call_later(RETRY_ACCEPT_SECONDS, self.start)
                    return
                continue  # that client was gone already
            sock.setblocking(False)
            self._on_accept(sock)


class FrontDoor:
    """Lets clients in."""

    def __init__(
        self,
        config: Config,
        control: ControlQueries,
        opener: SessionOpener,
        *,
        data_dir: Path | None = None,
        report_failure: Callable[[AuthenticationFailed], Awaitable[None]] | None = None,
        hidden_roles: Collection[str] = (INTERNAL_ROLE,),
        max_clients_per_address: int = 0,
    ) -> None:
        """`control`: an engine.control.EngineControl. `data_dir`: holds `tls/` and `keys/`; the configured one if None.

        `report_failure`: `EventBus.deliver`. `hidden_roles`: roles no client can be.
        """
        self._config = config
        self._data_dir = data_dir if data_dir is not None else config.server.data_dir
        self.counters = DoorCounters()
        self.limits = ClientLimits(config, max_per_address=max_clients_per_address)
        self.roles = RoleDirectory(control, hidden_roles=hidden_roles)
        self.tls = TlsStore(config, self._data_dir / "tls")
        self._opener = opener
        self._report_failure = report_failure
        self._services: DoorServices | None = None
        self._lobby: Lobby | None = None
        self._listeners: list[Listener] = []
        self._arrivals: set[Arrival] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """Where it listens."""
        return tuple(listener.address for listener in self._listeners)

    @property
    def port(self) -> int:
        """The port, also where the system chose it. 0 before `start`."""
        return self._listeners[0].address.port if self._listeners else 0

    @property
    def connecting(self) -> int:
        """Connections that are not sessions yet."""
        return len(self._arrivals) + len(self._tasks)

    async def start(self) -> None:
        """Read certificate and rules, bind, and accept. Raises FrontDoorError, with nothing left open."""
        try:
            self.tls.load()
            rules = self._load_rules()
            secret = _mock_secret(self._data_dir / "keys")
        except (TlsError, HbaError) as error:
            raise FrontDoorError(str(error)) from error
        authenticator = Authenticator(self._config, self.roles, FailureThrottle(self._config), rules, secret)
        self._services = DoorServices(
            self._config, self.tls, self.limits, authenticator, self._opener, self.counters, self._report_failure
        )
        sockets = await bind_all(self._config)
        self._lobby = Lobby(asyncio.get_running_loop())
        self._listeners = [Listener(sock, address, self._on_accept) for sock, address in sockets]
        for listener in self._listeners:
            listener.start()

    async def stop_accepting(self) -> None:
        """Close the listening sockets. Clients that are logging in go on."""
        for listener in self._listeners:
            listener.close()
        for arrival in list(self._arrivals):
            arrival.close()
        if self._lobby is not None:
            self._lobby.close()
            self._lobby = None

    async def close(self) -> None:
        """Stop accepting, and end every client that has no session yet."""
        await self.stop_accepting()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reload(self) -> list[str]:
        """Read certificate and rules again, after `Config.reload`. What cannot be used is named, and the old stays."""
        problems: list[str] = []
        try:
            self.tls.load()
        except TlsError as error:
            problems.append(str(error))
        try:
            rules = self._load_rules()
        except HbaError as error:
            problems.extend(error.problems)
        else:
            if self._services is not None:
                self._services.authenticator.rules = rules
        for problem in problems:
            log.error("not reloaded: %s", problem)
        return problems

    def invalidate_roles(self, role: str | None = None) -> None:
        """Roles changed: see RoleDirectory.invalidate. Takes effect for every login not finished yet."""
        self.roles.invalidate(role)

    def _load_rules(self) -> HbaRules:
        path = self._config.auth.hba_file
        return default_rules() if path is None else load_hba(path)

    def _on_accept(self, sock: socket.socket) -> None:
        services, lobby = self._services, self._lobby
        assert services is not None
        assert lobby is not None
        self.counters.accepted += 1
        if self.connecting >= self._config.server.max_clients + NEWCOMER_HEADROOM:
            self.counters.refused += 1
            _turn_away(sock)
            return
        arrival = Arrival(services, lobby, asyncio.get_running_loop(), sock, self._on_arrived)
        self._arrivals.add(arrival)
        arrival.start()

    def _on_arrived(self, arrival: Arrival, handshake: Handshake | None) -> None:
        self._arrivals.discard(arrival)
        if handshake is not None:
            task = asyncio.get_running_loop().create_task(handshake.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def bind_all(config: Config) -> list[tuple[socket.socket, ListenAddress]]:
    """Bound, listening sockets for the configured addresses. Raises FrontDoorError, with nothing left open.

    As in PostgreSQL an address that cannot be had is a warning while another one can.
    """
    settings = config.server
    for attempt in range(1, PORT_ATTEMPTS + 1):
        opened: list[tuple[socket.socket, ListenAddress]] = []
        problems: list[str] = []
        port = settings.port
        for host in [name.strip() for name in settings.host.split(",") if name.strip()]:
            for family, address in await _resolve(host, problems):
                try:
                    sock = _bind_tcp(family, address, port, settings.tcp_keepalive)
                except OSError as error:
                    problems.append(f'could not listen on "{address}", port {port}: {error.strerror}')
                    continue
                port = sock.getsockname()[1]
                opened.append((sock, ListenAddress(address, port)))
        if not problems or settings.port != 0 or attempt == PORT_ATTEMPTS:
            break
        # The port the system chose for the first address may be taken on the next one: choose again.
        for sock, _ in opened:
            sock.close()
    for problem in problems:
        log.warning("%s", problem)
    try:
        if problems and not opened:
            raise FrontDoorError("could not listen on any TCP address: " + "; ".join(problems))
        if settings.unix_socket_dir is not None:
            try:
                opened.append(_bind_unix(settings.unix_socket_dir, port or DEFAULT_PORT))
            except SocketUnusable as error:
                if not opened:
                    raise
                log.warning("%s", error)
        if not opened:
            raise FrontDoorError("neither server.host nor server.unix_socket_dir is set: nobody could connect")
    except FrontDoorError:
        for sock, _ in opened:
            sock.close()
        raise
    return opened


def socket_path(directory: Path, port: int) -> Path:
    """PostgreSQL's name of a Unix socket."""
    return directory / f".s.PGSQL.{port}"


async def _resolve(host: str, problems: list[str]) -> list[tuple[socket.AddressFamily, str]]:
    if host == "*":
        return [(socket.AF_INET, "0.0.0.0"), *([(socket.AF_INET6, "::")] if socket.has_ipv6 else [])]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        problems.append(f'could not translate host name "{host}" to an address: {error.strerror}')
        return []
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bind_tcp(family: socket.AddressFamily, host: str, port: int, keepalive_seconds: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit these: no system call a client.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if keepalive_seconds > 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(keepalive_seconds)))
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(directory: Path, port: int) -> tuple[socket.socket, ListenAddress]:
    path = socket_path(directory.absolute(), port)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise SocketUnusable(
            f"the path of the Unix socket is too long ({MAX_SOCKET_PATH_BYTES} bytes are allowed): {path}; "
            "set server.unix_socket_dir to a shorter one"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o755)  # whatever the umask: clients have to pass it
        _remove_stale(path)
        sock.setblocking(False)
        sock.bind(str(path))
        path.chmod(0o777)  # who may connect is for host-based rules to say
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SocketUnusable(f"could not listen on the Unix socket {path}: {error.strerror}") from error
    except FrontDoorError:
        sock.close()
        raise
    return sock, ListenAddress(str(directory.absolute()), port)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises FrontDoorError where somebody does."""
    if _file_identity(path) is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # a full backlog: somebody is there
    raise FrontDoorError(f"another server is listening on the Unix socket {path}")


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a socket; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _turn_away(sock: socket.socket) -> None:
    """One more than can even be listened to."""
    error = PgError(TOO_MANY_CONNECTIONS, "sorry, too many clients already", severity="FATAL")
    try:
        sock.send(error.to_error_response())
    except OSError:
        pass
    sock.close()


def _mock_secret(directory: Path) -> bytes:
    """The secret behind the salts of roles without a verifier: the same after a restart, or a restart would tell."""
    path = directory / MOCK_SECRET_NAME
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            secret = path.read_bytes()
            if len(secret) == MOCK_SECRET_BYTES:
                return secret
        secret = secrets.token_bytes(MOCK_SECRET_BYTES)
        write_private_file(path, secret)
    except OSError as error:
        raise FrontDoorError(f"could not keep a secret in {path}: {error.strerror}") from error
    return secret
