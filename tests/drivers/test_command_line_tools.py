"""psql, pg_dump, pg_restore and pgbench through the front door, compared with the bare engine."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.binaries import engine_program
from tests.support.target import Target
from tests.support.wire_client import WireClient

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]

SCHEMA = """
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('sad', 'happy');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE TABLE shop.customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, mood shop.mood);
COMMENT ON TABLE shop.customer IS 'who buys';
CREATE TABLE shop.purchase (id serial PRIMARY KEY, customer int REFERENCES shop.customer ON DELETE CASCADE,
  total numeric(10,2) CHECK (total > 0), at timestamptz DEFAULT now()) ;
CREATE INDEX purchase_at ON shop.purchase (at DESC) WHERE total > 10;
CREATE TABLE shop.measured (at date NOT NULL, value shop.positive) PARTITION BY RANGE (at);
CREATE TABLE shop.measured_2024 PARTITION OF shop.measured FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE VIEW shop.rich AS SELECT * FROM shop.customer WHERE id IN (SELECT customer FROM shop.purchase WHERE total > 100);
CREATE MATERIALIZED VIEW shop.totals AS SELECT customer, sum(total) FROM shop.purchase GROUP BY customer;
CREATE FUNCTION shop.twice(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a * 2';
CREATE FUNCTION shop.touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.touched();
ALTER TABLE shop.customer ENABLE ROW LEVEL SECURITY;
CREATE POLICY everyone ON shop.customer USING (true);
CREATE EXTENSION hstore SCHEMA shop;
INSERT INTO shop.customer (name, mood) SELECT 'customer ' || n, 'happy' FROM generate_series(1, 200) n;
INSERT INTO shop.purchase (customer, total, at) SELECT n, n * 1.5, '2024-01-01Z' FROM generate_series(1, 200) n;
INSERT INTO shop.measured SELECT date '2024-01-01' + n, n + 1 FROM generate_series(0, 300) n;
REFRESH MATERIALIZED VIEW shop.totals;
"""
DESCRIBES = r"""
\d shop.*
\d+ shop.customer
\dt+ shop.*
\di+ shop.*
\dv+ shop.*
\dm+ shop.*
\ds+ shop.*
\df+ shop.*
\dT+ shop.*
\dD+ shop.*
\dn+ shop
\dp shop.*
\dy
\dx
\dO shop.*
\do shop.*
\dP+ shop.*
\sf shop.twice
\sv shop.rich
\ddp
\dF english
\encoding
\conninfo
"""


def psql(target: Target, *arguments: str, script: str | None = None) -> str:
    """Run the engine's psql without a start-up file; returns standard output, fails on any error."""
    command = [str(engine_program("psql")), "-X", "-v", "ON_ERROR_STOP=1", *arguments]
    environment = {**os.environ, **target.environment()}
    done = subprocess.run(command, input=script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_sizes(text: str) -> str:
    """Sizes, spaces and connection facts differ between two servers and say nothing about us; nor does the owner of a
    trusted extension's objects, which is the engine's first superuser: `postgres` there, the internal one here."""
    text = text.replace("rustydb_internal", "postgres")
    kept = [line for line in text.splitlines() if not re.match(r"^ ?(Host|Server Port|Backend PID|Superuser)", line)]
    return re.sub(r"[ -]+", " ", re.sub(r"\d+ (bytes|kB)", "SIZE", "\n".join(kept)))


def test_psql_describes_as_on_the_bare_engine(database: Target, request: pytest.FixtureRequest) -> None:
    psql(database, "-q", script=SCHEMA)
    described = without_sizes(psql(database, script=DESCRIBES)).replace(database.database, "DATABASE")
    for name in ("purchase_at", "measured_2024", "everyone", "who buys", "hstore"):
        assert name in described
    key = "described"
    cache: dict[str, str] = request.config.stash.setdefault(DESCRIBED, {})
    if key in cache:
        strip = re.compile(r"\d{4,}")
        assert strip.sub("N", described) == strip.sub("N", cache[key])
    cache.setdefault(key, described)


DESCRIBED: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def test_psql_copy_variables_and_transactions(database: Target, tmp_path: Path) -> None:
    source, copied = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("1,one\n2,two\n")
    script = rf"""
CREATE TABLE t (a int, b text);
\copy t FROM '{source}' WITH (FORMAT csv)
\copy (SELECT * FROM t ORDER BY a) TO '{copied}' WITH (FORMAT csv)
\set n 2
SELECT b FROM t WHERE a = :n \gset
\echo found :b
BEGIN;
INSERT INTO t VALUES (3, 'three');
\echo :{{?ERROR}}
ROLLBACK;
SELECT $1 AS bound \bind 'value' \g
SELECT 'SELECT ' || n FROM generate_series(1, 3) n \gexec
SELECT a, b, 1 AS c FROM t ORDER BY a \crosstabview
\watch c=1
\timing on
SELECT 1;
\c
SELECT count(*) FROM t;
"""
    output = psql(database, "-At", script=script)
    assert copied.read_text() == "1,one\n2,two\n"
    assert "found two" in output
    assert "value" in output
    assert output.splitlines()[-2].strip() == "2" or "\n2\n" in output


def test_psql_fetch_count_uses_a_cursor(database: Target) -> None:
    output = psql(database, "-At", "-v", "FETCH_COUNT=100", "-c", "SELECT generate_series(1, 1000)")
    assert output.split() == [str(n) for n in range(1, 1001)]


@pytest.mark.needs("psql")
def test_psql_completes_names_by_tab(database: Target) -> None:
    """The system's psql has readline; its completion queries run between statements and inside a failed transaction."""
    psql(database, "-q", script="CREATE TABLE remarkable_name (only_column int)")
    program = shutil.which("psql")
    assert program is not None
    leader, follower = pty.openpty()
    environment = {**os.environ, **database.environment(), "TERM": "dumb", "PSQL_HISTORY": "/dev/null", "PAGER": "cat"}
    process = subprocess.Popen([program, "-X"], stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    try:
        typed(leader, "", "=> |=# ")
        typed(leader, "SELECT * FROM remarka\t", "remarkable_name")
        typed(leader, " WHERE only\t", "only_column")
        typed(leader, " IS NULL;\n", r"\(0 rows\)")
        typed(leader, "\\d remarka\t\n", "only_column")
        typed(leader, "SET datest\t", "DateStyle|datestyle")
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def typed(terminal: int, keys: str, expected: str, timeout_seconds: float = 5.0) -> None:
    """Type, and wait until the terminal shows what is expected."""
    os.write(terminal, keys.encode())
    shown = ""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        if ready:
            shown += os.read(terminal, 4096).decode(errors="replace")
        if re.search(expected, shown):
            return
    raise AssertionError(f"typed {keys!r}, expected {expected!r}, saw {shown!r}")


def dump(target: Target, *arguments: str) -> bytes:
    command = [str(engine_program("pg_dump")), *arguments]
    environment = {**os.environ, **target.environment()}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def comparable(script: bytes) -> str:
    """A dump without its random \\restrict key and the versions in its head."""
    lines = script.decode().splitlines()
    return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict", "-- Dumped")))


def test_dump_and_restore_through_the_front_door(database: Target, tmp_path: Path) -> None:
    psql(database, "-q", script=SCHEMA)
    archive = tmp_path / "archive"
    archive.write_bytes(dump(database, "-Fc"))
    copy = database.with_database(f"{database.database}_copy")
    with WireClient.login(database) as client:
        client.simple(f"CREATE DATABASE {copy.database}")
    try:
        command = [str(engine_program("pg_restore")), "--exit-on-error", "-d", copy.database, str(archive)]
        environment = {**os.environ, **copy.environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert comparable(dump(copy)) == comparable(dump(database))
    finally:
        with WireClient.login(database) as client:
            client.simple(f"DROP DATABASE {copy.database}")


def test_parallel_dump_shares_one_snapshot(database: Target, tmp_path: Path) -> None:
    psql(database, "-q", script=SCHEMA)
    dump(database, "-Fd", "-j", "3", "-f", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "toc.dat").exists()


def test_session_is_clean_after_a_dump(database: Target) -> None:
    """pg_dump empties search_path by set_config and sets a dozen more: none of that may reach the next client."""
    psql(database, "-q", script=SCHEMA)
    dump(database)
    for _ in range(5):
        with WireClient.login(database) as client:
            assert client.value("SHOW search_path") == '"$user", public'
            assert client.value("SHOW statement_timeout") == "0"
            assert client.value("SHOW row_security") == "on"


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_runs_in_every_mode(database: Target, mode: str) -> None:
    environment = {**os.environ, **database.environment()}
    pgbench = str(engine_program("pgbench"))
    for arguments in (
        ["-i", "-q", "-s", "1"],
        ["-n", "-M", mode, "-c", "8", "-j", "2", "-t", "50"],
        ["-n", "-M", mode, "-S", "-C", "-c", "4", "-j", "2", "-t", "10"],
    ):
        done = subprocess.run([pgbench, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "aborted" not in done.stderr
    with WireClient.login(database) as client:
        assert (
            client.value("SELECT sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts") == "t"
        )
        assert client.value("SELECT count(*) FROM pgbench_history") == "400"


def test_pgbench_pipelines(database: Target, tmp_path: Path) -> None:
    script = tmp_path / "pipeline.sql"
    script.write_text("\\startpipeline\nSELECT 1;\nSELECT 2;\n\\syncpipeline\nSELECT 3;\n\\endpipeline\n")
    environment = {**os.environ, **database.environment()}
    for mode in ("extended", "prepared"):
        command = [str(engine_program("pgbench")), "-n", "-M", mode, "-f", str(script), "-c", "8", "-t", "50"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "aborted" not in done.stderr


def test_pg_isready(both: Target) -> None:
    command = [str(engine_program("pg_isready")), "-h", both.host, "-p", str(both.port)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
