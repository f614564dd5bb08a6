"""What bootstrap would run, from what a cluster holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.bootstrap import (
    ADMINISTRATOR_APPOINTS,
    ADMINISTRATOR_MEMBERSHIPS,
    PREDEFINED_ROLES,
    SAFE_POSTGRES_ROLES,
    ClusterFacts,
    Membership,
    RoleFacts,
    parse_facts,
    plan,
)

GROUP = RoleFacts(False, False, False, False, False, False)
INTERNAL = RoleFacts(True, True, True, True, True, False)
ADMIN = RoleFacts(True, False, True, True, True, True)
FULL = Membership(admin=True, inherit=True, set=True)
APPOINTS = Membership(admin=True, inherit=False, set=False)

NEW = ClusterFacts(
    roles={"rustydb_internal": INTERNAL, "pg_monitor": GROUP, "pg_read_server_files": GROUP},
    memberships={},
    database_owners={"postgres": "rustydb_internal", "template1": "rustydb_internal", "template0": "rustydb_internal"},
)
DONE = ClusterFacts(
    roles={"rustydb_internal": INTERNAL, "pg_monitor": GROUP, "postgres": ADMIN}
    | dict.fromkeys(PREDEFINED_ROLES, GROUP),
    memberships=dict.fromkeys((*ADMINISTRATOR_MEMBERSHIPS, "pg_monitor"), FULL)
    | dict.fromkeys(ADMINISTRATOR_APPOINTS, APPOINTS),
    database_owners={"postgres": "postgres", "template1": "postgres", "rustydb": "rustydb_internal"},
)


def test_nothing_is_done_where_all_is_as_it_should_be() -> None:
    assert plan(DONE, superuser=False) == []


def test_a_new_cluster_gets_roles_administrator_and_owners() -> None:
    steps = plan(NEW, superuser=False)
    assert [step for step in steps if step.startswith("CREATE ROLE rustydb_")] == [
        f"CREATE ROLE {role} NOLOGIN" for role in PREDEFINED_ROLES
    ]
    assert "CREATE ROLE postgres LOGIN CREATEDB CREATEROLE REPLICATION NOSUPERUSER" in steps
    assert "GRANT pg_monitor TO postgres WITH ADMIN True, INHERIT True, SET True" in steps
    assert "GRANT rustydb_audit_viewer TO postgres WITH ADMIN True, INHERIT False, SET False" in steps
    assert steps[-2:] == ["ALTER DATABASE postgres OWNER TO postgres", "ALTER DATABASE template1 OWNER TO postgres"]


def test_roles_that_reach_files_or_programs_are_never_granted() -> None:
    assert not {"pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"} & set(SAFE_POSTGRES_ROLES)
    assert not any("server_files" in step or "program" in step for step in plan(NEW, superuser=True))


def test_a_role_that_this_version_lacks_is_not_granted() -> None:
    assert not any("pg_maintain" in step for step in plan(NEW, superuser=False))


def test_the_internal_role_is_in_no_grant() -> None:
    assert not any("rustydb_internal" in step for step in plan(NEW, superuser=True))


@pytest.mark.parametrize("superuser", [False, True])
def test_break_glass_is_set_and_taken_back(superuser: bool) -> None:
    facts = replace(DONE, roles={**DONE.roles, "postgres": replace(ADMIN, is_superuser=not superuser)})
    power = "SUPERUSER" if superuser else "NOSUPERUSER"
    assert plan(facts, superuser=superuser) == [f"ALTER ROLE postgres LOGIN CREATEDB CREATEROLE REPLICATION {power}"]


def test_a_secret_that_is_no_longer_used_is_forgotten() -> None:
    facts = replace(DONE, roles={**DONE.roles, "rustydb_internal": replace(INTERNAL, has_password=True)})
    assert plan(facts, superuser=False) == ["ALTER ROLE rustydb_internal PASSWORD NULL"]
    assert plan(facts, superuser=False, has_secret=True) == []


def test_a_predefined_role_that_was_made_to_log_in_is_mended() -> None:
    facts = replace(DONE, roles={**DONE.roles, "rustydb_admin": replace(GROUP, can_login=True)})
    assert plan(facts, superuser=False) == ["ALTER ROLE rustydb_admin NOLOGIN NOSUPERUSER"]


def test_a_database_that_was_given_away_stays_given_away() -> None:
    facts = replace(DONE, database_owners={**DONE.database_owners, "postgres": "alice"})
    assert plan(facts, superuser=False) == []


def test_facts_come_from_one_row_of_json() -> None:
    row = {
        "roles": '{"a": [true, false, true, false, true, false]}',
        "memberships": None,
        "databases": '{"postgres": "a"}',
    }
    assert parse_facts(row) == ClusterFacts(
        {"a": RoleFacts(True, False, True, False, True, False)}, {}, {"postgres": "a"}
    )


def test_what_the_break_glass_left_open_is_closed_when_it_is_off() -> None:
    left = replace(
        DONE,
        roles=dict(DONE.roles) | {'odd "name': replace(GROUP, is_superuser=True)},
        dangerous_grants=(("rustydb_internal", "alice", "postgres"),),
    )
    assert plan(left, superuser=False) == [
        'ALTER ROLE "odd ""name" NOSUPERUSER',
        'REVOKE rustydb_internal FROM "alice" GRANTED BY "postgres" CASCADE',
    ]
    assert not any("odd" in step or "alice" in step for step in plan(left, superuser=True))
