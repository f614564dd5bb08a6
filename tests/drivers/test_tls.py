"""Drivers over TLS against RustyDB (the wheel's bare engine has none): SCRAM-PLUS, direct TLS, large results."""

from __future__ import annotations

import ssl
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.support.rustydb_process import RustyServer
from tests.support.wire_client import WireClient, unverified_context

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]

LIBPQ_WITH_DIRECT_TLS = 170000


def connect(server: RustyServer, **options: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(server.target.with_tls().dsn, **options)


def test_libpq_logs_in_with_channel_binding(rustydb: RustyServer) -> None:
    with connect(rustydb, channel_binding="require") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(psycopg.pq.version() < LIBPQ_WITH_DIRECT_TLS, reason="libpq before 17 knows no direct TLS")
def test_libpq_connects_by_direct_tls(rustydb: RustyServer) -> None:
    with connect(rustydb, sslnegotiation="direct", channel_binding="require") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_libpq_cancels_over_tls(rustydb: RustyServer) -> None:
    with connect(rustydb, autocommit=True) as connection:
        connection.execute("SET statement_timeout TO '20s'")
        with connection.pipeline():
            connection.execute("SELECT 1")
        connection.cancel_safe()
        assert connection.execute("SELECT 2").fetchone() == (2,)


def test_certificate_is_the_servers_own(rustydb: RustyServer) -> None:
    certificate = rustydb.data_dir / "tls" / "server.crt"
    with connect(rustydb, sslmode="verify-ca", sslrootcert=str(certificate)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_asyncpg_over_tls(rustydb: RustyServer) -> None:
    connection = await asyncpg.connect(rustydb.target.url, ssl=unverified_context())
    assert await connection.fetchval("SELECT $1::int", 7) == 7
    await connection.close()


def test_large_result_and_copy_over_tls(rustydb: RustyServer) -> None:
    with connect(rustydb) as connection, connection.cursor() as cursor:
        row = cursor.execute("SELECT count(*), sum(length(a)) FROM repeat('x', 5000000) a").fetchone()
        assert row == (1, 5_000_000)
        rows = cursor.execute("SELECT repeat('y', 1000) FROM generate_series(1, 20000)").fetchall()
        assert len(rows) == 20_000
        cursor.execute("CREATE TEMP TABLE t (a text)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            for _ in range(2_000):
                copy.write("z" * 1000 + "\n")
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (2_000,)


def test_bytes_before_tls_are_refused(rustydb: RustyServer) -> None:
    """What was sent in the clear behind SSLRequest must never be taken as if it had come through TLS."""
    client = WireClient(rustydb.target.host, rustydb.target.port)
    client.send(b"\0\0\0\x08\x04\xd2\x16\x2f", b"\0\0\0\x08\0\x03\0\0")
    answer = client.socket.recv(1)
    if answer == b"S":
        with pytest.raises((ssl.SSLError, OSError)):
            client.wrap_tls(unverified_context())
    client.abort()
