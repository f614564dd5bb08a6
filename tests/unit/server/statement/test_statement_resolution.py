"""Holding a statement against what the database's functions and relations may hide."""

from __future__ import annotations

import pytest

from engine.catalog import DatabaseCatalog
from server.statement import StatementCatalog
from server.statement_info import Effect, EffectKind, PinReason
from tests.unit.server.statement.support import effects, pins, proving_catalog

HIDDEN = [PinReason.HIDDEN_STATE]
BAD = frozenset({("public", "bad")})


@pytest.mark.parametrize(
    ("text", "hides"),
    [
        ("select bad(1)", True),
        ("select public.bad(1)", True),
        ("select other.good(1)", False),
        ("select other.bad(1)", True),
        ("select lower(a) from t", False),
        ("select t.bad from t", True),
        ("select (t).bad from t", True),
        ("select t.good from t", False),
        ("select * from bad() x", True),
        ("update t set a = 1 where b = bad(2)", True),
        ("do $$ begin perform bad(1); end $$", True),
        ("call bad()", True),
        ("explain select bad(1)", True),
    ],
)
def test_unproved_functions_hide(text: str, hides: bool) -> None:
    catalog = proving_catalog(
        unproved_functions=BAD, unproved_attributes=frozenset({"bad"}), proved_functions=frozenset({("other", "good")})
    )
    assert pins(text, catalog) == (HIDDEN if hides else [])


@pytest.mark.parametrize(
    ("text", "hides"),
    [
        ("select * from bad", False),
        ("insert into bad values (1)", True),
        ("insert into public.bad values (1)", True),
        ("insert into other.bad values (1)", False),
        ("copy bad from stdin", True),
        ("copy bad to stdout", False),
        ("with x as (delete from bad) select 1", True),
        ("truncate bad", True),
    ],
)
def test_relations_unproved_for_writing(text: str, hides: bool) -> None:
    assert (PinReason.HIDDEN_STATE in pins(text, proving_catalog(unproved_writes=BAD))) == hides


def test_relations_operators_types_and_event_triggers() -> None:
    assert pins("select * from bad", proving_catalog(unproved_reads=BAD)) == HIDDEN
    assert pins("select 1 ### 2", proving_catalog(unproved_operators=frozenset({"###"}))) == HIDDEN
    assert pins("select 1 + 2", proving_catalog(unproved_operators=frozenset({"###"}))) == []
    assert pins("select 1::bad", proving_catalog(unproved_types=BAD)) == HIDDEN
    assert pins("select 1", proving_catalog(unproved_anywhere=True)) == HIDDEN
    assert PinReason.HIDDEN_STATE in pins("create table t (a int)", proving_catalog(unproved_ddl=True))


def test_a_users_function_of_a_known_name_may_hide() -> None:
    catalog = proving_catalog(unproved_functions=frozenset({("public", "pg_notify")}))
    assert PinReason.HIDDEN_STATE in pins("select pg_notify('a', 'b')", catalog)
    assert pins("select pg_catalog.pg_notify('a', 'b')", catalog) == []


def test_nothing_is_proved_before_the_catalog_is_read() -> None:
    catalog: StatementCatalog = DatabaseCatalog("test")
    assert pins("select 1", catalog) == []
    assert pins("begin", catalog) == []
    assert pins("select set_config('a', 'b', false)", catalog) == []
    assert pins("select lower('A')", catalog) == HIDDEN
    assert pins("select * from t", catalog) == HIDDEN
    assert pins("select * from pg_catalog.pg_class", catalog) == []
    current = proving_catalog()
    current.invalidate()
    assert pins("select * from t", current) == HIDDEN


def test_inserts_advance_sequences_only_where_a_default_does() -> None:
    catalog = proving_catalog(
        sequence_relations=frozenset({("public", "s")}), sequence_functions=frozenset({("public", "lower")})
    )
    assert effects("insert into t values (1)", catalog) == []
    assert [effect.kind for effect in effects("insert into s values (1)", catalog)] == [EffectKind.SEQUENCE]
    assert [effect.kind for effect in effects("copy s from stdin", catalog)] == [EffectKind.SEQUENCE]
    assert effects("select lower('A')", catalog) == [Effect(EffectKind.SEQUENCE)]
