"""Any bytes, split anywhere, either parse or raise ProtocolError.

Properties over the whole codec: what decodes encodes to itself, however a stream is cut the same events come out and
the same error ends it, and nothing but ProtocolError escapes. Messages are made by the declarations themselves
(`Message.sample`); every input that ever broke something is kept in `corpus/` and tried first.

`RUSTYDB_FUZZ_EXAMPLES=100000 pytest tests/fuzz` runs long.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.auth_messages import (
    AuthenticationCleartextPassword,
    AuthenticationOk,
    AuthenticationSASL,
    PasswordMessage,
)
from protocol.backend_messages import ErrorResponse, ReadyForQuery
from protocol.codes import Direction, Phase
from protocol.connection import Connection, Idle, Role
from protocol.errors import LocalProtocolError, PgError, ProtocolError, RemoteProtocolError
from protocol.fields import Trace
from protocol.framing import FrameDecoder
from protocol.frontend_messages import Query
from protocol.message import Message
from protocol.registry import (
    ALL_MESSAGES,
    AUTHENTICATION_MESSAGES,
    BACKEND_MESSAGES,
    FRONTEND_MESSAGES,
    PASSWORD_MESSAGES,
    STARTUP_PACKETS,
    decode,
    length_limit,
)
from protocol.session_machine import State
from protocol.startup import SslRequest, StartupMessage, decode_startup_packet
from protocol.trace import trace_bytes

EXAMPLES = int(os.environ.get("RUSTYDB_FUZZ_EXAMPLES", "200"))
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
short_bytes = st.binary(max_size=200)
randoms = st.randoms(use_true_random=False)


def bodies(message: Message) -> bytes:
    return message.encode()[4 if message.code is None else 5 :]


@st.composite
def messages(draw: st.DrawFn, kinds: tuple[type[Message], ...] = ALL_MESSAGES) -> Message:
    kind = draw(st.sampled_from(kinds))
    return kind.sample(draw(randoms))


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Bytes with a few changed, cut out or put in."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("set", "cut", "add"))):
            case "set":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : at + draw(st.integers(1, 8))]
            case _:
                data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def streams(draw: st.DrawFn, kinds: tuple[type[Message], ...]) -> bytes:
    raw = b"".join(message.encode() for message in draw(st.lists(messages(kinds), max_size=6)))
    return draw(damaged(raw)) if draw(st.booleans()) else raw + draw(st.binary(max_size=10))


@st.composite
def cuts(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    marks = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    return [raw[start:end] for start, end in zip([0, *marks], [*marks, len(raw)], strict=True)]


def seed(raw: bytes, rng: Random) -> list[bytes]:
    """The same bytes one by one, and in random pieces."""
    pieces = []
    while raw:
        size = rng.randint(1, max(1, len(raw) // 2))
        pieces.append(raw[:size])
        raw = raw[size:]
    return pieces


@fuzz
@given(messages())
def test_decode_of_encode_is_identity(message: Message) -> None:
    assert type(message).decode(bodies(message)) == message
    assert "\n" not in message.trace_fields(Trace())


@fuzz
@given(st.sampled_from(ALL_MESSAGES), short_bytes)
def test_any_body_parses_or_raises_protocol_error(kind: type[Message], body: bytes) -> None:
    if kind.prefix is not None:
        body = kind.prefix.to_bytes(4, "big") + body
    try:
        message = kind.decode(body)
    except RemoteProtocolError:
        return
    if kind is not StartupMessage:  # of parameters given twice, one is kept
        assert bodies(message) == body


@fuzz
@given(st.data())
def test_damaged_body_parses_or_raises_protocol_error(data: st.DataObject) -> None:
    message = data.draw(messages())
    try:
        type(message).decode(data.draw(damaged(bodies(message))))
    except RemoteProtocolError:
        pass


@fuzz
@given(st.sampled_from(list(Direction)), st.integers(0, 255), short_bytes, st.sampled_from(list(Phase)))
def test_any_frame_decodes_or_raises_protocol_error(direction: Direction, code: int, body: bytes, phase: Phase) -> None:
    try:
        length_limit(direction, code, phase)
        decode(direction, code, body, phase)
    except RemoteProtocolError:
        pass


@fuzz
@given(short_bytes | streams(STARTUP_PACKETS))
def test_any_startup_packet_decodes_or_raises_protocol_error(body: bytes) -> None:
    try:
        decode_startup_packet(body)
    except RemoteProtocolError:
        pass


@fuzz
@given(short_bytes)
def test_any_error_fields_parse_or_raise_protocol_error(body: bytes) -> None:
    try:
        error = PgError.from_body(body)
    except RemoteProtocolError:
        return
    assert error.to_fields()
    again = PgError.from_body(error.to_error_response()[5:])
    assert (again.sqlstate, again.message, again.severity) == (error.sqlstate, error.message, error.severity)


def run(connection: Connection, pieces: list[bytes]) -> list[object]:
    """All events, with the error that ended them. Whatever asks for an answer gets one, so that it goes on."""
    seen: list[object] = []
    for piece in pieces:
        if piece:
            connection.receive_data(piece)
        try:
            while True:
                event = connection.next_event()
                if isinstance(event, Idle):
                    break
                seen.append(event)
                answer(connection, event)
        except ProtocolError as error:
            return [*seen, str(error)]
    return [*seen, connection.state]


def answer(connection: Connection, event: object) -> None:
    """As a lazy server: every request ends at once. As a client: the password, then one query after another."""
    if connection.role is Role.CLIENT:
        if connection.state is State.PASSWORD_ASKED:
            connection.send(PasswordMessage("secret"))
        elif isinstance(event, ReadyForQuery) and connection.state is State.IDLE:
            connection.send(Query("select 1"))
        return
    if isinstance(event, StartupMessage):
        connection.send(AuthenticationOk(), ReadyForQuery())
        return
    if isinstance(event, SslRequest):
        connection.answer_encryption(accept=False)
        return
    error = ErrorResponse(PgError("0A000", "no").to_fields())
    for reply in (error, ReadyForQuery()):
        try:
            connection.send(reply)
        except LocalProtocolError:
            return


@fuzz
@given(st.data())
def test_server_sees_the_same_however_the_bytes_are_cut(data: st.DataObject) -> None:
    raw = data.draw(streams((*STARTUP_PACKETS, *FRONTEND_MESSAGES)))
    if data.draw(st.booleans()):
        raw = StartupMessage(3, 2, {"user": "joe"}).encode() + raw
    whole = run(Connection(Role.SERVER), [raw])
    assert run(Connection(Role.SERVER), data.draw(cuts(raw))) == whole
    assert run(Connection(Role.SERVER), [raw[at : at + 1] for at in range(len(raw))]) == whole


@pytest.mark.parametrize("request_", [AuthenticationCleartextPassword(), AuthenticationSASL(("SCRAM-SHA-256",))])
@fuzz
@given(st.data())
def test_server_survives_any_answer_to_an_authentication_request(request_: Message, data: st.DataObject) -> None:
    raw = data.draw(streams(tuple(PASSWORD_MESSAGES.values())))

    def asked() -> Connection:
        connection = Connection(Role.SERVER)
        connection.receive_data(StartupMessage(3, 2, {"user": "joe"}).encode())
        connection.next_event()
        connection.send(request_)
        return connection

    assert run(asked(), data.draw(cuts(raw))) == run(asked(), [raw])


@fuzz
@given(st.data())
def test_client_sees_the_same_however_the_bytes_are_cut(data: st.DataObject) -> None:
    raw = data.draw(streams((*BACKEND_MESSAGES, *AUTHENTICATION_MESSAGES.values())))

    def waiting() -> Connection:
        connection = Connection(Role.CLIENT)
        connection.send(StartupMessage(3, 2, {"user": "joe"}))
        return connection

    whole = run(waiting(), [raw])
    assert run(waiting(), data.draw(cuts(raw))) == whole
    ready = AuthenticationOk().encode() + ReadyForQuery().encode()
    assert run(waiting(), data.draw(cuts(ready + raw))) == run(waiting(), [ready + raw])


@fuzz
@given(st.sampled_from(list(Direction)), short_bytes)
def test_trace_of_any_bytes_never_fails(direction: Direction, raw: bytes) -> None:
    for line in trace_bytes(direction, raw):
        assert "\n" not in line
        line.encode()


@fuzz
@given(st.lists(short_bytes, max_size=10))
def test_decoder_loses_no_byte(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    fed, taken = bytearray(), bytearray()
    try:
        for piece in pieces:
            decoder.feed(piece)
            fed += piece
            while frame := decoder.next_frame(lambda code: 1000):
                assert frame.code is not None
                taken += bytes([frame.code]) + frame.length.to_bytes(4, "big") + frame.body
    except ProtocolError:
        pass
    assert bytes(taken) + decoder.take_rest() == bytes(fed)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_input_that_once_broke_something(path: Path) -> None:
    raw = path.read_bytes()
    rng = Random(1)
    for role in Role:
        whole = run(Connection(role), [raw])
        assert run(Connection(role), seed(raw, rng)) == whole
    for direction in Direction:
        trace_bytes(direction, raw)
