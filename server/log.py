"""Log output: lines for people or one JSON object a line, with the session and the query a record is about.

`configure_logging` is called once, by the composition root; everybody else uses `logging.getLogger(__name__)`. A
record gets its session and query from `session_logger(...)`, from `extra={"session_id": ..., "query_id": ...}`, or
from `log_context(...)` in code that runs as a task of its own. Any other `extra` becomes a field as well. Nothing here
is called for a statement that goes well, unless `log.statements` is on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import orjson

_ROOTS: Final = ("rustydb", "protocol", "engine", "server", "enterprise", "benchmarks")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_context: ContextVar[Mapping[str, object]] = ContextVar("log_context", default={})  # noqa: B039 - never changed in place


class SessionLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records carry the fields it was made with, beside the call's own `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def session_logger(logger: logging.Logger, session_id: int) -> SessionLogger:
    """`logger` for one session; `session_id` is the virtual process id that the client was given."""
    return SessionLogger(logger, {"session_id": session_id})


@contextmanager
def log_context(**fields: object) -> Iterator[None]:
    """Put `fields` on every record that this task logs inside the block."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def configure_logging(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the records of our packages, and the warnings of the libraries, to `stream` (standard error).

    `level` and `form` are the values of `log.level` and `log.format`. May be called again: it replaces its own handler.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: str) -> None:
    """Change the level of our own packages; the libraries stay at `warning`."""
    for name in _ROOTS:
        logging.getLogger(name).setLevel(level.upper())


class _Handler(logging.StreamHandler[TextIO]):
    """A type of its own, to be found again."""


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What the record carries beyond the message, session and query first."""
    extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    merged = {**_context.get(), **extra}
    first: dict[str, object] = {name: merged.pop(name) for name in ("session_id", "query_id") if name in merged}
    return {**first, **merged}


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 UTC INFO  server.app: ready session_id=7`; tracebacks follow on lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        line = f"{when} UTC {record.levelname:<7} {record.name}: {_one_line(record.getMessage())}{fields}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, the fields, and the traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _one_line(text: str) -> str:
    """A client's text may hold line ends: it must not look like a record of ours."""
    return (
        text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n") if "\n" in text or "\r" in text else text
    )


def _word(value: object) -> str:
    text = str(value)
    return orjson.dumps(text).decode() if not text or any(c.isspace() or c in '"=' for c in text) else text
