"""The conversation between a frontend and a backend as one table: (state, event) -> state.

An event is a message and who sent it. The states are those of the *server*: it handles one message at a time, so in
some states it listens, in the others it owes an answer and what the client sends meanwhile waits. The client's view of
the same conversation is a replica of this machine: see backend_machine.py. The documentation draws its diagram from
`TRANSITIONS`.

`SessionMachine.advance` is the only function that changes a state. A pair that is not in the table is a protocol
error: of the peer for what it sent, of ours for what we tried to send.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from protocol import auth_messages as auth
from protocol import backend_messages as backend
from protocol import copy_messages as copy
from protocol import frontend_messages as frontend
from protocol import startup
from protocol.codes import Direction, Phase, TxStatus
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.message import Message


class State(Enum):
    """Where the conversation stands."""

    STARTUP = "startup"
    STARTUP_AFTER_TLS = "startup, TLS refused"
    STARTUP_AFTER_GSS = "startup, GSS encryption refused"
    STARTUP_LAST = "startup, encryption settled"
    TLS_ASKED = "TLS asked"
    TLS_ASKED_AFTER_GSS = "TLS asked, GSS encryption refused"
    GSS_ASKED = "GSS encryption asked"
    GSS_ASKED_AFTER_TLS = "GSS encryption asked, TLS refused"
    AUTHENTICATING = "authenticating"
    PASSWORD_ASKED = "password asked"
    SASL_ASKED = "SASL asked"
    SASL = "SASL"
    SASL_CHALLENGED = "SASL challenged"
    SASL_DONE = "SASL done"
    GSSAPI_ASKED = "GSSAPI asked"
    GSSAPI = "GSSAPI"
    STARTING = "starting"
    IDLE = "idle"
    SIMPLE = "simple query"
    EXTENDED = "extended query"
    PARSING = "parsing"
    BINDING = "binding"
    DESCRIBING = "describing"
    EXECUTING = "executing"
    CLOSING = "closing"
    FUNCTION_CALL = "function call"
    COPY_IN = "copy in"
    COPY_OUT = "copy out"
    COPY_BOTH = "copy both"
    COPY_BOTH_CLIENT_DONE = "copy both, client done"
    COPY_BOTH_SERVER_DONE = "copy both, server done"
    COPY_IN_EXTENDED = "copy in, extended"
    COPY_OUT_EXTENDED = "copy out, extended"
    SKIP_UNTIL_SYNC = "skip until Sync"
    FINISHING = "finishing"
    CLOSED = "closed"


class Signal(Enum):
    """Events that are not messages."""

    ENCRYPTION_ACCEPTED = "S or G"
    ENCRYPTION_REFUSED = "N"
    FATAL = "FATAL ErrorResponse"


class Event(NamedTuple):
    """A message (or signal) and its sender."""

    sender: Direction
    kind: type[Message] | Signal

    @property
    def name(self) -> str:
        """As in the documentation."""
        return self.kind.value if isinstance(self.kind, Signal) else self.kind.__name__


Row = dict[Event, State]


def _from_client(**targets: State) -> Row:
    return {Event(Direction.FRONTEND, _KINDS[name]): state for name, state in targets.items()}


def _from_server(**targets: State) -> Row:
    return {Event(Direction.BACKEND, _KINDS[name]): state for name, state in targets.items()}


_KINDS: Final[dict[str, type[Message] | Signal]] = {
    kind.__name__: kind
    for module in (auth, backend, copy, frontend, startup)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
} | {"Accepted": Signal.ENCRYPTION_ACCEPTED, "Refused": Signal.ENCRYPTION_REFUSED}

S: Final = State
_FATAL: Final = Event(Direction.BACKEND, Signal.FATAL)
_ERROR: Final = Event(Direction.BACKEND, backend.ErrorResponse)

_REQUESTS: Final = _from_client(
    Query=S.SIMPLE,
    Parse=S.PARSING,
    Bind=S.BINDING,
    Describe=S.DESCRIBING,
    Execute=S.EXECUTING,
    Close=S.CLOSING,
    Flush=S.EXTENDED,
    Sync=S.FINISHING,
    FunctionCall=S.FUNCTION_CALL,
    Terminate=S.CLOSED,
)


def _stay(state: State, sender: Direction, *kinds: type[Message]) -> Row:
    return {Event(sender, kind): state for kind in kinds}


def _opening(state: State, *, tls: State | None, gss: State | None) -> Row:
    row = _from_client(StartupMessage=S.AUTHENTICATING, CancelRequest=S.CLOSED)
    if tls is not None:
        row |= _from_client(SslRequest=tls)
    if gss is not None:
        row |= _from_client(GssEncRequest=gss)
    return row | {_ERROR: S.CLOSED}


def _copy_in(state: State, done: State, failed: State) -> Row:
    # Sync and Flush during COPY FROM are ignored, as PostgreSQL does.
    ignored = _stay(state, Direction.FRONTEND, copy.CopyData, frontend.Flush, frontend.Sync)
    ends = _from_client(CopyDone=done, CopyFail=done, Terminate=S.CLOSED)
    return ignored | ends | {_ERROR: failed}


def _copy_out(state: State, done: State, failed: State) -> Row:
    return _from_server(CopyData=state, CopyDone=done) | {_ERROR: failed}


_F: Final = Direction.FRONTEND

_BY_STATE: Final[dict[State, Row]] = {
    S.STARTUP: _opening(S.STARTUP, tls=S.TLS_ASKED, gss=S.GSS_ASKED),
    S.STARTUP_AFTER_TLS: _opening(S.STARTUP_AFTER_TLS, tls=None, gss=S.GSS_ASKED_AFTER_TLS),
    S.STARTUP_AFTER_GSS: _opening(S.STARTUP_AFTER_GSS, tls=S.TLS_ASKED_AFTER_GSS, gss=None),
    S.STARTUP_LAST: _opening(S.STARTUP_LAST, tls=None, gss=None),
    S.TLS_ASKED: _from_server(Accepted=S.STARTUP_LAST, Refused=S.STARTUP_AFTER_TLS, ErrorResponse=S.CLOSED),
    S.TLS_ASKED_AFTER_GSS: _from_server(Accepted=S.STARTUP_LAST, Refused=S.STARTUP_LAST, ErrorResponse=S.CLOSED),
    S.GSS_ASKED: _from_server(Accepted=S.STARTUP_LAST, Refused=S.STARTUP_AFTER_GSS, ErrorResponse=S.CLOSED),
    S.GSS_ASKED_AFTER_TLS: _from_server(Accepted=S.STARTUP_LAST, Refused=S.STARTUP_LAST, ErrorResponse=S.CLOSED),
    S.AUTHENTICATING: _from_server(
        NegotiateProtocolVersion=S.AUTHENTICATING,
        AuthenticationOk=S.STARTING,
        AuthenticationCleartextPassword=S.PASSWORD_ASKED,
        AuthenticationMD5Password=S.PASSWORD_ASKED,
        AuthenticationSASL=S.SASL_ASKED,
        AuthenticationGSS=S.GSSAPI_ASKED,
        AuthenticationSSPI=S.GSSAPI_ASKED,
        ErrorResponse=S.CLOSED,
    ),
    S.PASSWORD_ASKED: _from_client(PasswordMessage=S.AUTHENTICATING) | {_ERROR: S.CLOSED},
    S.SASL_ASKED: _from_client(SASLInitialResponse=S.SASL) | {_ERROR: S.CLOSED},
    S.SASL: _from_server(
        AuthenticationSASLContinue=S.SASL_CHALLENGED, AuthenticationSASLFinal=S.SASL_DONE, ErrorResponse=S.CLOSED
    ),
    S.SASL_CHALLENGED: _from_client(SASLResponse=S.SASL) | {_ERROR: S.CLOSED},
    S.SASL_DONE: _from_server(AuthenticationOk=S.STARTING, ErrorResponse=S.CLOSED),
    S.GSSAPI_ASKED: _from_client(GSSResponse=S.GSSAPI) | {_ERROR: S.CLOSED},
    S.GSSAPI: _from_server(
        AuthenticationGSSContinue=S.GSSAPI_ASKED, AuthenticationOk=S.STARTING, ErrorResponse=S.CLOSED
    ),
    S.STARTING: _from_server(BackendKeyData=S.STARTING, ReadyForQuery=S.IDLE, ErrorResponse=S.CLOSED),
    # What is left of a COPY that failed may still be on its way when the client is already told to be ready.
    S.IDLE: _REQUESTS | _stay(S.IDLE, _F, copy.CopyData, copy.CopyDone, copy.CopyFail),
    S.EXTENDED: _REQUESTS | _stay(S.EXTENDED, _F, copy.CopyData, copy.CopyDone, copy.CopyFail),
    S.SIMPLE: _from_server(
        RowDescription=S.SIMPLE,
        DataRow=S.SIMPLE,
        CommandComplete=S.SIMPLE,
        EmptyQueryResponse=S.SIMPLE,
        CopyInResponse=S.COPY_IN,
        CopyOutResponse=S.COPY_OUT,
        CopyBothResponse=S.COPY_BOTH,
        ErrorResponse=S.FINISHING,
        ReadyForQuery=S.IDLE,
    ),
    S.PARSING: _from_server(ParseComplete=S.EXTENDED, ErrorResponse=S.SKIP_UNTIL_SYNC),
    S.BINDING: _from_server(BindComplete=S.EXTENDED, ErrorResponse=S.SKIP_UNTIL_SYNC),
    S.CLOSING: _from_server(CloseComplete=S.EXTENDED, ErrorResponse=S.SKIP_UNTIL_SYNC),
    S.DESCRIBING: _from_server(
        ParameterDescription=S.DESCRIBING,
        RowDescription=S.EXTENDED,
        NoData=S.EXTENDED,
        ErrorResponse=S.SKIP_UNTIL_SYNC,
    ),
    S.EXECUTING: _from_server(
        DataRow=S.EXECUTING,
        CommandComplete=S.EXTENDED,
        EmptyQueryResponse=S.EXTENDED,
        PortalSuspended=S.EXTENDED,
        CopyInResponse=S.COPY_IN_EXTENDED,
        CopyOutResponse=S.COPY_OUT_EXTENDED,
        ErrorResponse=S.SKIP_UNTIL_SYNC,
    ),
    S.FUNCTION_CALL: _from_server(FunctionCallResponse=S.FINISHING, ErrorResponse=S.FINISHING),
    S.COPY_IN: _copy_in(S.COPY_IN, S.SIMPLE, S.FINISHING),
    S.COPY_IN_EXTENDED: _copy_in(S.COPY_IN_EXTENDED, S.EXECUTING, S.SKIP_UNTIL_SYNC),
    S.COPY_OUT: _copy_out(S.COPY_OUT, S.SIMPLE, S.FINISHING),
    S.COPY_OUT_EXTENDED: _copy_out(S.COPY_OUT_EXTENDED, S.EXECUTING, S.SKIP_UNTIL_SYNC),
    S.COPY_BOTH: _copy_in(S.COPY_BOTH, S.COPY_BOTH_CLIENT_DONE, S.FINISHING)
    | _copy_out(S.COPY_BOTH, S.COPY_BOTH_SERVER_DONE, S.FINISHING),
    S.COPY_BOTH_CLIENT_DONE: _copy_out(S.COPY_BOTH_CLIENT_DONE, S.SIMPLE, S.FINISHING),
    S.COPY_BOTH_SERVER_DONE: _copy_in(S.COPY_BOTH_SERVER_DONE, S.SIMPLE, S.FINISHING),
    S.SKIP_UNTIL_SYNC: _stay(
        S.SKIP_UNTIL_SYNC,
        _F,
        frontend.Query,
        frontend.Parse,
        frontend.Bind,
        frontend.Describe,
        frontend.Execute,
        frontend.Close,
        frontend.Flush,
        frontend.FunctionCall,
        copy.CopyData,
        copy.CopyDone,
        copy.CopyFail,
    )
    | _from_client(Sync=S.FINISHING, Terminate=S.CLOSED),
    # Committing may fail, at Sync or at the end of a simple query.
    S.FINISHING: _from_server(ErrorResponse=S.FINISHING, ReadyForQuery=S.IDLE),
    S.CLOSED: {},
}

_NOTICES_FROM: Final = frozenset(State) - {
    S.STARTUP, S.STARTUP_AFTER_TLS, S.STARTUP_AFTER_GSS, S.STARTUP_LAST, S.CLOSED,
    S.TLS_ASKED, S.TLS_ASKED_AFTER_GSS, S.GSS_ASKED, S.GSS_ASKED_AFTER_TLS,
}  # fmt: skip
_IN_SESSION: Final = _NOTICES_FROM - {
    S.AUTHENTICATING, S.PASSWORD_ASKED, S.SASL_ASKED, S.SASL, S.SASL_CHALLENGED, S.SASL_DONE, S.GSSAPI_ASKED, S.GSSAPI,
}  # fmt: skip


def _complete(state: State, row: Row) -> Mapping[Event, State]:
    """Add what may come at any time: notices, changed settings, notifications, and the end."""
    whole = dict(row)
    if state in _NOTICES_FROM:
        whole[Event(Direction.BACKEND, backend.NoticeResponse)] = state
    if state in _IN_SESSION:
        whole[Event(Direction.BACKEND, backend.ParameterStatus)] = state
        whole[Event(Direction.BACKEND, backend.NotificationResponse)] = state
    if state is not S.CLOSED:
        whole[_FATAL] = S.CLOSED
    return MappingProxyType(whole)


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {state: _complete(state, row) for state, row in _BY_STATE.items()}
)

# The states in which the server takes a message from the client. In the others it owes an answer first.
LISTENING: Final = frozenset(
    state for state, row in TRANSITIONS.items() if any(event.sender is Direction.FRONTEND for event in row)
)
# The states in which the next packet has no type byte.
OPENING: Final = frozenset({S.STARTUP, S.STARTUP_AFTER_TLS, S.STARTUP_AFTER_GSS, S.STARTUP_LAST})
# Everything before AuthenticationOk goes step by step: nothing may be sent ahead.
HANDSHAKE: Final = frozenset(State) - _IN_SESSION - {S.CLOSED}
ENCRYPTION_ASKED: Final = frozenset({S.TLS_ASKED, S.TLS_ASKED_AFTER_GSS, S.GSS_ASKED, S.GSS_ASKED_AFTER_TLS})

_PHASES: Final = {
    S.PASSWORD_ASKED: Phase.PASSWORD,
    S.SASL_ASKED: Phase.SASL_INITIAL,
    S.SASL_CHALLENGED: Phase.SASL,
    S.GSSAPI_ASKED: Phase.GSS,
}
_COPY_IN_STATES: Final = frozenset({S.COPY_IN, S.COPY_IN_EXTENDED, S.COPY_BOTH, S.COPY_BOTH_SERVER_DONE})


class SessionMachine:
    """One conversation. `us` is our role in it: it only decides whose fault an illegal event is."""

    __slots__ = ("_state", "_us", "tx_status")

    def __init__(self, us: Direction = Direction.BACKEND, state: State = State.STARTUP) -> None:
        self._us = us
        self._state = state
        self.tx_status = TxStatus.IDLE

    @property
    def state(self) -> State:
        """Where we are."""
        return self._state

    @property
    def phase(self) -> Phase:
        """What decides the meaning of the client's next 'p'."""
        return Phase.STARTUP if self._state in OPENING else _PHASES.get(self._state, Phase.SESSION)

    @property
    def is_listening(self) -> bool:
        """Does the server take the client's next message now?"""
        return self._state in LISTENING

    def allows(self, event: Event) -> bool:
        """Is the event legal now?"""
        return event in TRANSITIONS[self._state]

    def advance(self, event: Event) -> State:
        """Change the state. Raises RemoteProtocolError or LocalProtocolError where the table has no such pair."""
        target = TRANSITIONS[self._state].get(event)
        if target is None:
            raise self._illegal(event)
        self._state = target
        return target

    def take(self, sender: Direction, message: Message) -> State:
        """Change the state by a message."""
        state = self.advance(event_of(sender, message))
        if isinstance(message, backend.ReadyForQuery):
            self.tx_status = message.status
        return state

    def _illegal(self, event: Event) -> RemoteProtocolError | LocalProtocolError:
        if event.sender is self._us:
            return LocalProtocolError(f"cannot send {event.name} in state {self._state.value}")
        if self._state in _COPY_IN_STATES and event.sender is Direction.FRONTEND and not isinstance(event.kind, Signal):
            text = f"unexpected message type 0x{event.kind.code or 0:02X} during COPY from stdin"
            return RemoteProtocolError(text)
        if event.sender is Direction.BACKEND:
            return RemoteProtocolError(f"unexpected {event.name} from the server in state {self._state.value}")
        return RemoteProtocolError(f"unexpected {event.name} in state {self._state.value}")


def event_of(sender: Direction, message: Message) -> Event:
    """The event a message is. An error that ends the session is another event than one that does not."""
    if isinstance(message, backend.ErrorResponse) and message.error.is_fatal:
        return _FATAL
    return Event(sender, type(message))
