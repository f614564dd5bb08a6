"""Statements that change the catalog, the roles or the databases: what they touch and what they leave in a session.

`read_ddl` is the reader of every statement that no other reader claims.
"""

from __future__ import annotations

from collections.abc import Callable

from server.sql_parser import Node
from server.statement_draft import CATALOG, SETTLE, TEMPORARY, TEMPORARY_IN_TRANSACTION, Draft
from server.statement_facts import Scope
from server.statement_info import Effect, EffectKind, Kind, Needs
from server.statement_walk import relation_name, strings

# -- databases and roles ---------------------------------------------------------------------------------------------


def _read_database(draft: Draft) -> None:
    node = draft.node
    draft.scope = Scope.DATABASES
    draft.needs |= Needs.MAKE_WAY
    draft.effects.append(Effect(EffectKind.ROLES))
    options = {option["DefElem"].get("defname"): option["DefElem"].get("arg", {}) for option in node.get("options", ())}
    if draft.name == "CreatedbStmt":
        template = "".join(strings([options.get("template", {})])) or "template1"
        draft.databases = (node["dbname"], template)
    elif draft.name == "DropdbStmt" or "tablespace" in options:
        draft.databases = (node["dbname"],)
    else:
        draft.needs = Needs.NOTHING


def _read_roles(draft: Draft) -> None:
    node = draft.node
    role = node.get("role", "")
    name = role.get("rolename", "") if isinstance(role, dict) else role
    draft.effects.append(Effect(EffectKind.ROLES, name or node.get("dbname", "")))
    draft.constant_bound = True


# -- DDL -------------------------------------------------------------------------------------------------------------

_ROUTINE_DDL = frozenset(
    {
        "CreateFunctionStmt", "AlterFunctionStmt", "CreateTrigStmt", "CreateEventTrigStmt", "AlterEventTrigStmt",
        "RuleStmt", "CreatePolicyStmt", "AlterPolicyStmt", "CreateCastStmt", "CreateOpClassStmt", "CreateOpFamilyStmt",
        "AlterOpFamilyStmt", "AlterOperatorStmt", "DefineStmt", "CreateExtensionStmt", "AlterExtensionStmt",
        "AlterExtensionContentsStmt", "CreatePLangStmt", "CreateTransformStmt", "CreateConversionStmt", "CreateAmStmt",
        "ImportForeignSchemaStmt", "CreateForeignTableStmt",
    }
)  # fmt: skip
_ROUTINE_OBJECTS = frozenset(
    {
        "OBJECT_FUNCTION", "OBJECT_PROCEDURE", "OBJECT_ROUTINE", "OBJECT_AGGREGATE", "OBJECT_OPERATOR", "OBJECT_CAST",
        "OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY", "OBJECT_EVENT_TRIGGER", "OBJECT_OPCLASS", "OBJECT_OPFAMILY",
        "OBJECT_EXTENSION", "OBJECT_LANGUAGE", "OBJECT_SCHEMA",
    }
)  # fmt: skip


def read_ddl(draft: Draft) -> None:
    """Anything else changes the catalog. What it creates in pg_temp lives in this backend alone."""
    node = draft.node
    draft.kind = Kind.DDL
    draft.effects.append(CATALOG)
    draft.scope = Scope.RELATIONS
    draft.constant_bound = True
    if (
        draft.name in _ROUTINE_DDL
        or {node.get("removeType"), node.get("renameType"), node.get("objectType")} & _ROUTINE_OBJECTS
    ):
        draft.scope |= Scope.ROUTINES
    if any("pg_temp" in name or name.startswith("pg_temp_") for name in _created_schemas(node)):
        draft.effects.append(TEMPORARY)


def _created_schemas(node: Node) -> set[str]:
    """The schema names under which functions, types and operators are created: funcname, defnames, typeName,
    domainname.
    """
    found = set()
    for key in ("funcname", "defnames", "typeName", "domainname", "opclassname", "opfamilyname"):
        value = node.get(key)
        if isinstance(value, list):
            found.update(strings(value)[:-1])
    return found


def _read_create_relation(draft: Draft) -> None:
    read_ddl(draft)
    node = draft.node
    relation = node.get("relation") or node.get("sequence") or node.get("view") or node.get("typevar") or {}
    draft.mentions.relations_written.add(relation_name(relation))
    draft.mentions.relations_read.discard(relation_name(relation))
    creates_relation(draft, relation, node.get("oncommit"))
    draft.runs_calls = False


def _read_create_as(draft: Draft) -> None:
    read_ddl(draft)
    into = draft.node.get("into", {})
    relation = into.get("rel", {})
    draft.mentions.relations_written.add(relation_name(relation))
    draft.mentions.relations_read.discard(relation_name(relation))
    query = draft.node.get("query", {})
    if "ExecuteStmt" in query:
        draft.needs |= Needs.MATERIALISE
    creates_relation(draft, relation, into.get("onCommit"))


def creates_relation(draft: Draft, relation: Node, on_commit: str | None) -> None:
    """A relation comes to be: DDL, and a pin where it is temporary."""
    draft.kind = Kind.DDL
    draft.scope |= Scope.RELATIONS
    if CATALOG not in draft.effects:
        draft.effects.append(CATALOG)
    schema = relation.get("schemaname", "")
    if relation.get("relpersistence") == "t" or schema == "pg_temp" or schema.startswith("pg_temp_"):
        draft.effects.append(TEMPORARY_IN_TRANSACTION if on_commit == "ONCOMMIT_DROP" else TEMPORARY)


def _read_drop(draft: Draft) -> None:
    read_ddl(draft)
    draft.effects.append(SETTLE)


def _read_rename(draft: Draft) -> None:
    kind = draft.node.get("renameType")
    if kind == "OBJECT_DATABASE":
        draft.scope = Scope.DATABASES
        draft.needs |= Needs.MAKE_WAY
        draft.databases = (draft.node.get("subname", ""), draft.node.get("newname", ""))
        draft.effects.append(Effect(EffectKind.ROLES, draft.node.get("subname", "")))
    elif kind == "OBJECT_ROLE":
        draft.effects.append(Effect(EffectKind.ROLES, draft.node.get("subname", "")))
    else:
        read_ddl(draft)


READERS: dict[str, Callable[[Draft], None]] = {
    **dict.fromkeys(("CreatedbStmt", "DropdbStmt", "AlterDatabaseStmt", "AlterDatabaseRefreshCollStmt"),
    _read_database), **dict.fromkeys( ( "CreateRoleStmt", "AlterRoleStmt", "AlterRoleSetStmt", "DropRoleStmt",
    "GrantRoleStmt", "AlterDatabaseSetStmt", "ReassignOwnedStmt", ), _read_roles, ), **dict.fromkeys(("CreateStmt",
    "CreateSeqStmt", "ViewStmt", "CompositeTypeStmt"), _read_create_relation), "CreateTableAsStmt": _read_create_as,
    "DropStmt": _read_drop, "RenameStmt": _read_rename, }  # fmt: skip
