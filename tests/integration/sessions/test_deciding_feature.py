"""Hooks and events on the query path, as clients see them: denied, answered and rewritten, in every protocol form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rustydb_process import RustyServer
from tests.support.wire_client import Message, WireClient, bind, describe, execute, flush, parse, query, sync

pytestmark = pytest.mark.integration
LATER = pytest.mark.parametrize("later", ["", "/*later*/"])


@pytest.fixture(scope="module")
def server() -> Iterator[RustyServer]:
    """One backend and the feature of this folder."""
    settings = {
        "POOL__DEFAULT_POOL_SIZE": "1",
        "POOL__MAX_BACKENDS": "1",
        "FEATURES__ENABLED": "tests.integration.sessions.deciding_feature:Deciding",
    }
    running = RustyServer(settings).start()
    yield running
    running.close()


@pytest.fixture
def client(server: RustyServer) -> Iterator[WireClient]:
    with WireClient.login(server.target) as one:
        yield one


def kinds(messages: list[Message]) -> str:
    return "".join(found.kind for found in messages if found.kind not in "NS")


def values(messages: list[Message]) -> list[bytes | None]:
    return [found.values[0] for found in messages if found.kind == "D"]


@LATER
def test_simple_statements_are_denied_answered_and_rewritten(client: WireClient, later: str) -> None:
    client.send(query(f"SELECT 1 /*deny*/{later}"))
    replies = client.recv_until("Z")
    assert (kinds(replies), replies[0].fields["C"]) == ("EZ", "42501")
    client.send(query(f"SELECT 1 /*answer*/{later}"))
    replies = client.recv_until("Z")
    assert (kinds(replies), values(replies)) == ("TDCZ", [b"answered"])
    client.send(query(f"SELECT 1 /*rewrite*/{later}"))
    replies = client.recv_until("Z")
    assert (kinds(replies), values(replies)) == ("TDCZ", [b"rewritten"])
    assert client.value("SELECT 'plain'") == "plain"


@LATER
def test_a_denial_fails_the_transaction(client: WireClient, later: str) -> None:
    client.simple("BEGIN")
    client.send(query(f"SELECT 1 /*deny*/{later}"))
    assert kinds(client.recv_until("Z")) == "EZ"
    assert client.status == "E"
    client.simple("ROLLBACK")
    client.simple("BEGIN")
    client.send(parse(f"SELECT 1 /*deny*/{later}"), bind(), execute(), sync())
    assert kinds(client.recv_until("Z")) == "12EZ"
    assert client.status == "E"
    client.simple("ROLLBACK")


@LATER
def test_answers_take_their_place_in_a_pipeline(client: WireClient, later: str) -> None:
    for text in ("SELECT 'a'", f"SELECT 'b' /*answer*/{later}", "SELECT 'c'"):
        client.send(parse(text), bind(), execute())
    client.send(sync())
    replies = client.recv_until("Z")
    assert kinds(replies) == "12DC12DC12DCZ"
    assert values(replies) == [b"a", b"answered", b"c"]


@LATER
def test_a_denial_skips_the_rest_of_a_pipeline(client: WireClient, later: str) -> None:
    client.simple("CREATE TEMP TABLE written (x int)")
    client.send(parse("INSERT INTO written VALUES (1)"), bind(), execute())
    client.send(parse(f"SELECT 'b' /*deny*/{later}"), bind(), execute())
    client.send(parse("INSERT INTO written VALUES (2)"), bind(), execute(), sync())
    assert kinds(client.recv_until("Z")) == "12C12EZ"
    assert client.value("SELECT count(*) FROM written") == "0"


def test_a_described_answer_and_a_flush(client: WireClient) -> None:
    client.send(parse("SELECT 'b'::text AS what /*answer*/"), bind(), describe("P"), execute(), flush())
    replies = client.recv_until("C")
    assert (kinds(replies), values(replies)) == ("12TDC", [b"answered"])
    client.send(sync())
    assert kinds(client.recv_until("Z")) == "Z"


def test_a_pipeline_in_pieces_is_judged_piece_by_piece(client: WireClient) -> None:
    client.send(parse("SELECT 'a' /*later*/"))
    client.send(bind())
    client.send(execute())
    client.send(parse("SELECT 'b' /*answer*/"), bind(), execute())
    client.send(sync())
    replies = client.recv_until("Z")
    assert (kinds(replies), values(replies)) == ("12DC12DCZ", [b"a", b"answered"])


def test_a_query_behind_an_open_pipeline_is_judged_too(client: WireClient) -> None:
    client.send(parse("SELECT 'a'"), bind(), execute(), query("SELECT 'b' /*deny*/"))
    replies = client.recv_until("Z")
    assert (kinds(replies), replies[-2].fields["C"]) == ("12DCEZ", "42501")
    client.send(parse("SELECT 'a'"), bind(), execute(), query("SELECT 'b' /*answer*/"))
    replies = client.recv_until("Z")
    assert (kinds(replies), replies[-2].fields["C"]) == ("12DCEZ", "0A000")
    assert client.value("SELECT 'after'") == "after"


def test_a_rewritten_prepared_statement_is_refused(client: WireClient) -> None:
    client.send(parse("SELECT 1 /*rewrite*/"), bind(), execute(), sync())
    assert client.recv_match("1", "2", "E", "Z")[2].fields["C"] == "0A000"


def test_every_execution_ends_in_one_event(client: WireClient) -> None:
    texts = [f"SELECT {number} AS counted" for number in range(3)]
    client.simple(texts[0])
    for text in (texts[0], texts[1]):
        client.send(parse(text), bind(), execute())
    client.send(parse("SELECT 1/0 AS counted"), bind(), execute(), parse(texts[2]), bind(), execute(), sync())
    client.recv_until("Z")
    client.send(query("SELECT 9 AS counted /*deny*/"))
    client.recv_until("Z")
    client.send(parse("SELECT 9 AS counted /*deny*/"), bind(), execute(), sync())
    client.recv_until("Z")
    found = {(row[0], row[1]): row[2] for row in client.simple("SHOW ENDINGS") if row[0] and "counted" in row[0]}
    assert found == {
        (texts[0], "OK"): "2",
        (texts[1], "OK"): "1",
        ("SELECT 1/0 AS counted", "ERROR"): "1",
        (texts[2], "CANCELLED"): "1",
        ("SELECT 9 AS counted /*deny*/", "DENIED"): "2",
    }


@pytest.mark.parametrize(
    "command", ["SHOW ENDINGS", "SHOW POOLS", "LISTEN x", "SELECT lastval()", "SELECT pg_backend_pid()"]
)
def test_special_statements_pass_the_hooks_in_both_protocols(client: WireClient, command: str) -> None:
    client.simple("CREATE TEMP SEQUENCE one")
    client.simple("SELECT nextval('one')")
    client.send(query(command), parse(command), bind(), execute(), sync(), query("SELECT 5"))
    assert kinds(client.recv_until("Z"))[-2:] == "CZ"
    assert kinds(client.recv_until("Z"))[-2:] == "CZ"
    assert values(client.recv_until("Z")) == [b"5"]
