"""Where an engine is reached, and what proves a role there.

Plain data: dialling is `engine.connect`'s. A cluster gives a fresh address after a restart or failover, so nobody
keeps one for long.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

SOCKET_PATH_MAX_BYTES = 107  # sockaddr_un.sun_path has 108 bytes on Linux, one of them the terminating NUL

UserSecret = Callable[[str], "str | None"]
"""Role name to the password that proves it, or None where there is none."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """One engine. `host` is a host name, or the directory of a Unix socket where it begins with a slash."""

    host: str
    port: int = 5432
    tls: ssl.SSLContext | None = None
    user_secret: UserSecret | None = field(default=None, repr=False)
    """Passwords that the engine itself was configured with, by role; None where every role logs in without one
    (peer authentication). A role it answers None for logs in with the client's own SCRAM keys."""
    tls_hostname: str | None = None
    """Name that the certificate must carry, where it is not `host`."""

    @property
    def is_unix(self) -> bool:
        return self.host.startswith("/")

    @property
    def socket_path(self) -> str | None:
        """Path of the Unix socket; None over TCP."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.is_unix else None

    def __str__(self) -> str:
        return self.socket_path or f"{self.host}:{self.port}"
