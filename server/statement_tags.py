"""The command tag of a statement: the first words of its CommandComplete, for logs and statistics."""

from __future__ import annotations

import re

from server.sql_parser import Node

_TAGS = {
    "SelectStmt": "SELECT",
    "InsertStmt": "INSERT",
    "UpdateStmt": "UPDATE",
    "DeleteStmt": "DELETE",
    "MergeStmt": "MERGE",
    "CopyStmt": "COPY",
    "CallStmt": "CALL",
    "DoStmt": "DO",
    "ExplainStmt": "EXPLAIN",
    "VariableShowStmt": "SHOW",
    "DeclareCursorStmt": "DECLARE CURSOR",
    "CreateStmt": "CREATE TABLE",
    "CreateSeqStmt": "CREATE SEQUENCE",
    "ViewStmt": "CREATE VIEW",
    "IndexStmt": "CREATE INDEX",
    "CompositeTypeStmt": "CREATE TYPE",
    "CreateEnumStmt": "CREATE TYPE",
    "CreateRangeStmt": "CREATE TYPE",
    "CreateTrigStmt": "CREATE TRIGGER",
    "CreateEventTrigStmt": "CREATE EVENT TRIGGER",
    "CreatePLangStmt": "CREATE LANGUAGE",
    "CreateAmStmt": "CREATE ACCESS METHOD",
    "CreateOpClassStmt": "CREATE OPERATOR CLASS",
    "CreateOpFamilyStmt": "CREATE OPERATOR FAMILY",
    "CreateForeignServerStmt": "CREATE SERVER",
    "CreateFdwStmt": "CREATE FOREIGN DATA WRAPPER",
    "CreateTableSpaceStmt": "CREATE TABLESPACE",
    "CreateStatsStmt": "CREATE STATISTICS",
    "CreatedbStmt": "CREATE DATABASE",
    "DropdbStmt": "DROP DATABASE",
    "DropTableSpaceStmt": "DROP TABLESPACE",
    "RuleStmt": "CREATE RULE",
    "AlterSeqStmt": "ALTER SEQUENCE",
    "AlterEnumStmt": "ALTER TYPE",
    "AlterRoleSetStmt": "ALTER ROLE",
    "AlterDatabaseSetStmt": "ALTER DATABASE",
    "AlterTableMoveAllStmt": "ALTER TABLE",
    "AlterDefaultPrivilegesStmt": "ALTER DEFAULT PRIVILEGES",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
    "ConstraintsSetStmt": "SET CONSTRAINTS",
    "CheckPointStmt": "CHECKPOINT",
    "TruncateStmt": "TRUNCATE TABLE",
    "LockStmt": "LOCK TABLE",
    "SecLabelStmt": "SECURITY LABEL",
    "ClosePortalStmt": "CLOSE CURSOR",
    "ImportForeignSchemaStmt": "IMPORT FOREIGN SCHEMA",
}
_TRANSACTION_TAGS = {
    "TRANS_STMT_BEGIN": "BEGIN",
    "TRANS_STMT_START": "START TRANSACTION",
    "TRANS_STMT_COMMIT": "COMMIT",
    "TRANS_STMT_ROLLBACK": "ROLLBACK",
    "TRANS_STMT_SAVEPOINT": "SAVEPOINT",
    "TRANS_STMT_RELEASE": "RELEASE",
    "TRANS_STMT_ROLLBACK_TO": "ROLLBACK",
    "TRANS_STMT_PREPARE": "PREPARE TRANSACTION",
    "TRANS_STMT_COMMIT_PREPARED": "COMMIT PREPARED",
    "TRANS_STMT_ROLLBACK_PREPARED": "ROLLBACK PREPARED",
}
_OBJECTS = {
    "OBJECT_MATVIEW": "MATERIALIZED VIEW",
    "OBJECT_TSCONFIGURATION": "TEXT SEARCH CONFIGURATION",
    "OBJECT_TSDICTIONARY": "TEXT SEARCH DICTIONARY",
    "OBJECT_TSPARSER": "TEXT SEARCH PARSER",
    "OBJECT_TSTEMPLATE": "TEXT SEARCH TEMPLATE",
    "OBJECT_OPCLASS": "OPERATOR CLASS",
    "OBJECT_OPFAMILY": "OPERATOR FAMILY",
    "OBJECT_FDW": "FOREIGN DATA WRAPPER",
    "OBJECT_FOREIGN_SERVER": "SERVER",
    "OBJECT_STATISTIC_EXT": "STATISTICS",
    "OBJECT_TABCONSTRAINT": "TABLE",
    "OBJECT_DOMCONSTRAINT": "DOMAIN",
    "OBJECT_COLUMN": "TABLE",
    "OBJECT_ATTRIBUTE": "TYPE",
}
_WORD = re.compile(r"[A-Z][a-z]*")


def tag_of(name: str, node: Node) -> str:
    """The tag of the statement node `name`, e.g. "SELECT" or "DROP TABLE"."""
    tag = _TAGS.get(name)
    if tag is not None:
        return "SELECT INTO" if name == "SelectStmt" and "intoClause" in node else tag
    match name:
        case "TransactionStmt":
            return _TRANSACTION_TAGS.get(node.get("kind", ""), "")
        case "VariableSetStmt":
            return "RESET" if node.get("kind") in ("VAR_RESET", "VAR_RESET_ALL") else "SET"
        case "CreateTableAsStmt":
            return "CREATE MATERIALIZED VIEW" if node.get("objtype") == "OBJECT_MATVIEW" else "CREATE TABLE AS"
        case "FetchStmt":
            return "MOVE" if node.get("ismove") else "FETCH"
        case "GrantStmt":
            return "GRANT" if node.get("is_grant") else "REVOKE"
        case "GrantRoleStmt":
            return "GRANT ROLE" if node.get("is_grant") else "REVOKE ROLE"
        case "DropStmt":
            return "DROP " + _object(node.get("removeType", ""))
        case "RenameStmt":
            return "ALTER " + _object(node.get("renameType", ""))
        case "AlterTableStmt" | "AlterObjectSchemaStmt" | "AlterOwnerStmt" | "AlterObjectDependsStmt":
            return "ALTER " + _object(node.get("objtype") or node.get("objectType") or "OBJECT_TABLE")
        case "DefineStmt":
            return "CREATE " + _object(node.get("kind", ""))
        case "CreateFunctionStmt":
            return "CREATE PROCEDURE" if node.get("is_procedure") else "CREATE FUNCTION"
        case "VacuumStmt":
            return "VACUUM" if node.get("is_vacuumcmd") else "ANALYZE"
        case "DiscardStmt":
            return str(node.get("target", "DISCARD_ALL")).replace("_", " ")
    return " ".join(_WORD.findall(name.removesuffix("Stmt"))).upper()


def _object(kind: str) -> str:
    return _OBJECTS.get(kind) or kind.removeprefix("OBJECT_").replace("_", " ")
