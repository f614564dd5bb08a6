"""What is measured: point selects, writes, bulk rows, COPY, logins, idle memory and start."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.goals import MODES
from benchmarks.measure import Workload, WorkloadFailed
from tests.support.binaries import engine_program
from tests.support.pgbouncer_process import PgBouncer
from tests.support.processes import descendants_of, proportional_bytes, resident_bytes
from tests.support.rustydb_process import RustyServer
from tests.support.target import ENGINE, PGBOUNCER, RUSTYDB, Target
from tests.support.wire_client import WireClient, WireError

REPOSITORY = Path(__file__).resolve().parents[1]
CLIENT_COUNTS = (1, 16, 64)
CONNECT_PROCESSES = 8
PREPARED_SINCE = (1, 21)
WIDE_ROW = "x" * 100


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. A quick run proves that everything works; only a full one gives figures to quote."""

    seconds: float = 6.0
    rows: int = 1_000_000
    idle_clients: int = 1000
    scale: int = 10


QUICK = Sizes(seconds=2.0, rows=200_000, idle_clients=200, scale=2)


def pgbench(target: Target, arguments: Sequence[str]) -> str:
    """Run the engine's own pgbench, over TLS the system's (the engine's is built without); returns what it prints."""
    environment = {**os.environ, **target.environment()}
    program = shutil.which("pgbench") if target.tls else str(engine_program("pgbench"))
    if program is None:
        raise WorkloadFailed("no pgbench with TLS is installed (Debian package postgresql)")
    command = [program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or "aborted" in done.stderr:
        raise WorkloadFailed(f"pgbench on {target.name}: {done.stderr.strip()[-400:]}")
    return done.stdout


def fill(target: Target, sizes: Sizes) -> None:
    """pgbench's tables and the ones for bulk rows, once per database. PgBouncer shares the engine's."""
    with WireClient.login(target, timeout_seconds=300) as client:
        if client.value("SELECT to_regclass('bench_wide')") is not None:
            return
    pgbench(target, ["-i", "-q", "-s", str(sizes.scale)])
    wide = f"SELECT repeat('x', 100) AS v FROM generate_series(1, {sizes.rows})"
    try:
        with WireClient.login(target, timeout_seconds=300) as client:
            client.simple(f"CREATE TABLE bench_integer AS SELECT generate_series(1, {sizes.rows}) AS v")
            client.simple(
                "CREATE UNLOGGED TABLE bench_in_wide (v text); CREATE UNLOGGED TABLE bench_in_integer (v int)"
            )
            client.simple(f"CREATE TABLE bench_wide AS {wide}")
            client.simple("VACUUM ANALYZE")
    except WireError as error:
        raise WorkloadFailed(f"filling {target.name}: {error}") from error


def point_selects(mode: str, clients: int, sizes: Sizes, target: Target) -> tuple[float, int]:
    threads = str(min(clients, 2))
    output = pgbench(target, ["-S", "-n", "-M", mode, "-c", str(clients), "-j", threads, "-T", f"{sizes.seconds:.0f}"])
    return _tps(output)


def writes(clients: int, sizes: Sizes, target: Target) -> tuple[float, int]:
    """TPC-B-like transactions of seven statements."""
    figure, transactions = _tps(pgbench(target, ["-n", "-c", str(clients), "-j", "2", "-T", f"{sizes.seconds:.0f}"]))
    return figure, transactions * 7


def _tps(output: str) -> tuple[float, int]:
    tps = re.search(r"tps = ([\d.]+)", output)
    count = re.search(r"number of transactions actually processed: (\d+)", output)
    if tps is None or count is None:
        raise WorkloadFailed(f"pgbench printed no figure: {output[-200:]}")
    return float(tps[1]), int(count[1])


def client_process(kind: str, target: Target, **arguments: Any) -> subprocess.Popen[str]:
    text = json.dumps({"target": asdict(target), **arguments})
    command = [sys.executable, "-m", "benchmarks.clients", kind, text]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY)


def answer_of(process: subprocess.Popen[str]) -> dict[str, float]:
    output, errors = process.communicate(timeout=600)
    if process.returncode:
        raise WorkloadFailed(errors.strip().splitlines()[-1] if errors.strip() else "the client failed")
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def rows_out(sql: str, sizes: Sizes, target: Target) -> tuple[float, int]:
    """Rows a second."""
    return sizes.rows / answer_of(client_process("read_rows", target, sql=sql))["seconds"], 0


def rows_in(table: str, row: str, sizes: Sizes, target: Target) -> tuple[float, int]:
    """Rows a second."""
    answer = answer_of(client_process("write_rows", target, table=table, row=row, rows=sizes.rows))
    return sizes.rows / answer["seconds"], 0


def connects(sizes: Sizes, target: Target) -> tuple[float, int]:
    """Logins a second over several client processes; the count of logins stands for statements."""
    processes = [client_process("connect_often", target, seconds=sizes.seconds) for _ in range(CONNECT_PROCESSES)]
    answers = [answer_of(process) for process in processes]
    return sum(answer["connects"] / answer["seconds"] for answer in answers), int(sum(a["connects"] for a in answers))


def idle_client_memory(sizes: Sizes, server: RustyServer | None, target: Target) -> tuple[float, int]:
    """KiB of the server's memory per idle client, on RustyDB with a process that has served nobody before.

    The engine forks: there, its backends' proportional share counts.
    """
    if target.name != RUSTYDB or server is None:
        return _idle_client_memory(sizes, target), 0
    fresh = RustyServer(server.settings)
    try:
        own = fresh.start().target
        return _idle_client_memory(sizes, own.with_tls() if target.tls else own), 0
    finally:
        fresh.close()


def _idle_client_memory(sizes: Sizes, target: Target) -> float:
    count = 80 if target.name == ENGINE else sizes.idle_clients
    before = _memory(target)
    process = client_process("stay_idle", target, count=count)
    try:
        line = process.stdout.readline() if process.stdout else ""
        opened = int(json.loads(line)["open"]) if line else 0
        if opened < count * 0.9:
            raise WorkloadFailed(f"only {opened} of {count} clients got in")
        time.sleep(1.0)
        return (_memory(target) - before) / 1024 / opened
    finally:
        process.communicate(timeout=60)
        time.sleep(0.5)


def _memory(target: Target) -> int:
    if target.name == ENGINE:
        return sum(proportional_bytes(pid) for pid in [target.pid, *descendants_of(target.pid)])
    return resident_bytes(target.pid)


def start_seconds(server: RustyServer | None, _target: Target) -> tuple[float, int]:
    """Seconds from start to the first login on an initialised data directory, on a server of its own."""
    if server is None:
        raise WorkloadFailed("RustyDB is not among the targets")
    other = RustyServer(server.settings)
    try:
        other.start()
        other.stop()
        other.start()
        return other.started_in_seconds, 0
    finally:
        other.close()


def over_tls(run: Any, target: Target) -> tuple[float, int]:
    result: tuple[float, int] = run(target.with_tls())
    return result


def all_workloads(sizes: Sizes, server: RustyServer | None) -> list[Workload]:
    """Everything, in the order it is run."""
    prepare = partial(fill, sizes=sizes)
    only_rustydb = {ENGINE: "RustyDB only", PGBOUNCER: "RustyDB only"}
    found: list[Workload] = []
    for mode in MODES:
        for clients in CLIENT_COUNTS:
            skip = _prepared_skip() if mode == "prepared" else {}
            run = partial(point_selects, mode, clients, sizes)
            found.append(Workload(f"select-{mode}-{clients}", "tps", run, prepare, skip=skip))
    found.append(Workload("tpcb-16", "tps", partial(writes, 16, sizes), prepare))
    bulk = {
        "rows-100-bytes": partial(rows_out, "SELECT v FROM bench_wide", sizes),
        "rows-one-integer": partial(rows_out, "SELECT v FROM bench_integer", sizes),
        "copy-out-100-bytes": partial(rows_out, "COPY bench_wide TO STDOUT", sizes),
        "copy-out-one-integer": partial(rows_out, "COPY bench_integer TO STDOUT", sizes),
        "copy-in-100-bytes": partial(rows_in, "bench_in_wide", WIDE_ROW + "\n", sizes),
        "copy-in-one-integer": partial(rows_in, "bench_in_integer", "1234567\n", sizes),
    }
    found += [Workload(name, "rows/s", run, prepare) for name, run in bulk.items()]
    found.append(Workload("connects", "/s", partial(connects, sizes)))
    tls: dict[str, Any] = {
        "select-simple-16-tls": partial(point_selects, "simple", 16, sizes),
        "rows-100-bytes-tls": bulk["rows-100-bytes"],
        "connects-tls": partial(connects, sizes),
    }
    units = {"rows-100-bytes-tls": "rows/s", "connects-tls": "/s"}
    no_tls = {ENGINE: "the wheel's engine is built without TLS"}
    for name, run in tls.items():
        found.append(Workload(name, units.get(name, "tps"), partial(over_tls, run), prepare, skip=no_tls))
    memory = partial(idle_client_memory, sizes, server)
    found.append(Workload("idle-client-memory", "KiB", memory, is_higher_better=False))
    over = partial(over_tls, memory)
    found.append(Workload("idle-client-memory-tls", "KiB", over, is_higher_better=False, skip=no_tls))
    start = partial(start_seconds, server)
    found.append(Workload("start", "s", start, is_higher_better=False, skip=only_rustydb))
    return found


def _prepared_skip() -> dict[str, str]:
    try:
        version = PgBouncer.version()
    except OSError:
        return {}
    return {} if version >= PREPARED_SINCE else {PGBOUNCER: "no prepared statements before 1.21"}
