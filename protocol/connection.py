"""One end of a PostgreSQL connection without the connection: bytes in, messages out; messages in, bytes out.

    conn = Connection(Role.SERVER)
    conn.receive_data(data)              # b"" says that the peer closed its side
    while isinstance(event := conn.next_event(), Message):
        ...
        transport.write(conn.send(AuthenticationSASL(("SCRAM-SHA-256",))))

`next_event` returns a message, an `EncryptionAnswer` (client role: what the server said to SSLRequest), or why there
is none: NEED_DATA (feed more), PAUSED (server role: answer the last message first; stop reading where `buffered`
grows) or CONNECTION_CLOSED. It raises RemoteProtocolError for what the peer must not send; `send` raises
LocalProtocolError for what we must not. Used for handshakes, admin results and tests; the query path scans raw buffers
(scan.py) and takes over with `take_rest`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from protocol.backend_machine import BackendMachine
from protocol.codes import MAX_LARGE_MESSAGE_LENGTH, Direction, EncryptionAnswer, Phase, TxStatus
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import FrameDecoder
from protocol.message import Message
from protocol.registry import decode, length_limit
from protocol.session_machine import ENCRYPTION_ASKED, OPENING, Event, SessionMachine, Signal, State

_MITM_DETAIL: Final = "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."


class Role(Enum):
    """Which end we are."""

    SERVER = "server"
    CLIENT = "client"


class Idle(Enum):
    """Why there is no event."""

    NEED_DATA = "need data"
    PAUSED = "paused"
    CONNECTION_CLOSED = "connection closed"


NEED_DATA: Final = Idle.NEED_DATA
PAUSED: Final = Idle.PAUSED
CONNECTION_CLOSED: Final = Idle.CONNECTION_CLOSED

ProtocolEvent = Message | EncryptionAnswer | Idle


class Connection:
    """Framing and state machine of one end."""

    def __init__(self, role: Role, *, max_message_length: int = MAX_LARGE_MESSAGE_LENGTH) -> None:
        self.role = role
        self._most = max_message_length
        self._decoder = FrameDecoder()
        self._server = SessionMachine() if role is Role.SERVER else None
        self._client = BackendMachine() if role is Role.CLIENT else None
        self._at_end = False

    @property
    def _machine(self) -> SessionMachine | BackendMachine:
        machine = self._server or self._client
        assert machine is not None  # one of them, by role
        return machine

    @property
    def state(self) -> State:
        """Where the conversation stands (client role: as far as the server's replies tell)."""
        return self._machine.state

    @property
    def tx_status(self) -> TxStatus:
        """The last ReadyForQuery's."""
        return self._machine.tx_status

    @property
    def buffered(self) -> int:
        """Bytes received and not yet part of an event."""
        return self._decoder.buffered

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes arrived; none at all means that the peer will send no more."""
        if len(data) == 0:
            self._at_end = True
        elif self._at_end:
            raise LocalProtocolError("data after the end of the connection")
        else:
            self._decoder.feed(data)

    def take_rest(self) -> bytes:
        """Hand over: the bytes no event was made of."""
        return self._decoder.take_rest()

    def next_event(self) -> ProtocolEvent:
        """The next message of the peer, or why there is none."""
        if self.state is State.CLOSED:
            return CONNECTION_CLOSED
        if self._client is not None:
            return self._next_from_server(self._client)
        assert self._server is not None
        return self._next_from_client(self._server)

    def send(self, *messages: Message) -> bytes:
        """The bytes of messages we send, in order."""
        parts = []
        for message in messages:
            # Encoded first: a message that cannot be encoded was never sent.
            parts.append(message.encode())
            if self._server is not None:
                self._server.take(Direction.BACKEND, message)
            elif self._client is not None:
                self._client.sent(message)
        return b"".join(parts)

    def answer_encryption(self, accept: bool) -> bytes:
        """Server role: the one byte that answers SSLRequest or GSSENCRequest. Start TLS after writing it."""
        state = self.state
        if self._server is None or state not in ENCRYPTION_ASKED:
            raise LocalProtocolError("nobody asked for encryption")
        is_tls = state in (State.TLS_ASKED, State.TLS_ASKED_AFTER_GSS)
        if accept and self.buffered:
            # What was sent in clear would be taken for what came encrypted.
            what = "SSL" if is_tls else "GSSAPI encryption"
            raise RemoteProtocolError(f"received unencrypted data after {what} request", detail=_MITM_DETAIL)
        signal = Signal.ENCRYPTION_ACCEPTED if accept else Signal.ENCRYPTION_REFUSED
        self._server.advance(Event(Direction.BACKEND, signal))
        if not accept:
            return bytes([EncryptionAnswer.REFUSED])
        return bytes([EncryptionAnswer.TLS if is_tls else EncryptionAnswer.GSS])

    def _next_from_client(self, machine: SessionMachine) -> ProtocolEvent:
        if not machine.is_listening:
            return PAUSED
        phase = machine.phase
        if phase is Phase.STARTUP:
            frame = self._decoder.next_startup_packet()
        else:
            frame = self._decoder.next_frame(lambda code: length_limit(Direction.FRONTEND, code, phase, self._most))
        if frame is None:
            return self._nothing()
        message = decode(Direction.FRONTEND, frame.code, frame.body, phase)
        machine.take(Direction.FRONTEND, message)
        return message

    def _next_from_server(self, machine: BackendMachine) -> ProtocolEvent:
        if machine.state in ENCRYPTION_ASKED and self._decoder.peek_byte() != EncryptionAnswer.ERROR:
            return self._encryption_answer(machine)
        if machine.state in OPENING:
            return self._nothing() if self.buffered == 0 or self._at_end else PAUSED
        frame = self._decoder.next_frame(lambda code: length_limit(Direction.BACKEND, code, Phase.SESSION, self._most))
        if frame is None:
            return self._nothing()
        message = decode(Direction.BACKEND, frame.code, frame.body)
        machine.received(message)
        return message

    def _encryption_answer(self, machine: BackendMachine) -> ProtocolEvent:
        byte = self._decoder.next_byte()
        if byte is None:
            return self._nothing()
        is_tls = machine.state in (State.TLS_ASKED, State.TLS_ASKED_AFTER_GSS)
        accepted = EncryptionAnswer.TLS if is_tls else EncryptionAnswer.GSS
        if byte not in (accepted, EncryptionAnswer.REFUSED):
            raise RemoteProtocolError(f"received invalid response to {'SSL' if is_tls else 'GSSAPI'} negotiation")
        if self.buffered:
            raise RemoteProtocolError(
                f"received unencrypted data after {'SSL' if is_tls else 'GSSAPI encryption'} response"
            )
        signal = Signal.ENCRYPTION_ACCEPTED if byte == accepted else Signal.ENCRYPTION_REFUSED
        machine.advance(Event(Direction.BACKEND, signal))
        return EncryptionAnswer(byte)

    def _nothing(self) -> Idle:
        if not self._at_end:
            return NEED_DATA
        if self.buffered:
            raise RemoteProtocolError("unexpected end of the connection within a message")
        return CONNECTION_CLOSED
