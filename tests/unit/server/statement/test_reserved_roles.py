"""The names of RustyDB's own roles: who would create, alter, rename or drop one of them is refused before it runs."""

from __future__ import annotations

import pytest

from server.statement_info import Needs
from tests.unit.server.statement.support import analyse


@pytest.mark.parametrize(
    "text",
    [
        "create role rustydb_monitor",
        "create user rustydb_internal superuser",
        "CREATE GROUP RustyDB_Something_New",
        'create role "rustydb_x"',
        'create role U&"rusty\\0064b_x"',
        "alter role rustydb_monitor login password 'x'",
        "alter user rustydb_admin nologin",
        "alter group rustydb_admin add user alice",
        "alter role rustydb_internal set search_path = evil",
        "alter role rustydb_internal in database d reset all",
        "alter role rustydb_audit_admin rename to mine",
        "alter role alice rename to rustydb_audit_admin",
        "alter role alice rename to rustydb_next",
        "drop role rustydb_audit_viewer",
        "drop role if exists alice, rustydb_audit_viewer",
        "drop owned by rustydb_monitor",
        "select 1; begin; drop role rustydb_audit_officer; commit",
    ],
)
def test_a_reserved_role_cannot_be_made_changed_or_dropped(text: str) -> None:
    info = analyse(text)
    assert info.needs & Needs.REFUSE
    assert info.refusal is not None
    assert info.refusal[0] == "42939"


@pytest.mark.parametrize(
    "text",
    [
        "create role rustydb",
        "create role my_rustydb_monitor",
        "alter role alice password 'x'",
        "grant rustydb_monitor to alice",
        "revoke rustydb_monitor from alice",
        "set role rustydb_monitor",
        "comment on role rustydb_monitor is 'x'",
        "drop role rustydb_of_an_earlier_time",
        "alter role rustydb_of_an_earlier_time rename to other",
        "alter role current_user set work_mem = '1MB'",
        "alter role all set work_mem = '1MB'",
        "alter table t rename to rustydb_monitor",
        "select 'drop role rustydb_monitor'",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    info = analyse(text)
    assert not info.needs & Needs.REFUSE
    assert info.refusal is None
