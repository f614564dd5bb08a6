"""Replication connections: the engine's own walsender behind our login."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.integration.sessions.conftest import Login
from tests.support.wire_client import WireClient, WireError, query

pytestmark = pytest.mark.integration
ROLE = ("streamer", "streamer-password")


@pytest.fixture
def streamer(login: Login, script: Callable[..., None]) -> Login:
    script("DROP ROLE IF EXISTS streamer", "CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'streamer-password'")
    return login


def test_logical_changes_are_streamed_while_the_only_backend_is_used(
    streamer: Login, script: Callable[..., None]
) -> None:
    script("DROP TABLE IF EXISTS streamed", "CREATE TABLE streamed (x int)")
    replica = streamer(role=ROLE, replication="database")
    assert replica.simple("IDENTIFY_SYSTEM")[0][3] == "postgres"
    replica.simple("CREATE_REPLICATION_SLOT mine TEMPORARY LOGICAL test_decoding")
    replica.send(query("START_REPLICATION SLOT mine LOGICAL 0/0"))
    replica.recv_until("W")
    writer = streamer()
    writer.simple("INSERT INTO streamed VALUES (42)")
    text = b""
    while b"COMMIT" not in text:
        text += replica.recv().body
    assert b"streamed: INSERT: x[integer]:42" in text
    replica.abort()
    deadline = time.monotonic() + 5
    while writer.value("SELECT count(*) FROM pg_replication_slots") != "0" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert writer.value("SELECT count(*) FROM pg_replication_slots") == "0"


def test_physical_replication_takes_no_sql(streamer: Login) -> None:
    replica = streamer(role=ROLE, replication="true")
    assert replica.simple("IDENTIFY_SYSTEM")[0][3] is None
    with pytest.raises(WireError, match="0A000"):
        replica.simple("SELECT 1")


def test_a_walsender_can_be_cancelled_by_its_client_alone(streamer: Login) -> None:
    replica = streamer(role=ROLE, replication="database")
    replica.send(query("SELECT pg_sleep(20)"))
    time.sleep(0.1)
    with WireClient(*replica.address) as other:
        other.pid, other.secret = replica.pid, bytes(4)
        other.cancel()
    time.sleep(0.1)
    began = time.monotonic()
    replica.cancel()
    assert replica.recv_match("T", "E", "Z")[1].fields["C"] == "57014"
    assert time.monotonic() - began < 5


def test_a_role_without_the_right_does_not_stream(login: Login, script: Callable[..., None]) -> None:
    script("DROP ROLE IF EXISTS plain_role", "CREATE ROLE plain_role LOGIN PASSWORD 'plain-password'")
    with pytest.raises(WireError, match="42501|28000"):
        login(role=("plain_role", "plain-password"), replication="database")
    assert login().value("SELECT 1") == "1"
