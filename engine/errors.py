"""What can go wrong with the engine, as one tree.

Every error says what happened (`message`), what is known about it (`detail`) and what to do (`hint`), in the manner of
PostgreSQL's own. They are about the engine as a whole: starting, stopping, reaching it. What the engine answers to one
statement is `asyncpg.PostgresError` on control connections and `protocol.errors.PgError` on relayed ones.

    EngineError
      EngineConfigError            a setting cannot be used
        ConninfoError              a connection string cannot be read
      EngineProgramsError          no usable PostgreSQL programs
      EngineUserError              no usable operating-system user
      DataDirectoryError           the data directory cannot be used
        DataDirectoryUnreachable   a directory above it keeps the engine's user out
        DataDirectoryInUse         another front end or another engine works on it
        DataDirectoryVersion       another major version of PostgreSQL wrote it
        DataDirectoryFull          no space left on the device
      EngineStartError             it did not start
        EngineStartTimeout         it did not become ready in time
      EngineUnavailable            it cannot be reached now
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of the tree. `str()` is what an operator reads: message, detail and hint on lines of their own."""

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL: {self.detail}")
        if self.hint:
            lines.append(f"HINT: {self.hint}")
        return "\n".join(lines)


class EngineConfigError(EngineError):
    """A setting of the engine cannot be used."""


class ConninfoError(EngineConfigError):
    """A connection string, passfile or service file cannot be read."""


class EngineProgramsError(EngineError):
    """The programs of PostgreSQL are missing, cannot be run, or have a version that is not supported."""


class EngineUserError(EngineError):
    """No operating-system user that the engine can run as."""


class DataDirectoryError(EngineError):
    """The data directory cannot be used."""


class DataDirectoryUnreachable(DataDirectoryError):
    """A directory above the data directory keeps the engine's user out."""


class DataDirectoryInUse(DataDirectoryError):
    """Another front end, or an engine that is not ours, works on the data directory."""


class DataDirectoryVersion(DataDirectoryError):
    """Another major version of PostgreSQL wrote the data directory."""


class DataDirectoryFull(DataDirectoryError):
    """No space left on the device that holds the data directory."""


class EngineStartError(EngineError):
    """The engine ended, or could not be made, while it was being started."""


class EngineStartTimeout(EngineStartError):
    """The engine did not accept connections in time."""


class EngineUnavailable(EngineError):
    """The engine cannot be reached now; it may be restarting."""
