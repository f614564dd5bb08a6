"""Child processes of tests: free ports, temporary folders, certain ends, and what /proc says of them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.binaries import RunAs

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 15.0
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # Linux


class ProcessFailed(Exception):
    """A server did not start or did not stop; the message ends with the tail of its log."""


def _end_with_parent() -> None:
    """In the child: have the kernel send SIGINT when the parent dies without cleaning up."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def free_port() -> int:
    """A loopback TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_folder(prefix: str, owner: RunAs | None = None) -> Path:
    """A temporary folder that every user can pass, removed at exit at the latest."""
    folder = Path(tempfile.mkdtemp(prefix=f"rustydb-{prefix}-"))
    folder.chmod(0o755)
    if owner is not None:
        owner.own(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def wait_until(
    condition: Callable[[], bool], timeout_seconds: float, what: str, interval_seconds: float = 0.02
) -> None:
    """Wait until `condition()` holds, else raise TimeoutError naming `what`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_seconds} s")
        time.sleep(interval_seconds)


class Child:
    """One child process that leads a process group, logs into a file and ends with us, however we end."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        run_as: RunAs | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.arguments = list(arguments)
        self.log = log
        output = log.open("ab")
        if run_as is not None:
            run_as.own(log)
        user, group = (run_as.uid, run_as.gid) if run_as is not None else (None, None)
        with output:
            self.process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment) if environment is not None else None,
                cwd=folder,
                user=user,
                group=group,
                extra_groups=[] if user is not None else None,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def send_signal(self, number: int) -> None:
        if self.is_running:
            self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, timeout_seconds: float = STOP_SECONDS) -> int:
        """Send `number`, wait, and return the exit status. Kills and raises ProcessFailed where the process stays."""
        self.send_signal(number)
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(f"{self.arguments[0]} did not stop on signal {number}\n{self.log_tail()}") from None
        finally:
            atexit.unregister(self.kill)

    def kill(self) -> None:
        """End the process, and what it started in its group, at once."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log_tail(self, lines: int = 40) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"


def cpu_seconds(pid: int) -> float:
    """User and system time that the process has used so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_bytes(pid: int) -> int:
    """Resident memory of the process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def proportional_bytes(pid: int) -> int:
    """Proportional set size: shared pages are divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def children_of(pid: int) -> list[int]:
    """Direct children of the process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def descendants_of(pid: int) -> list[int]:
    found: list[int] = []
    queue = [pid]
    while queue:
        with contextlib.suppress(OSError):
            children = children_of(queue.pop())
            found += children
            queue += children
    return found
