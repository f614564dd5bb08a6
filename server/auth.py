"""Who a client is, and whether it may come in: host-based rules, SCRAM against the engine's verifiers, what follows.

`Authenticator.authenticate` proves a role by the method of the first matching rule; `authorize` then checks what
PostgreSQL checks after it (NOLOGIN, limits, replication, the database), in PostgreSQL's order and words. A role that
does not exist, is internal, has no usable password or an expired one goes through the same exchange as any other and
fails at its end as a wrong password does; the true reason is for the operator only (`LoginRefused.reason`).
No password and no PBKDF2 on our side.
"""

from __future__ import annotations

import ipaddress
import pwd
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from protocol.auth_messages import (
    AuthenticationOk,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
    SASLInitialResponse,
    SASLResponse,
)
from protocol.errors import PgError
from protocol.scram import SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, ScramServer, ScramVerifier, mock_verifier
from protocol.sqlstate import INVALID_AUTHORIZATION_SPECIFICATION, INVALID_PASSWORD
from server.config import Config
from server.hba import ClientCert, HbaRequest, HbaRule, HbaRules, Method
from server.interfaces import local_interfaces
from server.limits import ClientLimits, ClientSlot
from server.roles import DatabaseAccess, Role, RoleDirectory, Secret
from server.startup import StartupRequest
from server.throttle import FailureThrottle

AUTHENTICATION_OK: Final = AuthenticationOk().encode()
_OFFER: Final = AuthenticationSASL((SCRAM_SHA_256,)).encode()
_OFFER_WITH_BINDING: Final = AuthenticationSASL((SCRAM_SHA_256_PLUS, SCRAM_SHA_256)).encode()

_WHY_NO_SECRET: Final = {
    Secret.NONE: "the role has no password",
    Secret.MD5: "the role's password is an MD5 hash: it has no SCRAM secret until it is set again",
    Secret.UNKNOWN: "the role's password is stored in a form that is not known here",
}


class LoginRefused(PgError):
    """A FATAL error for the client, with what the operator should know beside it."""

    def __init__(
        self,
        sqlstate: str,
        message: str,
        *,
        reason: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        is_throttled: bool = False,
    ) -> None:
        super().__init__(sqlstate, message, detail=detail, hint=hint, severity="FATAL")
        self.reason = reason or message
        self.is_throttled = is_throttled


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    address: str  # "" for the Unix socket
    port: int  # -1 for the Unix socket
    local_address: str
    user_id: int | None = None  # of the process behind a Unix socket
    tls: str | None = None  # version and cipher
    channel_binding: bytes | None = None
    certificate: dict[str, Any] | None = None  # verified, as ssl.SSLObject.getpeercert() has it

    @property
    def is_local(self) -> bool:
        return not self.address

    @property
    def shown(self) -> str:
        return self.address or "[local]"


@dataclass(frozen=True, slots=True)
class Proof:
    """A role that a client has proved."""

    auth_method: str
    output: bytes  # to write to the client: last message of the exchange and AuthenticationOk
    client_key: bytes | None = None
    server_key: bytes | None = None


class Exchange(Protocol):
    """The conversation with the client, as far as a method needs it."""

    def write(self, data: bytes) -> None: ...

    async def read_sasl(self) -> bytes:
        """Body of the next message, which has to be a SASL response. Raises PgError for anything else."""


class Authenticator:
    """All methods. `rules` may be replaced at any time."""

    def __init__(
        self, config: Config, directory: RoleDirectory, throttle: FailureThrottle, rules: HbaRules, mock_secret: bytes
    ) -> None:
        """`mock_secret`: makes the salts of roles without a verifier; the same for the life of the data directory."""
        self.rules = rules
        self._config = config
        self._directory = directory
        self._throttle = throttle
        self._mock_secret = mock_secret

    async def authenticate(self, request: StartupRequest, peer: Peer, exchange: Exchange) -> Proof:
        """Raises LoginRefused or another PgError; writes what belongs before `Proof.output`."""
        role = await self._directory.role(request.role)
        rule = self._rule(request, peer, role)
        self._check_certificate(rule, request.role, peer)
        match rule.method:
            case Method.SCRAM:
                return await self._scram(request, role, peer, exchange)
            case Method.PEER:
                _check_peer(request.role, peer)
            case Method.CERT:
                pass  # checked above, as clientcert=verify-full is
            case Method.TRUST:
                pass
            case Method.REJECT:
                raise self._refused_by_rule("pg_hba.conf rejects connection", request, peer, rule.origin)
        exchange.write(request.reply)
        return Proof(rule.method.value, AUTHENTICATION_OK)

    async def authorize(
        self, request: StartupRequest, limits: ClientLimits, slot: ClientSlot
    ) -> tuple[Role, DatabaseAccess | None]:
        """The proved role and the database it gets; None for physical replication. Raises PgError."""
        # Asked again: it may have changed while the client was proving it. From memory, as a rule.
        role = await self._directory.role(request.role)
        if role is None:
            raise LoginRefused(INVALID_AUTHORIZATION_SPECIFICATION, f'role "{request.role}" does not exist')
        if not role.can_login:
            raise LoginRefused(INVALID_AUTHORIZATION_SPECIFICATION, f'role "{request.role}" is not permitted to log in')
        limits.claim_role(slot, role)
        if request.replication is not None and not (role.can_replicate or role.is_superuser):
            raise LoginRefused(
                "42501",
                "permission denied to start WAL sender",
                detail="Only roles with the REPLICATION attribute may start a WAL sender process.",
            )
        if request.is_physical_replication:
            return role, None
        database = await self._directory.database(role, request.database)
        if database is None:
            raise LoginRefused("3D000", f'database "{request.database}" does not exist')
        _check_database(role, database)
        limits.claim_database(slot, role, database)
        return role, database

    def _rule(self, request: StartupRequest, peer: Peer, role: Role | None) -> HbaRule:
        groups = role.member_of if role is not None else frozenset()
        rule = self.rules.match(
            HbaRequest(
                database=request.database,
                role=request.role,
                is_member=groups.__contains__,
                address=None if peer.is_local else ipaddress.ip_address(peer.address.partition("%")[0]),
                is_tls=peer.tls is not None,
                is_physical_replication=request.is_physical_replication,
                interfaces=local_interfaces,
            )
        )
        if rule is None:
            raise self._refused_by_rule("no pg_hba.conf entry", request, peer, "no rule matches")
        return rule

    def _refused_by_rule(self, what: str, request: StartupRequest, peer: Peer, origin: str) -> LoginRefused:
        encryption = "SSL encryption" if peer.tls else "no encryption"
        kind = "for replication connection from host" if request.is_physical_replication else "for host"
        database = "" if request.is_physical_replication else f', database "{request.database}"'
        message = f'{what} {kind} "{peer.shown}", user "{request.role}"{database}, {encryption}'
        return LoginRefused(INVALID_AUTHORIZATION_SPECIFICATION, message, reason=f"host-based rules: {origin}")

    def _check_certificate(self, rule: HbaRule, role: str, peer: Peer) -> None:
        if rule.client_cert is ClientCert.NOT_ASKED:
            return
        if not peer.certificate:
            raise LoginRefused(
                INVALID_AUTHORIZATION_SPECIFICATION,
                "connection requires a valid client certificate",
                hint=None if self._config.tls.ca_file else "The server has no tls.ca_file to verify certificates with.",
            )
        if rule.client_cert is ClientCert.VALID_FOR_ROLE and common_name(peer.certificate) != role:
            raise LoginRefused(
                INVALID_AUTHORIZATION_SPECIFICATION,
                f'certificate authentication failed for user "{role}"',
                reason=f"the certificate is for {common_name(peer.certificate)!r}",
            )

    async def _scram(self, request: StartupRequest, role: Role | None, peer: Peer, exchange: Exchange) -> Proof:
        self._check_throttle(request.role, peer)
        verifier, why_mock = self._verifier(request.role, role)
        server = ScramServer(verifier, channel_binding=peer.channel_binding, role=request.role)
        exchange.write(request.reply + (_OFFER if peer.channel_binding is None else _OFFER_WITH_BINDING))
        initial = SASLInitialResponse.decode(await exchange.read_sasl())
        challenge = server.first(initial.mechanism, initial.data)
        exchange.write(AuthenticationSASLContinue(challenge).encode())
        answer = SASLResponse.decode(await exchange.read_sasl()).data
        if initial.data is None:
            exchange.write(AuthenticationSASLContinue(server.first(initial.mechanism, answer)).encode())
            answer = SASLResponse.decode(await exchange.read_sasl()).data
        # Again, before the proof is looked at: many attempts may have begun before the first of them failed.
        self._check_throttle(request.role, peer)
        try:
            final = server.final(answer)
        except ScramError as error:
            if error.sqlstate != INVALID_PASSWORD:
                raise
            self._throttle.failed(peer.address, request.role)
            raise LoginRefused(INVALID_PASSWORD, error.message, reason=why_mock or "wrong password") from None
        self._throttle.succeeded(peer.address, request.role)
        # The keys are a secret that only a login at a remote engine needs.
        keys = server.keys if self._config.engine.mode == "remote" else None
        return Proof(
            "scram-sha-256" if initial.mechanism == SCRAM_SHA_256 else "scram-sha-256-plus",
            AuthenticationSASLFinal(final).encode() + AUTHENTICATION_OK,
            keys.client_key if keys else None,
            keys.server_key if keys else None,
        )

    def _verifier(self, name: str, role: Role | None) -> tuple[ScramVerifier, str | None]:
        """What to verify against, and why that can only fail, if so."""
        if role is None:
            reason = "there is no such role"
        elif role.verifier is None:
            reason = _WHY_NO_SECRET[role.secret]
        elif role.is_expired(time.time()):
            reason = "the role's password has expired"
        else:
            return role.verifier, None
        return mock_verifier(name, self._mock_secret, iterations=self._config.auth.scram_iterations), reason

    def _check_throttle(self, role: str, peer: Peer) -> None:
        seconds = self._throttle.blocked_for(peer.address, role)
        if seconds > 0:
            raise LoginRefused(
                INVALID_AUTHORIZATION_SPECIFICATION,
                f'too many failed login attempts for user "{role}" from this address',
                hint=f"Try again in {int(seconds) + 1} seconds.",
                reason="throttled",
                is_throttled=True,
            )


def common_name(certificate: dict[str, Any]) -> str | None:
    """The common name of a verified certificate's subject; None where it has none, or several."""
    subject: Sequence[Sequence[tuple[str, str]]] = certificate.get("subject", ())
    names = [value for part in subject for name, value in part if name == "commonName"]
    return names[0] if len(names) == 1 and "\0" not in names[0] else None


def _check_peer(role: str, peer: Peer) -> None:
    try:
        user = pwd.getpwuid(peer.user_id).pw_name if peer.user_id is not None else None
    except KeyError:
        user = None
    if user != role:
        raise LoginRefused(
            INVALID_AUTHORIZATION_SPECIFICATION,
            f'Peer authentication failed for user "{role}"',
            reason=f"the client runs as operating-system user {user or peer.user_id!r}",
        )


def _check_database(role: Role, database: DatabaseAccess) -> None:
    if database.connection_limit == -2:
        raise LoginRefused(
            "55000",
            f'cannot connect to invalid database "{database.name}"',
            hint="Use DROP DATABASE to drop invalid databases.",
        )
    if not database.allows_connections:
        raise LoginRefused("55000", f'database "{database.name}" is not currently accepting connections')
    if not (database.can_connect or role.is_superuser):
        raise LoginRefused(
            "42501",
            f'permission denied for database "{database.name}"',
            detail="User does not have CONNECT privilege.",
        )
