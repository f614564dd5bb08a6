"""Makes a statement show and take virtual process ids: those that clients were given, which outlive any one backend.

    rewriter = PidRewriter(columns)                     # columns of PostgreSQL's views that have process ids
    rewriter.rewrite(text, session_pid, mapping).text   # mapping: (real, virtual) of every other leased backend

Called for texts whose analysis needs REWRITE_PIDS, when the backend is known or about to be: our own backend is asked
for its pid by the statement itself, the other pairs are of the moment. What is changed, by byte positions of the
parse tree:

- `pg_backend_pid()` becomes the session's number, under the same column name.
- A view with process ids becomes a sub-select of the same columns over it. Unknown real pids stay as they are.
- The argument of `pg_cancel_backend()` and its kin is translated back, and the result of `pg_blocking_pids()` forth.

Statements that store expressions (DDL) and text inside literals (DO, EXECUTE) are left alone. Where a text cannot be
parsed it is returned as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from server import sql_parser
from server.sql_lexer import Token, tokens
from server.sql_parser import Node
from server.statement_facts import Mentions
from server.statement_functions import PID_RELATIONS
from server.statement_walk import qualified, walk

PID_COLUMNS_QUERY = """
SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum) AS columns
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT attisdropped
 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = ANY ($1::name[])
 GROUP BY c.relname
"""
"""Gives `PidRewriter` its columns; its parameter is PID_RELATIONS."""

_PID_COLUMNS = frozenset({"pid", "leader_pid", "active_pid"})
_TAKES_PID = frozenset({"pg_cancel_backend", "pg_terminate_backend", "pg_log_backend_memory_contexts"})
_RETURNS_PIDS = frozenset({"pg_blocking_pids", "pg_safe_snapshot_blocking_pids"})
_NO_SUBQUERY = frozenset({"CallStmt", "ExecuteStmt"})
_REWRITTEN = _NO_SUBQUERY | {
    *("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"),
    *("ExplainStmt", "CopyStmt", "DeclareCursorStmt", "CreateTableAsStmt", "PrepareStmt"),
}
_SIMPLE_ARGUMENTS = frozenset({"A_Const", "ParamRef", "ColumnRef"})


@dataclass(frozen=True, slots=True)
class _Edit:
    """Bytes start to end become `build(what they were, with the edits inside them made)`."""

    start: int
    end: int
    build: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class RewrittenText:
    """A text and where it was changed: (start, end) in the original, and the length of what stands there now."""

    text: bytes
    changes: tuple[tuple[int, int, int], ...] = ()

    def original_position(self, position: int) -> int:
        """The 0-based byte of the original that `position` of `text` came from; the start of the change where it is
        new.
        """
        shift = 0
        for start, end, length in self.changes:
            if position < start + shift:
                break
            if position < start + shift + length:
                return start
            shift += length - (end - start)
        return position - shift

    def original_character(self, original: bytes, position: int) -> int:
        """The same for the position of an error: characters, counted from 1."""
        before = self.text.decode(errors="replace")[: position - 1]
        at = self.original_position(len(before.encode()))
        return len(original[:at].decode(errors="replace")) + 1


@dataclass(frozen=True, slots=True)
class _PidMap:
    """SQL for both directions. Our own backend names itself, so its real pid need not be known."""

    session_pid: int
    pairs: tuple[tuple[int, int], ...]

    def to_virtual(self, real: bytes) -> bytes:
        """A CASE over the expression `real`, which is written out twice."""
        whens = b"".join(b" WHEN %d THEN %d" % pair for pair in self.pairs)
        own = b" WHEN pg_catalog.pg_backend_pid() THEN %d" % self.session_pid
        return b"CASE " + real + own + whens + b" ELSE " + real + b" END"

    def to_real(self, virtual: bytes) -> bytes:
        """The other way round."""
        whens = b"".join(b" WHEN %d THEN %d" % (pair[1], pair[0]) for pair in self.pairs)
        own = b" WHEN %d THEN pg_catalog.pg_backend_pid()" % self.session_pid
        return b"CASE " + virtual + own + whens + b" ELSE " + virtual + b" END"


class PidRewriter:
    """Rewrites statements of one engine; `columns` are those of its views, in order, from PID_COLUMNS_QUERY."""

    def __init__(self, columns: Mapping[str, Iterable[str]]) -> None:
        self._columns = {name: tuple(names) for name, names in columns.items() if name in PID_RELATIONS}

    def rewrite(self, text: bytes, session_pid: int, mapping: Iterable[tuple[int, int]] = ()) -> RewrittenText:
        """`text` for a session that was given `session_pid`; `mapping` holds (real, virtual) of the other sessions'
        backends.
        """
        statements = sql_parser.parse(text)
        if statements is None:
            return RewrittenText(text)
        edits = _Edits(text, self._columns, _PidMap(session_pid, tuple(mapping)))
        for statement in statements:
            for name, node in statement.get("stmt", {}).items():
                if name in _REWRITTEN:
                    edits.add_statement({name: node}, may_hold_subquery=name not in _NO_SUBQUERY)
        return edits.apply()


@dataclass(slots=True)
class _Edits:
    """Collects the edits of one text and makes them."""

    text: bytes
    columns: Mapping[str, tuple[str, ...]]
    pids: _PidMap
    edits: list[_Edit] = field(default_factory=list)

    def add_statement(self, statement: Node, *, may_hold_subquery: bool) -> None:
        range_vars: list[Node] = []
        tables = _table_functions(statement)
        for call in walk(statement, Mentions(), range_vars):
            schema, name = qualified(call.get("funcname"))
            if schema in ("", "pg_catalog"):
                found = next((alias for other, alias in tables if other is call), None)
                self._add_call(call, name, alias=found, subquery=may_hold_subquery)
        for range_var in range_vars:
            if range_var.get("schemaname", "pg_catalog") == "pg_catalog" and range_var["relname"] in self.columns:
                self._add_relation(range_var)

    def apply(self) -> RewrittenText:
        """The text with all edits made."""
        self.edits.sort(key=lambda edit: (edit.start, -edit.end))
        changes: list[tuple[int, int, int]] = []
        text = self._render(0, len(self.text), 0, len(self.edits), changes)
        return RewrittenText(text, tuple(changes))

    def _render(self, start: int, end: int, first: int, last: int, changes: list[tuple[int, int, int]] | None) -> bytes:
        parts: list[bytes] = []
        position, index = start, first
        while index < last:
            edit = self.edits[index]
            inner = index + 1
            while inner < last and self.edits[inner].start < edit.end:
                inner += 1
            replacement = edit.build(self._render(edit.start, edit.end, index + 1, inner, None))
            parts += (self.text[position : edit.start], replacement)
            if changes is not None:
                changes.append((edit.start, edit.end, len(replacement)))
            position, index = edit.end, inner
        parts.append(self.text[position:end])
        return b"".join(parts)

    def _add_call(self, call: Node, name: str, *, alias: bytes | None, subquery: bool) -> None:
        start = call.get("location", 0)
        if name == "pg_backend_pid":
            span = self._call_span(start)
            if span is not None:
                self.edits.append(_Edit(start, span[1], lambda _: self._own_pid(alias, subquery=subquery)))
        elif name in _TAKES_PID and call.get("args"):
            self._add_argument(call, start)
        elif name in _RETURNS_PIDS and subquery and alias is None and call.get("args"):
            span = self._call_span(start)
            if span is not None:
                self.edits.append(_Edit(start, span[1], lambda inner: self._virtual_array(inner, name)))
                self._add_argument(call, start)

    def _own_pid(self, alias: bytes | None, *, subquery: bool) -> bytes:
        """The number under the name of the function; in FROM (`alias` is given then) only a function can stand."""
        if alias is not None:
            return b"pg_catalog.abs(%d)" % self.pids.session_pid + alias
        if subquery:
            return b"(SELECT %d AS pg_backend_pid)" % self.pids.session_pid
        return b"%d" % self.pids.session_pid

    def _virtual_array(self, call: bytes, name: str) -> bytes:
        element = self.pids.to_virtual(b"u.p")
        return (
            b"(SELECT coalesce(pg_catalog.array_agg(" + element + b" ORDER BY u.o), '{}') AS " + name.encode()
            + b" FROM pg_catalog.unnest(" + call + b") WITH ORDINALITY AS u(p, o))"
        )  # fmt: skip

    def _add_argument(self, call: Node, start: int) -> None:
        span = self._call_span(start)
        argument = call["args"][0]
        if span is None:
            return
        first, end = self._first_argument(span[0], named="NamedArgExpr" in argument)
        argument = argument.get("NamedArgExpr", {}).get("arg", argument)
        is_simple = not argument.keys().isdisjoint(_SIMPLE_ARGUMENTS)
        self.edits.append(_Edit(first, end, self._real_simple if is_simple else self._real_computed))

    def _real_simple(self, argument: bytes) -> bytes:
        return self.pids.to_real(b"(" + argument.strip() + b")::int4")

    def _real_computed(self, argument: bytes) -> bytes:
        return b"(SELECT " + self.pids.to_real(b"v.p") + b" FROM (SELECT (" + argument + b")::int4 AS p OFFSET 0) AS v)"

    def _call_span(self, start: int) -> tuple[int, int] | None:
        """Where the arguments of the call at `start` begin and where the call ends; None where it has no brackets."""
        depth, opened = 0, 0
        for token in tokens(self.text, start):
            if token.kind != "structure":
                if depth == 0 and token.kind not in ("word", "quoted", "dot"):
                    return None
                continue
            mark = self.text[token.start : token.end]
            if mark in b"([":
                opened = opened or token.end
                depth += 1
            elif mark in b")]":
                depth -= 1
            if depth <= 0:
                return (opened, token.end) if mark == b")" else None
        return None

    def _first_argument(self, start: int, *, named: bool) -> tuple[int, int]:
        """The span of the first argument of a call whose brackets open before `start`, without its name."""
        depth = 0
        for token in tokens(self.text, start):
            mark = self.text[token.start : token.end]
            if named and token.kind == "operator" and mark in (b"=>", b":="):
                start, named = token.end, False
            if token.kind != "structure":
                continue
            if depth == 0 and mark in (b",", b")"):
                return (start, token.start)
            depth += 1 if mark in b"([" else -1 if mark in b")]" else 0
        return (start, start)

    def _add_relation(self, range_var: Node) -> None:
        start = range_var.get("location", 0)
        name = range_var["relname"]
        end = _name_end(self.text, start, parts=2 if "schemaname" in range_var else 1)
        if not range_var.get("inh"):
            return  # ONLY view: nobody writes it, and a sub-select cannot follow
        before = _word_before(self.text, start)
        alias = b"" if "alias" in range_var else b" AS " + name.encode()
        select = self._virtual_view(name) + alias
        if before is not None and before[0] == b"table":
            self.edits.append(_Edit(before[1], end, lambda _: b"SELECT * FROM " + select))
        else:
            self.edits.append(_Edit(start, end, lambda _: select))

    def _virtual_view(self, name: str) -> bytes:
        columns = []
        for column in self.columns[name]:
            quoted = b'"' + column.encode().replace(b'"', b'""') + b'"'
            is_pid = column in _PID_COLUMNS
            columns.append(self.pids.to_virtual(quoted) + b" AS " + quoted if is_pid else quoted)
        return b"(SELECT " + b", ".join(columns) + b" FROM pg_catalog." + name.encode() + b")"


def depends_on_mapping(functions: Iterable[tuple[str, str]], relations: Iterable[tuple[str, str]]) -> bool:
    """Whether a statement's rewriting holds other sessions' pids, so that a prepared one goes out of date."""
    return any(name in _TAKES_PID or name in _RETURNS_PIDS for _, name in functions) or any(
        name in PID_RELATIONS for _, name in relations
    )


def _table_functions(statement: Node) -> list[tuple[Node, bytes]]:
    """The FuncCall nodes that stand as tables in FROM, each with the alias it needs to keep its name."""
    found: list[tuple[Node, bytes]] = []
    stack: list[object] = [statement]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            table = node.get("RangeFunction", {})
            is_plain = not (table.keys() & {"alias", "ordinality", "is_rowsfrom", "coldeflist"})
            for function in table.get("functions", ()):
                for item in function.get("List", {}).get("items", ()):
                    if "FuncCall" in item:
                        name = qualified(item["FuncCall"].get("funcname"))[1].encode()
                        found.append((item["FuncCall"], b" AS " + name if is_plain else b""))
            stack.extend(node.values())
    return found


def _name_end(text: bytes, start: int, *, parts: int) -> int:
    """The end of a name of `parts` parts that begins at `start`."""
    names = 0
    for token in tokens(text, start):
        if token.kind != "dot":
            names += 1
        if names == parts:
            return token.end
    return start


def _word_before(text: bytes, position: int) -> tuple[bytes, int] | None:
    """The last token before `position` in lower case, and where it starts."""
    last: Token | None = None
    for token in tokens(text):
        if token.start >= position:
            break
        last = token
    return None if last is None else (text[last.start : last.end].lower(), last.start)
