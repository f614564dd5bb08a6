"""A server for the fault tests, and the check after each of them that it still serves everybody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.load import Bystander
from tests.support.rustydb_process import RustyServer
from tests.support.wire_client import WireClient

# A half-open login is dropped by then; tests that wait for it should not take long.
SETTINGS = {"SERVER__AUTHENTICATION_TIMEOUT": "4s"}


@pytest.fixture(scope="session")
def battered() -> Iterator[RustyServer]:
    """One server for all the faults that it has to survive."""
    server = RustyServer(SETTINGS).start()
    yield server
    server.close()


@pytest.fixture
def server(battered: RustyServer) -> Iterator[RustyServer]:
    """The server, checked afterwards: the same process is alive, healthy and takes clients."""
    if not battered.is_running:
        battered.start()
    pid = battered.pid
    yield battered
    assert battered.is_running, f"the server died\n{battered.log_tail()}"
    assert battered.pid == pid
    assert battered.http("/livez")[0] == 200
    with WireClient.login(battered.target) as client:
        assert client.value("SELECT 'served'") == "served"


@pytest.fixture
def bystander(server: RustyServer) -> Iterator[Bystander]:
    """Another client, which must not notice anything."""
    with Bystander(server.target) as other:
        yield other
    assert other.slowest_seconds < 10.0


@pytest.fixture
def dispensable() -> Iterator[RustyServer]:
    """A server of the test's own, not started yet."""
    server = RustyServer(SETTINGS)
    yield server
    server.close()
