"""Everything between a data directory and a postmaster that can be started: users, lock, directories, programs, files.

`prepare` is the part that may need root. It blocks for as long as initdb takes, the first time, and for some
milliseconds afterwards. What it returns starts, adopts and configures the postmaster, and still works when the front
end has given root up.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine import initialize
from engine.address import UserSecret
from engine.control import INTERNAL_ROLE
from engine.engine_log import LogLine
from engine.errors import DataDirectoryError, DataDirectoryInUse, EngineStartError
from engine.extensions import write_control_files
from engine.launcher import LaunchedHost
from engine.layout import (
    ENGINE_PORT,
    DataLayout,
    acquire_lock,
    create_data_dir,
    create_directories,
    create_socket_directory,
    disk_full,
    write_private_file,
)
from engine.machine import Machine
from engine.nameless import EngineIdentity, identify
from engine.osuser import OsUsers, choose_users
from engine.postgres_conf import (
    Login,
    SocketPlace,
    command_line,
    merged_settings,
    pinned_settings,
    render_conf,
    render_hba,
    render_ident,
)
from engine.process import DirectHost, Orphan, Postmaster, ProcessHost, find_orphan
from engine.programs import Programs, check_data_version, find_programs, remove_old_copies
from engine.secret import internal_secret

logger = logging.getLogger(__name__)

_DISK_FULL_SQLSTATE = "53100"
_ORPHAN_IMMEDIATE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """What an embedded cluster is made of. Durations are seconds."""

    data_dir: Path
    bin_dir: Path | None = None
    max_connections: int = 120
    start_timeout: float = 60.0
    stop_timeout: float = 60.0
    engine_os_user: str | None = None
    frontend_os_user: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    superuser: bool = False
    password: str | None = field(default=None, repr=False)
    scram_iterations: int = 4096


@dataclass(slots=True)
class PreparedEngine:
    """A cluster that is ready to be started."""

    layout: DataLayout
    users: OsUsers
    programs: Programs
    identity: EngineIdentity
    socket_directory: Path
    host: ProcessHost
    max_connections: int
    lock_descriptor: int
    internal_secret: str | None = field(default=None, repr=False)
    orphan: Orphan | None = None

    @property
    def user_secret(self) -> UserSecret | None:
        """What proves a role to the engine; None where our operating-system user may log in as any role."""
        secret = self.internal_secret
        if self.identity.login is Login.PEER or secret is None:
            return None
        return lambda role: secret if role == INTERNAL_ROLE else None

    def argv(self) -> list[str]:
        """The postmaster's command line, without the prefix that gives our uid a name."""
        socket = SocketPlace(str(self.socket_directory), ENGINE_PORT, self.users.is_separate)
        pinned = pinned_settings(
            socket,
            max_connections=self.max_connections,
            hba_file=str(self.layout.hba_file),
            ident_file=str(self.layout.ident_file),
        )
        return [
            str(self.programs.postgres),
            "-D",
            str(self.layout.pgdata),
            "-c",
            f"config_file={self.layout.conf_file}",
            *command_line(pinned),
        ]

    def write_configuration(self, operator: Mapping[str, str]) -> bool:
        """Write the three files, and control files of extensions; True where the three say something new."""
        control_files = write_control_files(self.layout, self.users, self.programs)
        settings = merged_settings(
            Machine.probe(), self.max_connections, operator, None if control_files is None else str(control_files)
        )
        files = {
            self.layout.conf_file: render_conf(settings),
            self.layout.hba_file: render_hba(self.identity.login),
            self.layout.ident_file: render_ident(self.identity.frontend_name),
        }
        has_changed = False
        for path, text in files.items():
            if _read(path) == text:
                continue
            has_changed = True
            write_private_file(path, text, self.users.frontend, mode=0o640)
        return has_changed

    def spawn(self, stderr_fd: int) -> Postmaster:
        """Start the postmaster."""
        environment = initialize.engine_environment() | self.identity.environment
        try:
            pid = self.host.spawn([*self.identity.prefix, *self.argv()], environment, stderr_fd)
        except OSError as error:
            raise EngineStartError(f"could not start the engine as {self.users.engine}", detail=str(error)) from error
        return Postmaster(pid, self.host)

    async def adopt_or_stop(self, stop_timeout_seconds: float) -> Postmaster | None:
        """Take over the engine that a killed front end left, or stop it where it is not what we would start."""
        orphan, self.orphan = self.orphan, None
        if orphan is None:
            return None
        postmaster = Postmaster(orphan.pid, self.host)
        if orphan.is_adoptable:
            logger.info("adopting the running engine, process %d", orphan.pid)
            return postmaster
        logger.warning("stopping the engine left by an earlier front end, process %d: its set-up differs", orphan.pid)
        postmaster.stop("fast")
        try:
            async with asyncio.timeout(stop_timeout_seconds):
                await postmaster.wait()
        except TimeoutError:
            postmaster.stop("immediate")
            try:
                async with asyncio.timeout(_ORPHAN_IMMEDIATE_SECONDS):
                    await postmaster.wait()
            except TimeoutError:
                raise DataDirectoryInUse(
                    f"the engine left by an earlier front end, process {orphan.pid}, does not stop"
                ) from None
        return None

    def close(self) -> None:
        """Let go of the data directory."""
        self.host.close()
        if self.lock_descriptor >= 0:
            os.close(self.lock_descriptor)
            self.lock_descriptor = -1


def prepare(options: EmbeddedOptions) -> PreparedEngine:
    """Do everything that comes before the postmaster. Raises an EngineError that says what to do."""
    layout = DataLayout(Path(os.path.abspath(options.data_dir)))
    users = choose_users(options.engine_os_user, options.frontend_os_user)
    create_data_dir(layout, users)
    lock_descriptor = acquire_lock(layout, users.frontend)
    try:
        create_directories(layout, users)
        programs = find_programs(options.bin_dir, layout, users.engine)
        identity = identify(users.frontend, layout)
        if not initialize.is_initialized(layout):
            is_durable = options.settings.get("fsync", "on").lower() not in ("off", "false", "no", "0")
            initialize.initialize(layout, programs, users.engine, identity, is_durable=is_durable)
        check_data_version(layout, programs)
        prepared = PreparedEngine(
            layout=layout,
            users=users,
            programs=programs,
            identity=identity,
            socket_directory=create_socket_directory(layout, users),
            host=_process_host(users),
            max_connections=options.max_connections,
            lock_descriptor=lock_descriptor,
            internal_secret=internal_secret(layout, users.frontend) if identity.login is Login.SCRAM else None,
        )
        has_changed = prepared.write_configuration(options.settings)
        prepared.orphan = _find_orphan(prepared, has_changed)
        if prepared.orphan is None:
            remove_old_copies(layout, programs)
    except BaseException:
        os.close(lock_descriptor)
        raise
    return prepared


def _process_host(users: OsUsers) -> ProcessHost:
    """Who starts the engine: a helper where this process is about to become another unprivileged user."""
    will_drop = os.geteuid() == 0 and users.frontend.uid != 0
    return LaunchedHost(users.engine) if will_drop and users.is_separate else DirectHost(users.engine)


def start_failure(
    layout: DataLayout, lines: Iterable[LogLine], status: int | None
) -> EngineStartError | DataDirectoryError:
    """The error for a postmaster that ended while it was being started, from what it said last."""
    said = list(lines)
    fatal = next((line for line in reversed(said) if line.is_fatal), None)
    full = next((line for line in reversed(said) if line.sqlstate == _DISK_FULL_SQLSTATE), None)
    if full is not None:
        return disk_full(layout.data_dir, full.message)
    if fatal is not None and "lock file" in fatal.message and "already exists" in fatal.message:
        return DataDirectoryInUse(
            f'another engine works on "{layout.pgdata}"',
            detail=fatal.message,
            hint="Stop that PostgreSQL first; RustyDB did not start it.",
        )
    hint = next((line.message for line in reversed(said) if line.severity == "HINT"), None)
    detail = fatal.message if fatal else "\n".join(line.message for line in said[-10:])
    return EngineStartError(
        "the engine ended while it was starting" + (f" (status {status})" if status is not None else ""),
        detail=detail or None,
        hint=hint,
    )


def _find_orphan(prepared: PreparedEngine, has_changed: bool) -> Orphan | None:
    """An engine that runs on our data: with a mark whether it is what we would start."""
    orphan = find_orphan(prepared.layout.pgdata)
    if orphan is None:
        return None
    if f"hba_file={prepared.layout.hba_file}" not in orphan.argv:
        raise DataDirectoryInUse(
            f'another PostgreSQL, process {orphan.pid}, works on "{prepared.layout.pgdata}"',
            detail="RustyDB did not start it.",
            hint="Stop it first.",
        )
    same_program = _is_same_file(orphan.program, prepared.programs.postgres)
    adoptable = not has_changed and same_program and list(orphan.argv) == prepared.argv()
    return orphan.marked(is_adoptable=adoptable)


def _is_same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
