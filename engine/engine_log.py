"""What the engine writes to its log, taken apart and passed on to `logging`.

The engine writes to a FIFO in the data directory, so that a front end that adopts a running engine reads on where the
last one was killed. Lines have the prefix of `postgres_conf.LOG_LINE_PREFIX`; continuation lines start with a tab, so
what a client writes into a message cannot pass for a line of its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("engine.postgres")

_PIPE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_LINE_MAX_BYTES = 1 << 20
_KEPT_LINES = 40
_LINE = re.compile(
    r"(?P<pid>\d+) (?P<sqlstate>[0-9A-Z]{5}) (?P<kind>[^|]*)\|(?P<severity>[A-Z]+\d?):  (?P<message>.*)", re.DOTALL
)

_LEVELS = {
    "INFO": logging.INFO,
    "NOTICE": logging.INFO,
    "LOG": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.ERROR,
    "PANIC": logging.CRITICAL,
}
_CONTINUATIONS = frozenset({"DETAIL", "HINT", "CONTEXT", "STATEMENT", "QUERY", "LOCATION", "BACKTRACE"})
_REINITIALIZING = "all server processes terminated; reinitializing"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One message of the engine."""

    level: int
    message: str
    severity: str = ""
    sqlstate: str = ""
    pid: int = 0
    kind: str = ""  # PostgreSQL's backend_type: "postmaster", "client backend", "autovacuum worker", ...

    @property
    def is_fatal(self) -> bool:
        """It ended the process, and the process was the engine's own: a client's end explains nothing."""
        return self.severity == "PANIC" or (self.severity == "FATAL" and not _is_clients(self.kind))


def _is_clients(kind: str) -> bool:
    return kind == "not initialized" or kind.endswith("client backend")  # PostgreSQL 18 has "dead-end client backend"


def parse_log_line(line: str) -> LogLine:
    """Take one line apart; one without the prefix (a library's, the loader's) is a warning as it stands.

    What a client did wrong is not the engine's trouble: errors of client backends are for debugging. A continuation
    (DETAIL, HINT, ...) keeps its own severity and is logged as quietly as a client's error or as information.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return LogLine(level=logging.WARNING, message=line)
    severity, kind = match["severity"], match["kind"]
    is_a_clients = _is_clients(kind) and severity in ("ERROR", "FATAL", "WARNING")
    if is_a_clients or severity.startswith("DEBUG"):
        level = logging.DEBUG
    elif severity in _CONTINUATIONS:
        level = logging.DEBUG if _is_clients(kind) else logging.INFO
    else:
        level = _LEVELS.get(severity, logging.INFO)
    return LogLine(
        level=level,
        message=match["message"],
        severity=severity,
        sqlstate=match["sqlstate"],
        pid=int(match["pid"]),
        kind=kind,
    )


class EngineLog:
    """Reads the engine's log on the event loop. `recent` keeps the last lines, to explain a start that failed."""

    def __init__(self, fifo: Path, on_reinitialize: Callable[[], None] | None = None) -> None:
        self._fifo = fifo
        self._on_reinitialize = on_reinitialize
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read_fd = -1
        self._pipe_write_fd = -1
        self._partial = b""
        self._pending: list[str] = []
        self.recent: deque[LogLine] = deque(maxlen=_KEPT_LINES)
        self.last_line_at = time.monotonic()  # a recovery that makes progress reports it

    def open(self) -> None:
        """Start reading."""
        if self._read_fd >= 0:
            return
        try:
            # For writing too: else every moment without an engine would be an end of file.
            self._read_fd = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            self._read_fd, self._pipe_write_fd = os.pipe()
            os.set_blocking(self._read_fd, False)
        try:
            fcntl.fcntl(self._read_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except (OSError, AttributeError):
            pass  # a limit of the system: the engine then waits for us a little sooner
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._read)

    def open_for_engine(self) -> int:
        """A descriptor for the engine's standard error; the caller closes it."""
        if self._pipe_write_fd >= 0:
            return os.dup(self._pipe_write_fd)
        return os.open(self._fifo, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def drain(self) -> None:
        """Take everything that is there now: after the engine has ended, that is all it said."""
        if self._read_fd >= 0:
            while self._read():
                pass
            self._flush()

    def close(self) -> None:
        if self._read_fd < 0:
            return
        self.drain()
        if self._loop is not None:
            self._loop.remove_reader(self._read_fd)
        for descriptor in (self._read_fd, self._pipe_write_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._read_fd = self._pipe_write_fd = -1

    def _read(self) -> bool:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_MAX_BYTES:
            lines.append(self._partial)
            self._partial = b""
        for raw in lines:
            line = raw.decode("utf-8", "replace")
            if line.startswith("\t") and self._pending:
                self._pending.append(line[1:])
            else:
                self._flush()
                self._pending = [line]
        if not self._partial:
            self._flush()
        return True

    def _flush(self) -> None:
        if not self._pending:
            return
        line = parse_log_line("\n".join(self._pending))
        self._pending = []
        if not line.message:
            return
        self.recent.append(line)
        self.last_line_at = time.monotonic()
        logger.log(line.level, "%s", line.message, extra={"engine_pid": line.pid, "sqlstate": line.sqlstate})
        if line.kind == "postmaster" and line.message == _REINITIALIZING and self._on_reinitialize is not None:
            self._on_reinitialize()
