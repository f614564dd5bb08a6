"""Contexts are interned; what brings a backend from one to another is safe text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import sql_parser
from server.context import ContextRegistry, must_await_replay, quote_literal, quote_name, replay_sql

names = st.sampled_from(["work_mem", "datestyle", "search_path", "role", "my.a", "my.b", "timezone"])
maps = st.dictionaries(names, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8))


def apply(sql: str, settings: dict[str, str]) -> dict[str, str]:
    """What the statements of a replay do to a backend's settings."""
    settings = dict(settings)
    for statement in sql_parser.parse(sql.encode()) or ():
        (kind, node), *_ = statement["stmt"].items()
        if kind == "VariableSetStmt":
            if node["kind"] == "VAR_RESET_ALL":
                settings = {name: value for name, value in settings.items() if name == "role"}
            else:
                settings.pop(node["name"], None)
            continue
        assert kind == "SelectStmt"
        for target in node["targetList"]:
            call = target["ResTarget"]["val"]["FuncCall"]
            assert [part["String"]["sval"] for part in call["funcname"]] == ["pg_catalog", "set_config"]
            name, value = (argument["A_Const"].get("sval", {}).get("sval", "") for argument in call["args"][:2])
            assert not call["args"][2]["A_Const"]["boolval"].get("boolval")
            settings[name] = value
    return settings


@given(maps, maps)
def test_replay_brings_a_backend_from_any_context_to_any_other(before: dict[str, str], after: dict[str, str]) -> None:
    registry = ContextRegistry()
    current, wanted = registry.intern(before), registry.intern(after)
    sql = replay_sql(current, wanted)
    assert sql.isascii()
    assert apply(sql, before) == after
    assert (sql == "") == (before == after)


@given(maps, maps)
def test_replay_from_an_unknown_state_resets_everything_first(unknown: dict[str, str], after: dict[str, str]) -> None:
    wanted = ContextRegistry().intern(after)
    assert apply(replay_sql(None, wanted), unknown) == after
    assert must_await_replay(None, wanted)


@given(maps, maps)
def test_equal_maps_are_one_object(one: dict[str, str], other: dict[str, str]) -> None:
    registry = ContextRegistry()
    first, second = registry.intern(one), registry.intern(other)
    assert (first is second) == (one == other)


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [
        ({}, {"work_mem": "1MB"}, False),
        ({"role": "a"}, {"role": "a", "work_mem": "1MB"}, False),
        ({"role": "a"}, {}, True),
        ({}, {"search_path": "s"}, True),
        ({"row_security": "off"}, {}, True),
        ({}, {"my.tenant": "7"}, True),
        ({"my.tenant": "7"}, {"my.tenant": "8"}, True),
    ],
)
def test_what_may_show_or_do_something_wrong_is_awaited(
    before: dict[str, str], after: dict[str, str], waits: bool
) -> None:
    registry = ContextRegistry()
    assert must_await_replay(registry.intern(before), registry.intern(after)) is waits


def test_the_role_is_left_before_and_taken_after_everything_else() -> None:
    registry = ContextRegistry()
    sql = replay_sql(registry.intern({"role": "a", "my.x": "1"}), registry.intern({"role": "b", "work_mem": "1MB"}))
    assert sql.index("RESET ROLE") < sql.index('RESET "my"."x"') < sql.index("'work_mem'") < sql.index("'role'")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ({"work_mem": "1MB"}, {"statement_timeout": "1s"}, True),
        ({"search_path": "a"}, {"search_path": "b"}, False),
        ({"role": "a"}, {}, False),
        ({"my.flag": "1"}, {}, False),
    ],
)
def test_statements_are_shared_where_texts_mean_the_same(
    one: dict[str, str], other: dict[str, str], is_same: bool
) -> None:
    registry = ContextRegistry()
    first, second = registry.intern(one), registry.intern(other)
    assert (first.parse is second.parse) is is_same


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_literals_are_ascii_and_mean_their_value(value: str) -> None:
    literal = quote_literal(value)
    assert literal.isascii()
    (statement,) = sql_parser.parse(f"SELECT {literal}".encode()) or ()
    constant = statement["stmt"]["SelectStmt"]["targetList"][0]["ResTarget"]["val"]["A_Const"]
    assert constant.get("sval", {}).get("sval", "") == value


@pytest.mark.parametrize("name", ["work_mem", "my.x", 'odd"name.x', "schlüssel.wert", "a.b.c"])
def test_names_are_quoted_part_by_part(name: str) -> None:
    (statement,) = sql_parser.parse(f"RESET {quote_name(name)}".encode()) or ()
    assert statement["stmt"]["VariableSetStmt"]["name"] == name
    assert quote_name(name).isascii()
