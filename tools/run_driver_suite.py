"""Run a driver's own test suite against the bare engine, PgBouncer or RustyDB, and print the difference test by test.

    python -m tools.run_driver_suite psycopg --source DIR [--python PY] --target engine --target rustydb [--out FOLDER]

`--source` is a checkout of the driver's repository at the version that is installed for `--python`; nothing of it is
built or kept here. Each target is started by this program with an empty database. Outcomes go to
FOLDER/<suite>-<target>.json; the first target named (or an earlier file of it) is the baseline that the others are held
against. Exit status 1 where a test fails that passes there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.engine_process import BareEngine
from tests.support.pgbouncer_process import PgBouncer
from tests.support.rustydb_process import RustyServer
from tests.support.target import ENGINE, RUSTYDB, TARGET_NAMES, Target
from tests.support.wire_client import WireClient

PLUGINS = Path(__file__).resolve().parent / "suite_plugins"
# Outcome and text by test.
Outcomes = dict[str, dict[str, str]]
BAD = frozenset({"failed", "error", "missing"})
DATABASE = "suite"
TEST_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a suite is started: pytest's arguments, the folder, and variables beside the target's."""

    arguments: Sequence[str]
    folder: Path
    environment: dict[str, str]


def psycopg_suite(source: Path, target: Target, _scratch: Path) -> Invocation:
    marks = "not slow and not timing and not dns"
    arguments = ["tests", "-m", marks, "--test-dsn", target.dsn, "--ignore=tests/test_typing.py", "-p", "no:randomly"]
    return Invocation(arguments, source, {"PYTHONPATH": "."})


def asyncpg_suite(source: Path, target: Target, scratch: Path) -> Invocation:
    # The checkout's own package has no compiled parts and would hide the installed one: the tests are run from a copy.
    shutil.copytree(source / "tests", scratch / "tests")
    ignored = ["--ignore=tests/test__sourcecode.py", "--ignore=tests/test__environment.py"]
    arguments = ["tests", *ignored, "--import-mode=importlib", "-p", "no:randomly", "-p", "no:asyncio"]
    return Invocation(arguments, scratch, target.environment())


def sqlalchemy_suite(dialect: str) -> Callable[[Path, Target, Path], Invocation]:
    def suite(source: Path, target: Target, _scratch: Path) -> Invocation:
        chosen = ["test/dialect/postgresql", "test/dialect/test_suite.py", "test/engine", "test/sql", "test/orm"]
        arguments = [*chosen, "--backend-only", "--nomemory", "--notimingintensive", "--nomypy", "--maxfail=100000"]
        arguments += ["--dburi", target.url_for(f"postgresql+{dialect}"), "-p", "no:randomly", "-p", "no:asyncio"]
        return Invocation(arguments, source, {})

    return suite


SUITES: dict[str, Callable[[Path, Target, Path], Invocation]] = {
    "psycopg": psycopg_suite,
    "asyncpg": asyncpg_suite,
    "sqlalchemy": sqlalchemy_suite("psycopg"),
    "sqlalchemy-asyncpg": sqlalchemy_suite("asyncpg"),
    "sqlalchemy-psycopg2": sqlalchemy_suite("psycopg2"),
}


@contextmanager
def started(name: str, superuser: bool) -> Iterator[Target]:
    """A server of its own for one run, with an empty database `suite`."""
    if name == RUSTYDB:
        server = RustyServer(superuser=superuser).start()
        try:
            yield prepare(server.target)
        finally:
            server.close()
        return
    engine = BareEngine().start()
    try:
        target = prepare(engine.target)
        if name == ENGINE:
            yield target
            return
        with WireClient.login(engine.target) as client:
            verifier = client.value(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{target.user}'") or ""
        pooler = PgBouncer(target, verifier).start()
        try:
            yield pooler.target
        finally:
            pooler.close()
    finally:
        engine.close()


def prepare(target: Target) -> Target:
    """What SQLAlchemy's suite asks for; the others do not mind."""
    with WireClient.login(target) as client:
        client.simple(f"CREATE DATABASE {DATABASE}")
        client.simple(f"ALTER DATABASE {DATABASE} SET default_text_search_config = 'pg_catalog.english'")
    own = target.with_database(DATABASE)
    with WireClient.login(own) as client:
        client.simple("CREATE SCHEMA test_schema; CREATE SCHEMA test_schema_2")
    return own


def run(suite: str, source: Path, python: str, target: Target, extra: Sequence[str], log: Path) -> Outcomes:
    """Run the suite once; returns outcome and text by test."""
    with tempfile.TemporaryDirectory(prefix="rustydb-suite-") as scratch:
        invocation = SUITES[suite](source.resolve(), target, Path(scratch))
        outcomes = Path(scratch) / "outcomes"
        outcomes.touch()
        command = [
            python,
            "-m",
            "pytest",
            *invocation.arguments,
            "-p",
            "outcome_log",
            "-o",
            f"cache_dir={scratch}/cache",
            "-q",
        ]
        command += ["--timeout", str(TEST_SECONDS), "--timeout-method", "signal", *extra]
        path = os.pathsep.join(filter(None, [str(PLUGINS), invocation.environment.get("PYTHONPATH", "")]))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment = {**inherited, **invocation.environment, "PYTHONPATH": path, "OUTCOME_LOG": str(outcomes)}
        with log.open("w") as output:
            subprocess.run(
                command, cwd=invocation.folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        return read_outcomes(outcomes)


def read_outcomes(path: Path) -> Outcomes:
    """The worst outcome of each test: a tear-down that fails after a call that passed counts."""
    found: Outcomes = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        earlier = found.get(entry["test"])
        if earlier is None or entry["outcome"] in BAD:
            found[entry["test"]] = {"outcome": entry["outcome"], "text": entry["text"]}
    return found


def summary(outcomes: Outcomes) -> str:
    counts: dict[str, int] = {}
    for entry in outcomes.values():
        counts[entry["outcome"]] = counts.get(entry["outcome"], 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no test ran"


def compare(baseline: Outcomes, other: Outcomes) -> list[tuple[str, str, str, str]]:
    """(test, outcome there, outcome here, last line of the text) for each test that is bad here and not there."""
    worse: list[tuple[str, str, str, str]] = []
    for test, entry in sorted(baseline.items()):
        here = other.get(test, {"outcome": "missing", "text": ""})
        if here["outcome"] in BAD and entry["outcome"] not in BAD:
            lines = [line for line in here["text"].splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("E ")] or lines
            worse.append((test, entry["outcome"], here["outcome"], errors[-1].strip() if errors else ""))
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--source", type=Path, required=True, help="checkout of the driver's repository")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the driver and its test tools")
    parser.add_argument("--target", action="append", choices=TARGET_NAMES, help="may be given several times")
    parser.add_argument("--baseline", type=Path, help="outcomes of an earlier run to compare with")
    parser.add_argument("--out", type=Path, default=Path("build/driver-suites"))
    parser.add_argument("--no-superuser", action="store_true", help="leave RustyDB's break-glass off")
    parser.epilog = "Arguments after -- are given to pytest."
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    extra = arguments[split + 1 :]
    options.out.mkdir(parents=True, exist_ok=True)
    baseline = json.loads(options.baseline.read_text()) if options.baseline else None
    status = 0
    for name in options.target or [ENGINE, RUSTYDB]:
        with started(name, not options.no_superuser) as target:
            log = options.out / f"{options.suite}-{name}.log"
            outcomes = run(options.suite, options.source, options.python, target, extra, log)
        (options.out / f"{options.suite}-{name}.json").write_text(json.dumps(outcomes, indent=1))
        print(f"{options.suite} against {name}: {summary(outcomes)} (log: {log})", flush=True)
        if baseline is None:
            baseline = outcomes
            continue
        worse = compare(baseline, outcomes)
        for test, there, here, text in worse:
            print(f"  {test}: {there} -> {here}: {text[:200]}")
        print(f"  {len(worse)} tests fail that the baseline passes")
        status = status or int(bool(worse))
    return status


if __name__ == "__main__":
    sys.exit(main())
