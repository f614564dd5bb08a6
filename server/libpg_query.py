"""The C functions of libpg_query, PostgreSQL's own parser, that we call. The library is the one inside the `postgast`
wheel.

postgast's Python layer is passed by: it turns trees into protobuf messages, which take three times as long as JSON,
end at 50 nested operators, and load a large module at start. Only `server.sql_parser` may import this: it guards what
it hands in. Each result owns C memory until its free function is called.
"""

from __future__ import annotations

import importlib.util
import sys
from ctypes import CDLL, POINTER, Structure, c_char_p, c_int
from pathlib import Path

_FILE_NAMES = {"darwin": "libpg_query.dylib", "win32": "pg_query.dll"}


class ParserUnavailable(ImportError):
    """The parser library is not where the `postgast` wheel puts it."""


class ParseError(Structure):
    """PgQueryError: why a text was rejected. `cursorpos` counts bytes from 1."""

    _fields_ = (
        ("message", c_char_p),
        ("funcname", c_char_p),
        ("filename", c_char_p),
        ("lineno", c_int),
        ("cursorpos", c_int),
        ("context", c_char_p),
    )


class ParseResult(Structure):
    """PgQueryParseResult: the tree as JSON."""

    _fields_ = (("parse_tree", c_char_p), ("stderr_buffer", c_char_p), ("error", POINTER(ParseError)))


class NormalizeResult(Structure):
    """PgQueryNormalizeResult."""

    _fields_ = (("normalized_query", c_char_p), ("error", POINTER(ParseError)))


class PlpgsqlResult(Structure):
    """PgQueryPlpgsqlParseResult: the functions as JSON."""

    _fields_ = (("plpgsql_funcs", c_char_p), ("error", POINTER(ParseError)))


def _load() -> CDLL:
    spec = importlib.util.find_spec("postgast")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / _FILE_NAMES.get(sys.platform, "libpg_query.so")
        if path.is_file():
            return CDLL(str(path))
    raise ParserUnavailable("libpg_query not found: install the postgast wheel")


_library = _load()

parse_with_options = _library.pg_query_parse_opts
parse_with_options.argtypes = [c_char_p, c_int]
parse_with_options.restype = ParseResult
free_parse_result = _library.pg_query_free_parse_result
free_parse_result.argtypes = [ParseResult]
free_parse_result.restype = None

normalize = _library.pg_query_normalize
normalize.argtypes = [c_char_p]
normalize.restype = NormalizeResult
free_normalize_result = _library.pg_query_free_normalize_result
free_normalize_result.argtypes = [NormalizeResult]
free_normalize_result.restype = None

parse_plpgsql = _library.pg_query_parse_plpgsql
parse_plpgsql.argtypes = [c_char_p]
parse_plpgsql.restype = PlpgsqlResult
free_plpgsql_result = _library.pg_query_free_plpgsql_parse_result
free_plpgsql_result.argtypes = [PlpgsqlResult]
free_plpgsql_result.restype = None
