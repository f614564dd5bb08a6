"""A template's facts are reused only for texts that they are true of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.catalog import CatalogSnapshot, DatabaseCatalog
from server import sql_parser
from server.statement import Analyzer, StatementCatalog
from server.statement_facts import StatementFacts, TextFacts
from server.statement_info import Effect, EffectKind, Needs
from server.statement_reader import read_text
from tests.unit.server.statement.support import PROVED, proving_catalog


def test_texts_that_differ_in_constants_share_a_template() -> None:
    analyzer, catalog = Analyzer(), proving_catalog()
    first = analyzer.analyse(b"select a from t where b = 1", catalog)
    second = analyzer.analyse(b"select a from t where b = 'x'", catalog)
    assert second is first
    assert first.template_id > 0
    assert analyzer.analyse(b"select a from u where b = 1", catalog).template_id != first.template_id


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("select set_config('a', 'b', false)", "select set_config('c', 'd', true)"),
        ("set a = 1", "set a = 2"),
        ("do $$ begin execute 'x'; end $$", "do $$ begin null; end $$"),
        ("select pg_notify('a', '')", "select pg_notify('b', '')"),
        ("explain (analyze 0) delete from t", "explain (analyze 1) delete from t"),
        ("prepare transaction 'a'", "prepare transaction 'b'"),
        ("create role r password 'a'", "create role r password 'b'"),
        (
            "create function f() returns int language sql as 'select 1'",
            "create function f() returns int language sql as 'select setseed(1)'",
        ),
        ("set time zone 'a'", "set time zone 'b'"),
    ],
)
def test_constants_that_matter_are_not_lost(first: str, second: str) -> None:
    analyzer, catalog = Analyzer(), proving_catalog()
    analyzer.analyse(first.encode(), catalog)
    assert (
        analyzer.analyse(second.encode(), catalog).statements
        == Analyzer().analyse(second.encode(), proving_catalog()).statements
    )


_TEMPLATES = [
    "select {} + a from t where b in ({}, {}) limit {}",
    "select set_config({}, {}, {})",
    "select lower({}), nextval({}), pg_notify({}, {})",
    "insert into t values ({}, -{})",
    "select case {} when {} then {} end, interval {}, array[{}]",
    "update t set a = {} where b = {} returning {}",
    "with x as (select {}) select {} from x union select {}",
    "values ({}), ({})",
    "select a from t order by {} offset {}",
    "call p({}, {})",
    "select {}::text, cast({} as int), {} is null",
]
_CONSTANTS = st.sampled_from(
    [
        "1",
        "-1",
        "1.5",
        "'a'",
        "''",
        "e'a\\'b'",
        "$$x$$",
        "null",
        "true",
        "B'1'",
        "U&'\\0041'",
        "$1",
        "$2",
        "'1 day'",
        "99999999999",
    ]
)


@given(st.data())
@settings(max_examples=400)
def test_facts_through_a_template_equal_facts_of_the_text(data: st.DataObject) -> None:
    analyzer = Analyzer()
    for _ in range(6):
        template = data.draw(st.sampled_from(_TEMPLATES))
        text = template.format(*(data.draw(_CONSTANTS) for _ in range(template.count("{}")))).encode()
        direct = read_text(text)
        assert _without_sign(analyzer.facts(text)) == _without_sign(direct)


def _without_sign(facts: TextFacts) -> tuple[StatementFacts, ...]:
    """`-1` is one constant, `-'a'` an operator and one; the catalog therefore never asks whether `-` was named."""
    for statement in facts.statements:
        statement.mentions.operators.discard(("", "-"))
    return facts.statements


def test_normalize_keeps_what_facts_are_made_of() -> None:
    """What the template layer leans on, should the parser library change."""
    assert sql_parser.normalize(b"select F(a, 1) from T -- x\n where b = 'y'") == (
        b"select F(a, $1) from T -- x\n where b = $2"
    )
    assert sql_parser.normalize(b'listen "A"') == b'listen "A"'
    assert sql_parser.normalize(b"select 'a'::regclass") == b"select $1::regclass"


def test_exact_texts_are_in_the_catalogs_cache_until_it_changes() -> None:
    analyzer, catalog = Analyzer(), proving_catalog()
    text = b"select unheard_of(1)"
    info = analyzer.analyse(text, catalog)
    assert catalog.cache[text] is info
    assert Effect(EffectKind.PIN, "function may set session state") in info.statements[0].effects
    catalog.install(CatalogSnapshot(proved_names=PROVED | {"unheard_of"}))
    assert text not in catalog.cache
    assert analyzer.analyse(text, catalog).is_plain


def test_caches_are_bounded_by_entries_and_bytes() -> None:
    catalog: StatementCatalog = DatabaseCatalog("test", max_entries=10, max_bytes=1000)
    analyzer = Analyzer(max_entries=10)
    for number in range(100):
        analyzer.analyse(b"select a%d from t -- %s" % (number, b"x" * (number * 3)), catalog)
    assert 0 < len(catalog.cache) <= 10
    assert sum(map(len, catalog.cache)) <= 1000
    assert len(catalog.templates) <= 10
    assert len(analyzer._templates) <= 10


def test_a_text_larger_than_the_cache_is_not_kept() -> None:
    catalog: StatementCatalog = DatabaseCatalog("test", max_bytes=100)
    Analyzer().analyse(b"select 1", catalog)
    Analyzer().analyse(b"select '" + b"x" * 200 + b"'", catalog)
    assert sum(map(len, catalog.cache)) <= 100


def test_console_commands_are_seen_before_the_parser() -> None:
    command = object()
    analyzer = Analyzer(lambda text: command if text.lower().startswith("show pools") else None)
    info = analyzer.analyse(b"SHOW POOLS", proving_catalog())
    assert info.needs is Needs.ADMIN
    assert info.console_command is command
    assert analyzer.analyse(b"show work_mem", proving_catalog()).is_plain


def test_long_texts_can_be_read_in_a_thread() -> None:
    analyzer, catalog = Analyzer(), proving_catalog()
    text = b"select a from t where b in (" + b"1," * 4000 + b"1)"
    assert analyzer.is_expensive(text)
    assert not analyzer.is_known(text)
    analyzer.learn(text, analyzer.read(text))
    assert analyzer.is_known(text)
    assert analyzer.analyse(text, catalog).statements[0].relations_read == {("", "t")}
