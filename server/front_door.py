"""What the front door hands to the core once a client has proved who it is.

The front door (listener, TLS, startup, authentication) knows nothing of sessions and pools; the core knows nothing
of passwords. They meet in these types.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is. `role` is both session_user and current_user at the start."""

    role: str
    role_oid: int
    is_superuser: bool
    database: str
    auth_method: str
    client_addr: str
    client_port: int
    local_addr: str
    tls: str | None  # e.g. "TLSv1.3 TLS_AES_256_GCM_SHA384", None in the clear
    scram_client_key: bytes | None = None  # for SCRAM key passthrough to a remote engine
    scram_server_key: bytes | None = None


@dataclass(slots=True)
class AuthenticatedClient:
    """A client after AuthenticationOk has been written and before ParameterStatus."""

    transport: asyncio.Transport
    identity: Identity
    protocol_version: tuple[int, int]  # negotiated: (3, 0) or (3, 2)
    parameters: dict[str, str]  # startup GUCs with `options` already split into them; without user, database, replication
    replication: str | None  # the value of `replication` where it is on ("true" or "database"), else None
    received: bytes = b""  # bytes already read behind the last password message
    pending_output: list[bytes] = field(default_factory=list)  # AuthenticationOk, written by the core with its first burst


class SessionOpener(Protocol):
    """The core's side of the front door."""

    async def open(self, client: AuthenticatedClient) -> None:
        """Take the client over: sets the transport's protocol, writes pending_output, ParameterStatus, BackendKeyData, ReadyForQuery.

        Raises PgError (3D000, 42501, 53300, 22023, 57P03 ...) where the session cannot start: the front door then writes it as FATAL and closes.
        """

    def cancel(self, pid: int, secret: bytes) -> None:
        """A CancelRequest arrived. Wrong keys are ignored, as PostgreSQL does."""

    def session_ended(self, pid: int) -> None: ...
