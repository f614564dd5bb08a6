"""Statements that change the catalog, the roles or the databases: what they touch and what they leave in a session.

`read_ddl` is the reader of every statement that no other reader claims.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.builtin_functions import HARMLESS_VOLATILE, PRECISE_STATE_FUNCTIONS
from server.reserved_roles import refusal_of
from server.sql_parser import Node
from server.statement_draft import CATALOG, SETTLE, TEMPORARY, TEMPORARY_IN_TRANSACTION, Draft
from server.statement_facts import Scope
from server.statement_info import Effect, EffectKind, Kind, Needs
from server.statement_walk import qualified, relation_name, strings

_RELATION_OBJECTS = frozenset(
    {"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_SEQUENCE", "OBJECT_INDEX", "OBJECT_FOREIGN_TABLE"}
)

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
    draft.refusal = refusal_of(draft.name, node)


def _read_drop_owned(draft: Draft) -> None:
    read_ddl(draft)
    draft.refusal = refusal_of(draft.name, draft.node)


# -- DDL -------------------------------------------------------------------------------------------------------------

_ROUTINE_STATEMENTS = """
CreateFunction AlterFunction CreateTrig CreateEventTrig AlterEventTrig Rule CreatePolicy AlterPolicy CreateCast
CreateOpClass CreateOpFamily AlterOpFamily AlterOperator Define CreateExtension AlterExtension
AlterExtensionContents CreatePLang CreateTransform CreateConversion CreateAm ImportForeignSchema CreateForeignTable
"""
_ROUTINE_KINDS = """
FUNCTION PROCEDURE ROUTINE AGGREGATE OPERATOR CAST TRIGGER RULE POLICY EVENT_TRIGGER OPCLASS OPFAMILY EXTENSION
LANGUAGE SCHEMA
"""
_ROUTINE_DDL = frozenset(f"{name}Stmt" for name in _ROUTINE_STATEMENTS.split())
_ROUTINE_OBJECTS = frozenset(f"OBJECT_{name}" for name in _ROUTINE_KINDS.split())
_LASTING_FUNCTIONS = PRECISE_STATE_FUNCTIONS - HARMLESS_VOLATILE
_SERIAL_TYPES = frozenset({"serial", "serial2", "serial4", "serial8", "bigserial", "smallserial"})


def read_ddl(draft: Draft) -> None:
    """Anything else changes the catalog. What it creates in pg_temp lives in this backend alone."""
    node = draft.node
    draft.kind = Kind.DDL
    draft.effects.append(CATALOG)
    draft.scope = Scope.RELATIONS | _stored_scope(draft)
    draft.constant_bound = True
    draft.mentions.relations_written |= draft.mentions.relations_read
    objects = {node.get("removeType"), node.get("renameType"), node.get("objectType")}
    holds_trigger = any("CreateTrigStmt" in element for element in node.get("schemaElts", ()))
    if draft.name in _ROUTINE_DDL or objects & _ROUTINE_OBJECTS or holds_trigger:
        draft.scope |= Scope.ROUTINES
    if any(_is_temporary_schema(name) for name in _created_schemas(node)):
        draft.effects.append(TEMPORARY)


def _stored_scope(draft: Draft) -> Scope:
    """What an expression that is stored with a relation makes the catalog snapshot out of date for."""
    scope = Scope.NOTHING
    functions = {name for _, name in draft.mentions.functions}
    if functions & _LASTING_FUNCTIONS:
        scope |= Scope.ROUTINES
    types = {name for _, name in draft.mentions.types}
    if "nextval" in functions or types & _SERIAL_TYPES or _copies_columns(draft.node):
        scope |= Scope.SEQUENCES
    return scope


def _copies_columns(node: Node) -> bool:
    """Whether a CREATE or ALTER TABLE has identity columns or takes columns or defaults over from another relation."""
    if node.keys() & {"inhRelations", "partbound"}:
        return True
    elements = list(node.get("tableElts", ()))
    elements += [
        command["AlterTableCmd"].get("def", {}) for command in node.get("cmds", ()) if "AlterTableCmd" in command
    ]
    for element in elements:
        constraints = element.get("ColumnDef", {}).get("constraints", ())
        if "TableLikeClause" in element or "PartitionCmd" in element or "Constraint" in element:
            return True
        if any(constraint.get("Constraint", {}).get("contype") == "CONSTR_IDENTITY" for constraint in constraints):
            return True
    return False


def _is_temporary_schema(name: str) -> bool:
    return name == "pg_temp" or name.startswith("pg_temp_")


def _created_schemas(node: Node) -> set[str]:
    """The schema names under which functions, types, operators and the like are created."""
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
    draft.mentions.relations_written = {relation_name(relation)}
    draft.mentions.relations_read.discard(relation_name(relation))
    creates_relation(draft, relation, node.get("oncommit"))
    draft.runs_calls = False


def _read_create_as(draft: Draft) -> None:
    read_ddl(draft)
    into = draft.node.get("into", {})
    relation = into.get("rel", {})
    draft.mentions.relations_written = {relation_name(relation)}
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
    if relation.get("relpersistence") == "t" or _is_temporary_schema(relation.get("schemaname", "")):
        draft.effects.append(TEMPORARY_IN_TRANSACTION if on_commit == "ONCOMMIT_DROP" else TEMPORARY)


def _read_drop(draft: Draft) -> None:
    read_ddl(draft)
    draft.effects.append(SETTLE)
    if draft.node.get("removeType") in _RELATION_OBJECTS:
        names = [qualified(item.get("List", {}).get("items")) for item in draft.node.get("objects", ())]
        draft.mentions.relations_written.update(names)


def _read_rename(draft: Draft) -> None:
    kind = draft.node.get("renameType")
    if kind == "OBJECT_DATABASE":
        draft.scope = Scope.DATABASES
        draft.needs |= Needs.MAKE_WAY
        draft.databases = (draft.node.get("subname", ""), draft.node.get("newname", ""))
        draft.effects.append(Effect(EffectKind.ROLES, draft.node.get("subname", "")))
    elif kind == "OBJECT_ROLE":
        draft.effects.append(Effect(EffectKind.ROLES, draft.node.get("subname", "")))
        draft.refusal = refusal_of(draft.name, draft.node)
    else:
        read_ddl(draft)


READERS: dict[str, Callable[[Draft], None]] = {
    "CreatedbStmt": _read_database,
    "DropdbStmt": _read_database,
    "AlterDatabaseStmt": _read_database,
    "AlterDatabaseRefreshCollStmt": _read_database,
    "CreateRoleStmt": _read_roles,
    "AlterRoleStmt": _read_roles,
    "AlterRoleSetStmt": _read_roles,
    "DropRoleStmt": _read_roles,
    "DropOwnedStmt": _read_drop_owned,
    "GrantRoleStmt": _read_roles,
    "AlterDatabaseSetStmt": _read_roles,
    "ReassignOwnedStmt": _read_roles,
    "CreateStmt": _read_create_relation,
    "CreateSeqStmt": _read_create_relation,
    "ViewStmt": _read_create_relation,
    "CompositeTypeStmt": _read_create_relation,
    "CreateTableAsStmt": _read_create_as,
    "DropStmt": _read_drop,
    "RenameStmt": _read_rename,
}
