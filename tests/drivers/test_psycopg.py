"""psycopg 3, against the bare engine and RustyDB: what an application does with it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.support.target import Target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]

VALUES: list[Any] = [
    1,
    2**40,
    1.5,
    Decimal("12345.6789"),
    "text with ä and 'quotes'",
    b"\x00\xff",
    True,
    None,
    date(2024, 2, 29),
    datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
    timedelta(days=3, seconds=4),
    UUID("12345678-1234-5678-1234-567812345678"),
    [1, 2, 3],
    ["a", None, "c"],
]


def connect(target: Target, **options: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(target.dsn, **options)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_survive_the_round_trip(database: Target, value: Any, binary: bool) -> None:
    with connect(database) as connection:
        cursor = connection.cursor(binary=binary)
        cast = "::text" if isinstance(value, str) else ""
        if isinstance(value, list):
            cast = "::text[]" if isinstance(value[0], str) else "::int[]"
        placeholder = ("%b" if binary else "%t") + ("::text" if value is None else cast)
        assert cursor.execute(f"SELECT {placeholder}", (value,)).fetchone() == (value,)


def test_transactions_commit_and_roll_back(database: Target) -> None:
    with connect(database) as connection:
        connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
        connection.commit()
        connection.execute("INSERT INTO t VALUES (1)")
        connection.rollback()
        with connection.transaction():
            connection.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
                connection.execute("INSERT INTO t VALUES (2)")
            connection.execute("INSERT INTO t VALUES (3)")
    with connect(database) as other:
        assert other.execute("SELECT array_agg(a ORDER BY a) FROM t").fetchone() == ([2, 3],)


def test_errors_carry_their_diagnostics(database: Target) -> None:
    with connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (a int CONSTRAINT positive CHECK (a > 0))")
        with pytest.raises(psycopg.errors.CheckViolation) as caught:
            connection.execute("INSERT INTO t VALUES (-1)")
        assert caught.value.diag.constraint_name == "positive"
        assert caught.value.diag.table_name == "t"
        with pytest.raises(psycopg.errors.UndefinedColumn) as missing:
            connection.execute("SELECT no_such FROM t")
        assert missing.value.diag.statement_position == "8"


def test_notices_reach_their_handler(database: Target) -> None:
    heard: list[str | None] = []
    with connect(database, autocommit=True) as connection:
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        connection.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert heard == ["hello"]


def test_statements_are_prepared_after_a_few_runs(database: Target) -> None:
    with connect(database, autocommit=True, prepare_threshold=2) as connection:
        for number in range(8):
            assert connection.execute("SELECT %s + 1", (number,)).fetchone() == (number + 1,)
        names = connection.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False).fetchone()
        assert names is not None
        assert names[0] >= 1


def test_prepared_statement_survives_ddl_that_keeps_its_result(database: Target) -> None:
    with connect(database, autocommit=True) as connection, connect(database, autocommit=True) as other:
        connection.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        assert connection.execute("SELECT a FROM t", prepare=True).fetchone() == (1,)
        other.execute("ALTER TABLE t ADD COLUMN b text")
        assert connection.execute("SELECT a FROM t", prepare=True).fetchone() == (1,)


def test_pipeline_returns_results_in_order(database: Target) -> None:
    with connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (a int)")
        with connection.pipeline():
            cursors = [connection.execute("INSERT INTO t VALUES (%s) RETURNING a", (n,)) for n in range(50)]
            total = connection.execute("SELECT sum(a) FROM t")
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(50)]
        assert total.fetchone() == (sum(range(50)),)


def test_error_in_pipeline_aborts_only_its_segment(database: Target) -> None:
    with connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (a int)")
        with connection.pipeline() as pipeline:
            connection.execute("INSERT INTO t VALUES (1)")
            pipeline.sync()
            connection.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(psycopg.errors.DivisionByZero):  # noqa: PT012
                connection.execute("SELECT 1/0")
                pipeline.sync()
            connection.execute("INSERT INTO t VALUES (3)")
            pipeline.sync()
        assert connection.execute("SELECT array_agg(a ORDER BY a) FROM t").fetchone() == ([1, 3],)


def test_executemany_with_returning(database: Target) -> None:
    with connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a int)")
        cursor.executemany("INSERT INTO t VALUES (%s) RETURNING a", [(n,) for n in range(20)], returning=True)
        found = [cursor.fetchone()]
        while cursor.nextset():
            found.append(cursor.fetchone())
        assert found == [(n,) for n in range(20)]


def test_copy_out_and_in(database: Target) -> None:
    with connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a int, b text)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            for number in range(5000):
                copy.write_row((number, f"row {number}" if number % 3 else None))
        with cursor.copy("COPY t TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            rows = list(copy.rows())
        assert len(rows) == 5000
        assert rows[1] == (1, "row 1")
        assert rows[3] == (3, None)


def test_copy_that_fails_leaves_the_connection_usable(database: Target) -> None:
    with connect(database, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a int)")
        wrong = pytest.raises(psycopg.errors.InvalidTextRepresentation)
        with wrong, cursor.copy("COPY t FROM STDIN") as copy:
            for _ in range(1000):
                copy.write("not a number\n")
        with pytest.raises(ZeroDivisionError), cursor.copy("COPY t FROM STDIN") as copy:  # noqa: PT012
            copy.write("1\n")
            raise ZeroDivisionError
        out = cursor.copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
        with pytest.raises(ZeroDivisionError), out as copy:  # noqa: PT012
            next(iter(copy))
            raise ZeroDivisionError  # the driver cancels and throws the rest away
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.mark.parametrize("with_hold", [False, True])
def test_server_side_cursor_fetches_in_pieces(database: Target, with_hold: bool) -> None:
    with connect(database) as connection:
        with connection.cursor("named", withhold=with_hold, scrollable=True) as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            if with_hold:
                connection.commit()
            assert [row[0] for row in cursor] == list(range(1, 1001))
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchmany(2) == [(1,), (2,)]


def test_stream_reads_row_by_row(database: Target) -> None:
    with connect(database) as connection, connection.cursor() as cursor:
        total = sum(row[0] for row in cursor.stream("SELECT generate_series(1, 2000)"))
        assert total == 2001000


def test_settings_belong_to_their_session(database: Target) -> None:
    with connect(database, autocommit=True) as one, connect(database, autocommit=True) as two:
        one.execute("SET statement_timeout = '5s'; SET search_path = pg_catalog; SET own.tenant = 'one'")
        two.execute("SET TIME ZONE 'Asia/Tokyo'")
        for _ in range(10):
            assert one.execute("SHOW statement_timeout").fetchone() == ("5s",)
            assert one.execute("SELECT current_setting('own.tenant')").fetchone() == ("one",)
            assert two.execute("SHOW statement_timeout").fetchone() == ("0",)
            assert two.execute("SELECT current_setting('own.tenant', true)").fetchone() in [(None,), ("",)]
            assert two.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)
        assert two.info.parameter_status("TimeZone") == "Asia/Tokyo"


def test_notifications_arrive(database: Target) -> None:
    with connect(database, autocommit=True) as listener, connect(database, autocommit=True) as sender:
        listener.execute("LISTEN channel")
        sender.execute("SELECT pg_notify('channel', 'hello')")
        found = next(listener.notifies(timeout=5, stop_after=1))
        assert (found.channel, found.payload, found.pid) == ("channel", "hello", sender.info.backend_pid)


def test_cancel_ends_the_statement_and_not_the_session(database: Target) -> None:
    with connect(database, autocommit=True) as connection:
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_two_phase_commit(database: Target) -> None:
    with closing(connect(database)) as connection:
        connection.execute("CREATE TABLE t (a int)")
        connection.commit()
        xid = connection.xid(1, database.database, "branch")
        connection.tpc_begin(xid)
        connection.execute("INSERT INTO t VALUES (1)")
        connection.tpc_prepare()
    with connect(database) as other:
        assert database.database in [found.gtrid for found in other.tpc_recover()]
        other.tpc_commit(xid)
        assert other.execute("SELECT a FROM t").fetchone() == (1,)


def test_large_parameters_and_rows(database: Target) -> None:
    big = "x" * 5_000_000
    with connect(database) as connection:
        row = connection.execute("SELECT %s::text, length(%s::text)", (big, big)).fetchone()
        assert row is not None
        assert row[0] == big
        assert row[1] == len(big)


def test_json_and_composed_sql(database: Target) -> None:
    with connect(database, row_factory=dict_row) as connection:
        query = sql.SQL("SELECT {value}::jsonb AS {name}").format(value=sql.Placeholder(), name=sql.Identifier('a "b"'))
        assert connection.execute(query, (Jsonb({"k": [1, None]}),)).fetchone() == {'a "b"': {"k": [1, None]}}


async def test_async_connections_work_side_by_side(database: Target) -> None:
    async def one(number: int) -> int:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            cursor = await connection.execute("SELECT %s::int, pg_sleep(0.05)", (number,))
            row = await cursor.fetchone()
            assert row is not None
            found: int = row[0]
            return found

    assert await asyncio.gather(*(one(n) for n in range(20))) == list(range(20))


async def test_async_pipeline_copy_and_cursor(database: Target) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
        await connection.execute("CREATE TABLE t (a int)")
        async with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            for number in range(100):
                await copy.write_row((number,))
        async with connection.pipeline():
            first = await connection.execute("SELECT count(*) FROM t")
            second = await connection.execute("SELECT max(a) FROM t")
        assert await first.fetchone() == (100,)
        assert await second.fetchone() == (99,)
        async with connection.cursor("named") as named:
            await named.execute("SELECT a FROM t ORDER BY a")
            assert await named.fetchmany(3) == [(0,), (1,), (2,)]
