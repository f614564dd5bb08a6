"""psycopg2, against the bare engine and RustyDB: a driver that knows only simple queries."""

from __future__ import annotations

import io
import select
from typing import Any

import pytest

from tests.support.target import Target

psycopg2 = pytest.importorskip("psycopg2", reason="the package psycopg2-binary is not installed")
extensions: Any = pytest.importorskip("psycopg2.extensions")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]


def test_query_transaction_and_copy(database: Target) -> None:
    connection = psycopg2.connect(database.dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a int, b text)")
        cursor.execute("INSERT INTO t VALUES (%s, %s)", (1, "it's"))
        cursor.copy_expert("COPY t FROM STDIN WITH CSV", io.StringIO("2,two\n3,three\n"))
        out = io.StringIO()
        cursor.copy_expert("COPY t TO STDOUT WITH CSV", out)
        assert out.getvalue() == "1,it's\n2,two\n3,three\n"
    with pytest.raises(psycopg2.errors.UndefinedTable), connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM no_such_table")
    connection.close()


def test_named_cursor_and_large_object(database: Target) -> None:
    connection = psycopg2.connect(database.dsn)
    with connection.cursor("named") as cursor:
        cursor.itersize = 10
        cursor.execute("SELECT generate_series(1, 100)")
        assert [row[0] for row in cursor] == list(range(1, 101))
    large = connection.lobject()
    large.write(b"hello")
    large.seek(0)
    assert large.read() == "hello"
    large.unlink()
    connection.commit()
    connection.close()


def test_notifications_and_asynchronous_mode(database: Target) -> None:
    connection = psycopg2.connect(database.dsn)
    connection.set_isolation_level(extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    with connection.cursor() as cursor:
        cursor.execute("LISTEN channel")
        cursor.execute("NOTIFY channel, 'hello'")
    if not connection.notifies:
        select.select([connection], [], [], 5)
        connection.poll()
    assert [(found.channel, found.payload) for found in connection.notifies] == [("channel", "hello")]
    connection.close()


def test_isolation_levels_are_set_per_session(database: Target) -> None:
    connection = psycopg2.connect(database.dsn)
    connection.set_session(isolation_level="SERIALIZABLE", readonly=True)
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("serializable",)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            cursor.execute("CREATE TABLE t (a int)")
    connection.close()
