"""Role names that belong to RustyDB, as names that begin with pg_ belong to PostgreSQL.

The engine knows nothing of them: to its rules the administrator, who may grant the predefined roles, may also alter,
rename and drop them. What is refused here is the statement itself; one that a function or DO block composes is not
seen, and mended at the next start (`engine.bootstrap`), which makes a predefined role again that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.bootstrap import RESERVED_ROLES
from server.sql_parser import Node

PREFIX: Final = "rustydb_"
"""No role may come to be under such a name: the next version's predefined role may have it."""

_RESERVED: Final = frozenset(RESERVED_ROLES)

Refusal = tuple[str, str, str]
"""SQLSTATE, message, detail."""


def refusal_of(statement: str, node: Node) -> Refusal | None:
    """Why a role statement may not be run; None where it may. `statement` is the node's name, e.g. "DropRoleStmt"."""
    if statement == "CreateRoleStmt":
        return _refuse_new(node.get("role", ""))
    if statement in ("AlterRoleStmt", "AlterRoleSetStmt"):
        return _refuse_changes([node.get("role", {}).get("rolename", "")])
    if statement in ("DropRoleStmt", "DropOwnedStmt"):
        return _refuse_changes(role.get("RoleSpec", {}).get("rolename", "") for role in node.get("roles", ()))
    if statement == "RenameStmt" and node.get("renameType") == "OBJECT_ROLE":
        return _refuse_changes([node.get("subname", "")]) or _refuse_new(node.get("newname", ""))
    return None


def _refuse_new(name: str) -> Refusal | None:
    if not name.startswith(PREFIX):
        return None
    return ("42939", f'role name "{name}" is reserved', f'Role names starting with "{PREFIX}" are reserved.')


def _refuse_changes(names: Iterable[str]) -> Refusal | None:
    for name in names:
        if name in _RESERVED:
            return ("42939", f'role name "{name}" is reserved', "Cannot alter reserved roles.")
    return None
