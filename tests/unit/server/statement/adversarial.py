"""Texts that try to end the process: run as a program, it analyses them all and prints how many.

`test_sql_guard` runs it in a process of its own with a small stack, so that a crash is an exit status and the margin
is real.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from engine.catalog import DatabaseCatalog
from server.statement import Analyzer, StatementCatalog

# (before, repeated, core, repeated again, after): nesting and chains of everything the grammar can nest or chain.
SHAPES: tuple[tuple[str, str, str, str, str], ...] = (
    ("select a", "||a", "", "", ""),
    ("select 1", "+1", "", "", ""),
    ("select a", "::int", "", "", ""),
    ("select a", " is null", "", "", ""),
    ("select a", " isnull", "", "", ""),
    ("select a", " at local", "", "", ""),
    ("select a", " at time zone b", "", "", ""),
    ("select a", " collate b", "", "", ""),
    ("select a", " in (b)", "", "", ""),
    ("select a", "[1]", "", "", ""),
    ("select a", ".b", "", "", ""),
    ("select 1", " union select 1", "", "", ""),
    ("select 1,2", " union all select 1,2", "", "", ""),
    ("select 1", " except select 1", "", "", ""),
    ("values (1)", " intersect values (1)", "", "", ""),
    ("select * from t", " cross join u", "", "", ""),
    ("select * from t", " natural join u", "", "", ""),
    ("select * from t", " join u using (a, b)", "", "", ""),
    ("select * from t", " join u", "", " on a", ""),
    ("select ", "(", "1", ")", ""),
    ("", "(", "", "", ""),
    ("select ", "- ", "1", "", ""),
    ("select ", "-", "1", "", ""),
    ("select ", "~ ", "1", "", ""),
    ("select ", "NOT ", "a", "", ""),
    ("select 1 where a", " and not a", "", "", ""),
    ("select 1 where a", " or b and not c", "", "", ""),
    ("select 1 where ", "(a or b and ", "b", ")", ""),
    ("select ", "(select ", "1", ")", ""),
    ("select * from ", "(select * from ", "t", ") x", ""),
    ("", "with x as (", "select 1", ") select 1", ""),
    ("select ", "case when a then ", "1", " end", ""),
    ("select ", "case when a then b else ", "1", " end", ""),
    ("select ", "case ", "1", " when a then b end", ""),
    ("select array", "[", "1", "]", ""),
    ("select ", "array[", "1", "]", ""),
    ("select ", "a[", "1", "]", ""),
    ("select ", "f(", "1", ")", ""),
    ("select ", "f(a => ", "1", ")", ""),
    ("select ", "row(", "1", ")", ""),
    ("select ", "coalesce(a, ", "1", ")", ""),
    ("select ", "json_object(a: ", "1", ")", ""),
    ("select ", "json_value(", "1", ", a)", ""),
    ("select ", "xmlelement(name a, ", "1", ")", ""),
    ("select ", "cast(", "1", " as int)", ""),
    ("select ", "exists(select 1 where ", "a", ")", ""),
    ("select a in ", "(select a in ", "b", ")", ""),
    ("select a = any(", "array[a = any(", "b", ")]", ")"),
    ("select f(x) over (partition by ", "f(x) over (partition by ", "1", ")", ")"),
    ("select a in (", "1,", "1", "", ")"),
    ("insert into t values (1)", ",(1)", "", "", ""),
    ("select 1", ";", "", "", ""),
    ("", "select 1;", "", "", ""),
    ("", "begin;", "", "", ""),
    ("select /*", "/*", "", "*/", "*/ 1"),
    ("select /*", "/*", "", "", ""),
    ("select '", "(", "", "", "'"),
    ("select '", "(", "", "", ""),
    ('select "', "a", "", "", '"'),
    ("select a", "b", "", "", ""),
    ("select e'", "\\'", "", "", "'||a"),
    ("select e'a", "'\n'\\'", "", "", "'"),
    ("", "$a$ ", "", "", ""),
    ("select $", "a", "$(", "(", "$"),
    ("select 1", "0", "", "", ""),
    ("select .", "1", "", "", ""),
    ("select jsonb_path_query(a, '$", ".a", "", "", "')"),
    ("select '", "[", "", "]", "'::jsonb"),
    ("explain ", "explain ", "select 1", "", ""),
    ("explain (", "verbose,", "verbose", "", ") select 1"),
    ("create table t (a int", " check (a > 0)", "", "", ")"),
    ("create table t (a ", "int", "", "[]", ")"),
    ("select a ", "operator(pg_catalog.+) ", "b", "", ""),
    ("grant select on t to a", ",a", "", "", ""),
    ("create view v as ", "(", "select 1", ")", ""),
    ("prepare p as select ", "(", "1", ")", ""),
    ("declare c cursor for select ", "f(", "1", ")", ""),
    ("copy (select ", "(", "1", ")", ") to stdout"),
    ("set a to 1", ",1", "", "", ""),
    ("do $$", "begin ", "", " end;", "$$"),
    ("do $$begin ", "if a then b; ", "", "end if;", " end$$"),
    ("do $$begin ", "begin x; ", "", "end;", " end$$"),
    ("do $$begin ", "loop ", "null;", "end loop;", " end$$"),
    ("do $$begin perform ", "(", "1", ")", "; end$$"),
    ("do $$begin perform a", "||a", "", "", "; end$$"),
    ("do $$begin perform 1", ";perform 1", "", "", "; end$$"),
    ("do $$declare ", "a int; ", "", "", "begin end$$"),
    ("do $$begin case a ", "when 1 then case a ", "", "end case;", "end case; end$$"),
    ("create function f() returns int begin atomic select ", "(", "1", ")", "; end"),
    ("select U&'", "\\0041", "", "", "'"),
    ("select * from t, ", "lateral (select * from ", "t", ") x", ""),
    ("select * from json_table(a, '$' columns (", "nested path '$' columns (", "b int", ")", "))"),
    ("merge into t using u on a", " when matched and a then delete", "", "", ""),
    ("select a from t group by ", "rollup (", "a", ")", ""),
    ("select a from t group by ", "grouping sets ((", "a", "))", ""),
)  # fmt: skip

REPEATS = (300, 1_300, 12_000)
ODD_BYTES = (
    b"\xff\xfe select 1", b"select '\xe2\x82", b"select \x01", b"\xef\xbb\xbfselect 1", b"select 1\0; drop table t",
    b"\0", b"", b" ", b";", b"--", b"/*", b"'", b'"', b"$$", b"E'\\", b"$1", b"\\", b"\xc2\xa0",
    "select 'é', \"ü\"".encode(),
)  # fmt: skip


def texts(repeats: tuple[int, ...] = REPEATS) -> Iterator[bytes]:
    """Every shape at every size."""
    for before, left, core, right, after in SHAPES:
        for count in repeats:
            yield (before + left * count + core + right * count + after).encode()
    yield from ODD_BYTES
    yield bytes(range(256)) * 64


def main() -> None:
    analyzer = Analyzer()
    catalog: StatementCatalog = DatabaseCatalog("adversarial")
    count = 0
    for text in texts():
        if len(sys.argv) > 1:
            print(text[:60], len(text), flush=True)  # `python -m ... verbose` names the text that ended the process
        analyzer.analyse(text, catalog)
        count += 1
    print(f"analysed {count}")


if __name__ == "__main__":
    main()
