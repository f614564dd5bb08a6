"""Walks a parse tree and collects every name in it: relations, functions, operators, types.

Nothing is skipped: CTEs, sub-selects, VALUES, RETURNING, ON CONFLICT, EXPLAIN, DECLARE, COPY (query), PREPARE bodies
are all just deeper in the same tree. A name that a WITH clause in scope defines is not a relation. Iterative, so that
no depth of tree ends in a RecursionError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.sql_parser import Node
from server.statement_facts import Mentions, Name

FunctionCalls = list[Node]

_WRITERS = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
_CREATORS = frozenset({"InsertStmt", "intoClause"})  # they fill a relation without reading it
_LEAVES = frozenset({"A_Const", "String", "Integer", "Float", "Boolean", "ParamRef", "A_Star", "SQLValueFunction"})
_NAME_LISTS = frozenset({"fields", "funcname", "names", "name", "colnames", "lockingClause"})
"""Lists of String nodes, which are read where they stand, and FOR UPDATE OF, which names aliases."""
_NO_NAMES: frozenset[str] = frozenset()


def strings(nodes: Iterable[Node] | None) -> list[str]:
    """The values of a list of String nodes; others (A_Star, subscripts) are left out."""
    return [node["String"].get("sval", "") for node in nodes or () if "String" in node]


def qualified(nodes: Iterable[Node] | None) -> Name:
    """(schema or "", name) of a list of String nodes; a leading catalog name is dropped."""
    parts = strings(nodes)
    if not parts:
        return ("", "")
    return (parts[-2] if len(parts) > 1 else "", parts[-1])


def relation_name(range_var: Node) -> Name:
    """(schema or "", name) of a RangeVar."""
    return (range_var.get("schemaname", ""), range_var.get("relname", ""))


def walk(tree: Node, mentions: Mentions, range_vars: list[Node] | None = None) -> FunctionCalls:
    """Add to `mentions` every name below `tree` and return the FuncCall nodes met; `range_vars` takes the relations'.

    `tree` is a wrapped node, e.g. {"SelectStmt": {...}}, or an inner dictionary.
    """
    calls: FunctionCalls = []
    targets: set[int] = set()
    stack: list[tuple[Any, frozenset[str]]] = [(tree, _NO_NAMES)]
    while stack:
        node, ctes = stack.pop()
        if type(node) is list:
            for item in node:
                if type(item) is dict and not item.keys() <= _LEAVES:
                    stack.append((item, ctes))
            continue
        with_clause = node.get("withClause")
        if with_clause is not None:
            ctes = _enter_with(with_clause, ctes, stack)
        elif "relname" in node:
            if id(node) not in targets and (node.get("schemaname") or node["relname"] not in ctes):
                mentions.relations_read.add(relation_name(node))
                if range_vars is not None:
                    range_vars.append(node)
        elif "names" in node and "typemod" in node:
            mentions.types.add(qualified(node["names"]))
        for key, value in node.items():
            kind = type(value)
            if kind is list:
                if key not in _NAME_LISTS:
                    stack.append((value, ctes))
            elif kind is dict and key not in _LEAVES:
                visit = _VISITORS.get(key)
                if visit is not None:
                    visit(value, mentions)
                    if key in _CREATORS:
                        targets.add(id(value.get("relation") or value.get("rel")))
                    if key == "FuncCall" or key == "funccall":
                        calls.append(value)
                if key != "withClause":
                    stack.append((value, ctes))
    return calls


def _enter_with(clause: Node, outer: frozenset[str], stack: list[tuple[Any, frozenset[str]]]) -> frozenset[str]:
    """Queue the queries of a WITH clause, each with the names it can see; returns the names its statement can see."""
    expressions = [cte["CommonTableExpr"] for cte in clause.get("ctes", ())]
    everything = outer | {cte["ctename"] for cte in expressions}
    visible = outer
    for cte in expressions:
        stack.append((cte, everything if clause.get("recursive") else visible))
        visible = visible | {cte["ctename"]}
    return everything


def _visit_function(call: Node, mentions: Mentions) -> None:
    mentions.functions.add(qualified(call.get("funcname")))


def _visit_operator(expression: Node, mentions: Mentions) -> None:
    name = expression.get("name") or expression.get("operName")
    if name:
        mentions.operators.add(qualified(name))


def _visit_column(column: Node, mentions: Mentions) -> None:
    parts = strings(column.get("fields"))
    if len(parts) > 1:
        mentions.attributes.add(parts[-1])


def _visit_indirection(indirection: Node, mentions: Mentions) -> None:
    mentions.attributes.update(strings(indirection.get("indirection")))


def _visit_writer(statement: Node, mentions: Mentions) -> None:
    mentions.writes = True
    mentions.relations_written.add(relation_name(statement["relation"]))


def _visit_into(clause: Node, mentions: Mentions) -> None:
    mentions.relations_written.add(relation_name(clause.get("rel", {})))


def _visit_sort(sort: Node, mentions: Mentions) -> None:
    if sort.get("useOp"):
        mentions.operators.add(qualified(sort["useOp"]))


_VISITORS = {
    "FuncCall": _visit_function,
    "funccall": _visit_function,
    "A_Expr": _visit_operator,
    "SubLink": _visit_operator,
    "ColumnRef": _visit_column,
    "A_Indirection": _visit_indirection,
    "SortBy": _visit_sort,
    "intoClause": _visit_into,
    **dict.fromkeys(_WRITERS, _visit_writer),
}
