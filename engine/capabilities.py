"""What an engine is and can do: probed once it is reached, one function a question.

Callers branch on a flag, never on the kind of cluster. A probe asks the engine itself, since a version number does not
tell what a role may do or what an operator switched off.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.control import EngineControl


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about an engine that hold until it is restarted."""

    version_num: int  # as server_version_num: 180006
    version: str  # as server_version: "18.6"
    system_identifier: int
    max_connections: int
    superuser_reserved_connections: int
    reserved_connections: int
    max_prepared_transactions: int
    epoch: int  # counts up with every start, restart and failover seen by this process; from 1

    @property
    def major(self) -> int:
        return self.version_num // 10000


@dataclass(frozen=True, slots=True)
class BackendCapabilities:
    """What we may rely on. Each flag has its `probe_` function below."""

    is_superuser: bool
    """Our control role may do everything."""
    can_create_roles: bool
    can_read_verifiers: bool
    """pg_authid can be read: clients authenticate against the engine's own SCRAM verifiers."""
    can_login_as_any_role: bool
    """Backends log in as any role without its password (peer map of the embedded engine)."""
    has_citus: bool
    has_stat_statements: bool
    has_logical_decoding: bool
    has_prepared_transactions: bool
    is_in_recovery: bool
    """A standby: reads only."""
    is_exclusive: bool
    """Nobody writes but through us: the query cache needs no other source of changes."""


async def probe_info(control: EngineControl, epoch: int) -> EngineInfo:
    """Version, identity and limits."""
    row = (
        await control.fetch(
            """
            SELECT current_setting('server_version_num')::int AS version_num,
                   current_setting('server_version') AS version,
                   (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system_identifier,
                   current_setting('max_connections')::int AS max_connections,
                   current_setting('superuser_reserved_connections')::int AS superuser_reserved_connections,
                   coalesce(current_setting('reserved_connections', true), '0')::int AS reserved_connections,
                   current_setting('max_prepared_transactions')::int AS max_prepared_transactions
            """
        )
    )[0]
    return EngineInfo(epoch=epoch, **dict(row.items()))


async def probe_superuser(control: EngineControl) -> bool:
    return bool(await control.fetchval("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"))


async def probe_create_role(control: EngineControl) -> bool:
    return bool(
        await control.fetchval("SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user")
    )


async def probe_verifiers(control: EngineControl) -> bool:
    return bool(
        await control.fetchval(
            "SELECT pg_catalog.has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'SELECT')"
        )
    )


async def probe_citus(control: EngineControl) -> bool:
    return bool(await control.fetchval("SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')"))


async def probe_stat_statements(control: EngineControl) -> bool:
    return bool(await control.fetchval("SELECT current_setting('pg_stat_statements.max', true) IS NOT NULL"))


async def probe_logical_decoding(control: EngineControl) -> bool:
    return bool(await control.fetchval("SELECT current_setting('wal_level') = 'logical'"))


async def probe_prepared_transactions(control: EngineControl) -> bool:
    return bool(await control.fetchval("SELECT current_setting('max_prepared_transactions')::int > 0"))


async def probe_recovery(control: EngineControl) -> bool:
    return bool(await control.fetchval("SELECT pg_catalog.pg_is_in_recovery()"))


async def probe_capabilities(
    control: EngineControl, *, can_login_as_any_role: bool, is_exclusive: bool
) -> BackendCapabilities:
    """All flags. The two arguments are the cluster's own: no query could tell them."""
    return BackendCapabilities(
        is_superuser=await probe_superuser(control),
        can_create_roles=await probe_create_role(control),
        can_read_verifiers=await probe_verifiers(control),
        can_login_as_any_role=can_login_as_any_role,
        has_citus=await probe_citus(control),
        has_stat_statements=await probe_stat_statements(control),
        has_logical_decoding=await probe_logical_decoding(control),
        has_prepared_transactions=await probe_prepared_transactions(control),
        is_in_recovery=await probe_recovery(control),
        is_exclusive=is_exclusive,
    )
