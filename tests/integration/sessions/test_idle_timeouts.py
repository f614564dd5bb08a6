"""Sessions that are idle for longer than their limit end, each with PostgreSQL's own code."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.rustydb_process import RustyServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def impatient() -> Iterator[RustyServer]:
    settings = {
        "SESSION__IDLE_TRANSACTION_TIMEOUT": "1s",
        "SESSION__PIN_TIMEOUT": "2s",
        "SERVER__CLIENT_IDLE_TIMEOUT": "4s",
    }
    server = RustyServer(settings)
    server.start()
    yield server
    server.close()


def ended_with(connection: psycopg.Connection[tuple[object, ...]], seconds: float) -> str | None:
    """The SQLSTATE that ends an idle session within that time."""
    time.sleep(seconds)
    with pytest.raises(psycopg.Error) as caught:
        connection.execute("SELECT 1")
    connection.close()
    return caught.value.sqlstate


def test_a_transaction_that_idles_is_ended_and_rolled_back(impatient: RustyServer) -> None:
    with psycopg.connect(impatient.target.dsn, autocommit=True) as setup:
        setup.execute("CREATE TABLE idled (a int)")
    connection = psycopg.connect(impatient.target.dsn)
    connection.execute("INSERT INTO idled VALUES (1)")
    assert ended_with(connection, 3) == "25P03"
    with psycopg.connect(impatient.target.dsn) as after:
        assert after.execute("SELECT count(*) FROM idled").fetchone() == (0,)


def test_a_session_that_keeps_a_backend_for_itself_is_ended(impatient: RustyServer) -> None:
    connection = psycopg.connect(impatient.target.dsn, autocommit=True)
    connection.execute("CREATE TEMP TABLE kept (a int)")
    assert ended_with(connection, 4) == "57P05"


def test_an_idle_session_is_ended_and_a_busy_one_is_not(impatient: RustyServer) -> None:
    idle = psycopg.connect(impatient.target.dsn, autocommit=True)
    busy = psycopg.connect(impatient.target.dsn, autocommit=True)
    assert busy.execute("SELECT pg_sleep(6)").fetchone() is not None
    assert ended_with(idle, 2) == "57P05"
    assert busy.execute("SELECT 1").fetchone() == (1,)
    busy.close()
