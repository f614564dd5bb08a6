"""What each statement leaves behind in the session, needs, reads and writes: tables of text and answer."""

from __future__ import annotations

import pytest

from server.statement_info import Effect, EffectKind, Kind, Needs, PinReason
from tests.unit.server.statement.support import analyse, effects, pins, proving_catalog

E = EffectKind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BEGIN", [(E.BEGIN, "")]),
        ("start transaction isolation level serializable, read only", [(E.BEGIN, "")]),
        ("begin work; select 1; end", [(E.BEGIN, ""), (E.COMMIT, "")]),
        ("COMMIT AND CHAIN", [(E.COMMIT, ""), (E.BEGIN, "")]),
        ("commit work and no chain", [(E.COMMIT, "")]),
        ("ABORT", [(E.ROLLBACK, "")]),
        ("rollback transaction and chain", [(E.ROLLBACK, ""), (E.BEGIN, "")]),
        ('savepoint "S 1"', [(E.SAVEPOINT, "S 1")]),
        ("release s", [(E.RELEASE, "s")]),
        ("rollback work to savepoint s", [(E.ROLLBACK_TO, "s")]),
        ("prepare transaction 'g'", [(E.PREPARE_TRANSACTION, "g")]),
        ("commit prepared 'g'", [(E.COMMIT_PREPARED, "g")]),
        ("rollback prepared 'g'", [(E.ROLLBACK_PREPARED, "g")]),
        ("/* hi */ set transaction read only", []),
        ("set constraints all deferred", []),
        ("discard all", [(E.DISCARD_ALL, "")]),
        ("discard temp", [(E.DISCARD_TEMP, "")]),
        ("discard plans", []),
        ("reset all", [(E.RESET_ALL, "")]),
        ("reset Work_Mem", [(E.RESET, "work_mem")]),
        ("set work_mem to default", [(E.RESET, "work_mem")]),
        ("set local work_mem = default", [(E.RESET_LOCAL, "work_mem")]),
        ("reset session authorization", [(E.SESSION_AUTHORIZATION, "")]),
        ("listen a; select 1", [(E.LISTEN, "a"), (E.PIN, PinReason.LISTEN)]),
        ("select 1; unlisten *", [(E.UNLISTEN, ""), (E.PIN, PinReason.LISTEN)]),
        ("notify c, 'x'", [(E.NOTIFY, "c")]),
        ("select pg_notify('c', 'x')", [(E.NOTIFY, "c")]),
        ("deallocate all", [(E.DEALLOCATE, "")]),
        ("deallocate prepare p", [(E.DEALLOCATE, "p")]),
        ("close c", [(E.SETTLE, "")]),
        ("fetch 3 from c", []),
        ("declare c cursor for select 1", []),
        ("create role r password 'x'", [(E.ROLES, "r")]),
        ("alter role r in database d set a = 1", [(E.ROLES, "r")]),
        ("alter database d set a = 1", [(E.ROLES, "d")]),
        ("grant r to s", [(E.ROLES, "")]),
        ("alter user r rename to s", [(E.ROLES, "r")]),
        ("select 1", []),
        ("insert into t values (1)", []),
        ("explain select setseed(0)", []),
        ("select nextval('s')", [(E.SEQUENCE, "")]),
        ("select currval('s')", [(E.SEQUENCE_READ, "")]),
        ("vacuum t", []),
        ("comment on table t is 'x'", [(E.CATALOG, "")]),
        ("create table t (a int)", [(E.CATALOG, "")]),
        ("drop table t", [(E.CATALOG, ""), (E.SETTLE, "")]),
        ("grant select on t to r", [(E.CATALOG, "")]),
    ],
)  # fmt: skip
def test_effects_of(text: str, expected: list[tuple[EffectKind, str]]) -> None:
    assert [(effect.kind, effect.argument) for effect in effects(text)] == expected


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("set a.b to 'x y'", "a.b", "x y"),
        ("set work_mem = 64", "work_mem", "64"),
        ("set x = 1.5", "x", "1.5"),
        ("set x = -1", "x", "-1"),
        ("set x to on", "x", "on"),
        ("set x to true", "x", "true"),
        ("set search_path to a, \"B\", '$user'", "search_path", 'a, "B", "$user"'),
        ("set datestyle to iso, dmy", "datestyle", "iso, dmy"),
        ("set time zone 'Europe/Berlin'", "timezone", "Europe/Berlin"),
        ("set time zone -7", "timezone", "-7"),
        ("set time zone interval '1' hour", "timezone", None),
        ("set names 'utf8'", "client_encoding", "utf8"),
        ("set schema 'x'", "search_path", "x"),
        ("set role none", "role", "none"),
        ("set role 'r'", "role", "r"),
        ("set x from current", "x", None),
        ("select set_config('A.b', 'c', false)", "a.b", "c"),
        ("select pg_catalog.set_config('a', 'c'::text, 'f'::bool)", "a", "c"),
    ],
)
def test_setting_takes_the_text_that_postgresql_would_give_it(text: str, name: str, value: str | None) -> None:
    assert effects(text) == [Effect(E.SET, name, value)]


def test_set_local_and_its_set_config_are_local() -> None:
    assert effects("set local a = 1") == [Effect(E.SET_LOCAL, "a", "1")]
    assert effects("select set_config('a', '1', true)") == [Effect(E.SET_LOCAL, "a", "1")]


def test_session_characteristics_set_the_defaults() -> None:
    text = "set session characteristics as transaction isolation level repeatable read, read only, not deferrable"
    assert effects(text) == [
        Effect(E.SET, "default_transaction_isolation", "repeatable read"),
        Effect(E.SET, "default_transaction_read_only", "on"),
        Effect(E.SET, "default_transaction_deferrable", "off"),
    ]


def test_set_session_authorization_names_the_role() -> None:
    assert effects("set session authorization 'r'") == [Effect(E.SESSION_AUTHORIZATION, "r")]
    assert effects("set local session authorization default") == [Effect(E.SESSION_AUTHORIZATION, "", "local")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select set_config($1, $2, $3)", Effect(E.SET, "", None, (1, 2, 3))),
        ("select set_config('A', $1::text, false)", Effect(E.SET, "a", None, (0, 1, 0))),
        ("select set_config($2, 'v', true)", Effect(E.SET_LOCAL, "", "v", (2, 0, 0))),
        ("select set_config('a', null, false)", Effect(E.RESET, "a")),
    ],
)
def test_set_config_with_parameters_says_which(text: str, expected: Effect) -> None:
    assert effects(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "select set_config('a', b, false) from t",
        "select set_config('a', 'b', false) from t",
        "select set_config('a', 'b', false) where false",
        "select 1 where set_config('a', 'b', false) = 'b'",
        "with x as (select set_config('a', 'b', false)) select 1",
        "select case when true then set_config('a', 'b', false) end",
        "select lower(set_config('a', 'b', false))",
        "insert into t values (set_config('a', 'b', false))",
        "update t set a = set_config('a', 'b', false)",
        "delete from t returning set_config('a', 'b', false)",
        "select * from set_config('a', 'b', false)",
        "select set_config('a', 'b' || 'c', false)",
        "select set_config('a', $1::int::text, false)",
        "values (set_config('a', 'b', false))",
        "explain analyze select set_config('a', lower('b'), false)",
        "declare c cursor with hold for select set_config('a', 'b', false) from t",
        "copy (select set_config('a', 'b', false) from t) to stdout",
        "create table x as select set_config('a', 'b', false) from t",
        "prepare p as select set_config('a', 'b', false)",
        "select set_config('a', 'b', false) union select 'x'",
        "select 1 limit set_config('a', '1', false)::int",
        "do $$ begin perform set_config('a', 'b', false); end $$",
        "do $$ begin set a = 1; end $$",
        "call p(set_config('a', 'b', false))",
        "execute p(set_config('a', 'b', false))",
    ],
)
def test_set_config_that_cannot_be_followed_pins(text: str) -> None:
    assert PinReason.COMPUTED_SETTING in pins(text)


def test_local_settings_inside_do_leave_nothing() -> None:
    assert effects("do $$ begin perform set_config('a', 'b', true); set local c = 1; end $$") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("create temp table t (a int)", PinReason.TEMP_TABLE),
        ("create temporary sequence s", PinReason.TEMP_TABLE),
        ("create temp view v as select 1", PinReason.TEMP_TABLE),
        ("create table pg_temp.t (a int)", PinReason.TEMP_TABLE),
        ("create temp table t as select 1", PinReason.TEMP_TABLE),
        ("select 1 into temp t", PinReason.TEMP_TABLE),
        ("create local temp table t (a int)", PinReason.TEMP_TABLE),
        ("create type pg_temp.e as enum ('a')", PinReason.TEMP_TABLE),
        ("create function pg_temp.f() returns int language sql as 'select 1'", PinReason.TEMP_TABLE),
        ("create domain pg_temp.d as int", PinReason.TEMP_TABLE),
        ("set search_path to pg_temp, public", PinReason.TEMP_TABLE),
        ("do $$ begin create temp table t (a int); end $$", PinReason.TEMP_TABLE),
        ("select pg_advisory_lock(1)", PinReason.ADVISORY_LOCK),
        ("select pg_try_advisory_lock_shared(1, 2) from t", PinReason.ADVISORY_LOCK),
        ("explain analyze select pg_advisory_lock(1)", PinReason.ADVISORY_LOCK),
        ("declare c cursor with hold for select 1", PinReason.HELD_CURSOR),
        ("select setseed(0.5)", PinReason.RANDOM_SEED),
        ("load 'x'", PinReason.LOAD),
        ("prepare p as select 1", PinReason.SQL_PREPARE),
        ("prepare p as select setseed(1)", PinReason.RANDOM_SEED),
        ("do language plperl $$ x $$", PinReason.HIDDEN_STATE),
        ("do $$ begin execute 'x'; end $$", PinReason.HIDDEN_STATE),
        ("select unheard_of(1)", PinReason.HIDDEN_STATE),
        ("create function f() returns int language sql as 'select 1'", PinReason.HIDDEN_STATE),
        ("select (((", PinReason.HIDDEN_STATE),
    ],
)
def test_pins(text: str, reason: str) -> None:
    assert reason in pins(text)


@pytest.mark.parametrize(
    "text",
    [
        "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)",
        "select 'set_config(''a'', ''b'', false)'",
        "select pg_temp_1 from t",
        "select current_user, current_timestamp, session_user",
        "explain select pg_advisory_lock(1)",
        "select coalesce(a, b), greatest(1, 2), nullif(a, b), array[1], row(1, 2) from t",
        "do $$ declare x int := 1; begin x := x + 1; insert into t values (x); end $$",
    ],
)
def test_no_pin(text: str) -> None:
    assert pins(text) == []


def test_on_commit_drop_pins_for_the_transaction_only() -> None:
    assert Effect(E.PIN, PinReason.TEMP_TABLE, "transaction") in effects("create temp table t (a int) on commit drop")


def test_unlock_in_the_same_statement_settles_after_the_pin() -> None:
    found = effects("select pg_advisory_unlock(1), pg_advisory_lock(2)")
    assert [effect.kind for effect in found] == [E.PIN, E.SETTLE]


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("execute p", Needs.MATERIALISE),
        ("prepare p as select 1", Needs.MATERIALISE),
        ("create table t as execute p", Needs.MATERIALISE),
        ("explain execute p", Needs.MATERIALISE),
        ("deallocate p", Needs.MATERIALISE),
        ("select * from pg_prepared_statements", Needs.MATERIALISE),
        ("select * from pg_catalog.pg_cursors", Needs.MATERIALISE),
        ("select pg_listening_channels()", Needs.MATERIALISE),
        ("select * from mine.pg_cursors", Needs.NOTHING),
        ("select pg_backend_pid()", Needs.REWRITE_PIDS),
        ("select * from pg_stat_activity", Needs.REWRITE_PIDS),
        ("with pg_stat_activity as (select 1) select * from pg_stat_activity", Needs.NOTHING),
        ("select pg_terminate_backend(1)", Needs.REWRITE_PIDS),
        ("listen c", Needs.LISTENER),
        ("unlisten *", Needs.LISTENER),
        ("listen c; select 1", Needs.NOTHING),
        ("drop database d", Needs.MAKE_WAY),
        ("select 1", Needs.NOTHING),
    ],
)
def test_needs(text: str, needs: Needs) -> None:
    assert analyse(text).needs == needs


@pytest.mark.parametrize(
    ("text", "databases"),
    [
        ("create database a", ("a", "template1")),
        ("create database a with owner o template = b", ("a", "b")),
        ("drop database if exists a with (force)", ("a",)),
        ("alter database a rename to b", ("a", "b")),
        ("alter database a set tablespace t", ("a",)),
        ("alter database a with connection limit 3", ()),
    ],
)
def test_databases_that_must_make_way(text: str, databases: tuple[str, ...]) -> None:
    assert analyse(text).databases == databases


@pytest.mark.parametrize(
    ("text", "kind", "read", "written"),
    [
        ("select * from a join b.c using (x) where exists (select 1 from d)", Kind.READ, {"a", "b.c", "d"}, set()),
        ("with t as (select * from t) select * from t", Kind.READ, {"t"}, set()),
        ("with recursive t as (select * from t) select * from t", Kind.READ, set(), set()),
        ("with t as (select 1), u as (select * from t) select * from u, v", Kind.READ, {"v"}, set()),
        ("with t as (select 1) select * from s.t", Kind.READ, {"s.t"}, set()),
        ("insert into a select * from b", Kind.WRITE, {"b"}, {"a"}),
        ("with a as (select 1) insert into a select * from a", Kind.WRITE, set(), {"a"}),
        ("insert into a select * from a", Kind.WRITE, {"a"}, {"a"}),
        ("update a set x = 1 from b", Kind.WRITE, {"a", "b"}, {"a"}),
        ("delete from a using b", Kind.WRITE, {"a", "b"}, {"a"}),
        ("merge into a using b on x when matched then delete", Kind.WRITE, {"a", "b"}, {"a"}),
        ("with x as (delete from a returning *) select * from x", Kind.WRITE, {"a"}, {"a"}),
        ("select * from a for update of a", Kind.READ, {"a"}, set()),
        ("select * from a x for update of x", Kind.READ, {"a"}, set()),
        ("explain delete from a", Kind.READ, {"a"}, set()),
        ("explain (analyze) delete from a", Kind.WRITE, {"a"}, {"a"}),
        ("explain (analyze off) delete from a", Kind.READ, {"a"}, set()),
        ("copy a from stdin", Kind.COPY, set(), {"a"}),
        ("copy a to stdout", Kind.COPY, {"a"}, set()),
        ("copy (select * from a) to stdout", Kind.COPY, {"a"}, set()),
        ("truncate a, b", Kind.WRITE, set(), {"a", "b"}),
        ("create table a as select * from b", Kind.DDL, {"b"}, {"a"}),
        ("select * into a from b", Kind.DDL, {"b"}, {"a"}),
        ("refresh materialized view a", Kind.WRITE, {"a"}, {"a"}),
        ("table a", Kind.READ, {"a"}, set()),
        ('select * from "A", B', Kind.READ, {"A", "b"}, set()),
        ("declare c cursor for select * from a", Kind.READ, {"a"}, set()),
        ("do $$ begin insert into a select * from b; end $$", Kind.CALL, {"b"}, {"a"}),
        ("drop table a, s.b", Kind.DDL, set(), {"a", "s.b"}),
    ],
)
def test_relations(text: str, kind: Kind, read: set[str], written: set[str]) -> None:
    statement = analyse(text).statements[0]
    assert statement.kind is kind
    assert {".".join(filter(None, name)) for name in statement.relations_read} == read
    assert {".".join(filter(None, name)) for name in statement.relations_written} == written


def test_functions_are_found_everywhere() -> None:
    text = """
        with c as (insert into t values (f1()) on conflict (a) do update set b = f2() returning f3())
        select f4() filter (where f5()) over (partition by f6() order by f7()), array[f8()], (select f9())
          from f10() x, lateral (values (f11())) y join z on f12()
         where a in (f13()) and b between f14() and f15() and c = any (f16())
         group by rollup (f17()) having f18() order by f19() limit f20() offset f21()
    """
    names = {name for _, name in analyse(text).statements[0].functions}
    assert names == {f"f{number}" for number in range(1, 22)}


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("select 1", "SELECT"), ("create table t()", "CREATE TABLE"), ("drop index i", "DROP INDEX"),
        ("alter table t add a int", "ALTER TABLE"), ("alter view v rename to w", "ALTER VIEW"), ("begin", "BEGIN"),
        ("create or replace function f() returns int return 1", "CREATE FUNCTION"), ("reset a", "RESET"),
        ("create materialized view v as select 1", "CREATE MATERIALIZED VIEW"), ("analyze t", "ANALYZE"),
        ("move 1 from c", "MOVE"), ("revoke select on t from r", "REVOKE"), ("create extension e", "CREATE EXTENSION"),
        ("checkpoint", "CHECKPOINT"), ("show a", "SHOW"),
        ("create aggregate a(int) (sfunc = f, stype = int)", "CREATE AGGREGATE"),
    ],
)  # fmt: skip
def test_tags(text: str, tag: str) -> None:
    assert analyse(text).statements[0].tag == tag


def test_plain_texts_need_nothing_looked_at() -> None:
    info = analyse("select a from t where b = 1")
    assert info.is_plain
    assert not info.has_effects
    assert analyse("").statements[0].kind is Kind.EMPTY
    assert analyse(" ; ;").is_plain
    assert not analyse("begin").is_plain
    assert analyse("begin").begins_transaction


@pytest.mark.parametrize(
    ("text", "reload"),
    [
        ("create table t (a int, b text default lower('A'))", False),
        ("create table t (a serial)", True),
        ("create table t (a int generated always as identity)", True),
        ("create table t (like u including all)", True),
        ("create table t (a int default unheard_of())", True),
        ("create view v as select set_config('a', 'b', false)", True),
        ("create trigger t before insert on t execute function f()", True),
        ("alter table t add column a int", False),
        ("alter table bad add column a int", True),
        ("alter table bad rename to good", True),
        ("create table p partition of t default", True),
        ("create index on t (a)", False),
        ("drop function f", True),
        ("create schema s create table t (a int)", False),
    ],
)
def test_catalog_is_read_again_only_where_it_matters(text: str, reload: bool) -> None:
    catalog = proving_catalog(unproved_writes=frozenset({("public", "bad")}))
    found = [effect for effect in effects(text, catalog) if effect.kind is E.CATALOG]
    assert [effect.value == "reload" for effect in found] == [reload]
