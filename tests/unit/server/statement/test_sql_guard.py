"""No text ends the process, and no text that people write is refused."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import sql_guard, sql_parser
from server.sql_guard import MAX_TEXT_BYTES, Verdict, judge
from server.sql_lexer import tokens
from tests.unit.server.statement.adversarial import texts
from tests.unit.server.statement.support import analyse

REPOSITORY = Path(__file__).parents[4]
SMALL_STACK_BYTES = 2 << 20


@pytest.mark.parametrize(
    "text",
    [
        b"select 1",
        b"insert into t values " + b",".join(b"(%d, 'a(((b', -1.5, now())" % number for number in range(3000)),
        b"select * from t where a in (" + b",".join(b"%d" % number for number in range(20_000)) + b")",
        b"select 1 where " + b" or ".join(b"a = %d and b is not null" % number for number in range(300)),
        b"select '" + b"((((" * 100_000 + b"'",
        b"select $x$" + b"[[[[" * 100_000 + b"$x$",
        b"/* " + b"(" * 5000 + b" /* nested */ " + b"- " * 5000 + b"*/ select 1",
        b"-- " + b"-" * 5000 + b"\nselect 1",
        b"/" + b"*" * 5000 + b"/ select 1",
        b"select e'" + b"\\'(" * 5000 + b"'",
        b"select " + b", ".join(b"a.b->'c'->>'d' || lower(e)" for _ in range(2000)),
        b"select 1;" * 3000,
        b"select " + b"(" * 100 + b"1" + b")" * 100 + b" /* " + b"x" * 5000 + b" */",
    ],
)
def test_ordinary_long_texts_are_parsed(text: bytes) -> None:
    assert judge(text) is Verdict.SAFE
    assert sql_parser.parse(text) is not None


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (b"select 1\0", Verdict.NOT_TEXT),
        (b"select '\xff'", Verdict.NOT_TEXT),
        (b"select " + b"a" * MAX_TEXT_BYTES, Verdict.TOO_LONG),
        (b"select a" + b"||a" * 50_000, Verdict.TOO_DEEP),
        (b"select " + b"(select " * 10_000 + b"1" + b")" * 10_000, Verdict.TOO_DEEP),
        (b"select 1" + b" union select 1" * 5_000, Verdict.TOO_DEEP),
        (b"select e'a'\n'\\'' " + b"||a" * 5_000, Verdict.TOO_DEEP),
        (b"select e'a' -- b\n '\\'' " + b"||a" * 5_000, Verdict.TOO_DEEP),
        (b"select a$b$" + b"||a" * 5_000 + b"$b$", Verdict.TOO_DEEP),
        (b"select 'a\\'" + b"||a" * 5_000 + b"||'", Verdict.TOO_DEEP),
        (b"select a+--'\n" + b"||a" * 5_000 + b"||'", Verdict.TOO_DEEP),
        (b"select a+/*'*/" + b"||a" * 5_000 + b"||'", Verdict.TOO_DEEP),
        (b"select /*" + b"/*" * 5_000, Verdict.TOO_DEEP),
        (b"select " + b"+-" * 5_000 + b"1", Verdict.TOO_DEEP),
    ],
)
def test_texts_beyond_the_bounds_are_refused(text: bytes, verdict: Verdict) -> None:
    assert judge(text) is verdict
    assert sql_parser.parse(text) is None
    assert sql_parser.normalize(text) is None


@pytest.mark.parametrize(
    "text",
    ["select a" + "||a" * 50_000, "select " + "(select " * 10_000 + "1" + ")" * 10_000, "select a" + "||a" * 800],
)
def test_what_is_too_deep_is_opaque_and_pins(text: str) -> None:
    info = analyse(text)
    assert info.statements[0].kind.name == "OPAQUE"
    assert not info.is_plain


def test_no_text_ends_the_process() -> None:
    """With a quarter of the usual stack: the margin."""

    def limit_stack() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (SMALL_STACK_BYTES, SMALL_STACK_BYTES))

    module = "tests.unit.server.statement.adversarial"
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, preexec_fn=limit_stack)
    assert done.returncode == 0, f"see `python -m {module} verbose`\n{done.stdout}{done.stderr}"
    assert done.stdout.startswith("analysed")


def test_the_guard_is_linear() -> None:
    """A megabyte of anything takes less than a second, and so do a thousand times a hundredth of its square."""
    for text in texts((100_000,)):
        start = time.perf_counter()
        judge(text)
        assert time.perf_counter() - start < 3.0, text[:60]


@given(st.binary(max_size=300))
def test_any_bytes_are_analysed(text: bytes) -> None:
    analyse_bytes(text)


_PIECES = st.sampled_from(
    ["select ", "1", "a", "'", '"', "$$", "$a$", "$1", "(", ")", "[", "]", ",", ";", "--", "\n", "/*", "*/", "e'", "\\",
     "::", "||", "+", "-", ".", " from ", " where ", "begin", "set x = ", "é", "U&'", "do ", "case ", " end ", "%"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=60).map("".join))
@settings(max_examples=300)
def test_any_pieces_of_sql_are_analysed(text: str) -> None:
    analyse_bytes(text.encode())


@given(st.lists(_PIECES, max_size=40).map("".join))
@settings(max_examples=300)
def test_both_lexers_of_the_guard_agree(text: str) -> None:
    data = text.encode()
    if sql_guard._NEEDS_LEXER.search(data) is None:
        kinds = sql_guard._NESTING_KINDS
        slow = [b"o" if token.kind in kinds else data[token.start : token.end] for token in tokens(data)
                if token.kind in kinds or token.kind == "structure"]  # fmt: skip
        assert sql_guard._skeleton(data) == b"".join(slow)


def analyse_bytes(text: bytes) -> None:
    from server.statement import Analyzer
    from tests.unit.server.statement.support import proving_catalog

    Analyzer().analyse(text, proving_catalog())
