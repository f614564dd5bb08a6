"""What goes wrong around the engine: crashes, killed front ends, leftovers, a full disk, users without a name."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from engine.embedded import EmbeddedCluster, EmbeddedOptions
from engine.errors import DataDirectoryFull, DataDirectoryInUse, EngineUnavailable
from engine.nameless import _by_nss_wrapper, _by_secret, _by_user_namespace
from engine.osuser import choose_users, find_user
from engine.process import is_alive
from tests.integration.engine.conftest import FrontEnd, Witness, log_in

pytestmark = pytest.mark.integration

SECONDS = 30


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {SECONDS} s for {what}")
        await asyncio.sleep(0.02)


async def test_a_killed_engine_is_started_again(cluster: EmbeddedCluster, witness: Witness) -> None:
    await cluster.control.run_script("CREATE TABLE rustydb.kept (a int); INSERT INTO rustydb.kept VALUES (1)")
    busy = asyncio.create_task(cluster.control.fetchval("SELECT pg_sleep(60)", database="postgres"))
    await asyncio.sleep(0.2)
    assert cluster.pid is not None
    os.kill(cluster.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await busy
    await until(lambda: len(witness.ready) == 2, "the engine to come back")
    assert cluster.is_running
    assert "signal 9" in witness.lost[0]
    assert [info.epoch for info in witness.ready] == [1, 2]
    assert witness.ready[0].system_identifier == witness.ready[1].system_identifier
    assert await cluster.control.fetchval("SELECT a FROM rustydb.kept") == 1


async def test_a_crashed_backend_is_a_new_epoch(cluster: EmbeddedCluster, witness: Witness) -> None:
    """PostgreSQL restarts all its processes then: every connection is gone, and so is what was known."""
    victim = await log_in(cluster, "postgres", "postgres")
    pid = await victim.fetchval("SELECT pg_backend_pid()")
    postmaster = cluster.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: len(witness.ready) == 2, "the engine to reinitialize")
    assert (len(witness.lost), cluster.pid) == (1, postmaster)
    assert await cluster.control.fetchval("SELECT 1") == 1
    victim.terminate()


async def test_an_engine_that_cannot_come_back_is_tried_again(
    cluster: EmbeddedCluster, witness: Witness, options: EmbeddedOptions
) -> None:
    """Whatever keeps it down is the operator's to mend; nobody has to restart us for it."""
    pgdata = cluster.layout.pgdata
    hidden = pgdata.with_name("hidden")
    assert cluster.pid is not None
    pgdata.rename(hidden)
    os.kill(cluster.pid, signal.SIGKILL)
    await until(lambda: bool(witness.lost), "the loss to be noticed")
    await asyncio.sleep(0.5)
    assert not cluster.is_running
    hidden.rename(pgdata)
    await until(lambda: cluster.is_running, "the engine to come back")


async def test_stopping_while_the_engine_is_down_ends_the_attempts(cluster: EmbeddedCluster, witness: Witness) -> None:
    assert cluster.pid is not None
    os.kill(cluster.pid, signal.SIGKILL)
    await cluster.stop()
    assert not cluster.is_running
    await asyncio.sleep(0.3)
    assert len(witness.ready) == 1


async def test_an_immediate_stop_is_recovered_from(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    await cluster.start()
    await cluster.control.run_script("CREATE TABLE rustydb.kept (a int); INSERT INTO rustydb.kept VALUES (1)")
    await cluster.stop("immediate")
    await cluster.start()
    assert await cluster.control.fetchval("SELECT a FROM rustydb.kept") == 1
    await cluster.stop()


async def test_a_stop_that_takes_too_long_gets_harder(options: EmbeddedOptions) -> None:
    """A smart shutdown waits for every client; we do not wait for ever."""
    cluster = EmbeddedCluster(replace(options, stop_timeout=0.5))
    await cluster.start()
    client = await log_in(cluster, "postgres", "postgres")
    pid = cluster.pid
    assert pid is not None
    await cluster.stop("smart")
    assert not is_alive(pid)
    client.terminate()


async def test_a_stale_pid_file_is_no_obstacle(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    await cluster.start()
    text = (cluster.layout.pgdata / "postmaster.pid").read_text()
    await cluster.stop("immediate")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    stale = text.split("\n", 1)[1]
    (cluster.layout.pgdata / "postmaster.pid").write_text(gone.stdout.decode().strip() + "\n" + stale)
    await cluster.start()
    assert await cluster.control.fetchval("SELECT 1") == 1
    await cluster.stop()


async def test_an_engine_left_by_a_killed_front_end_is_adopted(
    options: EmbeddedOptions, witness: Witness, front_ends: list[FrontEnd]
) -> None:
    first = FrontEnd(options.data_dir)
    front_ends.append(first)
    first.say("sql CREATE TABLE public.kept AS SELECT 5 AS a")
    first.wait_for("answer")
    first.kill()
    assert is_alive(first.engine_pid)
    cluster = EmbeddedCluster(options, witness)
    started = time.monotonic()
    await cluster.start()
    took = time.monotonic() - started
    assert cluster.pid == first.engine_pid
    assert took < 1.5
    assert await cluster.control.fetchval("SELECT a FROM public.kept", database="postgres") == 5
    # It is watched, and its log is read, as one of our own.
    os.kill(first.engine_pid, signal.SIGKILL)
    await until(lambda: len(witness.ready) == 2, "the adopted engine to be replaced")
    await cluster.stop()


async def test_an_adopted_engine_is_stopped_in_order(options: EmbeddedOptions, front_ends: list[FrontEnd]) -> None:
    first = FrontEnd(options.data_dir)
    front_ends.append(first)
    first.kill()
    cluster = EmbeddedCluster(options)
    await cluster.start()
    await cluster.stop()
    assert not is_alive(first.engine_pid)
    assert not (cluster.layout.pgdata / "postmaster.pid").exists()


async def test_an_engine_left_with_other_settings_is_replaced(
    options: EmbeddedOptions, front_ends: list[FrontEnd]
) -> None:
    first = FrontEnd(options.data_dir, work_mem="5MB")
    front_ends.append(first)
    first.kill()
    cluster = EmbeddedCluster(options)
    await cluster.start()
    assert cluster.pid != first.engine_pid
    assert not is_alive(first.engine_pid)
    assert await cluster.control.fetchval("SHOW work_mem") != "5MB"
    await cluster.stop()


async def test_a_running_front_end_keeps_a_second_one_out(options: EmbeddedOptions, front_ends: list[FrontEnd]) -> None:
    first = FrontEnd(options.data_dir)
    front_ends.append(first)
    with pytest.raises(DataDirectoryInUse) as caught:
        await EmbeddedCluster(options).start()
    assert str(first.process.pid) in str(caught.value)
    first.say("sql SELECT 42")
    assert first.wait_for("answer") == "42"


async def test_an_engine_that_somebody_else_started_is_left_alone(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    cluster.prepare()
    user, programs, pgdata = cluster.users.engine, cluster._require_prepared().programs, cluster.layout.pgdata
    cluster._close()
    switch = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.uid != os.geteuid() else {}
    foreign = subprocess.Popen(
        [programs.postgres, "-D", pgdata, "-c", "listen_addresses=", "-c", f"unix_socket_directories={pgdata}"],
        cwd="/",
        stderr=subprocess.DEVNULL,
        env={},
        **switch,
    )
    try:
        await until(lambda: (pgdata / "postmaster.pid").exists(), "the foreign engine")
        await asyncio.sleep(0.3)
        with pytest.raises(DataDirectoryInUse, match="another PostgreSQL"):
            await EmbeddedCluster(options).start()
        assert foreign.poll() is None
    finally:
        foreign.send_signal(signal.SIGINT)
        foreign.wait(30)


async def test_ctrl_c_reaches_the_front_end_alone(options: EmbeddedOptions, front_ends: list[FrontEnd]) -> None:
    front_end = FrontEnd(options.data_dir)
    front_ends.append(front_end)
    os.killpg(front_end.process.pid, signal.SIGINT)  # what a terminal does
    front_end.wait_for("interrupted")
    front_end.say("sql SELECT 42")
    assert front_end.wait_for("answer") == "42"
    assert is_alive(front_end.engine_pid)


async def test_the_engine_ends_with_its_front_end(options: EmbeddedOptions, front_ends: list[FrontEnd]) -> None:
    front_end = FrontEnd(options.data_dir)
    front_ends.append(front_end)
    assert front_end.finish() == 0
    assert not is_alive(front_end.engine_pid)


async def test_the_engine_ends_with_a_front_end_that_forgot_to_stop_it(
    options: EmbeddedOptions, front_ends: list[FrontEnd]
) -> None:
    front_end = FrontEnd(options.data_dir, "--leave")
    front_ends.append(front_end)
    front_end.finish()
    assert not is_alive(front_end.engine_pid)


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 160 MiB."""
    mounted = place / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "tmpfs", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@pytest.mark.root
async def test_a_full_disk_is_named_and_loses_nothing(
    small_disk: Path, options: EmbeddedOptions, witness: Witness
) -> None:
    subprocess.run(["cp", "-a", str(options.data_dir), str(small_disk / "data")], check=True)
    options = replace(options, data_dir=small_disk / "data")
    cluster = EmbeddedCluster(options, witness)
    await cluster.start()
    await cluster.control.run_script("CREATE TABLE rustydb.kept (a int, t text); INSERT INTO rustydb.kept VALUES (1)")
    with pytest.raises((asyncpg.PostgresError, EngineUnavailable)) as caught:
        await cluster.control.execute(
            "INSERT INTO rustydb.kept SELECT g, repeat(md5(g::text), 40) FROM generate_series(1, 300000) g"
        )
    if isinstance(caught.value, asyncpg.PostgresError):
        assert caught.value.sqlstate == "53100"
    await cluster.stop("immediate")
    filler = small_disk / "filler"
    status = os.statvfs(small_disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
    with pytest.raises(DataDirectoryFull) as full:
        await EmbeddedCluster(replace(options, max_connections=31)).start()
    assert "Free some space" in str(full.value)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=500m", str(small_disk)], check=True)
    await cluster.start()
    assert await cluster.control.fetchval("SELECT count(*) FROM rustydb.kept") == 1
    await cluster.stop("immediate")


@pytest.mark.root
async def test_initdb_on_a_full_disk_is_named(place: Path, small_disk: Path, fresh_options: EmbeddedOptions) -> None:
    with (small_disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 150 << 20)
    with pytest.raises(DataDirectoryFull):
        await EmbeddedCluster(replace(fresh_options, data_dir=small_disk / "data")).start()


@pytest.mark.root
async def test_a_front_end_gives_root_up_and_keeps_its_engine(
    place: Path, front_ends: list[FrontEnd], fresh_options: EmbeddedOptions
) -> None:
    daemon = find_user("daemon")
    assert daemon is not None
    front_end = FrontEnd(fresh_options.data_dir, "--as", "daemon")
    front_ends.append(front_end)
    front_end.say("user")
    assert int(front_end.wait_for("answer")) == daemon.uid
    assert os.stat(f"/proc/{front_end.engine_pid}").st_uid == choose_users().engine.uid
    assert fresh_options.data_dir.joinpath("keys").stat().st_uid == daemon.uid
    os.kill(front_end.engine_pid, signal.SIGKILL)
    front_end.wait_for("lost")
    front_end.wait_for("epoch")
    front_end.say("sql SELECT 42")
    assert front_end.wait_for("answer") == "42"
    assert front_end.finish() == 0


@pytest.mark.root
async def test_an_ordinary_user_runs_both(
    place: Path, front_ends: list[FrontEnd], fresh_options: EmbeddedOptions
) -> None:
    await serve_as(1, place, front_ends)


@pytest.mark.root
async def test_a_uid_without_a_name_runs_both(place: Path, front_ends: list[FrontEnd]) -> None:
    users = choose_users()
    if _by_user_namespace() is None and not list(Path("/usr/lib").glob("*/libnss_wrapper.so")):
        pytest.skip("neither user namespaces nor libnss_wrapper here")
    assert users.engine.uid != 12345
    await serve_as(12345, place, front_ends)


async def serve_as(uid: int, place: Path, front_ends: list[FrontEnd]) -> None:
    home = place / "home"
    home.mkdir()
    os.chown(home, uid, uid)
    for _ in range(2):
        front_end = FrontEnd(home / "data", uid=uid)
        front_ends.append(front_end)
        assert os.stat(f"/proc/{front_end.engine_pid}").st_uid == uid
        front_end.say("sql SELECT current_user")
        assert front_end.wait_for("answer") == "rustydb_internal"
        assert front_end.finish() == 0


async def test_without_any_name_a_secret_proves_us_and_only_us(
    options: EmbeddedOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last resort for a nameless uid: a cluster that is there is started, each role proves itself."""
    monkeypatch.setattr("engine.prepare.identify", lambda *_: _by_secret())
    cluster = EmbeddedCluster(options)
    # The secret reaches the engine before it asks for it: the cluster is started once as before.
    await cluster.start()
    assert cluster.address.user_secret is not None
    assert not cluster.capabilities.can_login_as_any_role
    assert cluster.address.user_secret("rustydb_internal")
    assert cluster.address.user_secret("postgres") is None
    with pytest.raises(asyncpg.InvalidPasswordError):
        await log_in(cluster, "postgres", "postgres")
    await cluster.stop()


def test_nss_wrapper_is_used_where_it_is_installed(options: EmbeddedOptions) -> None:
    cluster = EmbeddedCluster(options)
    cluster.prepare()
    frontend = replace(cluster.users.frontend, name=None)
    identity = _by_nss_wrapper(frontend, cluster.layout)
    cluster._close()
    if identity is None:
        pytest.skip("libnss_wrapper is not installed")
    assert identity.frontend_name == "rustydb"
