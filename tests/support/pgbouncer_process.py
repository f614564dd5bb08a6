"""PgBouncer in transaction mode in front of a bare engine, as the yardstick that RustyDB is measured with."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

from tests.support.binaries import pgbouncer_program, unprivileged
from tests.support.processes import Child, ProcessFailed, free_port, make_folder, wait_until
from tests.support.target import PGBOUNCER, Target
from tests.support.wire_client import WireClient, WireError

START_SECONDS = 15.0


class PgBouncer:
    """One PgBouncer. It is given the role's SCRAM verifier, and so logs in with the client's own proof."""

    def __init__(
        self, upstream: Target, verifier: str, pool_size: int = 32, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.upstream = upstream
        self.run_as = unprivileged()
        self.folder = make_folder("pgbouncer", self.run_as)
        self.port = free_port()
        self.verifier = verifier
        self.pool_size = pool_size
        self.certificate = certificate
        self._child: Child | None = None

    @property
    def target(self) -> Target:
        pid = self._child.pid if self._child else 0
        return replace(self.upstream, name=PGBOUNCER, port=self.port, pid=pid)

    @staticmethod
    def version() -> tuple[int, int]:
        text = subprocess.run(
            [str(pgbouncer_program()), "--version"], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(r"PgBouncer (\d+)\.(\d+)", text)
        if found is None:
            raise ProcessFailed(f"cannot read PgBouncer's version from {text!r}")
        return int(found[1]), int(found[2])

    def start(self) -> PgBouncer:
        self._write_configuration()
        log = self.folder / "output.log"
        arguments = [str(pgbouncer_program()), str(self.folder / "pgbouncer.ini")]
        self._child = Child(arguments, log, self.run_as, os.environ, self.folder)
        try:
            wait_until(self._answers, START_SECONDS, "PgBouncer's first login")
        except TimeoutError as error:
            tail = self._child.log_tail()
            self._child.kill()
            raise ProcessFailed(f"{error}\n{tail}") from None
        return self

    def close(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessFailed):
                self._child.stop(signal.SIGTERM)
            self._child = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        if self._child is not None and not self._child.is_running:
            raise ProcessFailed(f"PgBouncer ended\n{self._child.log_tail()}")
        try:
            with WireClient.login(self.target):
                return True
        except (OSError, WireError):
            return False

    def _write_configuration(self) -> None:
        users = self.folder / "users.txt"
        users.write_text(f'"{self.upstream.user}" "{self.verifier}"\n')
        users.chmod(0o600)
        self.run_as.own(users)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            "default_pool_size": str(self.pool_size),
            "max_client_conn": "5000",
            "ignore_startup_parameters": "extra_float_digits,options,timezone,datestyle",
            "log_connections": "0",
            "log_disconnections": "0",
        }
        if self.version() >= (1, 21):
            settings["max_prepared_statements"] = "200"
        if self.certificate is not None:
            settings |= {
                "client_tls_sslmode": "allow",
                "client_tls_cert_file": self._own_copy(0),
                "client_tls_key_file": self._own_copy(1),
            }
        lines = ["[databases]", f"* = host={self.upstream.host} port={self.upstream.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        path = self.folder / "pgbouncer.ini"
        path.write_text("\n".join(lines) + "\n")
        self.run_as.own(path)

    def _own_copy(self, index: int) -> str:
        if self.certificate is None:
            raise ProcessFailed("no certificate was given")
        source = self.certificate[index]
        copy = self.folder / source.name
        shutil.copyfile(source, copy)
        copy.chmod(0o600)
        self.run_as.own(copy)
        return str(copy)
