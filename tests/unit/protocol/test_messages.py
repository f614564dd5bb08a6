"""Every message as bytes and as an object, in both directions, and one byte short and one byte long."""

from __future__ import annotations

from random import Random

import pytest

from protocol import auth_messages as auth
from protocol import backend_messages as backend
from protocol import copy_messages as copy
from protocol import frontend_messages as frontend
from protocol import startup
from protocol.codes import Direction, FrontendCode, Phase, Target, TxStatus
from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.message import Message
from protocol.registry import ALL_MESSAGES, decode, length_limit, message_class

VECTORS: list[tuple[bytes, Message]] = [
    (b"\0\0\0\x08\x04\xd2\x16\x2f", startup.SslRequest()),
    (b"\0\0\0\x08\x04\xd2\x16\x30", startup.GssEncRequest()),
    (b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd", startup.CancelRequest(7, b"abcd")),
    (b"\0\0\x01\x0c\x04\xd2\x16\x2e\xff\xff\xff\xff" + b"k" * 256, startup.CancelRequest(-1, b"k" * 256)),
    (
        b"\0\0\0\x1a\0\x03\0\x02user\0joe\0_pq_.x\0\0\0",
        startup.StartupMessage(3, 2, {"user": "joe", "_pq_.x": ""}),
    ),
    (b"v\0\0\0\x11\0\x03\0\x02\0\0\0\x01_p.x\0", startup.NegotiateProtocolVersion(3 << 16 | 2, ("_p.x",))),
    (b"S\0\0\0\x08a\0b\0", startup.ParameterStatus("a", "b")),
    (b"R\0\0\0\x08\0\0\0\0", auth.AuthenticationOk()),
    (b"R\0\0\0\x08\0\0\0\x02", auth.AuthenticationKerberosV5()),
    (b"R\0\0\0\x08\0\0\0\x03", auth.AuthenticationCleartextPassword()),
    (b"R\0\0\0\x0c\0\0\0\x05salt", auth.AuthenticationMD5Password(b"salt")),
    (b"R\0\0\0\x08\0\0\0\x07", auth.AuthenticationGSS()),
    (b"R\0\0\0\x0a\0\0\0\x08ab", auth.AuthenticationGSSContinue(b"ab")),
    (b"R\0\0\0\x08\0\0\0\x09", auth.AuthenticationSSPI()),
    (b"R\0\0\0\x0d\0\0\0\x0aA\0B\0\0", auth.AuthenticationSASL(("A", "B"))),
    (b"R\0\0\0\x0b\0\0\0\x0br=1", auth.AuthenticationSASLContinue(b"r=1")),
    (b"R\0\0\0\x0b\0\0\0\x0cv=1", auth.AuthenticationSASLFinal(b"v=1")),
    (b"p\0\0\0\x07pw\0", auth.PasswordMessage("pw")),
    (b"p\0\0\0\x0dM\0\0\0\0\x03n,,", auth.SASLInitialResponse("M", b"n,,")),
    (b"p\0\0\0\x0aM\0\xff\xff\xff\xff", auth.SASLInitialResponse("M", None)),
    (b"p\0\0\0\x07c=b", auth.SASLResponse(b"c=b")),
    (b"p\0\0\0\x07tok", auth.GSSResponse(b"tok")),
    (b"Q\0\0\0\x0dselect 1\0", frontend.Query("select 1")),
    (b"P\0\0\0\x0fs\0$1\0\0\x01\0\0\0\x17", frontend.Parse("s", "$1", (23,))),
    (
        b"B\0\0\0\x1dp\0s\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x02\0\0\0\x01",
        frontend.Bind("p", "s", (1,), (b"x", None), (0, 1)),
    ),
    (b"D\0\0\0\x07Sx\0", frontend.Describe(Target.STATEMENT, "x")),
    (b"E\0\0\0\x0ap\0\0\0\0\x05", frontend.Execute("p", 5)),
    (b"C\0\0\0\x06P\0", frontend.Close(Target.PORTAL)),
    (b"H\0\0\0\x04", frontend.Flush()),
    (b"S\0\0\0\x04", frontend.Sync()),
    (b"F\0\0\0\x13\0\0\0\x2a\0\0\0\x01\0\0\0\x01y\0\x01", frontend.FunctionCall(42, (), (b"y",), 1)),
    (b"X\0\0\0\x04", frontend.Terminate()),
    (
        b"T\0\0\0\x1a\0\x01a\0\0\0\0\x09\xff\xff\0\0\0\x17\0\x04\xff\xff\xff\xff\0\x01",
        backend.RowDescription((backend.FieldDescription("a", 9, -1, 23, 4, -1, 1),)),
    ),
    (b"D\0\0\0\x0f\0\x02\xff\xff\xff\xff\0\0\0\x01z", backend.DataRow((None, b"z"))),
    (b"C\0\0\0\x0dSELECT 1\0", backend.CommandComplete("SELECT 1")),
    (b"I\0\0\0\x04", backend.EmptyQueryResponse()),
    (b"Z\0\0\0\x05T", backend.ReadyForQuery(TxStatus.IN_TRANSACTION)),
    (b"K\0\0\0\x0c\0\0\0\x01abcd", backend.BackendKeyData(1, b"abcd")),
    (b"E\0\0\0\x13SERROR\0C42601\0\0", backend.ErrorResponse((("S", "ERROR"), ("C", "42601")))),
    (b"N\0\0\0\x05\0", backend.NoticeResponse(())),
    (b"A\0\0\0\x0c\0\0\0\x05c\0p\0", backend.NotificationResponse(5, "c", "p")),
    (b"1\0\0\0\x04", backend.ParseComplete()),
    (b"2\0\0\0\x04", backend.BindComplete()),
    (b"3\0\0\0\x04", backend.CloseComplete()),
    (b"n\0\0\0\x04", backend.NoData()),
    (b"s\0\0\0\x04", backend.PortalSuspended()),
    (b"t\0\0\0\x0a\0\x01\0\0\0\x19", backend.ParameterDescription((25,))),
    (b"V\0\0\0\x09\0\0\0\x01q", backend.FunctionCallResponse(b"q")),
    (b"V\0\0\0\x08\xff\xff\xff\xff", backend.FunctionCallResponse(None)),
    (b"G\0\0\0\x09\0\0\x01\0\0", copy.CopyInResponse(0, (0,))),
    (b"H\0\0\0\x07\x01\0\0", copy.CopyOutResponse(1, ())),
    (b"W\0\0\0\x07\0\0\0", copy.CopyBothResponse(0, ())),
    (b"d\0\0\0\x06ab", copy.CopyData(b"ab")),
    (b"c\0\0\0\x04", copy.CopyDone()),
    (b"f\0\0\0\x06x\0", copy.CopyFail("x")),
]


def split(raw: bytes, message: Message) -> bytes:
    """The body of a message whose length field is right."""
    start = 0 if message.code is None else 1
    assert int.from_bytes(raw[start : start + 4], "big") == len(raw) - start
    return raw[start + 4 :]


@pytest.mark.parametrize(("raw", "message"), VECTORS, ids=lambda value: type(value).__name__)
def test_message_is_these_bytes_in_both_directions(raw: bytes, message: Message) -> None:
    assert message.encode() == raw
    assert type(message).decode(split(raw, message)) == message
    assert type(message).decode(memoryview(split(raw, message))) == message


def test_every_message_has_a_vector() -> None:
    assert {type(message) for _, message in VECTORS} == set(ALL_MESSAGES)


_OPEN_ENDED = (
    auth.AuthenticationGSSContinue,
    auth.AuthenticationSASLContinue,
    auth.AuthenticationSASLFinal,
    auth.SASLResponse,
    auth.GSSResponse,
    copy.CopyData,
)


@pytest.mark.parametrize("message", [message for _, message in VECTORS], ids=lambda value: type(value).__name__)
def test_one_byte_short_or_long_is_a_protocol_error(message: Message) -> None:
    body = split(message.encode(), message)
    if isinstance(message, _OPEN_ENDED):
        return  # any number of bytes is legal
    if body and not isinstance(message, startup.CancelRequest | backend.BackendKeyData):
        with pytest.raises(RemoteProtocolError):
            type(message).decode(body[:-1])
    with pytest.raises(RemoteProtocolError):
        type(message).decode(body + b"\0" * 300)


@pytest.mark.parametrize("kind", ALL_MESSAGES, ids=lambda kind: kind.__name__)
def test_every_sample_survives_encode_and_decode(kind: type[Message]) -> None:
    rng = Random(7)
    for _ in range(30):
        message = kind.sample(rng)
        assert kind.decode(split(message.encode(), message)) == message


def test_text_in_any_client_encoding_survives() -> None:
    body = b"select 'h\xe4'\0"  # LATIN1
    query = frontend.Query.decode(body)
    assert query.query == "select 'h\udce4'"
    assert split(query.encode(), query) == body


@pytest.mark.parametrize("count", [0, 3, 257])
def test_cancel_key_has_4_to_256_bytes(count: int) -> None:
    with pytest.raises(LocalProtocolError):
        backend.BackendKeyData(1, b"x" * count).encode()
    with pytest.raises(RemoteProtocolError):
        startup.CancelRequest.decode(b"\x04\xd2\x16\x2e\0\0\0\x01" + b"x" * count)


@pytest.mark.parametrize(
    "message",
    [
        frontend.Query("a\0b"),
        frontend.Query("\ud800"),
        frontend.Execute("p", 1 << 31),
        backend.NotificationResponse(-(1 << 31) - 1, "c"),
        startup.StartupMessage(3, 0, {"": "x"}),
        auth.AuthenticationSASL(("",)),
        frontend.Bind("", "", parameters=(None,) * 65_536),
        copy.CopyInResponse(256),
    ],
)
def test_what_the_wire_cannot_say_is_a_local_error(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        message.encode()


def test_count_is_checked_before_anything_is_made_of_it() -> None:
    for body in (b"\xff\xff", b"\xff\xff" + b"\0" * 100):
        with pytest.raises(RemoteProtocolError, match="insufficient data"):
            backend.RowDescription.decode(body)
    with pytest.raises(RemoteProtocolError, match="insufficient data"):
        startup.NegotiateProtocolVersion.decode(b"\0\x03\0\0\x7f\xff\xff\xff")
    with pytest.raises(RemoteProtocolError, match="insufficient data"):
        startup.NegotiateProtocolVersion.decode(b"\0\x03\0\0\xff\xff\xff\xff")


def test_value_length_below_minus_one_is_a_protocol_error() -> None:
    with pytest.raises(RemoteProtocolError):
        backend.DataRow.decode(b"\0\x01\xff\xff\xff\xfe")


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        (Phase.PASSWORD, auth.PasswordMessage),
        (Phase.SASL_INITIAL, auth.SASLInitialResponse),
        (Phase.SASL, auth.SASLResponse),
        (Phase.GSS, auth.GSSResponse),
    ],
)
def test_phase_decides_what_p_means(phase: Phase, kind: type[Message]) -> None:
    assert message_class(Direction.FRONTEND, FrontendCode.PASSWORD, b"", phase) is kind


def test_p_means_nothing_in_a_session() -> None:
    with pytest.raises(RemoteProtocolError, match="invalid frontend message type 112"):
        length_limit(Direction.FRONTEND, FrontendCode.PASSWORD, Phase.SESSION)
    with pytest.raises(RemoteProtocolError, match="invalid frontend message type 112"):
        decode(Direction.FRONTEND, FrontendCode.PASSWORD, b"x\0")


def test_other_messages_are_refused_while_an_answer_is_due() -> None:
    with pytest.raises(RemoteProtocolError, match="expected password response, got message type 81"):
        length_limit(Direction.FRONTEND, FrontendCode.QUERY, Phase.PASSWORD)
    with pytest.raises(RemoteProtocolError, match="expected SASL response, got message type 81"):
        length_limit(Direction.FRONTEND, FrontendCode.QUERY, Phase.SASL)


def test_lengths_are_bounded_by_type_and_phase() -> None:
    assert length_limit(Direction.FRONTEND, FrontendCode.SYNC, Phase.SESSION) == 10_000
    assert length_limit(Direction.FRONTEND, FrontendCode.QUERY, Phase.SESSION) == 0x3FFF_FFFE
    assert length_limit(Direction.FRONTEND, FrontendCode.QUERY, Phase.SESSION, 1000) == 1000
    assert length_limit(Direction.FRONTEND, FrontendCode.PASSWORD, Phase.SASL) == 1024
    assert length_limit(Direction.BACKEND, ord("R"), Phase.SESSION) == 65_535


@pytest.mark.parametrize("code", [0, 1, ord("?"), ord("r"), 255])
def test_unknown_type_bytes_are_refused(code: int) -> None:
    for direction in Direction:
        with pytest.raises(ProtocolError):
            length_limit(direction, code, Phase.SESSION)
        with pytest.raises(ProtocolError):
            decode(direction, code, b"")


def test_unknown_authentication_request_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="authentication method 99 not supported"):
        decode(Direction.BACKEND, ord("R"), b"\0\0\0\x63")


# Body -> what PostgreSQL 18 says to it, recorded from there.
MALFORMED: list[tuple[bytes, bytes, str]] = [
    (b"P", b"s", "invalid string in message"),
    (b"P", b"s\0select 1\0", "insufficient data left in message"),
    (b"P", b"s\0select 1\0\0\x05", "insufficient data left in message"),
    (b"P", b"s\0select 1\0\0\0x", "invalid message format"),
    (b"B", b"", "invalid string in message"),
    (b"D", b"", "no data left in message"),
    (b"D", b"X\0", "invalid DESCRIBE message subtype 88"),
    (b"C", b"X\0", "invalid CLOSE message subtype 88"),
    (b"D", b"S", "invalid string in message"),
    (b"E", b"\0", "insufficient data left in message"),
    (b"E", b"\0\0\0\0\0x", "invalid message format"),
    (b"S", b"x", "invalid message format"),
    (b"H", b"x", "invalid message format"),
    (b"Q", b"", "invalid string in message"),
    (b"Q", b"select 1", "invalid string in message"),
    (b"Q", b"select 1\0x", "invalid message format"),
    (b"F", b"", "insufficient data left in message"),
]


@pytest.mark.parametrize(("code", "body", "text"), MALFORMED)
def test_malformed_message_gets_the_error_of_postgresql_and_the_session_lives(
    code: bytes, body: bytes, text: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(Direction.FRONTEND, code[0], body)
    error = caught.value.to_pg_error()
    assert (error.severity, error.sqlstate, error.message) == ("ERROR", "08P01", text)


@pytest.mark.parametrize(
    ("direction", "code", "body", "phase"),
    [
        (Direction.FRONTEND, ord("p"), b"", Phase.PASSWORD),
        (Direction.FRONTEND, ord("p"), b"x", Phase.SASL_INITIAL),
        (Direction.FRONTEND, None, b"\x04\xd2\x16\x2fx", Phase.STARTUP),
        (Direction.BACKEND, ord("Z"), b"?", Phase.SESSION),
        (Direction.FRONTEND, ord("?"), b"", Phase.SESSION),
    ],
)
def test_elsewhere_a_malformed_message_ends_the_conversation(
    direction: Direction, code: int | None, body: bytes, phase: Phase
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(direction, code, body, phase)
    assert caught.value.to_pg_error().is_fatal
