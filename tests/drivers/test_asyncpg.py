"""asyncpg, against the bare engine and RustyDB: binary protocol, named statements, introspection, its pool's reset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.support.target import Target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]


async def connect(target: Target, **options: Any) -> Any:
    return await asyncpg.connect(target.url, ssl=False, **options)


@pytest.fixture
async def connection(database: Target) -> AsyncIterator[Any]:
    opened = await connect(database)
    yield opened
    await opened.close()


async def test_values_of_many_types(connection: Any) -> None:
    query = "SELECT $1::int4 a, $2::text b, $3::numeric c, $4::jsonb d, $5::timestamptz e, $6::int4[] f, $7::bytea g"
    row = await connection.fetchrow(query, 1, "ä", 2, '{"k": 1}', None, [1, None], b"\0")
    assert dict(row) == {"a": 1, "b": "ä", "c": 2, "d": '{"k": 1}', "e": None, "f": [1, None], "g": b"\0"}


async def test_own_types_are_introspected(connection: Any) -> None:
    await connection.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b mood)")
    row = await connection.fetchrow("SELECT ROW(1, 'happy')::pair AS p, ARRAY['sad'::mood] AS m, int4range(1, 5) AS r")
    assert (tuple(row["p"]), row["m"], row["r"]) == ((1, "happy"), ["sad"], asyncpg.Range(1, 5))


async def test_prepared_statement_is_used_again_and_again(connection: Any) -> None:
    statement = await connection.prepare("SELECT $1::int * 2")
    assert [await statement.fetchval(n) for n in range(20)] == [n * 2 for n in range(20)]
    assert [attribute.type.name for attribute in statement.get_attributes()] == ["int4"]


async def test_statement_cache_notices_changed_table(database: Target, connection: Any) -> None:
    await connection.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    assert tuple(await connection.fetchrow("SELECT * FROM t")) == (1,)
    other = await connect(database)
    await other.execute("ALTER TABLE t ADD COLUMN b int DEFAULT 2")
    await other.close()
    assert tuple(await connection.fetchrow("SELECT * FROM t")) == (1, 2)


async def test_transactions_nest(connection: Any) -> None:
    await connection.execute("CREATE TABLE t (a int)")
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(asyncpg.DivisionByZeroError):  # noqa: PT012
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (2)")
                await connection.execute("SELECT 1/0")
    assert await connection.fetchval("SELECT array_agg(a) FROM t") == [1]


async def test_cursor_reads_with_row_limits(connection: Any) -> None:
    async with connection.transaction():
        found = [record[0] async for record in connection.cursor("SELECT generate_series(1, 500)", prefetch=37)]
    assert found == list(range(1, 501))


async def test_copy_of_records_and_query(connection: Any, tmp_path: Any) -> None:
    await connection.execute("CREATE TABLE t (a int, b text)")
    await connection.copy_records_to_table("t", records=[(n, f"row {n}") for n in range(1000)])
    path = tmp_path / "out.csv"
    assert (
        await connection.copy_from_query("SELECT * FROM t WHERE a < $1", 3, output=str(path), format="csv") == "COPY 3"
    )
    assert path.read_text().splitlines() == ["0,row 0", "1,row 1", "2,row 2"]


async def test_executemany(connection: Any) -> None:
    await connection.execute("CREATE TABLE t (a int UNIQUE)")
    await connection.executemany("INSERT INTO t VALUES ($1)", [(n,) for n in range(500)])
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.executemany("INSERT INTO t VALUES ($1)", [(1000,), (1,)])
    assert await connection.fetchval("SELECT count(*) FROM t") == 500


async def test_listeners(database: Target, connection: Any) -> None:
    heard: asyncio.Queue[tuple[int, str, str]] = asyncio.Queue()
    await connection.add_listener("channel", lambda _, pid, channel, payload: heard.put_nowait((pid, channel, payload)))
    other = await connect(database)
    await other.execute("NOTIFY channel, 'hello'")
    assert await asyncio.wait_for(heard.get(), 5) == (other.get_server_pid(), "channel", "hello")
    await other.close()


async def test_timeout_cancels_and_leaves_the_connection_usable(connection: Any) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await connection.fetch("SELECT pg_sleep(20)", timeout=0.2)
    assert await connection.fetchval("SELECT 1") == 1


async def test_pool_resets_sessions(database: Target) -> None:
    async with asyncpg.create_pool(database.url, ssl=False, min_size=1, max_size=1) as pool:
        async with pool.acquire() as one:
            await one.execute("SET search_path = pg_catalog; SET own.tenant = 'x'; LISTEN c")
            await one.execute("SELECT pg_advisory_lock(5)")
        async with pool.acquire() as two:
            assert await two.fetchval("SHOW search_path") == '"$user", public'
            assert await two.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 5") == 0


async def test_many_connections_at_once(database: Target) -> None:
    async with asyncpg.create_pool(database.url, ssl=False, min_size=5, max_size=20) as pool:
        found = await asyncio.gather(*(pool.fetchval("SELECT $1::int", n) for n in range(300)))
    assert found == list(range(300))
