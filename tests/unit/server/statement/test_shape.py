"""Texts of one shape have one template: nothing but whole numbers differs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.catalog import CatalogSnapshot, DatabaseCatalog
from server import sql_parser
from server.statement import Analyzer, _shape
from server.statement_info import EffectKind, QueryInfo

WORDS = st.sampled_from(
    [
        "select",
        "a",
        "t1",
        "from",
        "where",
        "limit",
        "order by",
        "1",
        "22",
        "3.5",
        "1e5",
        "0x1f",
        ",",
        "(",
        ")",
        "=",
        "-",
    ]
)


def catalog() -> DatabaseCatalog[QueryInfo]:
    found: DatabaseCatalog[QueryInfo] = DatabaseCatalog("d")
    found.install(CatalogSnapshot())
    return found


@pytest.mark.parametrize(
    "text",
    ['select "1"', "select '1'", "select $1", "select 1 -- 2", "select 1 /* 2 */", "select E'\\1'", "select 1\x00"],
)
def test_a_text_that_could_hide_digits_has_no_shape(text: str) -> None:
    assert _shape(text.encode()) is None


def test_names_and_decimals_keep_their_digits() -> None:
    assert _shape(b"select t1.c2, 1.5, 1e5, 17 from t1") == b"select t1.c2, 1.5, 1e5, 0 from t1"


@given(st.lists(WORDS, max_size=12), st.integers(0, 10**6))
def test_texts_of_one_shape_have_one_template(words: list[str], number: int) -> None:
    text = " ".join(words).encode()
    shape = _shape(text)
    assert shape is not None
    other = " ".join(str(number) if word in ("1", "22") else word for word in words).encode()
    assert _shape(other) == shape
    first, second = sql_parser.normalize(text), sql_parser.normalize(other)
    if first is not None and second is not None:
        assert (sql_parser.parse(text) is None) == (sql_parser.parse(other) is None)


def test_what_depends_on_a_constant_is_not_shared_by_shape() -> None:
    analyzer, database = Analyzer(), catalog()
    first = analyzer.analyse(b"set work_mem = 1000", database)
    second = analyzer.analyse(b"set work_mem = 2000", database)
    values = [info.statements[0].effects[0].value for info in (first, second)]
    assert values == ["1000", "2000"]
    assert first.statements[0].effects[0].kind is EffectKind.SET


def test_the_second_text_of_a_shape_is_not_parsed() -> None:
    analyzer, database = Analyzer(), catalog()
    first = analyzer.analyse(b"select a from t where id = 1", database)
    assert analyzer.analyse(b"select a from t where id = 2", database) is first
    assert b"select a from t where id = 2" not in database.cache
