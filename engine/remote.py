"""A remote engine: a PostgreSQL or Citus cluster that somebody else runs, named by a connection string.

    cluster = RemoteCluster("postgresql://rustydb@db.example.com/rustydb?sslmode=verify-full")
    await cluster.start()

There is no life cycle to manage: `start` finds the host that fits `target_session_attrs`, makes the control database
and the predefined roles where our role may, and probes what the engine can do; a watcher notices an engine that is
gone, restarted or failed over, and tells the observer. Backends log in with the client's own SCRAM keys, or with a
password that the passfile has for their role (`EngineAddress.user_secret`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg

from engine import bootstrap
from engine.address import EngineAddress
from engine.capabilities import BackendCapabilities, EngineInfo, probe_capabilities, probe_info
from engine.conninfo import (
    ConnInfo,
    HostPort,
    find_password,
    parse_dsn,
    parse_environment,
    parse_service,
    resolve,
)
from engine.control import EngineControl
from engine.errors import ConninfoError, EngineError, EngineStartError, EngineUnavailable
from engine.layout import DataLayout, acquire_lock, create_data_dir, create_frontend_directories
from engine.observer import EngineObserver, NullObserver
from engine.osuser import OsUsers, choose_frontend, drop_privileges

logger = logging.getLogger(__name__)

OLDEST_MAJOR = 16
_WATCH_SECONDS = 5.0
_RETRY_FIRST_SECONDS = 0.2
_RETRY_LAST_SECONDS = 30.0

_IDENTITY_QUERY = """
SELECT pg_catalog.pg_is_in_recovery() AS in_recovery, pg_catalog.pg_postmaster_start_time() AS started_at,
       current_setting('transaction_read_only') = 'on' AS read_only
"""


class RemoteCluster:
    """A PostgreSQL cluster reached by DSN. Implements `engine.cluster.Cluster`."""

    def __init__(
        self,
        dsn: str,
        observer: EngineObserver | None = None,
        *,
        data_dir: Path | None = None,
        frontend_os_user: str | None = None,
        environ: Mapping[str, str] | None = None,
        watch_seconds: float = _WATCH_SECONDS,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._conninfo = load_conninfo(dsn, self._environ)
        self._passwords = _read_passfile(self._conninfo, self._environ)
        self._tls = tls_context(self._conninfo)
        self._observer: EngineObserver = observer or NullObserver()
        self._watch_seconds = watch_seconds
        self._layout = DataLayout(Path(os.path.abspath(data_dir))) if data_dir is not None else None
        self._frontend_os_user = frontend_os_user
        self._lock_descriptor = -1
        self._address: EngineAddress | None = None
        self._control = EngineControl(lambda: self.address, role=self._conninfo.user)
        self._info: EngineInfo | None = None
        self._capabilities: BackendCapabilities | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._identity: tuple[Any, ...] | None = None
        self._epoch = 0
        self._is_ready = False

    @property
    def address(self) -> EngineAddress:
        """Where backends dial now; another host after a failover. Backends ask for it each time."""
        if self._address is None:
            raise EngineUnavailable("the remote engine has not been reached")
        return self._address

    @property
    def control(self) -> EngineControl:
        return self._control

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable("the remote engine has not been reached")
        return self._info

    @property
    def capabilities(self) -> BackendCapabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the remote engine has not been reached")
        return self._capabilities

    @property
    def is_running(self) -> bool:
        """The engine answered when last asked."""
        return self._is_ready

    def prepare(self) -> None:
        """Take the data directory, which holds keys, certificates and the audit log here too. Blocks; idempotent."""
        if self._layout is None or self._lock_descriptor >= 0:
            return
        frontend = choose_frontend(self._frontend_os_user)
        create_data_dir(self._layout, OsUsers(frontend, frontend))
        self._lock_descriptor = acquire_lock(self._layout, frontend)
        create_frontend_directories(self._layout, frontend)

    def give_up_root(self) -> None:
        """Become the front end's user, for good."""
        drop_privileges(choose_frontend(self._frontend_os_user))

    async def start(self) -> None:
        """Reach the engine and make what RustyDB needs in it. Raises EngineError."""
        if self._watcher is not None:
            return
        try:
            self.prepare()
            await self._find_host()
            await self._check_version()
            await bootstrap.run_remote(self.control, home_database=self._conninfo.database)
            self._capabilities = await probe_capabilities(self.control, can_login_as_any_role=False, is_exclusive=False)
            await self._announce()
        except asyncpg.PostgresError as error:
            await self._close()
            raise EngineStartError(f"the remote engine at {self._address} cannot be used", detail=str(error)) from error
        except BaseException:
            await self._close()
            raise
        self._watcher = asyncio.create_task(self._watch(), name="remote engine watcher")

    async def stop(self, mode: str = "fast") -> None:
        """Let go of the engine; it goes on running."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            self._observer.engine_stopped()
        self._is_ready = False
        await self._close()

    async def reload(self, settings: Mapping[str, str]) -> None:
        """The settings of a remote engine are its owner's."""
        if settings:
            raise EngineUnavailable(
                "engine.settings cannot be put in force on a remote engine", hint="Change them where it runs."
            )

    async def _find_host(self) -> None:
        """Go through the hosts until one fits; the first that is only reachable serves `prefer-standby`."""
        failures: list[str] = []
        fallback: tuple[EngineAddress, tuple[Any, ...]] | None = None
        for place in self._conninfo.hosts:
            for address in self._addresses(place):
                try:
                    row = await self._identify(address)
                except (EngineError, asyncpg.PostgresError) as error:
                    failures.append(f"{address}: {_reason(error)}")
                    continue
                identity = (str(address), row["started_at"], row["in_recovery"])
                if _fits(self._conninfo.target_session_attrs, row["in_recovery"], row["read_only"]):
                    self._use(address, identity)
                    return
                if self._conninfo.target_session_attrs == "prefer-standby" and fallback is None:
                    fallback = (address, identity)
                    break
                failures.append(f"{address}: is not {self._conninfo.target_session_attrs}")
                break
        if fallback is not None:
            self._use(*fallback)
            return
        raise EngineUnavailable(
            "no host of engine.dsn can be used",
            detail="; ".join(failures),
            hint="Check that the engine runs, and its host, port, user and password in engine.dsn.",
        )

    async def _check_version(self) -> None:
        version_num = int(
            await self.control.fetchval(
                "SELECT current_setting('server_version_num')", database=self._conninfo.database
            )
        )
        if version_num // 10000 < OLDEST_MAJOR:
            raise EngineStartError(
                f"the remote engine at {self._address} is PostgreSQL {version_num // 10000}",
                hint=f"RustyDB needs PostgreSQL {OLDEST_MAJOR} or later.",
            )

    async def _identify(self, address: EngineAddress) -> asyncpg.Record:
        """What runs at an address, asked on a connection of its own."""
        visitor = EngineControl(
            lambda: address,
            role=self._conninfo.user,
            default_database=self._conninfo.database,
            connect_timeout_seconds=self._conninfo.connect_timeout_seconds,
        )
        try:
            return (await visitor.fetch(_IDENTITY_QUERY))[0]
        finally:
            await visitor.close()

    def _use(self, address: EngineAddress, identity: tuple[Any, ...]) -> None:
        """Everybody holds the one control object: it forgets its connections and dials the new address."""
        self._control.abandon()
        self._address, self._identity = address, identity
        if address.tls is None and not address.is_unix and address.host not in ("localhost", "127.0.0.1", "::1"):
            logger.warning("the connection to the remote engine at %s is not encrypted", address)

    def _addresses(self, place: HostPort) -> list[EngineAddress]:
        """The ways to reach one host, in libpq's order of `sslmode`."""
        mode = self._conninfo.sslmode
        host = place.address or place.host
        plain = EngineAddress(host, place.port, user_secret=self._user_secret)
        if place.is_unix or mode == "disable":
            return [plain]
        encrypted = EngineAddress(
            host, place.port, tls=self._tls, user_secret=self._user_secret, tls_hostname=place.host
        )
        return {"allow": [plain, encrypted], "prefer": [encrypted, plain]}.get(mode, [encrypted])

    def _lookup(self, place: HostPort, role: str) -> str | None:
        if self._passwords is None:
            return None
        return find_password(self._passwords, place.host, place.port, self._conninfo.database, role)

    def _user_secret(self, role: str) -> str | None:
        """The password of a role: our own, or what the passfile has for it."""
        if role == self._conninfo.user and self._conninfo.password:
            return self._conninfo.password
        passwords = (self._lookup(place, role) for place in self._conninfo.hosts)
        return next((password for password in passwords if password), None)

    async def _announce(self) -> None:
        self._epoch += 1
        self._info = await probe_info(self.control, self._epoch)
        self._is_ready = True
        self._observer.engine_ready(self._info)

    async def _watch(self) -> None:
        """Notice an engine that is gone, restarted or failed over."""
        while True:
            await asyncio.sleep(self._watch_seconds)
            reason = await self._what_happened()
            if reason is None:
                continue
            logger.error("the remote engine is lost: %s", reason)
            self._is_ready = False
            self._observer.engine_lost(reason)
            await self._find_again()
            logger.info("the remote engine is back at %s", self._address)

    async def _what_happened(self) -> str | None:
        """Why what was known of the engine no longer holds; None where it does."""
        try:
            async with asyncio.timeout(self._conninfo.connect_timeout_seconds):
                row = (await self.control.fetch(_IDENTITY_QUERY))[0]
        except (EngineError, asyncpg.PostgresError, TimeoutError) as error:
            return _reason(error)
        if (str(self._address), row["started_at"], row["in_recovery"]) != self._identity:
            return "it was restarted or changed its role"
        return None

    async def _find_again(self) -> None:
        delay = _RETRY_FIRST_SECONDS
        while True:
            try:
                await self._find_host()
                await self._announce()
                return
            except (EngineError, asyncpg.PostgresError, OSError) as error:
                logger.warning("the remote engine is not back; next try in %.1f s: %s", delay, _reason(error))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _RETRY_LAST_SECONDS)

    async def _close(self) -> None:
        await self._control.close()
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1


def load_conninfo(dsn: str, environ: Mapping[str, str]) -> ConnInfo:
    """Resolve a connection string with the service file and the environment, in libpq's order."""
    given = parse_dsn(dsn)
    environment = parse_environment(environ)
    service: dict[str, str] = {}
    name = given.get("service") or environment.get("service")
    if name:
        service = _read_service(name, environ)
    return resolve(given, service, environment, default_user=_user_name())


def tls_context(info: ConnInfo) -> ssl.SSLContext | None:
    """The TLS settings of a connection string. Certificates are checked from verify-ca up, or where a root is named."""
    if info.sslmode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = info.sslmode == "verify-full"
    try:
        if info.sslmode.startswith("verify") or (info.sslmode == "require" and info.sslrootcert):
            if info.sslrootcert and info.sslrootcert != "system":
                context.load_verify_locations(cafile=info.sslrootcert)
            else:
                context.load_default_certs()
        else:
            context.verify_mode = ssl.CERT_NONE
        if info.sslcert:
            context.load_cert_chain(info.sslcert, info.sslkey, password=info.sslpassword or "")
    except (OSError, ssl.SSLError) as error:
        raise ConninfoError(
            "a certificate or key of the connection string cannot be used",
            detail=str(error),
            hint="Check sslrootcert, sslcert and sslkey.",
        ) from error
    return context


def _read_service(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    candidates = [environ.get("PGSERVICEFILE"), str(Path(_home(environ)) / ".pg_service.conf")]
    if environ.get("PGSYSCONFDIR"):
        candidates.append(str(Path(environ["PGSYSCONFDIR"]) / "pg_service.conf"))
    for candidate in candidates:
        if candidate and os.path.exists(candidate):
            found = parse_service(Path(candidate).read_text(encoding="utf-8"), name)
            if found is not None:
                return found
    raise ConninfoError(f'the service "{name}" is in no service file', hint="Name the file in PGSERVICEFILE.")


def _read_passfile(info: ConnInfo, environ: Mapping[str, str]) -> str | None:
    """The passfile's text; like libpq we do not use one that others can read."""
    path = Path(info.passfile or Path(_home(environ)) / ".pgpass")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            logger.warning("the passfile %s is ignored: others may access it (chmod 0600)", path)
            return None
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or "/"


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "postgres"


def _fits(wanted: str, in_recovery: bool, read_only: bool) -> bool:
    return {
        "any": True,
        "read-write": not read_only,
        "read-only": read_only,
        "primary": not in_recovery,
        "standby": in_recovery,
        "prefer-standby": in_recovery,
    }[wanted]


def _reason(error: BaseException) -> str:
    if isinstance(error, EngineError):
        return error.detail or error.message
    return str(error) or type(error).__name__
