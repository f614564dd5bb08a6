"""The queue of expected replies: what reaches the client, what is ours, and what an error drops."""

from __future__ import annotations

import pytest

from protocol import scan
from protocol.errors import PgError
from protocol.expectations import Action, Expected, HiddenReplies, MixedReplies, Reply, decode_row


def message(kind: bytes, body: bytes = b"") -> bytes:
    return scan.message(kind, body)


PARSED, BOUND, CLOSED, NO_DATA, READY = (message(kind, b"") for kind in (b"1", b"2", b"3", b"n", b"Z"))
COMPLETE = message(b"C", b"SELECT 1\0")
EMPTY, SUSPENDED, NOTICE = message(b"I"), message(b"s"), message(b"N", b"\0")
DESCRIBED, PARAMETERS, ROW = message(b"T", b"\0\0"), message(b"t", b"\0\0"), message(b"D", b"\0\0")
COPY_IN, COPY_OUT, COPY_DONE = message(b"G", b"\0\0\0"), message(b"H", b"\0\0\0"), message(b"c")
ERROR = PgError("22012", "division by zero").to_error_response()
OWN = PgError("42501", "ours").to_error_response()


def plan(*expected: Expected) -> MixedReplies:
    replies = MixedReplies()
    for one in expected:
        replies.push(one)
    return replies


def feed(replies: MixedReplies, *messages: bytes) -> list[bytes]:
    """What goes to the client for each message, our own answers behind it."""
    return [replies.receive(raw[0], raw) + replies.local_answers() for raw in messages]


@pytest.mark.parametrize(
    ("reply", "messages"),
    [
        (Reply.PARSE, [PARSED]),
        (Reply.BIND, [BOUND]),
        (Reply.CLOSE, [CLOSED]),
        (Reply.DESCRIBE, [NO_DATA]),
        (Reply.DESCRIBE, [PARAMETERS, DESCRIBED]),
        (Reply.DESCRIBE, [PARAMETERS, NO_DATA]),
        (Reply.EXECUTE, [ROW, ROW, COMPLETE]),
        (Reply.EXECUTE, [ROW, SUSPENDED]),
        (Reply.EXECUTE, [EMPTY]),
        (Reply.EXECUTE, [COPY_OUT, COPY_DONE, COMPLETE]),
        (Reply.FUNCTION_CALL, [message(b"V", b"\0\0\0\0")]),
        (Reply.QUERY, [DESCRIBED, ROW, COMPLETE, COMPLETE, READY]),
        (Reply.SYNC, [READY]),
    ],
)
@pytest.mark.parametrize("action", Action)
def test_an_answer_ends_its_request_and_no_other(reply: Reply, messages: list[bytes], action: Action) -> None:
    told: list[bytes] = []
    replies = plan(Expected(reply, action, on_answer=told.append), Expected(Reply.LOCAL, bytes_=b"next"))
    out = feed(replies, *messages)
    assert not replies.queue
    assert told[-1] == messages[-1]
    shown = b"".join(messages) if action is Action.FORWARD else b""
    assert b"".join(out) == shown + b"next"


def test_what_was_injected_is_hidden_between_the_clients_own() -> None:
    replies = plan(
        Expected(Reply.PARSE, Action.IGNORE), Expected(Reply.BIND), Expected(Reply.EXECUTE),
        Expected(Reply.LOCAL, bytes_=CLOSED), Expected(Reply.SYNC),
    )  # fmt: skip
    assert feed(replies, PARSED, BOUND, ROW, COMPLETE, READY) == [b"", BOUND, ROW, COMPLETE + CLOSED, READY]


def test_answers_of_ours_at_the_head_are_due_at_once_and_together() -> None:
    replies = plan(*(Expected(Reply.LOCAL, bytes_=one) for one in (b"a", b"b")), Expected(Reply.SYNC))
    assert replies.local_answers() == b"ab"
    assert replies.local_answers() == b""
    assert feed(replies, READY) == [READY]


@pytest.mark.parametrize("asynchronous", [NOTICE, message(b"A", b"\0\0\0\1c\0\0"), message(b"S", b"a\0b\0")])
def test_asynchronous_messages_pass_and_end_nothing(asynchronous: bytes) -> None:
    replies = plan(Expected(Reply.PARSE, Action.IGNORE), Expected(Reply.SYNC))
    assert feed(replies, asynchronous, PARSED, asynchronous) == [asynchronous, b"", asynchronous]
    assert len(replies.queue) == 1


def test_an_error_drops_everything_up_to_the_sync_and_says_so() -> None:
    told: list[tuple[str, bytes]] = []
    replies = plan(
        Expected(Reply.PARSE, on_answer=lambda raw: told.append(("parse", raw))),
        Expected(Reply.BIND, on_answer=lambda raw: told.append(("bind", raw))),
        Expected(Reply.LOCAL, bytes_=b"never", on_answer=lambda raw: told.append(("local", raw))),
        Expected(Reply.SYNC),
        Expected(Reply.LOCAL, bytes_=b"after"),
    )
    assert feed(replies, PARSED, ERROR, READY) == [PARSED, ERROR, READY + b"after"]
    assert told == [("parse", PARSED), ("bind", b""), ("local", b"")]


def test_an_error_of_ours_takes_the_place_of_the_engines() -> None:
    replies = plan(Expected(Reply.BIND), Expected(Reply.PARSE, error=OWN), Expected(Reply.SYNC))
    assert feed(replies, BOUND, ERROR, READY) == [BOUND, OWN, READY]
    replies = plan(Expected(Reply.BIND), Expected(Reply.PARSE, error=OWN), Expected(Reply.SYNC))
    assert feed(replies, ERROR, READY) == [ERROR, READY]  # it failed before ours


def test_what_comes_behind_an_error_without_a_sync_is_not_expected() -> None:
    told: list[bytes] = []
    replies = plan(Expected(Reply.PARSE))
    assert feed(replies, ERROR) == [ERROR]
    assert replies.failed
    replies.push(Expected(Reply.EXECUTE, on_answer=told.append))
    replies.push(Expected(Reply.LOCAL, bytes_=b"never"))
    replies.push(Expected(Reply.SYNC))
    assert told == [b""]
    assert feed(replies, READY) == [READY]
    assert not replies.failed


def test_a_simple_query_in_a_pipeline_ends_with_its_own_ready_for_query() -> None:
    replies = plan(Expected(Reply.EXECUTE), Expected(Reply.QUERY), Expected(Reply.EXECUTE), Expected(Reply.SYNC))
    assert feed(replies, COMPLETE, ERROR, READY) == [COMPLETE, ERROR, READY]
    assert [one.reply for one in replies.queue] == [Reply.EXECUTE, Reply.SYNC]


def test_a_sync_behind_copy_in_is_not_answered() -> None:
    replies = plan(Expected(Reply.EXECUTE), Expected(Reply.SYNC))
    assert feed(replies, COPY_IN) == [COPY_IN]
    replies.push(Expected(Reply.SYNC))
    assert feed(replies, COMPLETE, READY) == [COMPLETE, READY]
    assert not replies.queue


def test_hidden_replies_keep_rows_and_the_first_error() -> None:
    done: list[HiddenReplies] = []
    hidden = HiddenReplies(done.append)
    hidden.receive(ord("D"), b"\0\2\0\0\0\1a\xff\xff\xff\xff")
    hidden.receive(ord("C"), b"SELECT 1\0")
    for text in ("first", "second"):
        hidden.receive(ord("E"), PgError("42P01", text).to_error_response()[5:])
    assert hidden.rows == [[b"a", None]]
    assert hidden.error is not None
    assert hidden.error.message == "first"


@pytest.mark.parametrize("values", [[], [None], [b""], [b"a", None, b"", b"\0" * 300]])
def test_rows_are_decoded(values: list[bytes | None]) -> None:
    body = len(values).to_bytes(2, "big")
    for value in values:
        body += b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value
    assert decode_row(body) == values
