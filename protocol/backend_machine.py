"""A client's view of a conversation: what the server has not come to yet, and a replica of the server's state.

A client may send far ahead (pipelining). What it sends waits in a queue; whenever the replica listens, it takes the
next message out of the queue, just as the server will. So each reply is judged in the state the server was in when it
wrote it, and the same table serves both roles.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.backend_messages import ReadyForQuery
from protocol.codes import Direction, Phase, TxStatus
from protocol.frontend_messages import Sync
from protocol.message import Message
from protocol.session_machine import HANDSHAKE, Event, SessionMachine, State, event_of

_SYNC: Final = Event(Direction.FRONTEND, Sync)
_READY: Final = Event(Direction.BACKEND, ReadyForQuery)


class BackendMachine:
    """What a server we are connected to may send next."""

    __slots__ = ("_machine", "_pending")

    def __init__(self) -> None:
        self._machine = SessionMachine(Direction.FRONTEND)
        self._pending: deque[Event] = deque()

    @property
    def state(self) -> State:
        """Where the server is, as far as its replies tell."""
        return self._machine.state

    @property
    def phase(self) -> Phase:
        """What our next 'p' would mean."""
        return self._machine.phase

    @property
    def tx_status(self) -> TxStatus:
        """The last ReadyForQuery's."""
        return self._machine.tx_status

    @property
    def pending(self) -> int:
        """Messages sent that the server has not come to yet."""
        return len(self._pending)

    @property
    def is_idle(self) -> bool:
        """Has the server answered everything, and is it outside of a transaction?"""
        return self.state is State.IDLE and not self._pending and self.tx_status is TxStatus.IDLE

    def sent(self, message: Message) -> None:
        """We sent a message. Raises LocalProtocolError where it cannot be right."""
        event = event_of(Direction.FRONTEND, message)
        if self.state in HANDSHAKE or self.state is State.CLOSED:
            self._machine.advance(event)  # the handshake goes step by step: nothing may be sent ahead
            return
        self._pending.append(event)
        self._catch_up()

    def received(self, message: Message) -> State:
        """The server sent a message. Raises RemoteProtocolError where it may not."""
        event = event_of(Direction.BACKEND, message)
        if event == _READY and self.state is State.SKIP_UNTIL_SYNC:
            # A Sync sent during COPY is ignored, unless COPY failed before the server read it. Only the server
            # knows which it was; we had taken it for ignored.
            self._machine.advance(_SYNC)
        state = self._machine.take(Direction.BACKEND, message)
        self._catch_up()
        return state

    def advance(self, event: Event) -> State:
        """The server's answer to a request for encryption."""
        return self._machine.advance(event)

    def _catch_up(self) -> None:
        while self._pending and self._machine.is_listening:
            event = self._pending.popleft()
            # What a COPY that we did not foresee finds in its stream ends it; the server says so, and ends too.
            if self._machine.allows(event):
                self._machine.advance(event)
