"""Finds the SQL inside a PL/pgSQL body: every expression and statement it holds, and whether it builds SQL at run time.

libpg_query knows PL/pgSQL's grammar but no catalog: what it cannot parse without one (some row variables) counts as
not understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.sql_parser import Node

_DYNAMIC_NODES = frozenset({"PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"})
_DYNAMIC_FIELDS = frozenset({"dynquery"})


@dataclass(frozen=True, slots=True)
class EmbeddedQuery:
    """`mode` is PostgreSQL's RawParseMode: 0 a statement, 1 a type name, 2 an expression, 3 to 5 an assignment."""

    text: str
    mode: int


@dataclass(frozen=True, slots=True)
class EmbeddedQueries:
    """What a body may run. `types` are the names of its variables' types, as written."""

    queries: tuple[EmbeddedQuery, ...]
    types: frozenset[str]
    is_dynamic: bool


def embedded_queries(functions: list[Node]) -> EmbeddedQueries:
    """Collect from what `sql_parser.parse_plpgsql` returned."""
    queries: dict[EmbeddedQuery, None] = {}
    types: set[str] = set()
    is_dynamic = False
    stack: list[Any] = list(functions)
    while stack:
        node = stack.pop()
        if type(node) is list:
            stack.extend(node)
            continue
        for key, value in node.items():
            if key == "PLpgSQL_expr":
                queries[EmbeddedQuery(value.get("query", ""), int(value.get("parseMode", 0)))] = None
            elif key == "PLpgSQL_type":
                types.add(value.get("typname", ""))
            elif key in _DYNAMIC_NODES or key in _DYNAMIC_FIELDS:
                is_dynamic = True
            if type(value) in (dict, list):
                stack.append(value)
    return EmbeddedQueries(tuple(queries), frozenset(types), is_dynamic)
