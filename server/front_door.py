"""What the front door hands to the core once a client has proved who it is.

The front door (listener, TLS, startup, authentication) knows nothing of sessions and pools; the core knows nothing
of passwords. They meet in these types.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol


class Slot(Protocol):
    """A client's place under the connection limits (server.limits.ClientSlot)."""

    def release(self) -> None:
        """Give the place back. Calls after the first do nothing."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is. `role` is both session_user and current_user at the start."""

    role: str
    role_oid: int
    is_superuser: bool
    database: str  # "" for physical replication
    auth_method: str  # "scram-sha-256", "scram-sha-256-plus", "trust", "peer", "cert"
    client_addr: str  # "" for the Unix socket
    client_port: int  # -1 for the Unix socket
    local_addr: str  # "" for the Unix socket
    tls: str | None  # e.g. "TLSv1.3 TLS_AES_256_GCM_SHA384", None in the clear
    scram_client_key: bytes | None = field(default=None, repr=False)  # only for key passthrough to a remote engine
    scram_server_key: bytes | None = field(default=None, repr=False)


@dataclass(slots=True)
class AuthenticatedClient:
    """A client after its login and before AuthenticationOk is written.

    Until the core sets the transport's protocol, what the client sends is appended to `received`: read it in the same
    step as `set_protocol`. `slot.release()` is the core's to call, once the client is gone, from the moment that
    `SessionOpener.open` has returned.
    """

    transport: asyncio.Transport
    identity: Identity
    protocol_version: tuple[int, int]  # negotiated: (3, 0) or (3, 2)
    parameters: dict[str, str]  # startup GUCs, those in `options` too; without user, database, replication
    replication: str | None  # the value of `replication` where it is on ("true" or "database"), else None
    slot: Slot
    received: bytes = b""  # bytes already read behind the last password message
    pending_output: list[bytes] = field(default_factory=list)  # end of the login: for the core's first burst
    login_us: int = 0  # from accept to proof


class SessionOpener(Protocol):
    """The core's side of the front door."""

    async def open(self, client: AuthenticatedClient) -> None:
        """Take the client over: set the transport's protocol, write pending_output, ParameterStatus ... ReadyForQuery.

        Raises PgError (3D000, 42501, 53300, 22023, 57P03 ...) where the session cannot start: the front door then
        writes what is left in `pending_output`, the error as FATAL, and closes; so empty the list when it is written.
        Is cancelled where the client vanishes before `set_protocol`.
        """

    def cancel(self, pid: int, secret: bytes) -> None:
        """A CancelRequest arrived. Wrong keys are ignored, as PostgreSQL does."""
