"""The proof over a real catalog: which functions and relations may hide session state, and that the engine agrees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from engine.catalog import CatalogSnapshot, DatabaseCatalog
from engine.catalog_load import CatalogReader
from server.routine_facts import read_routine
from server.statement import Analyzer, StatementCatalog
from server.statement_info import EffectKind, PinReason
from tests.support.engine_process import BareEngine

pytestmark = pytest.mark.integration

SCHEMA = """
create table plain (a int, b text);
create table ser (id serial, a int);
create table ident (id int generated always as identity);
create function safe_sql(int) returns int language sql as 'select $1 + 1';
create function safe_pl(x int) returns int language plpgsql as $$
declare r record; y int;
begin
  select a into y from plain where a = x;
  for r in select * from plain loop y := y + r.a; end loop;
  if y > 1 then return safe_sql(y); end if;
  perform set_config('a.b', 'c', true);
  return length(lower('A'));
exception when others then return 1;
end $$;
create function settings_revert() returns int language sql set work_mem = '1MB' as 'select 1';
create function atomic_ok(a int) returns int language sql return a + 1;
create aggregate ok_agg(int) (sfunc = int4pl, stype = int);
create function row_types(p plain) returns plain language plpgsql as $$
declare q plain%rowtype; z plain.a%type; begin select * into q from plain; return q; end $$;
create function evil_sql() returns text language sql as $$ select set_config('a.b', 'c', false) $$;
create function evil_pl() returns text language plpgsql as $$ begin execute 'select 1'; return 1; end $$;
create function calls_evil() returns text language sql as 'select evil_sql()';
create function atomic_evil() returns text language sql begin atomic select set_config('a.b', 'c', false); end;
create function default_evil(a text default set_config('a.b', 'c', false)) returns text language sql as 'select a';
create function imm_evil(int) returns int immutable language plpgsql as $$ begin execute 'select 1'; return 1; end $$;
create function attribute_evil(plain) returns int language plpgsql as $$ begin execute 'select 1'; return 1; end $$;
create function internal_evil(float8) returns void language internal as 'setseed';
create aggregate evil_agg(text, bool) (sfunc = set_config, stype = text);
create view v_evil as select set_config('a.b', 'x', false) as x;
create view v_over as select * from v_evil;
create view v_ok as select * from plain;
create function reads_view() returns setof text language sql as 'select x from v_over';
create function trg_dyn() returns trigger language plpgsql as $$ begin execute 'select 1'; return new; end $$;
create function trg_ok() returns trigger language plpgsql as $$
begin new.b := upper(new.b); insert into ser(a) values (1); return new; end $$;
create table with_trg (a int, b text);
create trigger t before insert on with_trg for each row execute function trg_dyn();
create table with_ok_trg (a int, b text);
create trigger t before insert on with_ok_trg for each row execute function trg_ok();
create table with_default (a int, b text default set_config('a.b', 'b', false));
create function inserts_default() returns void language sql as 'insert into with_default(a) values (1)';
create table parent (a int) partition by range (a);
create table child partition of parent for values from (1) to (10);
create trigger t before insert on child for each row execute function trg_dyn();
create table fk_target (a int primary key);
create table fk_source (a int references fk_target on delete cascade);
create trigger t before delete on fk_source for each row execute function trg_dyn();
create domain d_evil as int check (imm_evil(value) > 0);
create table with_domain (a d_evil);
create table with_index (a int); create index on with_index (imm_evil(a));
create table with_check (a int check (imm_evil(a) > 0));
create table with_policy (a int); alter table with_policy enable row level security;
create policy p on with_policy using (imm_evil(a) > 0);
create table with_rule (a int);
create rule r as on delete to with_rule do also insert into with_default(a) values (1);
create operator ### (rightarg = float8, function = setseed);
create schema "Other"; create table "Other"."Odd ""name" (a int default imm_evil(1));
create extension pg_trgm; create extension citext; create extension dblink;
"""
PROVED = "safe_sql safe_pl settings_revert atomic_ok ok_agg row_types trg_ok similarity citext_eq"
UNPROVED = """
evil_sql evil_pl calls_evil atomic_evil default_evil imm_evil attribute_evil internal_evil evil_agg reads_view trg_dyn
inserts_default set_limit dblink dblink_connect
"""
UNPROVED_READS = "v_evil v_over with_policy with_domain"
UNPROVED_WRITES = """
with_trg with_default child parent fk_source fk_target with_domain with_index with_check with_policy with_rule v_evil
v_over
"""


class AsyncpgControl:
    """As much of `engine.control.EngineControl` as the reader needs, on the bare engine."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: object, database: str | None = None) -> Any:
        return await self._connection.fetch(sql, *args)


@pytest.fixture
async def connection(engine: BareEngine) -> AsyncIterator[Any]:
    target = engine.target
    login = {"host": target.host, "port": target.port, "user": target.user, "password": target.password}
    administrator = await asyncpg.connect(database="postgres", **login)
    await administrator.execute("drop database if exists catalog_proof")
    await administrator.execute("create database catalog_proof")
    connection = await asyncpg.connect(database="catalog_proof", **login)
    await connection.execute(SCHEMA)
    await connection.execute("set search_path = pg_catalog")
    yield connection
    await connection.close()
    await administrator.execute("drop database catalog_proof")
    await administrator.close()


@pytest.fixture
async def reader(connection: Any) -> CatalogReader:
    return CatalogReader(AsyncpgControl(connection), read_routine)


async def test_the_proof(reader: CatalogReader) -> None:
    snapshot = await reader.read("catalog_proof")
    assert {("public", name) for name in PROVED.split()} <= snapshot.proved_functions
    assert {("public", name) for name in UNPROVED.split()} <= snapshot.unproved_functions
    assert _public(snapshot.unproved_reads) == set(UNPROVED_READS.split())
    assert _public(snapshot.unproved_writes) == set(UNPROVED_WRITES.split())
    assert ("Other", 'Odd "name') in snapshot.unproved_writes
    assert snapshot.unproved_operators == {"###"}
    assert snapshot.unproved_attributes == {"attribute_evil"}
    assert ("public", "d_evil") in snapshot.unproved_types
    assert _public(snapshot.sequence_relations) == {"ser", "ident"}
    assert snapshot.sequence_functions == {("public", "trg_ok")}
    assert not snapshot.unproved_anywhere
    assert not snapshot.unproved_ddl


async def test_built_in_functions(reader: CatalogReader) -> None:
    snapshot = await reader.read("catalog_proof")
    harmless = "lower count now random clock_timestamp nextval pg_sleep gen_random_uuid pg_advisory_xact_lock lo_open"
    assert set(harmless.split()) <= snapshot.proved_names
    stateful = """
        set_config setseed pg_advisory_lock query_to_xml table_to_xml ts_stat ts_rewrite pg_backup_start
        pg_replication_origin_session_setup pg_create_logical_replication_slot binary_upgrade_set_next_pg_type_oid
    """
    assert not set(stateful.split()) & snapshot.proved_names


async def test_casts_comparisons_and_event_triggers_reach_everything(connection: Any, reader: CatalogReader) -> None:
    await connection.execute("""
        create function public.on_ddl() returns event_trigger language plpgsql as $$ begin execute 'select 1'; end $$;
        create event trigger e on ddl_command_end execute function public.on_ddl();
        create type public.pair as (a int, b int);
        create function public.to_pair(int) returns public.pair language plpgsql as $$
            begin execute 'select 1'; return null; end $$;
        create cast (int as public.pair) with function public.to_pair(int) as implicit;
    """)
    snapshot = await reader.read("catalog_proof")
    assert snapshot.unproved_ddl
    assert snapshot.unproved_anywhere


async def test_a_change_is_seen_by_its_signature_and_read(connection: Any, reader: CatalogReader) -> None:
    catalog: StatementCatalog = DatabaseCatalog("catalog_proof")
    analyzer = Analyzer()
    assert await catalog.load(reader)
    assert not await catalog.load(reader)
    assert analyzer.analyse(b"select safe_sql(1)", catalog).is_plain
    await connection.execute(
        "create or replace function public.safe_sql(int) returns int language sql as 'select setseed($1)::text::int'"
    )
    assert await catalog.load(reader)
    effects = analyzer.analyse(b"select safe_sql(1)", catalog).statements[0].effects
    assert [(effect.kind, effect.argument) for effect in effects] == [(EffectKind.PIN, PinReason.HIDDEN_STATE)]


async def test_a_change_during_a_reading_leaves_it_not_current(reader: CatalogReader) -> None:
    catalog: StatementCatalog = DatabaseCatalog("catalog_proof")

    class ChangedMeanwhile:
        async def signature(self, database: str) -> str:
            return await reader.signature(database)

        async def read(self, database: str) -> CatalogSnapshot:
            snapshot = await reader.read(database)
            catalog.invalidate()
            return snapshot

    assert not await catalog.load(ChangedMeanwhile())
    assert not catalog.is_current
    assert await catalog.load(reader)
    assert catalog.is_current


def _public(names: frozenset[tuple[str, str]]) -> set[str]:
    return {name for schema, name in names if schema == "public"}
