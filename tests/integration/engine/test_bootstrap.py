"""Roles, the administrator and the control database, as a client of the engine meets them."""

from __future__ import annotations

import stat
from dataclasses import replace

import asyncpg
import pytest

from engine.bootstrap import (
    ADMINISTRATOR_APPOINTS,
    PREDEFINED_ROLES,
    SAFE_POSTGRES_ROLES,
    run,
)
from engine.embedded import EmbeddedCluster, EmbeddedOptions
from protocol.scram import ScramVerifier
from tests.integration.engine.conftest import log_in

pytestmark = pytest.mark.integration

VERIFIER = "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'"


async def stored_verifier(cluster: EmbeddedCluster) -> ScramVerifier:
    verifier = ScramVerifier.parse(await cluster.control.fetchval(VERIFIER))
    assert verifier is not None
    return verifier


async def test_the_administrator_is_what_a_managed_one_is(cluster: EmbeddedCluster) -> None:
    row = (
        await cluster.control.fetch(
            "SELECT rolcanlogin, rolcreatedb, rolcreaterole, rolreplication, rolsuper, rolbypassrls"
            " FROM pg_roles WHERE rolname = 'postgres'"
        )
    )[0]
    assert tuple(row.values()) == (True, True, True, True, False, False)
    owners = await cluster.control.fetch(
        "SELECT datname, pg_get_userbyid(datdba) AS owner FROM pg_database ORDER BY datname"
    )
    assert {row["datname"]: row["owner"] for row in owners} == {
        "postgres": "postgres",
        "rustydb": "rustydb_internal",
        "template0": "rustydb_internal",
        "template1": "postgres",
    }


async def test_nothing_is_changed_by_a_second_bootstrap(cluster: EmbeddedCluster) -> None:
    before = await cluster.control.fetch("SELECT xmin::text, oid, rolname, rolpassword FROM pg_authid ORDER BY oid")
    result = await run(
        cluster.control,
        cluster.layout,
        cluster.users.frontend,
        superuser=False,
        password=None,
        scram_iterations=4096,
    )
    after = await cluster.control.fetch("SELECT xmin::text, oid, rolname, rolpassword FROM pg_authid ORDER BY oid")
    assert (before, result.is_first_start) == (after, False)


async def test_memberships_can_be_handed_on(cluster: EmbeddedCluster) -> None:
    admin = await log_in(cluster, "postgres", "postgres")
    await admin.execute("CREATE ROLE alice LOGIN")
    existing = {row["rolname"] for row in await admin.fetch("SELECT rolname FROM pg_roles")}
    for role in (*PREDEFINED_ROLES, *(set(SAFE_POSTGRES_ROLES) & existing)):
        await admin.execute(f"GRANT {role} TO alice")
    await admin.close()


async def test_the_administrator_appoints_auditors_and_is_none(cluster: EmbeddedCluster) -> None:
    admin = await log_in(cluster, "postgres", "postgres")
    for role in ADMINISTRATOR_APPOINTS:
        assert not await admin.fetchval("SELECT pg_has_role(current_user, $1, 'USAGE')", role)
        assert not await admin.fetchval("SELECT pg_has_role(current_user, $1, 'SET')", role)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(f"SET ROLE {role}")
    await admin.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SET ROLE rustydb_internal",
        "SET SESSION AUTHORIZATION rustydb_internal",
        "GRANT rustydb_internal TO postgres",
        "ALTER ROLE rustydb_internal PASSWORD 'x'",
        "ALTER ROLE rustydb_internal RENAME TO other",
        "ALTER ROLE rustydb_internal SET work_mem = '1MB'",
        "DROP ROLE rustydb_internal",
        "REASSIGN OWNED BY rustydb_internal TO postgres",
        "ALTER ROLE postgres SUPERUSER",
        "ALTER ROLE postgres BYPASSRLS",
        "CREATE ROLE more SUPERUSER",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY (SELECT 1) TO '/tmp/rustydb-test'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT lo_import('/etc/passwd')",
        "GRANT pg_execute_server_program TO postgres",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
        "CREATE EXTENSION file_fdw",
        "LOAD 'auto_explain'",
        "ALTER DATABASE rustydb OWNER TO postgres",
        "ALTER DATABASE rustydb SET search_path = public",
        "DROP DATABASE rustydb",
        "DROP ROLE rustydb_admin",
        "SELECT pg_reload_conf()",
    ],
)
async def test_the_administrator_cannot(shared_cluster: EmbeddedCluster, statement: str) -> None:
    admin = await log_in(shared_cluster, "postgres", "postgres")
    try:
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.DependentObjectsStillExistError)):
            await admin.execute(statement)
    finally:
        await admin.close()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE SCHEMA mine",
        "CREATE TABLE public.mine (a int)",
        "CREATE EXTENSION citext",
        "CREATE EXTENSION pg_trgm",
        "CREATE DATABASE mine",
        "CHECKPOINT",
        "SELECT pg_stat_reset()",
        "SELECT * FROM pg_stat_activity",
        "CREATE PUBLICATION mine",
        "SELECT pg_create_logical_replication_slot('mine', 'pgoutput'), pg_drop_replication_slot('mine')",
        "COMMENT ON DATABASE postgres IS 'mine'",
    ],
)
async def test_the_administrator_can(shared_cluster: EmbeddedCluster, statement: str) -> None:
    admin = await log_in(shared_cluster, "postgres", "postgres")
    if "replication_slot" in statement and not await admin.fetchval("SELECT pg_has_role('pg_monitor', 'USAGE')"):
        pytest.fail("the administrator is not in pg_monitor")
    try:
        await admin.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        if "pg_stat_reset" not in statement:
            raise  # pg_stat_reset is granted to nobody on PostgreSQL 16 to 18
    finally:
        await admin.close()


@pytest.mark.parametrize("host", ["socket", "absent"])
async def test_a_subscription_to_our_own_socket_does_not_become_the_internal_role(
    shared_cluster: EmbeddedCluster, host: str
) -> None:
    """With one operating-system user the engine's processes could pass peer authentication; no password, no entry."""
    admin = await log_in(shared_cluster, "postgres", "postgres")
    place = shared_cluster.address.host if host == "socket" else "/nonexistent"
    try:
        with pytest.raises(asyncpg.PostgresError):
            await admin.execute(
                f"CREATE SUBSCRIPTION s CONNECTION 'host={place} user=rustydb_internal password=x dbname=postgres'"
                " PUBLICATION p"
            )
    finally:
        await admin.close()


async def test_tables_of_the_control_schema_are_guarded(cluster: EmbeddedCluster) -> None:
    """pg_write_all_data would let the administrator rewrite what features keep."""
    await cluster.control.run_script(
        "CREATE TABLE rustydb.facts (a int); INSERT INTO rustydb.facts VALUES (1);"
        "CREATE TABLE rustydb.copied AS SELECT 2 AS a"
    )
    admin = await log_in(cluster, "postgres", "rustydb")
    for table in ("facts", "copied"):
        assert await admin.fetch(f"SELECT * FROM rustydb.{table}") == []
        assert await admin.execute(f"UPDATE rustydb.{table} SET a = 9") == "UPDATE 0"
        assert await admin.execute(f"DELETE FROM rustydb.{table}") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(f"INSERT INTO rustydb.{table} VALUES (9)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(f"TRUNCATE rustydb.{table}")
    for statement in ("CREATE TABLE rustydb.mine ()", "CREATE TABLE public.mine ()", "CREATE SCHEMA mine"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(statement)
    await admin.close()
    assert await cluster.control.fetchval("SELECT a FROM rustydb.facts") == 1
    await cluster.control.execute("CREATE POLICY shown ON rustydb.facts FOR SELECT TO rustydb_monitor USING (true)")
    admin = await log_in(cluster, "postgres", "rustydb")
    assert await admin.fetchval("SELECT a FROM rustydb.facts") == 1
    await admin.close()


async def test_only_predefined_roles_connect_to_the_control_database(cluster: EmbeddedCluster) -> None:
    await cluster.control.execute("CREATE ROLE bob LOGIN")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await log_in(cluster, "bob", "rustydb")
    await cluster.control.execute("GRANT rustydb_monitor TO bob")
    await (await log_in(cluster, "bob", "rustydb")).close()


async def test_a_generated_password_is_in_a_private_file(fresh_options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(fresh_options)
    await cluster.start()
    path = cluster.bootstrap_result.password_file
    assert cluster.bootstrap_result.is_first_start
    assert path == cluster.layout.password_file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = path.read_text().strip()
    assert len(password) >= 32
    assert (await stored_verifier(cluster)).verify_password(password)
    await cluster.stop()


async def test_a_configured_password_is_applied_once(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(replace(options, password="first"))
    await cluster.start()
    assert cluster.bootstrap_result.password_file is None
    assert not cluster.layout.password_file.exists()
    assert (await stored_verifier(cluster)).verify_password("first")
    changed = ScramVerifier.build("changed by hand", 4096)
    await cluster.control.execute(f"ALTER ROLE postgres PASSWORD '{changed}'")
    await cluster.stop()
    await cluster.start()
    assert (await stored_verifier(cluster)).verify_password("changed by hand")
    await cluster.stop()
    second = EmbeddedCluster(replace(options, password="second"))
    await second.start()
    assert (await stored_verifier(second)).verify_password("second")
    await second.stop()


async def test_break_glass_is_given_and_taken_back(options: EmbeddedOptions) -> None:
    for superuser in (True, False):
        cluster = EmbeddedCluster(replace(options, superuser=superuser))
        await cluster.start()
        found = await cluster.control.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = 'postgres'")
        await cluster.stop()
        assert found is superuser


async def test_what_was_dropped_comes_back(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    await cluster.start()
    control = cluster.control
    await control.run_script("DROP OWNED BY rustydb_audit_viewer; DROP ROLE rustydb_audit_viewer")
    await control.execute("ALTER ROLE rustydb_admin LOGIN")
    await control.execute("REVOKE pg_monitor FROM postgres")
    await control.execute("DROP DATABASE postgres")
    await cluster.stop()
    await cluster.start()
    assert not await cluster.control.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'rustydb_admin'")
    assert await cluster.control.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'rustydb_audit_viewer'") == 1
    assert await cluster.control.fetchval("SELECT pg_has_role('postgres', 'pg_monitor', 'USAGE')")
    assert await cluster.control.fetchval("SELECT has_database_privilege('rustydb_audit_viewer', 'rustydb', 'CONNECT')")
    await cluster.stop()
