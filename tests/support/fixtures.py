"""pytest fixtures over the processes of this folder; list `tests.support.fixtures` among `pytest_plugins`.

`engine` and `rustydb` are one server each for the whole run; `both` runs a test against each of them. The variable
`RUSTYDB_TEST_TARGETS` (comma separated, default `engine,rustydb`) narrows what `both` means.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.binaries import BinaryMissing
from tests.support.engine_process import BareEngine
from tests.support.pgbouncer_process import PgBouncer
from tests.support.rustydb_process import RustyServer
from tests.support.target import ENGINE, RUSTYDB, Target
from tests.support.wire_client import WireClient

TARGETS_VARIABLE = "RUSTYDB_TEST_TARGETS"
IN_CI_VARIABLE = "CI"


def chosen_targets() -> list[str]:
    return os.environ.get(TARGETS_VARIABLE, f"{ENGINE},{RUSTYDB}").split(",")


def skip_or_fail(reason: str) -> None:
    """Skip where a tool of the machine is missing; in CI that is a failure."""
    if os.environ.get(IN_CI_VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def engine() -> Iterator[BareEngine]:
    """The bare engine, started once."""
    server = BareEngine().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def rustydb() -> Iterator[RustyServer]:
    """RustyDB as it starts by default (the administrator is no superuser), started once."""
    server = RustyServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def rustydb_superuser() -> Iterator[RustyServer]:
    """RustyDB with the break-glass on, for what needs a true superuser."""
    server = RustyServer(superuser=True).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def pgbouncer(engine: BareEngine) -> Iterator[PgBouncer]:
    """PgBouncer in front of the bare engine."""
    with WireClient.login(engine.target) as client:
        verifier = client.value(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{engine.target.user}'")
    try:
        server = PgBouncer(engine.target, verifier or "").start()
    except BinaryMissing as error:
        skip_or_fail(str(error))
        raise
    yield server
    server.close()


@pytest.fixture(scope="session", params=[ENGINE, RUSTYDB])
def both(request: pytest.FixtureRequest) -> Target:
    """The administrator's target on the bare engine and on RustyDB, one after the other."""
    name: str = request.param
    if name not in chosen_targets():
        pytest.skip(f"{TARGETS_VARIABLE} leaves out {name}")
    server: BareEngine | RustyServer = request.getfixturevalue(name)
    return server.target


_DATABASE_NAMES = count(1)


@pytest.fixture
def database(both: Target) -> Iterator[Target]:
    """A database of the test's own on each of `both`, owned by the administrator, dropped afterwards."""
    name = f"test_database_{os.getpid()}_{next(_DATABASE_NAMES)}"
    with WireClient.login(both) as admin:
        admin.simple(f"CREATE DATABASE {name}")
    yield both.with_database(name)
    with WireClient.login(both) as admin:
        admin.simple(f"DROP DATABASE {name} WITH (FORCE)")
