"""The bare engine: a private PostgreSQL on a loopback port with SCRAM, run as an unprivileged user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping

from tests.support.binaries import engine_program, unprivileged
from tests.support.processes import Child, ProcessFailed, free_port, make_folder, wait_until
from tests.support.target import ENGINE, Target
from tests.support.wire_client import WireClient, WireError

SUPERUSER = "postgres"
PASSWORD = "engine-test-password"
START_SECONDS = 30.0
# What RustyDB's own engine is told as well, as far as clients can see it.
DEFAULT_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "120",
    "max_prepared_transactions": "120",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "wal_level": "logical",
}


class BareEngine:
    """One cluster in a temporary folder, without TLS (the wheel is built without). Start, stop, kill, start again."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.run_as = unprivileged()
        self.folder = make_folder("engine", self.run_as)
        self.data = self.folder / "data"
        self.port = free_port()
        self.settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise ProcessFailed("the engine is not running")
        return self._child.pid

    @property
    def target(self) -> Target:
        return Target(ENGINE, self.port, SUPERUSER, PASSWORD, pid=self._child.pid if self._child else 0)

    def initialise(self) -> None:
        """initdb with the same locale and encoding as RustyDB's engine."""
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD + "\n")
        self.run_as.own(password_file)
        self._run(
            str(engine_program("initdb")),
            *("--pgdata", str(self.data), "--username", SUPERUSER, "--pwfile", str(password_file)),
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8"),
            *("--auth-local=peer", "--auth-host=scram-sha-256", "--no-sync"),
        )

    def start(self) -> BareEngine:
        """Start and wait for the first login; initialises on the first start."""
        if not self.data.exists():
            self.initialise()
        self._write_configuration()
        log = self.folder / "engine.log"
        self._child = Child([str(engine_program("postgres")), "-D", str(self.data)], log, self.run_as, os.environ)
        try:
            wait_until(self._answers, START_SECONDS, "the engine's first login")
        except TimeoutError as error:
            tail = self._child.log_tail()
            self._child.kill()
            raise ProcessFailed(f"{error}\n{tail}") from None
        return self

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(signal.SIGINT)
            self._child = None

    def kill(self) -> None:
        """SIGKILL to the postmaster, as a crash of the machine's engine would be."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """Stop and remove every file."""
        with contextlib.suppress(ProcessFailed):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        if self._child is not None and not self._child.is_running:
            raise ProcessFailed(f"the engine ended\n{self._child.log_tail()}")
        try:
            with WireClient.login(self.target):
                return True
        except (OSError, WireError):
            return False

    def _write_configuration(self) -> None:
        settings = {
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        lines = [f"{name} = '{value}'" for name, value in settings.items()]
        (self.data / "postgresql.auto.conf").write_text("\n".join(lines) + "\n")
        rules = ["local all all peer", "host all all 127.0.0.1/32 scram-sha-256"]
        rules += ["host replication all 127.0.0.1/32 scram-sha-256"]
        (self.data / "pg_hba.conf").write_text("\n".join(rules) + "\n")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            arguments,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            user=self.run_as.uid,
            group=self.run_as.gid,
            extra_groups=[] if self.run_as.uid is not None else None,
        )
        if done.returncode:
            raise ProcessFailed(f"{arguments[0]} failed\n{done.stdout}{done.stderr}")
