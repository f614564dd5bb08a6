"""Servers whose sessions really share backends, and how these tests talk to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.rustydb_process import RustyServer
from tests.support.target import Target
from tests.support.wire_client import WireClient

Login = Callable[..., WireClient]


@pytest.fixture(scope="session")
def single_server() -> Iterator[RustyServer]:
    """Every session has the same backend, one after the other."""
    settings = {
        "POOL__DEFAULT_POOL_SIZE": "1",
        "POOL__MAX_BACKENDS": "1",
        "POOL__QUERY_WAIT_TIMEOUT": "5s",
        "SESSION__MAX_PREPARED_STATEMENTS": "3",
    }
    server = RustyServer(settings).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def pair_server() -> Iterator[RustyServer]:
    """Two backends: a session meets one that it has not prepared."""
    server = RustyServer({"POOL__DEFAULT_POOL_SIZE": "2", "POOL__MAX_BACKENDS": "2"}).start()
    yield server
    server.close()


@pytest.fixture
def login(single_server: RustyServer) -> Iterator[Login]:
    """Sessions of the server with one backend, closed after the test."""
    yield from _logins(single_server.target)


@pytest.fixture
def login_pair(pair_server: RustyServer) -> Iterator[Login]:
    """Sessions of the server with two backends, closed after the test."""
    yield from _logins(pair_server.target)


def _logins(target: Target) -> Iterator[Login]:
    with ExitStack() as stack:

        def login(*, role: tuple[str, str] | None = None, database: str = "", **parameters: str) -> WireClient:
            chosen = target.with_role(*role) if role else target
            if database:
                chosen = chosen.with_database(database)
            return stack.enter_context(WireClient.login(chosen, parameters=parameters))

        yield login


@pytest.fixture
def script(single_server: RustyServer) -> Callable[..., None]:
    """Statements in a session of their own, which is over (and its pins with it) when this returns."""
    return lambda *statements: run_script(single_server.target, *statements)


@pytest.fixture
def script_pair(pair_server: RustyServer) -> Callable[..., None]:
    """The same on the server with two backends."""
    return lambda *statements: run_script(pair_server.target, *statements)


def run_script(target: Target, *statements: str) -> None:
    with WireClient.login(target) as client:
        for statement in statements:
            client.simple(statement)
        client.simple("DISCARD ALL")
