"""The table of the conversation: every pair is either in it or refused, and what it says of PostgreSQL's rules."""

from __future__ import annotations

import pytest

from protocol import auth_messages as auth
from protocol import backend_messages as backend
from protocol import copy_messages as copy
from protocol import frontend_messages as frontend
from protocol import startup
from protocol.codes import Direction, Phase, Target, TxStatus
from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.message import Message
from protocol.registry import ALL_MESSAGES
from protocol.session_machine import (
    LISTENING,
    OPENING,
    TRANSITIONS,
    Event,
    SessionMachine,
    Signal,
    State,
    event_of,
)

F, B = Direction.FRONTEND, Direction.BACKEND
EVENTS = [Event(sender, kind) for kind in ALL_MESSAGES for sender in sorted(kind.directions)]
EVENTS += [Event(B, signal) for signal in Signal]
ERROR = backend.ErrorResponse((("S", "ERROR"), ("V", "ERROR"), ("C", "22012"), ("M", "division by zero")))
FATAL = backend.ErrorResponse((("S", "FATAL"), ("V", "FATAL"), ("C", "57P01"), ("M", "terminating")))
READY = backend.ReadyForQuery()


def at(state: State, us: Direction = B) -> SessionMachine:
    return SessionMachine(us, state)


@pytest.mark.parametrize("state", list(State))
def test_every_pair_is_in_the_table_or_refused(state: State) -> None:
    for event in EVENTS:
        machine = at(state)
        if event in TRANSITIONS[state]:
            assert machine.allows(event)
            assert machine.advance(event) is machine.state is TRANSITIONS[state][event]
        else:
            with pytest.raises(LocalProtocolError if event.sender is B else RemoteProtocolError):
                machine.advance(event)
            assert machine.state is state


def test_every_event_of_the_table_is_known_and_sent_by_who_may() -> None:
    assert {event for row in TRANSITIONS.values() for event in row} <= set(EVENTS)


def test_every_message_has_a_place_in_the_conversation() -> None:
    used = {event for row in TRANSITIONS.values() for event in row}
    # Kerberos V5 is decoded, so that a client can say what it was asked for; nobody speaks it.
    assert set(EVENTS) - used == {Event(B, auth.AuthenticationKerberosV5)}


def test_every_state_is_reached_and_left() -> None:
    reached = {State.STARTUP}
    while True:
        further = {target for state in reached for target in TRANSITIONS[state].values()} - reached
        if not further:
            break
        reached |= further
    assert reached == set(State)
    assert [state for state in State if not TRANSITIONS[state]] == [State.CLOSED]


def test_server_either_listens_or_owes_an_answer() -> None:
    both = {State.COPY_BOTH, State.COPY_BOTH_SERVER_DONE}
    asynchronous = {
        backend.NoticeResponse,
        backend.ParameterStatus,
        backend.NotificationResponse,
        backend.ErrorResponse,
    }
    for state in LISTENING - both:
        answers = {event.kind for event in TRANSITIONS[state] if event.sender is B} - asynchronous
        assert answers <= {Signal.FATAL}, state


def test_every_state_but_the_last_can_end_with_a_fatal_error() -> None:
    for state in set(State) - {State.CLOSED}:
        assert at(state).take(B, FATAL) is State.CLOSED


def test_error_in_bind_skips_until_sync() -> None:
    machine = at(State.IDLE)
    machine.take(F, frontend.Parse("", "select 1/$1"))
    machine.take(B, backend.ParseComplete())
    machine.take(F, frontend.Bind("", ""))
    assert machine.take(B, ERROR) is State.SKIP_UNTIL_SYNC
    for skipped in (frontend.Execute(), frontend.Query("select 1"), frontend.Parse("", ""), copy.CopyDone()):
        assert machine.take(F, skipped) is State.SKIP_UNTIL_SYNC
    assert machine.take(F, frontend.Sync()) is State.FINISHING
    assert machine.take(B, READY) is State.IDLE


def test_error_in_simple_query_skips_nothing() -> None:
    machine = at(State.IDLE)
    machine.take(F, frontend.Query("select 1/0"))
    assert machine.take(B, ERROR) is State.FINISHING
    assert machine.take(B, READY) is State.IDLE


def test_commit_may_fail_at_sync() -> None:
    machine = at(State.EXTENDED)
    machine.take(F, frontend.Sync())
    assert machine.take(B, ERROR) is State.FINISHING
    assert machine.take(B, READY) is State.IDLE


def test_sync_and_flush_are_ignored_during_copy_from() -> None:
    machine = at(State.EXTENDED)
    machine.take(F, frontend.Execute())
    machine.take(B, copy.CopyInResponse(0))
    for ignored in (frontend.Sync(), frontend.Flush(), copy.CopyData(b"")):
        assert machine.take(F, ignored) is State.COPY_IN_EXTENDED
    machine.take(F, copy.CopyDone())
    assert machine.take(B, backend.CommandComplete("COPY 0")) is State.EXTENDED


def test_query_during_copy_from_is_the_error_of_postgresql() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        at(State.COPY_IN).take(F, frontend.Query(""))
    assert caught.value.message == "unexpected message type 0x51 during COPY from stdin"
    assert caught.value.fatal  # PostgreSQL has not read the message's body then, and gives the connection up


def test_rest_of_a_failed_copy_is_ignored_when_idle() -> None:
    machine = at(State.COPY_IN)
    machine.take(B, ERROR)
    machine.take(B, READY)
    for late in (copy.CopyData(b"x"), copy.CopyDone(), copy.CopyFail("")):
        assert machine.take(F, late) is State.IDLE


def test_copy_both_ends_when_both_are_done() -> None:
    machine = at(State.COPY_BOTH)
    machine.take(B, copy.CopyData(b"w"))
    machine.take(F, copy.CopyData(b"r"))
    assert machine.take(F, copy.CopyDone()) is State.COPY_BOTH_CLIENT_DONE
    machine.take(B, copy.CopyData(b"w"))
    assert machine.take(B, copy.CopyDone()) is State.SIMPLE
    machine = at(State.COPY_BOTH)
    assert machine.take(B, copy.CopyDone()) is State.COPY_BOTH_SERVER_DONE
    assert machine.take(F, copy.CopyDone()) is State.SIMPLE


def test_tls_can_be_asked_for_once_and_gss_after_it() -> None:
    machine = at(State.STARTUP)
    machine.take(F, startup.SslRequest())
    machine.advance(Event(B, Signal.ENCRYPTION_REFUSED))
    with pytest.raises(ProtocolError):
        machine.take(F, startup.SslRequest())
    machine.take(F, startup.GssEncRequest())
    assert machine.advance(Event(B, Signal.ENCRYPTION_REFUSED)) is State.STARTUP_LAST
    assert machine.take(F, startup.StartupMessage(3, 0, {"user": "joe"})) is State.AUTHENTICATING


def test_nothing_but_a_startup_packet_follows_tls() -> None:
    machine = at(State.TLS_ASKED)
    machine.advance(Event(B, Signal.ENCRYPTION_ACCEPTED))
    with pytest.raises(ProtocolError):
        machine.take(F, startup.GssEncRequest())


def test_cancel_request_ends_the_connection_without_an_answer() -> None:
    assert at(State.STARTUP).take(F, startup.CancelRequest(1, b"abcd")) is State.CLOSED


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (State.STARTUP, Phase.STARTUP),
        (State.STARTUP_LAST, Phase.STARTUP),
        (State.PASSWORD_ASKED, Phase.PASSWORD),
        (State.SASL_ASKED, Phase.SASL_INITIAL),
        (State.SASL_CHALLENGED, Phase.SASL),
        (State.GSSAPI_ASKED, Phase.GSS),
        (State.IDLE, Phase.SESSION),
    ],
)
def test_state_tells_the_phase(state: State, phase: Phase) -> None:
    assert at(state).phase is phase


def test_password_cannot_be_skipped() -> None:
    for state in (State.PASSWORD_ASKED, State.SASL_ASKED, State.SASL, State.SASL_CHALLENGED, State.GSSAPI_ASKED):
        with pytest.raises(LocalProtocolError):
            at(state).take(B, auth.AuthenticationOk())


def test_transaction_status_is_the_last_ready_for_query() -> None:
    machine = at(State.FINISHING)
    machine.take(B, backend.ReadyForQuery(TxStatus.FAILED))
    assert machine.tx_status is TxStatus.FAILED


def test_fault_is_the_senders() -> None:
    with pytest.raises(RemoteProtocolError):
        at(State.IDLE, us=F).take(B, backend.BindComplete())
    with pytest.raises(LocalProtocolError):
        at(State.PARSING, us=F).take(F, frontend.Query(""))


@pytest.mark.parametrize("target", list(Target))
def test_describe_answers_with_rows_or_none(target: Target) -> None:
    for answer in (backend.NoData(), backend.RowDescription(())):
        machine = at(State.EXTENDED)
        machine.take(F, frontend.Describe(target))
        if target is Target.STATEMENT:
            machine.take(B, backend.ParameterDescription(()))
        assert machine.take(B, answer) is State.EXTENDED


def test_event_of_an_error_depends_on_its_severity() -> None:
    assert event_of(B, ERROR) == Event(B, backend.ErrorResponse)
    assert event_of(B, FATAL) == Event(B, Signal.FATAL)
    assert event_of(F, frontend.Sync()).name == "Sync"
    assert Event(B, Signal.FATAL).name == "FATAL ErrorResponse"


def test_untyped_packets_only_open() -> None:
    untyped: set[type[Message]] = {kind for kind in ALL_MESSAGES if kind.code is None}
    for state, row in TRANSITIONS.items():
        assert state in OPENING or not untyped & {event.kind for event in row if not isinstance(event.kind, Signal)}
