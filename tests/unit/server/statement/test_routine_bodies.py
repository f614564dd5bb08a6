"""Bodies of routines: everything that can run is seen, and what cannot be understood is unproved."""

from __future__ import annotations

import re

import pytest

from engine.catalog_load import RoutineSource
from server.routine_facts import read_routine
from server.statement_reader import read_plpgsql_body

EVERY_STATEMENT = """
declare
  v int := m1(); c constant int default m2(); nn int not null := m3(); d0 int = m4();
  r record; arr int[]; cur refcursor; cc cursor (k int) for select m5() where k = 1;
  t plain%rowtype; z plain.b%type; al alias for x;
begin
  v := m6(); arr[m7()] := m8(); r.f := m9();
  if m10() then null; elsif m11() then perform m12(); else perform m13(); end if;
  case m14() when m15() then perform m16(); else perform m17(); end case;
  case when m18() then perform m19(); end case;
  loop exit when m20(); continue when m21(); perform m22(); end loop;
  while m23() loop perform m24(); end loop;
  for i in m25()..m26() by m27() loop perform m28(); end loop;
  for i in reverse m29()..m30() loop perform m31(); end loop;
  for r in select m32() loop perform m33(); end loop;
  for r in cc(m34()) loop perform m35(); end loop;
  foreach v in array m36() loop perform m37(); end loop;
  foreach v slice 1 in array m38() loop perform m39(); end loop;
  select m40() into v; insert into plain values (m41()) returning a into v; update plain set a = m42();
  delete from plain where a = m43();
  open cc(m44()); open cur for select m45(); fetch next from cur into v; move relative m46() from cur;
  fetch absolute m47() from cur into v; close cur;
  raise notice '% %', m48(), m49(); raise exception using message = m50(), errcode = m51(); raise;
  assert m52(), m53();
  call m54(m55());
  get diagnostics v = row_count; get stacked diagnostics z = message_text;
  with q as (select m56()) select * from q into v;
  <<lab>> declare w int := m57(); begin perform m58();
  exception when division_by_zero or others then perform m59(); end;
  return m60();
end"""
SET_RETURNING = "declare r record; begin return next m1(); return query select m2(); return query values (m3()); end"
TRIGGER = """begin
  if TG_OP = 'INSERT' and m1(TG_ARGV[0]) then new.a := m2(new.b); perform m3(); end if;
  if m4(old.x) then return null; end if; return new;
end"""
PROCEDURE = "begin call m1(m2()); commit; rollback and chain; perform m3(); end"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("create function f(x int) returns int", EVERY_STATEMENT),
        ("create function f() returns setof int", SET_RETURNING),
        ("create function f() returns trigger", TRIGGER),
        ("create procedure f(inout x int)", PROCEDURE),
    ],
)
def test_every_expression_of_a_body_is_seen(head: str, body: str) -> None:
    """Should the parser library leave out a statement, an unproved call in it would go unseen."""
    facts = read_plpgsql_body(f"{head} language plpgsql as $x${body}$x$".encode())
    assert not facts.is_unproved
    assert set(re.findall(r"\bm\d+(?=\()", body)) <= {name for _, name in facts.mentions.functions}


@pytest.mark.parametrize(
    "body",
    [
        "begin execute 'x'; end",
        "declare r record; begin for r in execute 'x' loop null; end loop; end",
        "begin return query execute 'x'; end",
        "declare c refcursor; begin open c for execute 'x'; end",
        "begin perform set_config('a', 'b', false); end",
        "begin set a = 1; end",
        "begin reset a; end",
        "begin perform setseed(1); end",
        "begin perform pg_advisory_lock(1); end",
        "begin create temp table t (a int); end",
        "begin create table t (a int); end",
        "begin listen c; end",
        "begin discard all; end",
        "begin load 'x'; end",
        "begin drop function f(); end",
        "begin prepare p as select 1; end",
        "begin deallocate all; end",
        "begin this is not sql; end",
    ],
)
def test_unproved_bodies(body: str) -> None:
    text = f"create function f() returns setof int language plpgsql as $x${body}$x$"
    assert read_routine(RoutineSource("plpgsql", text, True)).is_unproved


@pytest.mark.parametrize(
    "body",
    [
        "begin perform set_config('a', 'b', true); end",
        "begin set local a = 1; end",
        "begin insert into t values (nextval('s')); notify c; perform pg_notify('c', ''); end",
        "begin perform pg_advisory_xact_lock(1); end",
        "begin raise notice '{,{}}'; exception when others then null; end",
    ],
)
def test_proved_bodies(body: str) -> None:
    text = f"create function f() returns trigger language plpgsql as $x${body}$x$"
    assert not read_routine(RoutineSource("plpgsql", text, True)).is_unproved


@pytest.mark.parametrize(
    ("source", "is_definition", "is_unproved"),
    [
        ("select 1; insert into t values (f(1))", False, False),
        ("select set_config('a', 'b', false)", False, True),
        ("select set_config('a', $1, true)", False, False),
        ("set a = 1", False, True),
        ("not sql", False, True),
        ("", False, False),
        ("create function f() returns int return abs(1)", True, False),
        ("create function f() returns text return set_config('a', 'b', false)", True, True),
        ("create function f() returns text begin atomic select 1; select set_config('a', 'b', false); end", True, True),
        ("create function f(a text default set_config('a', 'b', false)) returns text return a", True, True),
    ],
)
def test_sql_bodies(source: str, is_definition: bool, is_unproved: bool) -> None:
    assert read_routine(RoutineSource("sql", source, is_definition)).is_unproved == is_unproved
