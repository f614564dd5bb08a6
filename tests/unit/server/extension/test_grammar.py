"""Tokens and grammars of admin commands: tables, and any text at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.extension.grammar import (
    Arguments,
    GrammarError,
    Matcher,
    Problem,
    Value,
    compile_syntax,
    head_of,
    readable,
)
from server.extension.lexer import MAX_COMMAND_LENGTH, Lexer, TokenKind, skip_blank

POLICY = (
    "CREATE CACHE POLICY <name> ON { TABLE <relation:qualified> | FOR ROLE <role> [, ...] | ALL } "
    "[ WITH ( { <option> = <value:value> } [, ...] ) ] [ COMMENT <comment:string> ]"
)


def parse(syntax: str, text: str) -> Arguments | Problem:
    grammar = compile_syntax(syntax)
    return Matcher(Lexer(text)).match(grammar, 0)


def values(syntax: str, text: str) -> dict[str, tuple[Value, ...]]:
    found = parse(syntax, text)
    assert isinstance(found, Arguments), found
    names = ("name", "relation", "role", "option", "value", "comment", "n", "x", "rest")
    return {name: found.all(name) for name in names if name in found}


def problem(syntax: str, text: str) -> Problem:
    found = parse(syntax, text)
    assert isinstance(found, Problem), found
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("create cache policy p on all", {"name": ("p",)}),
        ('CREATE CACHE POLICY "My P" ON ALL;', {"name": ("My P",)}),
        ('create cache policy P on table S."T"', {"name": ("p",), "relation": (("s", "T"),)}),
        ('create cache policy p on for role a, "B", c', {"name": ("p",), "role": ("a", "B", "c")}),
        (
            "create cache policy p on all with (ttl = '5min', max_rows=10, ratio = 0.5, low = -1, enabled = on)",
            {
                "name": ("p",),
                "option": ("ttl", "max_rows", "ratio", "low", "enabled"),
                "value": ("5min", 10, 0.5, -1, "on"),
            },
        ),
        ("create cache policy p on all comment 'it''s'", {"name": ("p",), "comment": ("it's",)}),
        ("create/**/cache--x\npolicy p on/* /* */ */all", {"name": ("p",)}),
    ],
)
def test_arguments_are_taken_from_the_text(text: str, expected: dict[str, tuple[Value, ...]]) -> None:
    assert values(POLICY, text) == expected


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("create cache policy", "syntax error at end of input", 19),
        ("create cache policy p on", "syntax error at end of input", 24),
        ("create cache policy p on nothing", 'syntax error at or near "nothing"', 25),
        ("create cache policy p on table", "syntax error at end of input", 30),
        ("create cache policy p on for role a,", "syntax error at end of input", 36),
        ("create cache policy p on all with (a=1", "syntax error at end of input", 38),
        ("create cache policy p on all with (a=)", 'syntax error at or near ")"', 37),
        ("create cache policy p on all with ()", 'syntax error at or near ")"', 35),
        ("create cache policy 'p' on all", "syntax error at or near \"'p'\"", 20),
        ("create cache policy p on all comment", "syntax error at end of input", 36),
        ("create cache policy p on all comment 'a", "unterminated quoted text or comment", 37),
        ("create cache policy p on all /* a", "unterminated quoted text or comment", 28),
    ],
)
def test_a_syntax_error_points_at_the_farthest_place_reached(text: str, message: str, offset: int) -> None:
    found = problem(POLICY, text)
    assert (found.sqlstate, found.message, found.offset) == ("42601", message, offset)


def test_a_second_statement_is_refused_with_its_place() -> None:
    found = problem("PAUSE", "PAUSE; ; SELECT 1")
    assert (found.sqlstate, found.offset) == ("42601", 9)
    assert found.hint == "Send it as a text of its own."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KILL 9223372036854775807", 2**63 - 1),
        ("KILL -9223372036854775808", -(2**63)),
        ("KILL +5", 5),
        ("KILL 9223372036854775808", "22003"),
        ("KILL " + "9" * 5000, "22003"),
        ("KILL 1.5", "42601"),
        ("KILL x", "42601"),
        ("KILL $0", "42P02"),
        ("KILL $99999999", "42P02"),
    ],
)
def test_integers_are_those_of_bigint(text: str, expected: int | str) -> None:
    found = parse("KILL <n:integer>", text)
    if isinstance(found, Problem):
        assert found.sqlstate == expected
    else:
        assert found.integer("n") == expected


def test_placeholders_are_bound_later() -> None:
    found = parse("SET LIMIT <n:integer> FOR <name> [ AS <x:string> ]", "set limit $2 for $1 as $3")
    assert isinstance(found, Arguments)
    assert [(one.index, one.kind) for one in found.placeholders] == [(2, "integer"), (1, "identifier"), (3, "string")]
    bound = found.bind({1: "a", 2: 5, 3: None})
    assert (bound.get("n"), bound.text("name"), "x" in bound) == (5, "a", False)


def test_raw_text_is_the_rest_as_written() -> None:
    assert values("EXPLAIN CACHE <rest:text>", "explain cache /* why */ SELECT ';' -- x\n ; ") == {
        "rest": ("SELECT ';' -- x",)
    }
    assert values("EXPLAIN CACHE <rest:text>", "explain cache '") == {"rest": ("'",)}
    assert problem("EXPLAIN CACHE <rest:text>", "explain cache ;").message == 'syntax error at or near ";"'


def test_optional_keywords_are_told() -> None:
    found = parse("SHUTDOWN [ WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS ]", "shutdown wait_for_clients")
    assert isinstance(found, Arguments)
    assert found.has("WAIT_FOR_CLIENTS")
    assert not found.has("WAIT_FOR_SERVERS")


def test_what_an_abandoned_choice_captured_is_forgotten() -> None:
    found = parse("GO { <x> TO <name> | <n> FROM <name> }", "go a from b")
    assert isinstance(found, Arguments)
    assert "x" not in found
    assert (found.get("n"), found.get("name")) == ("a", "b")


def test_repetition_without_commas() -> None:
    assert values("GO <x:integer> ...", "go 1 2 3") == {"x": (1, 2, 3)}


def test_a_command_that_is_too_long_is_refused_without_reading_it() -> None:
    found = problem("GO <x> [, ...]", "go " + "a," * MAX_COMMAND_LENGTH)
    assert found.sqlstate == "54000"


@pytest.mark.parametrize(
    "syntax",
    ["", "GO [ X", "GO ] X", "GO { A | }", "GO go", "GO <x:odd>", "GO <1>", "GO <x", "[, ...] GO", "GO | [ A", "GÖ"],
)
def test_a_broken_syntax_line_is_an_error_at_registration(syntax: str) -> None:
    with pytest.raises(GrammarError):
        compile_syntax(syntax)


def test_head_and_readable_form_of_a_syntax_line() -> None:
    assert head_of(compile_syntax(POLICY)) == ("CREATE", "CACHE", "POLICY")
    assert head_of(compile_syntax("COPY ( AUDIT STREAM [ FROM SEQ <n:integer> ] ) TO STDOUT")) == (
        "COPY",
        "(",
        "AUDIT",
        "STREAM",
    )
    assert readable("A <b:qualified> [, ...] [ WITH ( <c> ) ]") == "A b [, ...] [ WITH (c) ]"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a $1 'b' \"c\" 1.5 .5 =", "WORD PARAMETER STRING QUOTED NUMBER NUMBER SYMBOL END"),
        ("é1$x", "WORD END"),
        ("$", "SYMBOL END"),
        ("'a", "BROKEN"),
        ('"a', "BROKEN"),
        ("/* /* */", "BROKEN"),
        ("a -- b\r c", "WORD WORD END"),
        ("''''", "STRING END"),
    ],
)
def test_tokens(text: str, kinds: str) -> None:
    lexer = Lexer(text)
    found: list[str] = []
    while not found or found[-1] not in ("END", "BROKEN"):
        found.append(lexer.at(len(found)).kind.name)
    assert " ".join(found) == kinds
    assert lexer.at(1000) is lexer.at(1001)


def test_words_fold_as_postgresql_folds_them() -> None:
    assert Lexer("ÉAbc").at(0).value == "Éabc"


PIECES = [*"aA1 ;'\"/*-$.(,)=\n\x00é", "show ", "pause ", "go ", "policy ", "create cache policy "]
sql_like = st.lists(st.sampled_from(PIECES)).map("".join)


@given(st.one_of(st.text(), sql_like))
def test_any_text_is_tokens_that_lie_in_it(text: str) -> None:
    lexer = Lexer(text)
    end = 0
    for index in range(len(text) + 1):
        token = lexer.at(index)
        assert end <= token.start <= token.end <= len(text)
        end = token.end
        if token.kind in (TokenKind.END, TokenKind.BROKEN):
            break
    else:
        raise AssertionError("more tokens than characters")
    assert -1 <= skip_blank(text, 0) <= len(text)


@given(sql_like)
def test_any_text_matches_or_is_a_problem_inside_of_it(text: str) -> None:
    for syntax in (POLICY, "PAUSE [ <name> ]", "EXPLAIN CACHE <rest:text>", "GO <x:integer> ..."):
        found = parse(syntax, text)
        if isinstance(found, Problem):
            assert 0 <= found.offset <= len(text)


def test_thousands_of_nested_comments_neither_recurse_nor_take_long() -> None:
    assert skip_blank("/*" * 2_000 + "*/" * 2_000 + "x", 0) == 8_000
    assert skip_blank("/*" * 10_000 + "*/" * 10_000 + "x", 0) == -1
    assert skip_blank("/*" * 10_000, 0) == -1
    assert skip_blank("/*/ */ x", 0) == 7
    assert Lexer("(" * 100_000).at(0).kind is TokenKind.SYMBOL
    assert TokenKind.BROKEN in {Lexer(" " * 20_000 + "x").at(0).kind}
