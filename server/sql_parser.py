"""The one door to libpg_query: every text passes `sql_guard` first, and every tree comes out as plain dictionaries.

The library's JSON output is read with orjson: that and a walk over dictionaries cost a third of what protobuf
messages cost, and it reaches 500 nested operators instead of 50. A node is `{"SelectStmt": {...}}`, a field that has a
fixed node type holds the inner dictionary alone; zero, false and empty fields are left out; locations are byte offsets.
Used by statement analysis, by the analysis of routine bodies and by process id rewriting.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from server import libpg_query
from server.sql_guard import Verdict, judge

Node = dict[str, Any]
"""One node of PostgreSQL's parse tree, as libpg_query's JSON has it."""


def parse(text: bytes, mode: int = 0) -> list[Node] | None:
    """The statements of `text`, as RawStmt dictionaries (`stmt`, `stmt_location`, `stmt_len`); None where it is opaque.

    None for what `sql_guard` refuses, for a syntax error, and for what nests deeper than orjson reads. `mode` is
    PostgreSQL's RawParseMode; other than 0 for fragments of PL/pgSQL.
    """
    if judge(text) is not Verdict.SAFE:
        return None
    result = libpg_query.parse_with_options(text, mode)
    try:
        if result.error:
            return None
        return orjson.loads(result.parse_tree).get("stmts", [])  # type: ignore[no-any-return]
    except orjson.JSONDecodeError:
        return None
    finally:
        libpg_query.free_parse_result(result)


def normalize(text: bytes) -> bytes | None:
    """`text` with its constants replaced by parameters; None where it cannot be parsed."""
    if judge(text) is not Verdict.SAFE:
        return None
    result = libpg_query.normalize(text)
    try:
        return None if result.error else result.normalized_query
    finally:
        libpg_query.free_normalize_result(result)


def parse_plpgsql(create_function: bytes) -> list[Node] | None:
    """The PL/pgSQL functions that a CREATE FUNCTION or DO text holds; None where they cannot be understood."""
    if judge(create_function) is not Verdict.SAFE:
        return None
    result = libpg_query.parse_plpgsql(create_function)
    try:
        if result.error:
            return None
        return _load_plpgsql(result.plpgsql_funcs)
    except orjson.JSONDecodeError:
        return None
    finally:
        libpg_query.free_plpgsql_result(result)


# libpg_query writes one brace too many for each of a trigger's TG_ variables.
_STRAY_BRACE = re.compile(rb"(?<=[,\[])\{\}\}")


def _load_plpgsql(json: bytes) -> list[Node]:
    try:
        return orjson.loads(json)  # type: ignore[no-any-return]
    except orjson.JSONDecodeError:
        # Inside a string this takes a brace out of a literal or a comment: no name changes.
        return orjson.loads(_STRAY_BRACE.sub(b"{}", json))  # type: ignore[no-any-return]
