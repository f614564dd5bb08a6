"""What RustyDB needs inside the engine, made at every start where it is missing: roles, the administrator, databases.

`run` reads the facts in one query, plans what differs (`plan`, pure) and runs that. On a cluster that is as it should
be it costs two queries.

Roles:
- `rustydb_internal`, the engine's only superuser, made by initdb: no password, member of nothing, nobody's member. No
  client can become it; only a superuser could alter or drop it.
- `rustydb_admin`, `rustydb_monitor`, `rustydb_audit_admin`, `rustydb_audit_viewer`, `rustydb_audit_officer`: NOLOGIN
  groups that RustyDB's commands check membership of, in `pg_auth_members`.
- No other role is a superuser, a member of `rustydb_internal` or of the roles that reach files or programs unless
  `security.superuser`: what was made so while it was on is undone at the first start without it.
- `postgres`, the administrator: LOGIN CREATEDB CREATEROLE REPLICATION, member with admin option of `rustydb_admin`,
  `rustydb_monitor` and of PostgreSQL's predefined roles that give no file or program access; owner of the databases
  `postgres` and `template1`, and thereby of their schemas `public`. Not a superuser, unless `security.superuser`. On
  the three audit roles it has the admin option alone (neither INHERIT nor SET): it appoints auditors and is none, and
  a membership without `inherit_option` and `set_option` is to be read as no membership.

Database `rustydb`, schema `rustydb`: the durable state of RustyDB and its features, owned by `rustydb_internal`. Only
the predefined roles may connect. Members of pg_read_all_data or pg_write_all_data could still read and write every
table there, so an event trigger turns row-level security on for each new table of the schema: no row is visible or
writable but to `rustydb_internal`, until the feature adds a policy or a view of its own.

Trusted extensions (btree_gin, citext, cube, hstore, intarray, ltree, pg_trgm, ...) can be created by whoever may create
objects in a database; some that are not trusted too, see `engine.extensions`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from engine.control import CONTROL_DATABASE, INTERNAL_ROLE, EngineControl
from engine.errors import EngineStartError
from engine.layout import DataLayout, write_private_file
from engine.osuser import OsUser
from protocol.scram import ScramVerifier

logger = logging.getLogger(__name__)

ADMINISTRATOR = "postgres"
CONTROL_SCHEMA = "rustydb"
PREDEFINED_ROLES = (
    "rustydb_admin",
    "rustydb_monitor",
    "rustydb_audit_admin",
    "rustydb_audit_viewer",
    "rustydb_audit_officer",
)
RESERVED_ROLES = (INTERNAL_ROLE, *PREDEFINED_ROLES)
"""Names that no client may create, rename to, or log in as."""

ADMINISTRATOR_MEMBERSHIPS = ("rustydb_admin", "rustydb_monitor")
ADMINISTRATOR_APPOINTS = ("rustydb_audit_admin", "rustydb_audit_viewer", "rustydb_audit_officer")
SAFE_POSTGRES_ROLES = (
    "pg_checkpoint",
    "pg_create_subscription",
    "pg_maintain",
    "pg_monitor",
    "pg_read_all_data",
    "pg_read_all_settings",
    "pg_read_all_stats",
    "pg_signal_autovacuum_worker",
    "pg_signal_backend",
    "pg_stat_scan_tables",
    "pg_use_reserved_connections",
    "pg_write_all_data",
)
"""PostgreSQL's predefined roles without those that reach files or programs (pg_read_server_files,
pg_write_server_files, pg_execute_server_program). Which of them exist depends on the version."""
OWNED_DATABASES = ("postgres", "template1")

_GENERATED_PASSWORD_BYTES = 24


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """What pg_authid says of one role."""

    can_login: bool
    is_superuser: bool
    can_create_db: bool
    can_create_role: bool
    can_replicate: bool
    has_password: bool


@dataclass(frozen=True, slots=True)
class Membership:
    """One row of pg_auth_members with the administrator as member and ourselves as grantor."""

    admin: bool
    inherit: bool
    set: bool


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the cluster holds now."""

    roles: Mapping[str, RoleFacts]
    memberships: Mapping[str, Membership]  # role name -> the administrator's membership in it
    database_owners: Mapping[str, str]  # database name -> owner
    dangerous_grants: tuple[tuple[str, str, str], ...] = ()  # role, member, grantor: of `BREAK_GLASS_ROLES`


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """What an operator may want to know."""

    password_file: Path | None  # where the generated password of the administrator is, if that is where it is
    is_first_start: bool


BREAK_GLASS_ROLES = (
    INTERNAL_ROLE,
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
)
"""Whoever is a member of one of them is a superuser, or can make himself one."""

FACTS_QUERY = f"""
SELECT
  (SELECT pg_catalog.json_object_agg(rolname, pg_catalog.json_build_array(
             rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolpassword IS NOT NULL))
     FROM pg_catalog.pg_authid)::text AS roles,
  (SELECT pg_catalog.json_object_agg(r.rolname, pg_catalog.json_build_array(
             m.admin_option, m.inherit_option, m.set_option))
     FROM pg_catalog.pg_auth_members m
     JOIN pg_catalog.pg_authid r ON r.oid = m.roleid
     JOIN pg_catalog.pg_authid u ON u.oid = m.member AND u.rolname = '{ADMINISTRATOR}'
     JOIN pg_catalog.pg_authid g ON g.oid = m.grantor AND g.rolname = '{INTERNAL_ROLE}')::text AS memberships,
  (SELECT pg_catalog.json_object_agg(d.datname, o.rolname)
     FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid o ON o.oid = d.datdba)::text AS databases,
  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(r.rolname, u.rolname, g.rolname))
     FROM pg_catalog.pg_auth_members m
     JOIN pg_catalog.pg_authid r ON r.oid = m.roleid AND r.rolname IN ({", ".join(f"'{r}'" for r in BREAK_GLASS_ROLES)})
     JOIN pg_catalog.pg_authid u ON u.oid = m.member
     JOIN pg_catalog.pg_authid g ON g.oid = m.grantor)::text AS dangerous
"""

CONTROL_SCHEMA_SCRIPT = f"""
REVOKE ALL ON SCHEMA public FROM PUBLIC;
CREATE SCHEMA IF NOT EXISTS {CONTROL_SCHEMA};
REVOKE ALL ON SCHEMA {CONTROL_SCHEMA} FROM PUBLIC;
GRANT USAGE ON SCHEMA {CONTROL_SCHEMA} TO {", ".join(PREDEFINED_ROLES)};
"""

GUARD_SCRIPT = f"""
CREATE OR REPLACE FUNCTION {CONTROL_SCHEMA}.protect_new_table() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE created record;
BEGIN
  FOR created IN
    SELECT c.oid::regclass AS name FROM pg_event_trigger_ddl_commands() d JOIN pg_class c ON c.oid = d.objid
     WHERE d.classid = 'pg_class'::regclass AND d.schema_name = '{CONTROL_SCHEMA}' AND c.relkind IN ('r', 'p')
       AND NOT c.relrowsecurity
  LOOP
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', created.name);
  END LOOP;
END $body$;
REVOKE ALL ON FUNCTION {CONTROL_SCHEMA}.protect_new_table() FROM PUBLIC;
DROP EVENT TRIGGER IF EXISTS rustydb_protect_new_table;
CREATE EVENT TRIGGER rustydb_protect_new_table ON ddl_command_end
  WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO')
  EXECUTE FUNCTION {CONTROL_SCHEMA}.protect_new_table();
"""


async def run(
    control: EngineControl,
    layout: DataLayout,
    frontend: OsUser,
    *,
    superuser: bool,
    password: str | None,
    scram_iterations: int,
) -> BootstrapResult:
    """Bring the cluster to what this module's docstring says. Idempotent; safe to be interrupted anywhere."""
    database, facts = await _read_facts(control)
    is_first_start = CONTROL_DATABASE not in facts.database_owners
    steps = plan(facts, superuser=superuser, has_secret=control.has_password)
    for step in steps:
        if step.endswith(("NOSUPERUSER", "CASCADE")) and not is_first_start:
            logger.warning("undone, because security.superuser is off: %s", step)
    if steps:
        await control.run_script(";\n".join(steps), database=database)
    if is_first_start:
        # CREATE DATABASE cannot be in a script. From template0: nothing of template1, which clients may change.
        await control.execute(
            f"CREATE DATABASE {CONTROL_DATABASE} TEMPLATE template0 OWNER {INTERNAL_ROLE}", database=database
        )
    if database != CONTROL_DATABASE:
        await control.close_database(database)
    # A predefined role that was dropped comes back without its grants.
    is_role_new = any(role not in facts.roles for role in PREDEFINED_ROLES)
    if is_role_new or not await _has_control_schema(control):
        await _make_control_schema(control)
    password_file = await _set_password(control, layout, frontend, facts, password, scram_iterations)
    return BootstrapResult(password_file=password_file, is_first_start=is_first_start)


async def run_remote(control: EngineControl, *, home_database: str) -> None:
    """What a remote engine needs: predefined roles and the control database, as far as our role may make them.

    Its administrator, its other databases and its passwords are its owner's. Raises EngineStartError with the
    statements to run by hand where our role may not.
    """
    found = await control.fetch(
        "SELECT r.name FROM pg_catalog.unnest($1::text[]) AS r (name)"
        " WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = r.name)",
        list(PREDEFINED_ROLES),
        database=home_database,
    )
    missing = [f"CREATE ROLE {row['name']} NOLOGIN" for row in found]
    has_database = await control.fetchval(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)",
        CONTROL_DATABASE,
        database=home_database,
    )
    if not has_database:
        missing.append(f'CREATE DATABASE {CONTROL_DATABASE} TEMPLATE template0 OWNER "{control.role}"')
    for statement in missing:
        try:
            await control.execute(statement, database=home_database)
        except asyncpg.InsufficientPrivilegeError as error:
            raise EngineStartError(
                f'the role "{control.role}" may not make what RustyDB needs in the remote engine',
                detail=str(error),
                hint="Run there, as its administrator: " + "; ".join(missing) + ";",
            ) from error
    if home_database != CONTROL_DATABASE:
        await control.close_database(home_database)
    if not await _has_control_schema(control):
        await _make_control_schema(control)


async def _make_control_schema(control: EngineControl) -> None:
    """Schema and its guard. Only a superuser can make the event trigger: without one the schema stands unguarded."""
    script = (
        f"REVOKE ALL ON DATABASE {CONTROL_DATABASE} FROM PUBLIC;\n"
        f"GRANT CONNECT ON DATABASE {CONTROL_DATABASE} TO {', '.join(PREDEFINED_ROLES)};\n"
        f"{CONTROL_SCHEMA_SCRIPT}"
    )
    is_superuser = await control.fetchval("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
    await control.run_script(script + GUARD_SCRIPT if is_superuser else script)


def plan(facts: ClusterFacts, *, superuser: bool, has_secret: bool = False) -> list[str]:
    """SQL statements that make roles, memberships and owners what they should be; none where they are.

    `has_secret`: our own role proves itself with a password; else it must have none.
    """
    steps = [f"CREATE ROLE {role} NOLOGIN" for role in PREDEFINED_ROLES if role not in facts.roles]
    for role in PREDEFINED_ROLES:
        found = facts.roles.get(role)
        if found is not None and (found.can_login or found.is_superuser):
            steps.append(f"ALTER ROLE {role} NOLOGIN NOSUPERUSER")
    internal = facts.roles.get(INTERNAL_ROLE)
    if internal is not None and internal.has_password and not has_secret:
        steps.append(f"ALTER ROLE {INTERNAL_ROLE} PASSWORD NULL")
    steps += _administrator_steps(facts.roles.get(ADMINISTRATOR), superuser)
    if not superuser:
        # Made while the break-glass was on: they would hold it open.
        others = facts.roles.keys() - {INTERNAL_ROLE, ADMINISTRATOR, *PREDEFINED_ROLES}
        steps += [
            f"ALTER ROLE {_identifier(name)} NOSUPERUSER" for name in sorted(others) if facts.roles[name].is_superuser
        ]
        steps += [
            f"REVOKE {role} FROM {_identifier(member)} GRANTED BY {_identifier(grantor)} CASCADE"
            for role, member, grantor in facts.dangerous_grants
        ]
    wanted = dict.fromkeys(ADMINISTRATOR_MEMBERSHIPS, Membership(admin=True, inherit=True, set=True))
    wanted |= {role: Membership(True, True, True) for role in SAFE_POSTGRES_ROLES if role in facts.roles}
    wanted |= dict.fromkeys(ADMINISTRATOR_APPOINTS, Membership(admin=True, inherit=False, set=False))
    for role, membership in wanted.items():
        if facts.memberships.get(role) != membership:
            steps.append(
                f"GRANT {role} TO {ADMINISTRATOR} WITH ADMIN {membership.admin}, "
                f"INHERIT {membership.inherit}, SET {membership.set}"
            )
    # Only initdb's own ownership is changed: an administrator may have given the database to somebody since.
    steps += [
        f"ALTER DATABASE {database} OWNER TO {ADMINISTRATOR}"
        for database in OWNED_DATABASES
        if facts.database_owners.get(database) == INTERNAL_ROLE
    ]
    return steps


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _administrator_steps(found: RoleFacts | None, superuser: bool) -> list[str]:
    power = "SUPERUSER" if superuser else "NOSUPERUSER"
    if found is None:
        return [f"CREATE ROLE {ADMINISTRATOR} LOGIN CREATEDB CREATEROLE REPLICATION {power}"]
    is_right = (
        found.can_login
        and found.can_create_db
        and found.can_create_role
        and found.can_replicate
        and found.is_superuser == superuser
    )
    return [] if is_right else [f"ALTER ROLE {ADMINISTRATOR} LOGIN CREATEDB CREATEROLE REPLICATION {power}"]


async def _read_facts(control: EngineControl) -> tuple[str, ClusterFacts]:
    """The facts, and the database they were read from: `rustydb`, and one that initdb made at the first start.

    Any one of initdb's may have been dropped by the administrator who owns them.
    """
    for database in (CONTROL_DATABASE, *OWNED_DATABASES):
        try:
            rows = await control.fetch(FACTS_QUERY, database=database)
        except asyncpg.InvalidCatalogNameError:
            continue
        return database, parse_facts(dict(rows[0].items()))
    raise EngineStartError(
        "the engine has none of the databases rustydb, postgres and template1",
        hint="Start the engine in single-user mode and make one of them.",
    )


def parse_facts(row: Mapping[str, Any]) -> ClusterFacts:
    """The row of FACTS_QUERY taken apart."""
    return ClusterFacts(
        roles={name: RoleFacts(*flags) for name, flags in _object(row["roles"]).items()},
        memberships={name: Membership(*flags) for name, flags in _object(row["memberships"]).items()},
        database_owners=_object(row["databases"]),
        dangerous_grants=tuple(tuple(grant) for grant in orjson.loads(row.get("dangerous") or "[]")),
    )


def _object(text: str | None) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads(text) if text else {}
    return loaded


async def _has_control_schema(control: EngineControl) -> bool:
    return bool(
        await control.fetchval(
            f"SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '{CONTROL_SCHEMA}')"
            " AND (EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'rustydb_protect_new_table')"
            " OR NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user))"
        )
    )


async def _set_password(
    control: EngineControl,
    layout: DataLayout,
    frontend: OsUser,
    facts: ClusterFacts,
    password: str | None,
    scram_iterations: int,
) -> Path | None:
    """Give the administrator a password where it has none, or where the operator configured a new one.

    A password changed with ALTER ROLE stays: the configured one is applied again only when it is not the one applied
    last, whose verifier is kept for that. Only verifiers are sent to the engine.
    """
    found = facts.roles.get(ADMINISTRATOR)
    has_password = found is not None and found.has_password
    applied_file = layout.keys / "postgres.applied"
    if password:
        if has_password and _is_applied(applied_file, password):
            return None
        verifier = ScramVerifier.build(password, scram_iterations)
        await _alter_password(control, str(verifier))
        write_private_file(applied_file, f"{verifier}\n", frontend)
        layout.password_file.unlink(missing_ok=True)
        return None
    if has_password:
        return layout.password_file if layout.password_file.exists() else None
    generated = _read_line(layout.password_file) or secrets.token_urlsafe(_GENERATED_PASSWORD_BYTES)
    # The file first: a password that nobody can read back would lock everybody out.
    write_private_file(layout.password_file, f"{generated}\n", frontend)
    await _alter_password(control, str(ScramVerifier.build(generated, scram_iterations)))
    return layout.password_file


async def _alter_password(control: EngineControl, verifier: str) -> None:
    # A verifier has only base64, "$", ":" and letters: nothing that could end the literal.
    await control.execute(f"ALTER ROLE {ADMINISTRATOR} PASSWORD '{verifier}'")


def _is_applied(applied_file: Path, password: str) -> bool:
    applied = _read_line(applied_file)
    verifier = ScramVerifier.parse(applied)
    return verifier is not None and verifier.verify_password(password)


def _read_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
