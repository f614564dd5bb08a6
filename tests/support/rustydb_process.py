"""RustyDB as a subprocess: `python -m server serve` on free loopback ports with its data in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import Child, ProcessFailed, free_port, make_folder, wait_until
from tests.support.target import RUSTYDB, Target
from tests.support.wire_client import WireClient, WireError

ADMINISTRATOR = "postgres"
PASSWORD = "rustydb-test-password"
START_SECONDS = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]


class RustyServer:
    """One server. `settings` are RUSTYDB_* names without the prefix, e.g. {"POOL__MAX_BACKENDS": "20"}."""

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, superuser: bool = False, data_dir: Path | None = None
    ) -> None:
        self.folder = make_folder("server")
        self.data_dir = data_dir or self.folder / "data"
        self.port = free_port()
        self.http_port = free_port()
        self.settings = dict(settings or {})
        if superuser:
            self.settings["SECURITY__SUPERUSER"] = "true"
        self.started_in_seconds = 0.0
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise ProcessFailed("the server is not running")
        return self._child.pid

    @property
    def target(self) -> Target:
        return Target(RUSTYDB, self.port, ADMINISTRATOR, PASSWORD, pid=self._child.pid if self._child else 0)

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.is_running

    @property
    def engine_pid(self) -> int:
        """The postmaster of the embedded engine, 0 where none runs."""
        for path in sorted(self.data_dir.glob("**/postmaster.pid")):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(path.read_text().split()[0])
                os.kill(pid, 0)
                return pid
        return 0

    def start(self) -> RustyServer:
        """Start and wait for the first login. `started_in_seconds` is the time that took."""
        arguments = [sys.executable, "-m", "server", "serve", "--data-dir", str(self.data_dir), "--host", "127.0.0.1"]
        arguments += ["--port", str(self.port), "--http-port", str(self.http_port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RUSTYDB_", "PG"))}
        chosen = {f"RUSTYDB_{name}": value for name, value in self.settings.items()}
        environment = {**inherited, "RUSTYDB_PASSWORD": PASSWORD, "PYTHONUNBUFFERED": "1", **chosen}
        began = time.monotonic()
        self._child = Child(arguments, self.folder / "server.log", None, environment, REPOSITORY)
        try:
            wait_until(self._answers, START_SECONDS, "RustyDB's first login", interval_seconds=0.01)
        except TimeoutError as error:
            tail = self._child.log_tail()
            self.kill()
            raise ProcessFailed(f"{error}\n{tail}") from None
        self.started_in_seconds = time.monotonic() - began
        return self

    def stop(self, number: int = signal.SIGTERM, timeout_seconds: float = 30.0) -> int:
        """Stop by a signal; returns the exit status."""
        if self._child is None:
            return 0
        status = self._child.stop(number, timeout_seconds)
        self._child = None
        return status

    def kill(self) -> None:
        """SIGKILL to the front end; the engine stays, as after a crash of ours."""
        if self._child is not None:
            self._child.process.kill()
            self._child.process.wait()
            self._child = None

    def kill_engine(self) -> int:
        """SIGKILL to the postmaster; returns its process id."""
        pid = self.engine_pid
        if not pid:
            raise ProcessFailed("no embedded engine is running")
        os.kill(pid, signal.SIGKILL)
        return pid

    def close(self) -> None:
        """Stop the server and whatever engine is left, and remove every file."""
        with contextlib.suppress(ProcessFailed):
            self.stop()
        if self.engine_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.engine_pid, signal.SIGQUIT)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not self.engine_pid, 10.0, "the engine's end")
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self, lines: int = 60) -> str:
        return self._child.log_tail(lines) if self._child is not None else "(not running)"

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the HTTP port; status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def _answers(self) -> bool:
        if self._child is not None and not self._child.is_running:
            raise ProcessFailed(f"RustyDB ended\n{self._child.log_tail()}")
        try:
            with WireClient.login(self.target, timeout_seconds=5.0):
                return True
        except (OSError, WireError):
            return False
