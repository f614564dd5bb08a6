"""The postmaster as a process: started in a session of its own, watched, signalled, or adopted from a dead front end.

A session of its own keeps the terminal's Ctrl-C away from it: the front end stops it in order. It is not tied to us
with PR_SET_PDEATHSIG: that fires when the *thread* that started it ends, is cleared where the program changes user, and
an engine that outlives a killed front end is adopted by the next one without crash recovery.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from engine.osuser import OsUser, spawn_arguments

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_POLL_SECONDS = 0.05


class ProcessHost(Protocol):
    """Who starts and signals processes for us: this process itself, or a helper that runs as the engine's user."""

    def spawn(self, argv: Sequence[str], environment: Mapping[str, str], stderr_fd: int) -> int:
        """Start a program in a session of its own; returns its process id."""

    def signal(self, pid: int, number: int) -> None:
        """Send a signal; a process that is gone is not an error."""

    def reap(self, pid: int) -> int | None:
        """Exit status of a process that has ended (negative: killed by that signal); None where it is unknown."""

    def close(self) -> None:
        """Let go of whatever the host holds; processes run on."""


class DirectHost:
    """Starts processes from this process, as `user`."""

    def __init__(self, user: OsUser) -> None:
        self._user = user
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, argv: Sequence[str], environment: Mapping[str, str], stderr_fd: int) -> int:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stderr_fd,
            stderr=stderr_fd,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
            **spawn_arguments(self._user),
        )
        self._children[child.pid] = child
        return child.pid

    def signal(self, pid: int, number: int) -> None:
        child = self._children.get(pid)
        if child is not None:
            child.send_signal(number)  # does nothing where the child has been reaped
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def reap(self, pid: int) -> int | None:
        child = self._children.pop(pid, None)
        return child.wait() if child is not None else None

    def close(self) -> None:
        self._children.clear()


@dataclass(frozen=True, slots=True)
class Postmaster:
    """One running postmaster."""

    pid: int
    host: ProcessHost

    def stop(self, mode: str) -> None:
        """Ask it to end: `smart`, `fast` or `immediate`, as pg_ctl."""
        self.host.signal(self.pid, STOP_SIGNALS[mode])

    def kill(self) -> None:
        self.host.signal(self.pid, signal.SIGKILL)

    def reload(self) -> None:
        self.host.signal(self.pid, signal.SIGHUP)

    async def wait(self) -> int | None:
        """Wait until it has ended; returns its exit status where that is known."""
        await wait_process(self.pid)
        return self.host.reap(self.pid)

    def wait_blocking(self, timeout_seconds: float) -> bool:
        """The same without an event loop, for the interpreter's last moments."""
        deadline = time.monotonic() + timeout_seconds
        while is_alive(self.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


async def wait_process(pid: int) -> None:
    """Wait until a process, child or not, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        while is_alive(pid):  # noqa: ASYNC110 - this system has no event to wait for
            await asyncio.sleep(_POLL_SECONDS)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (OSError, AttributeError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class PidFile:
    """postmaster.pid, as far as it is needed. PostgreSQL's src/include/utils/pidfile.h has its lines."""

    pid: int
    data_directory: str
    started_at: int  # seconds since the epoch
    port: int
    socket_directory: str


def parse_pid_file(text: str) -> PidFile | None:
    """The file's content taken apart; None where it is cut short or not such a file."""
    lines = text.splitlines()
    try:
        pid, directory, started_at, port, socket_directory = lines[:5]
        return PidFile(abs(int(pid)), directory, int(started_at), int(port), socket_directory)
    except ValueError:
        return None


def read_pid_file(pgdata: Path) -> PidFile | None:
    """postmaster.pid of a data directory; None where there is none or it says nothing."""
    try:
        descriptor = os.open(pgdata / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse_pid_file(os.read(descriptor, 8192).decode("utf-8", "replace"))
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A postmaster found running on our data directory."""

    pid: int
    program: str  # as /proc shows it; " (deleted)" at the end where the file was replaced
    argv: tuple[str, ...]
    uid: int
    is_adoptable: bool = False

    def marked(self, *, is_adoptable: bool) -> Orphan:
        """The same, known to be what we would start ourselves, or known not to be."""
        return replace(self, is_adoptable=is_adoptable)


def find_orphan(pgdata: Path) -> Orphan | None:
    """The postmaster that postmaster.pid names, if it runs and really works in this data directory.

    A process id alone proves nothing: after a crash or in a new container it may be any program's. The postmaster's
    working directory is its data directory, and its program is called postgres.
    """
    pid_file = read_pid_file(pgdata)
    if pid_file is None or not is_alive(pid_file.pid):
        return None
    process = Path("/proc") / str(pid_file.pid)
    try:
        program = os.readlink(process / "exe")
        if not os.path.samestat(os.stat(process / "cwd"), os.stat(pgdata)):
            return None
        argv = tuple((process / "cmdline").read_bytes().decode("utf-8", "surrogateescape").rstrip("\0").split("\0"))
        uid = os.stat(process).st_uid
    except OSError:
        return None
    if Path(program.removesuffix(" (deleted)")).name != "postgres":
        return None
    return Orphan(pid=pid_file.pid, program=program, argv=argv, uid=uid)
