"""Both ends joined: whole conversations, pipelining, encryption requests, and what must be refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.auth_messages import (
    AuthenticationCleartextPassword,
    AuthenticationOk,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
    PasswordMessage,
    SASLInitialResponse,
    SASLResponse,
)
from protocol.backend_messages import (
    BackendKeyData,
    BindComplete,
    CommandComplete,
    DataRow,
    ErrorResponse,
    NotificationResponse,
    ParameterStatus,
    ParseComplete,
    ReadyForQuery,
    RowDescription,
)
from protocol.codes import EncryptionAnswer, TxStatus
from protocol.connection import CONNECTION_CLOSED, NEED_DATA, PAUSED, Connection, ProtocolEvent, Role
from protocol.copy_messages import CopyData, CopyDone, CopyFail, CopyInResponse, CopyOutResponse
from protocol.errors import LocalProtocolError, PgError, RemoteProtocolError
from protocol.frontend_messages import Bind, Execute, Flush, Parse, Query, Sync, Terminate
from protocol.message import Message
from protocol.scram import ScramClient, ScramServer, ScramVerifier
from protocol.session_machine import State
from protocol.startup import GssEncRequest, SslRequest, StartupMessage

ERROR = ErrorResponse(PgError("22012", "division by zero").to_fields())


class Pair:
    """A client and a server whose bytes reach each other `step` at a time."""

    def __init__(self, step: int = 1 << 20) -> None:
        self.client, self.server = Connection(Role.CLIENT), Connection(Role.SERVER)
        self.step = step

    def to_server(self, *messages: Message) -> None:
        self._move(self.client.send(*messages), self.server)

    def to_client(self, *messages: Message) -> None:
        self._move(self.server.send(*messages), self.client)

    def _move(self, raw: bytes, target: Connection) -> None:
        for at in range(0, len(raw), self.step):
            target.receive_data(raw[at : at + self.step])


def events(connection: Connection) -> Iterator[ProtocolEvent]:
    while isinstance(event := connection.next_event(), Message):
        yield event


def logged_in() -> Pair:
    pair = Pair()
    pair.to_server(StartupMessage(3, 2, {"user": "joe"}))
    list(events(pair.server))
    pair.to_client(AuthenticationOk(), ParameterStatus("a", "b"), BackendKeyData(1, b"k" * 32), ReadyForQuery())
    list(events(pair.client))
    return pair


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_login_with_scram(step: int) -> None:
    pair = Pair(step)
    server = ScramServer(ScramVerifier.build("secret", 16), channel_binding=None)
    client = ScramClient(password="secret")
    pair.to_server(StartupMessage(3, 2, {"user": "joe"}))
    assert list(events(pair.server)) == [StartupMessage(3, 2, {"user": "joe"})]
    pair.to_client(AuthenticationSASL(tuple(server.mechanisms())))
    (offer,) = events(pair.client)
    assert isinstance(offer, AuthenticationSASL)
    pair.to_server(SASLInitialResponse(*client.first(offer.mechanisms)))
    (initial,) = events(pair.server)
    assert isinstance(initial, SASLInitialResponse)
    pair.to_client(AuthenticationSASLContinue(server.first(initial.mechanism, initial.data)))
    (challenge,) = events(pair.client)
    assert isinstance(challenge, AuthenticationSASLContinue)
    pair.to_server(SASLResponse(client.respond(challenge.data)))
    (response,) = events(pair.server)
    assert isinstance(response, SASLResponse)
    pair.to_client(AuthenticationSASLFinal(server.final(response.data)), AuthenticationOk(), ReadyForQuery())
    final, *_ = events(pair.client)
    assert isinstance(final, AuthenticationSASLFinal)
    client.verify(final.data)
    assert (pair.client.state, pair.server.state) == (State.IDLE, State.IDLE)


def test_server_takes_one_message_at_a_time() -> None:
    pair = logged_in()
    pair.to_server(Query("select 1"), Query("select 2"))
    assert pair.server.next_event() == Query("select 1")
    assert pair.server.next_event() is PAUSED
    pair.to_client(CommandComplete("SELECT 0"), ReadyForQuery())
    assert pair.server.next_event() == Query("select 2")
    assert pair.server.next_event() is PAUSED


def test_pipeline_of_a_client_is_followed_reply_by_reply() -> None:
    pair = logged_in()
    batch = (Parse("", "select 1"), Bind("", ""), Execute(), Sync())
    pair.to_server(*batch, *batch)
    for status in (TxStatus.IDLE, TxStatus.IN_TRANSACTION):
        pair.server.next_event()
        pair.to_client(ParseComplete())
        pair.server.next_event()
        pair.to_client(BindComplete())
        pair.server.next_event()
        pair.to_client(DataRow((b"1",)), CommandComplete("SELECT 1"))
        pair.server.next_event()
        pair.to_client(ReadyForQuery(status))
    assert len(list(events(pair.client))) == 10
    assert pair.client.tx_status is TxStatus.IN_TRANSACTION
    assert pair.client.state is State.IDLE


def test_reply_out_of_order_is_refused_by_the_client() -> None:
    pair = logged_in()
    pair.client.send(Parse("", "select 1"), Bind("", ""), Sync())
    pair.client.receive_data(BindComplete().encode())
    with pytest.raises(RemoteProtocolError, match="unexpected BindComplete from the server in state parsing"):
        pair.client.next_event()


def test_error_in_a_pipeline_skips_to_its_sync_and_no_further() -> None:
    pair = logged_in()
    pair.to_server(Parse("", "x"), Bind("", ""), Execute(), Sync(), Query("select 2"))
    pair.server.next_event()
    pair.to_client(ERROR)
    skipped = [pair.server.next_event() for _ in range(3)]
    assert skipped == [Bind("", ""), Execute(), Sync()]
    pair.to_client(ReadyForQuery())
    assert pair.server.next_event() == Query("select 2")
    pair.to_client(CommandComplete("SELECT 0"), ReadyForQuery())
    assert len(list(events(pair.client))) == 4
    assert pair.client.state is State.IDLE


def test_asynchronous_messages_may_come_at_any_time() -> None:
    pair = logged_in()
    pair.to_client(NotificationResponse(1, "c"), ParameterStatus("TimeZone", "UTC"))
    assert len(list(events(pair.client))) == 2


@pytest.mark.parametrize("extended", [False, True])
def test_copy_in(extended: bool) -> None:
    pair = logged_in()
    if extended:
        pair.to_server(Parse("", "copy t from stdin"), Bind("", ""), Execute(), Flush())
        for reply in (ParseComplete(), BindComplete(), CopyInResponse(0, (0,))):
            pair.server.next_event()
            pair.to_client(reply)
    else:
        pair.to_server(Query("copy t from stdin"))
        pair.server.next_event()
        pair.to_client(CopyInResponse(0, (0,)))
    list(events(pair.client))
    pair.to_server(CopyData(b"1\n"), CopyDone(), *([Sync()] if extended else []))
    received = [event for event in events(pair.server) if not isinstance(event, Flush)]
    assert received == [CopyData(b"1\n"), CopyDone()]
    pair.to_client(CommandComplete("COPY 1"))
    if extended:
        assert list(events(pair.server)) == [Sync()]
    pair.to_client(ReadyForQuery())
    list(events(pair.client))
    assert pair.client.state is State.IDLE


def test_copy_in_that_the_client_gives_up() -> None:
    pair = logged_in()
    pair.to_server(Query("copy t from stdin"))
    pair.server.next_event()
    pair.to_client(CopyInResponse(0))
    list(events(pair.client))
    pair.to_server(CopyFail("no"))
    assert list(events(pair.server)) == [CopyFail("no")]
    pair.to_client(ERROR, ReadyForQuery())
    list(events(pair.client))
    assert pair.client.state is State.IDLE


def test_copy_in_that_fails_early_leaves_both_ends_in_step() -> None:
    pair = logged_in()
    pair.to_server(Query("copy t from stdin"))
    pair.server.next_event()
    pair.to_client(CopyInResponse(0), ERROR, ReadyForQuery())
    pair.to_server(CopyData(b"late"), CopyDone(), Query("select 1"))
    list(events(pair.client))
    assert list(events(pair.server))[-1] == Query("select 1")


def test_sync_sent_during_copy_that_fails_may_be_answered() -> None:
    pair = logged_in()
    pair.client.send(Parse("", "copy t from stdin"), Bind("", ""), Execute(), Sync())
    replies = (ParseComplete(), BindComplete(), CopyInResponse(0), ERROR, ReadyForQuery())
    pair.client.receive_data(b"".join(reply.encode() for reply in replies))
    assert list(events(pair.client)) == list(replies)
    assert pair.client.state is State.IDLE


def test_query_sent_ahead_into_a_copy_ends_with_the_servers_error() -> None:
    pair = logged_in()
    pair.client.send(Query("copy t from stdin"), Query("select 1"))
    fatal = ErrorResponse(PgError("08P01", "protocol synchronization was lost", severity="FATAL").to_fields())
    replies = (CopyInResponse(0), ERROR, fatal)
    pair.client.receive_data(b"".join(reply.encode() for reply in replies))
    assert list(events(pair.client)) == list(replies)
    assert pair.client.state is State.CLOSED


def test_copy_out() -> None:
    pair = logged_in()
    pair.to_server(Query("copy t to stdout"))
    pair.server.next_event()
    sent = (CopyOutResponse(0, (0,)), CopyData(b"1\n"), CopyDone(), CommandComplete("COPY 1"), ReadyForQuery())
    pair.to_client(*sent)
    assert tuple(events(pair.client)) == sent


def test_simple_query_with_several_results() -> None:
    pair = logged_in()
    pair.to_server(Query("select 1; select 2"))
    pair.server.next_event()
    result = (RowDescription(()), DataRow(()), CommandComplete("SELECT 1"))
    pair.to_client(*result, *result, ReadyForQuery())
    assert len(list(events(pair.client))) == 7


def test_terminate_closes_both_ends() -> None:
    pair = logged_in()
    pair.to_server(Terminate())
    assert pair.server.next_event() == Terminate()
    assert pair.server.next_event() is CONNECTION_CLOSED
    assert pair.client.next_event() is CONNECTION_CLOSED
    with pytest.raises(LocalProtocolError):
        pair.client.send(Query("select 1"))


def test_message_that_cannot_be_encoded_was_not_sent() -> None:
    pair = logged_in()
    with pytest.raises(LocalProtocolError):
        pair.client.send(Query("a\0b"))
    assert pair.client.state is State.IDLE


def test_answer_that_was_not_asked_for_is_refused_locally() -> None:
    pair = logged_in()
    with pytest.raises(LocalProtocolError):
        pair.server.send(DataRow(()))
    with pytest.raises(LocalProtocolError):
        pair.server.answer_encryption(accept=False)


@pytest.mark.parametrize(("request_", "accepted"), [(SslRequest(), b"S"), (GssEncRequest(), b"G")])
def test_encryption_is_answered_with_one_byte(request_: Message, accepted: bytes) -> None:
    for accept, answer in ((True, accepted), (False, b"N")):
        pair = Pair()
        pair.to_server(request_)
        assert pair.server.next_event() == request_
        assert pair.server.next_event() is PAUSED
        assert pair.client.next_event() is NEED_DATA
        raw = pair.server.answer_encryption(accept)
        assert raw == answer
        pair.client.receive_data(raw)
        assert pair.client.next_event() == EncryptionAnswer(answer[0])
        pair.to_server(StartupMessage(3, 0, {"user": "joe"}))
        assert isinstance(pair.server.next_event(), StartupMessage)


def test_bytes_sent_before_tls_is_up_are_refused_by_the_server() -> None:
    server = Connection(Role.SERVER)
    server.receive_data(SslRequest().encode() + StartupMessage(3, 0, {"user": "joe"}).encode())
    assert server.next_event() == SslRequest()
    with pytest.raises(RemoteProtocolError, match="received unencrypted data after SSL request"):
        server.answer_encryption(accept=True)


def test_client_may_go_on_in_clear_where_tls_is_refused() -> None:
    server = Connection(Role.SERVER)
    server.receive_data(SslRequest().encode() + StartupMessage(3, 0, {"user": "joe"}).encode())
    server.next_event()
    server.answer_encryption(accept=False)
    assert isinstance(server.next_event(), StartupMessage)


def test_bytes_behind_the_answer_to_tls_are_refused_by_the_client() -> None:
    client = Connection(Role.CLIENT)
    client.send(SslRequest())
    client.receive_data(b"SZ\0\0\0\x05I")
    with pytest.raises(RemoteProtocolError, match="received unencrypted data after SSL response"):
        client.next_event()


def test_nonsense_as_answer_to_tls_is_refused() -> None:
    client = Connection(Role.CLIENT)
    client.send(SslRequest())
    client.receive_data(b"H")
    with pytest.raises(RemoteProtocolError, match="invalid response to SSL"):
        client.next_event()


def test_old_server_answers_tls_with_an_error() -> None:
    client = Connection(Role.CLIENT)
    client.send(SslRequest())
    client.receive_data(ERROR.encode())
    assert client.next_event() == ERROR
    assert client.state is State.CLOSED


def test_startup_may_not_be_sent_before_tls_is_answered() -> None:
    client = Connection(Role.CLIENT)
    client.send(SslRequest())
    with pytest.raises(LocalProtocolError):
        client.send(StartupMessage(3, 0, {"user": "joe"}))


def test_password_is_not_sent_unasked() -> None:
    client = Connection(Role.CLIENT)
    client.send(StartupMessage(3, 0, {"user": "joe"}))
    with pytest.raises(LocalProtocolError):
        client.send(PasswordMessage("secret"))


def test_query_instead_of_a_password_is_refused() -> None:
    pair = Pair()
    pair.to_server(StartupMessage(3, 0, {"user": "joe"}))
    pair.server.next_event()
    pair.to_client(AuthenticationCleartextPassword())
    pair.server.receive_data(Query("select 1").encode())
    with pytest.raises(RemoteProtocolError, match="expected password response, got message type 81"):
        pair.server.next_event()


def test_end_between_messages_is_a_close_and_within_one_an_error() -> None:
    server = logged_in().server
    server.receive_data(b"")
    assert server.next_event() is CONNECTION_CLOSED
    server = logged_in().server
    server.receive_data(Query("select 1").encode()[:-1])
    server.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match="unexpected end"):
        server.next_event()
    with pytest.raises(LocalProtocolError):
        server.receive_data(b"x")


def test_rest_can_be_handed_over() -> None:
    pair = logged_in()
    raw = Query("select 1").encode()
    pair.server.receive_data(raw)
    assert pair.server.take_rest() == raw
    assert pair.server.buffered == 0


def test_message_beyond_the_configured_length_is_refused_at_its_header() -> None:
    server = Connection(Role.SERVER, max_message_length=100)
    server.receive_data(StartupMessage(3, 0, {"user": "joe"}).encode())
    server.next_event()
    server.send(AuthenticationOk(), ReadyForQuery())
    server.receive_data(b"Q\0\0\0\x65")
    with pytest.raises(RemoteProtocolError, match="invalid message length"):
        server.next_event()
