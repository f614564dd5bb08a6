"""Admin commands through real drivers on a real engine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import asyncpg
import psycopg
import pytest
from psycopg import errors, sql

from tests.support.rustydb_process import RustyServer

pytestmark = pytest.mark.integration
SHOWS = (
    "SHOW POOLS", "SHOW SESSIONS", "SHOW CLIENTS", "SHOW BACKENDS", "SHOW SERVERS", "SHOW STATS", "SHOW SETTINGS",
    "SHOW CONFIG", "SHOW COMMANDS", "SHOW HELP", "SHOW EVENTS", "SHOW HOOKS", "SHOW FEATURES", "SHOW VERSION",
    "SHOW DATABASES", "SHOW LISTS", "SHOW MEM",
)  # fmt: skip


def connect(server: RustyServer, user: str = "", password: str = "") -> psycopg.Connection:
    target = server.target
    return psycopg.connect(
        host=target.host,
        port=target.port,
        user=user or target.user,
        password=password or target.password,
        dbname=target.database,
        autocommit=True,
    )


@pytest.fixture
def admin(rustydb: RustyServer) -> Iterator[psycopg.Connection]:
    with connect(rustydb) as connection:
        yield connection


@pytest.fixture
def mona(rustydb: RustyServer, admin: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A role without any membership."""
    admin.execute("CREATE ROLE mona LOGIN PASSWORD 'secret'")
    with connect(rustydb, "mona", "secret") as connection:
        yield connection
    admin.execute("DROP ROLE mona")


@pytest.mark.parametrize("text", SHOWS)
@pytest.mark.parametrize("is_binary", [False, True])
def test_every_show_answers_in_both_formats(admin: psycopg.Connection, text: str, is_binary: bool) -> None:
    cursor = admin.cursor(binary=is_binary)
    cursor.execute(text, prepare=is_binary)
    assert cursor.statusmessage == "SHOW"
    assert cursor.description is not None
    for row in cursor.fetchall():
        assert len(row) == len(cursor.description)


def test_simple_and_extended_protocol_give_the_same(admin: psycopg.Connection) -> None:
    simple = admin.pgconn.exec_(b"SHOW COMMANDS")
    extended = admin.pgconn.exec_params(b"SHOW COMMANDS", [])
    for result in (simple, extended):
        assert result.ntuples > 10
    assert [simple.get_value(n, 0) for n in range(simple.ntuples)] == [
        extended.get_value(n, 0) for n in range(extended.ntuples)
    ]
    assert [simple.ftype(n) for n in range(simple.nfields)] == [extended.ftype(n) for n in range(extended.nfields)]


def test_no_command_hides_a_setting_of_the_engine(admin: psycopg.Connection) -> None:
    names = {name for (name,) in admin.execute("SELECT name FROM pg_settings")}
    hidden = [text for text in SHOWS if text.removeprefix("SHOW ").lower() in names]
    assert hidden == []


@pytest.mark.parametrize("text", ["SHOW POOLZ", 'SHOW "pools"', "SHOW pools.size"])
def test_a_name_that_is_not_ours_is_the_engines_error(admin: psycopg.Connection, text: str) -> None:
    with pytest.raises(errors.UndefinedObject, match="unrecognized configuration parameter"):
        admin.execute(sql.SQL(text))


def test_a_syntax_error_has_a_position_and_a_hint(admin: psycopg.Connection) -> None:
    with pytest.raises(errors.SyntaxError) as caught:
        admin.execute("KILL SESION 5")
    assert caught.value.diag.statement_position == "6"
    assert caught.value.diag.message_hint == "The syntax is: KILL SESSION session_id"


def test_a_role_that_may_not_gets_42501_until_it_is_granted(
    admin: psycopg.Connection, mona: psycopg.Connection
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        mona.execute("SHOW POOLS")
    assert mona.execute("SHOW VERSION").fetchone() is not None
    admin.execute("GRANT rustydb_monitor TO mona")
    assert mona.execute("SHOW POOLS").fetchall()
    with pytest.raises(errors.InsufficientPrivilege):
        mona.execute("PAUSE")
    admin.execute("REVOKE rustydb_monitor FROM mona")
    with pytest.raises(errors.InsufficientPrivilege):
        mona.execute("SHOW POOLS")


def test_a_killed_session_hears_57p01_and_others_hear_nothing(
    admin: psycopg.Connection, mona: psycopg.Connection
) -> None:
    pid = mona.info.backend_pid
    sessions = {row[0]: row[1] for row in admin.execute("SHOW SESSIONS")}
    assert sessions[pid] == "mona"
    assert admin.execute("KILL SESSION %s", (pid,)).statusmessage == "KILL SESSION"
    with pytest.raises((errors.AdminShutdown, psycopg.OperationalError)):
        mona.execute("SELECT 1")
    assert admin.execute("SELECT 1").fetchone() == (1,)


def test_pause_holds_statements_and_resume_lets_them_go(rustydb: RustyServer, admin: psycopg.Connection) -> None:
    database = rustydb.target.database
    admin.execute(sql.SQL("PAUSE {}").format(sql.Identifier(database)))
    with connect(rustydb) as other:
        other.pgconn.send_query(b"SELECT 1")
        other.pgconn.flush()
        states = {row[0]: row[4] for row in admin.execute("SHOW SESSIONS")}
        assert "waiting" in states.values()
        admin.execute("RESUME")
        result = other.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"1"
        while other.pgconn.get_result() is not None:
            pass


def test_pause_in_a_transaction_block_is_refused_and_fails_it(rustydb: RustyServer, admin: psycopg.Connection) -> None:
    admin.execute("BEGIN")
    assert admin.execute("SHOW VERSION").fetchone() is not None
    with pytest.raises(errors.ActiveSqlTransaction):
        admin.execute("PAUSE")
    with pytest.raises(errors.InFailedSqlTransaction):
        admin.execute("SHOW VERSION")
    admin.execute("ROLLBACK")
    assert admin.execute("SHOW VERSION").fetchone() is not None


async def test_asyncpg_reads_typed_values(rustydb: RustyServer) -> None:
    target = rustydb.target
    connection = await asyncpg.connect(
        host=target.host, port=target.port, user=target.user, password=target.password, database=target.database
    )
    rows = await connection.fetch("SHOW SESSIONS")
    assert all(isinstance(row["id"], int) and row["connect_time"].tzinfo is not None for row in rows)
    with pytest.raises(asyncpg.UndefinedObjectError):
        await connection.execute("KILL SESSION $1", 1)
    await connection.close()


@pytest.mark.needs("psql")
def test_psql_prints_a_table(rustydb: RustyServer) -> None:
    target = rustydb.target
    done = subprocess.run(
        [
            *("psql", "-X", "-h", target.host, "-p", str(target.port), "-U", target.user, "-d", target.database),
            *("-c", "SHOW DATABASES", "-c", "KILL SESION 5"),
        ],
        env={"PGPASSWORD": target.password, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "current_client_connections" in done.stdout
    assert "(1 row)" in done.stdout or "rows)" in done.stdout
    assert "LINE 1: KILL SESION 5" in done.stderr


def test_health_and_metrics_are_served(rustydb: RustyServer, admin: psycopg.Connection) -> None:
    admin.execute("SELECT 1")
    assert rustydb.http("/livez") == (200, "ok\n")
    assert rustydb.http("/readyz") == (200, "ready\n")
    status, text = rustydb.http("/metrics")
    assert status == 200
    for name in ("rustydb_statements_total", "rustydb_sessions{", "process_resident_memory_bytes", "rustydb_ready 1.0"):
        assert name in text
