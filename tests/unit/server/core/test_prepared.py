"""Shared statements and the parts of Parse and Bind that are read."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from server.context import ParseContext
from server.local_statement import LocalNames, LocalStatement, bind_local, read_formats
from server.prepared import StatementRegistry, bind_values, split_parse
from tests.support.wire_client import bind, close, describe, execute, parse
from tests.unit.server.core.rig import plain_info

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
values = st.lists(st.one_of(st.none(), st.binary(max_size=8)), max_size=5)


def test_a_statement_is_one_by_text_types_context_and_generation() -> None:
    registry, context, other = StatementRegistry(), ParseContext(), ParseContext()
    first = registry.intern(b"SELECT 1\0\0\0", context, 0)
    assert registry.intern(b"SELECT 1\0\0\0", context, 0) is first
    different = [
        registry.intern(b"SELECT 2\0\0\0", context, 0),
        registry.intern(b"SELECT 1\0\0\1\0\0\0\x17", context, 0),
        registry.intern(b"SELECT 1\0\0\0", other, 0),
        registry.intern(b"SELECT 1\0\0\0", context, 1),
    ]
    assert len({first.name, *(statement.name for statement in different)}) == 5


def test_a_statement_that_nobody_holds_is_forgotten_and_its_name_not_used_again() -> None:
    registry, context = StatementRegistry(), ParseContext()
    name = registry.intern(b"SELECT 1\0\0\0", context, 0).name
    gc.collect()
    assert len(registry) == 0
    assert registry.intern(b"SELECT 1\0\0\0", context, 0).name != name


@given(names, names, st.lists(st.integers(0, 2**32 - 1), max_size=4), st.binary(max_size=5))
def test_parse_is_split_and_put_together_again(name: str, text: str, types: list[int], before: bytes) -> None:
    message = parse(text, name, types)
    found, tail = split_parse(before + message + b"S\0\0\0\4", len(before), len(before) + len(message))
    assert found == name.encode()
    assert tail == text.encode() + b"\0" + len(types).to_bytes(2, "big") + b"".join(t.to_bytes(4, "big") for t in types)
    statement = StatementRegistry().intern(tail, ParseContext(), 0)
    assert statement.parse_message(found) == message


@given(names, names, values, st.lists(st.integers(0, 1), max_size=3), st.lists(st.integers(0, 1), max_size=3))
def test_bind_is_read(
    statement: str, portal: str, bound: list[bytes | None], formats: list[int], results: list[int]
) -> None:
    message = bind(statement, bound, portal, formats, results)
    assert bind_values(b"xx" + message, 2, 2 + len(message)) == bound
    local = LocalNames(statements={statement.encode(): LocalStatement(plain_info())})
    made = bind_local(local, message)
    assert made is not None
    assert made.values == tuple(bound)
    assert (made.parameter_formats, made.result_formats) == (tuple(formats), tuple(results))
    assert local.portals == {portal.encode(): made}


@given(st.binary(max_size=60))
def test_a_bind_that_is_cut_is_read_without_an_end(rest: bytes) -> None:
    message = b"B\0\0\0\0p\0s\0" + rest
    assert len(bind_values(message, 0, len(message))) <= len(message)


def test_formats_are_read() -> None:
    assert read_formats(b"xx\0\2\0\1\0\0yy", 2) == ((1, 0), 8)
    assert read_formats(b"\0\0", 0) == ((), 2)


def test_local_names_know_the_messages_that_are_theirs() -> None:
    local = LocalNames(statements={b"mine": LocalStatement(plain_info())})
    assert bind_local(local, bind("other", portal="p")) is None
    for message, is_ours in (
        (bind("mine", portal="p"), True), (bind("other"), False), (describe("S", "mine"), True),
        (describe("P", "mine"), False), (execute("p"), False), (close("S", "mine"), True), (close("P", "p"), False),
    ):  # fmt: skip
        assert local.refers(message, 0, len(message)) is is_ours
    assert bind_local(local, bind("mine", portal="p")) is not None
    for message in (execute("p"), describe("P", "p"), close("P", "p")):
        assert local.refers(message, 0, len(message))
    assert local.describe(describe("P", "p")) == b"n\0\0\0\4"
    assert local.close(close("P", "p")) == b"3\0\0\0\4"
    assert local.close(close("P", "p")) is None
    assert bind_local(local, bind("mine", portal="p")) is not None
    assert bind_local(local, bind("other", portal="p")) is None  # another statement takes the portal's name
    assert not local.portals
