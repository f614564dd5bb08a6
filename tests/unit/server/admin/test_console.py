"""The console: what is ours, what stays PostgreSQL's, who may, and how it fails."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import PgError
from server.admin.console import AdminConsole, BoundCommand
from server.admin.control import control_commands
from server.admin.show import show_commands
from server.admin.sources import AdminSources
from server.extension.bus import Delivery, EventBus
from server.extension.commands import (
    ADMIN_ROLE,
    AdminCaller,
    AdminCommand,
    AdminResult,
    CommandCall,
    CommandRegistry,
)
from server.extension.events import AdminCommandRun, AdminCommandStarted, Event, Outcome
from server.extension.failure import FailurePolicy
from server.extension.hooks import Hooks
from tests.unit.server.admin.support import RecordingControl

ADMIN = AdminCaller("root", 1, False)
MEMBERS = {("root", "rustydb_admin"), ("root", "rustydb_monitor"), ("mona", "rustydb_monitor")}


async def is_member(role: str, required: str) -> bool:
    return (role, required) in MEMBERS


def nothing(call: CommandCall) -> AdminResult:
    return AdminResult([(str(call.arguments.get("x")),)])


def extra(syntax: str, **changes: object) -> AdminCommand:
    fields: dict[str, object] = {"role": ADMIN_ROLE, "columns": (), "handler": nothing, "doc": "A test."} | changes
    return AdminCommand(syntax, **fields)  # type: ignore[arg-type]


def make_console(*commands: AdminCommand, bus: EventBus | None = None) -> AdminConsole:
    control = RecordingControl()
    registry = CommandRegistry(control_commands(control))
    used = bus or EventBus()
    sources = AdminSources(control, used, Hooks(), registry, list, list)
    for command in (*show_commands(sources), *commands):
        registry.register(command)
    return AdminConsole(registry, is_member, used)


CONSOLE = make_console(
    extra("SHOW AUDIT POLICIES"),
    extra("SHOW CACHE [ ENTRIES [ FOR TABLE <x:qualified> ] ]"),
    extra("SHOW SESSION VARIABLES"),
    extra("CREATE AUDIT POLICY <x>"),
    extra("EXPLAIN CACHE <x:text>"),
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SHOW POOLS", "SHOW POOLS"),
        ("show stats;", "SHOW STATS"),
        ("  Show\tClients ; ;", "SHOW CLIENTS"),
        ("/* a /* b */ */ -- c\n SHOW HELP", "SHOW HELP"),
        ("; ; SHOW VERSION", "SHOW VERSION"),
        ("PAUSE", "PAUSE"),
        ('resume "My Db"', "RESUME"),
        ("KILL SESSION $1", "KILL SESSION"),
        ("explain cache SELECT 1; SELECT 2", "EXPLAIN CACHE"),
        ("SHUTDOWN WAIT_FOR_SERVERS", "SHUTDOWN"),
        ("SHOW CACHE ENTRIES FOR TABLE s.t", "SHOW CACHE"),
    ],
)
def test_admin_commands_are_recognised(text: str, name: str) -> None:
    bound = CONSOLE.match(text)
    assert bound is not None
    assert (bound.name, bound.error) == (name, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ";",
        "'",
        "/* SHOW POOLS",
        "-- SHOW POOLS",
        "SELECT 1",
        "SHOW",
        "SHOW ALL",
        "SHOW server_version",
        "SHOW POOLZ",
        'SHOW "pools"',
        "SHOW pools.size",
        "SHOW pools . size",
        "SHOW TIME ZONE",
        "SHOW TRANSACTION ISOLATION LEVEL",
        "SHOW SESSION AUTHORIZATION",
        "SHOW session",
        "SHOW audit",
        "SHOW audit;",
        "SHOW audit.policies",
        "CREATE TABLE audit (a int)",
        "CREATE POLICY audit ON t",
        "EXPLAIN SELECT 1",
        "EXPLAIN (ANALYZE) SELECT 1",
        "(SHOW POOLS)",
        "PAUSED",
        "killx session 1",
        "ΚILL SESSION 1",  # a Greek capital kappa
        "\x00KILL SESSION 1",
    ],
)
def test_what_is_postgresqls_is_left_alone(text: str) -> None:
    assert CONSOLE.match(text) is None


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("SHOW POOLS x", 12),
        ("KILL", 5),
        ("KILL SESION 5", 6),
        ("KILL SESSION", 13),
        ("KILL SESSION 5 6", 16),
        ("SHUTDOWN now", 10),
        ("PAUSE a b", 9),
        ("SHOW AUDIT POLICEIS", 12),
        ("CREATE AUDIT POLICE x", 14),
        ("CREATE AUDIT", 13),
        ("SHOW SESSION VARIABLEZ", 14),
        ("PAUSE; SELECT 1", 8),
        ("/* é */ SHOW POOLS é", 20),
        ("EXPLAIN CACHE", 14),
    ],
)
async def test_a_near_miss_is_our_syntax_error_with_position_and_hint(text: str, position: int) -> None:
    bound = CONSOLE.match(text)
    assert bound is not None
    with pytest.raises(PgError) as caught:
        await CONSOLE.run(bound, ADMIN)
    assert (caught.value.sqlstate, caught.value.position) == ("42601", position)
    assert caught.value.hint


def test_an_error_is_a_new_exception_each_time() -> None:
    bound = CONSOLE.match("KILL")
    assert bound is not None
    assert bound.error is not bound.error


@given(st.text())
def test_match_never_raises(text: str) -> None:
    assert CONSOLE.match(text) is None or isinstance(CONSOLE.match(text), BoundCommand)


@given(
    st.lists(st.sampled_from(["SHOW", "POOLS", "KILL", "SESSION", "AUDIT", ";", "'", '"', "$1", ".", "5", "/*", "x"]))
)
def test_match_never_raises_on_words_of_ours(words: list[str]) -> None:
    for separator in (" ", ""):
        bound = CONSOLE.match(separator.join(words))
        if bound is not None and bound.error is not None:
            assert bound.error.position is not None


@pytest.mark.parametrize(
    "text", ["/*" * 500_000, " " * 1_000_000, ";" * 1_000_000, "--\n" * 300_000, "show " * 200_000]
)
def test_a_huge_text_is_looked_at_no_further_than_a_command_can_reach(text: str) -> None:
    assert CONSOLE.match(text) is None


@pytest.mark.parametrize(
    ("role", "text", "may"),
    [
        ("root", "SHOW POOLS", True),
        ("mona", "SHOW POOLS", True),
        ("mona", "PAUSE", False),
        ("nobody", "SHOW POOLS", False),
        ("nobody", "SHOW VERSION", True),
        ("nobody", "SHOW COMMANDS", True),
        ("rustydb_monitor", "SHOW POOLS", True),
    ],
)
async def test_the_dispatcher_checks_the_role(role: str, text: str, may: bool) -> None:
    bound = CONSOLE.match(text)
    assert bound is not None
    if may:
        await CONSOLE.run(bound, AdminCaller(role, 1, False))
        return
    with pytest.raises(PgError) as caught:
        await CONSOLE.run(bound, AdminCaller(role, 1, False))
    assert caught.value.sqlstate == "42501"
    assert caught.value.hint is not None
    assert f'"{role}"' in caught.value.hint


async def test_a_superuser_is_no_member_by_being_one() -> None:
    bound = CONSOLE.match("PAUSE")
    assert bound is not None
    with pytest.raises(PgError) as caught:
        await CONSOLE.run(bound, AdminCaller("su", 1, True))
    assert caught.value.sqlstate == "42501"


@pytest.mark.parametrize("text", ["PAUSE", "SHUTDOWN"])
async def test_what_would_wait_for_itself_is_refused_in_a_transaction_block(text: str) -> None:
    bound = CONSOLE.match(text)
    assert bound is not None
    with pytest.raises(PgError) as caught:
        await CONSOLE.run(bound, AdminCaller("root", 1, False, in_transaction=True))
    assert caught.value.sqlstate == "25001"


async def test_parameters_take_the_place_of_placeholders() -> None:
    console = make_console(extra("MARK <x:integer>"))
    bound = console.match("MARK $1")
    assert bound is not None
    assert bound.parameter_oids == (20,)
    assert (await console.run(bound, ADMIN, (5,))).rows == [("5",)]
    with pytest.raises(PgError) as caught:
        await console.run(bound, ADMIN)
    assert caught.value.sqlstate == "08P01"


async def test_parameters_that_are_not_used_are_text() -> None:
    bound = make_console(extra("MARK <x:integer> AS <y>")).match("MARK $3 AS $1")
    assert bound is not None
    assert bound.parameter_oids == (25, 25, 20)


async def test_a_handlers_own_error_reaches_the_client_and_a_bug_is_an_internal_error() -> None:
    def refuse(call: CommandCall) -> AdminResult:
        raise PgError("55006", "in use")

    async def fail(call: CommandCall) -> AdminResult:
        await asyncio.sleep(0)
        raise KeyError("secret detail")

    console = make_console(extra("REFUSE", handler=refuse), extra("BREAK", handler=fail))
    for text, sqlstate in (("REFUSE", "55006"), ("BREAK", "XX000")):
        bound = console.match(text)
        assert bound is not None
        with pytest.raises(PgError) as caught:
            await console.run(bound, ADMIN)
        assert caught.value.sqlstate == sqlstate
        assert "secret" not in str(caught.value)


async def test_every_run_and_every_refusal_is_an_event() -> None:
    bus = EventBus()
    seen: list[Event] = []
    bus.subscribe((AdminCommandStarted, AdminCommandRun), seen.append, Delivery.INLINE, subscriber="audit")
    console = make_console(bus=bus)
    for role, text in (("root", "PAUSE"), ("mona", "PAUSE"), ("root", "KILL SESSION 1"), ("root", "KILL x")):
        bound = console.match(text)
        assert bound is not None
        try:
            await console.run(bound, AdminCaller(role, 5, False))
        except PgError:
            pass
    started = [event for event in seen if isinstance(event, AdminCommandStarted)]
    ended = [event for event in seen if isinstance(event, AdminCommandRun)]
    assert [event.text for event in started] == ["PAUSE", "KILL SESSION 1"]
    assert [(event.outcome, event.sqlstate) for event in ended] == [
        (Outcome.OK, None),
        (Outcome.DENIED, "42501"),
        (Outcome.ERROR, "42704"),
        (Outcome.ERROR, "42601"),
    ]


async def test_audit_can_stop_a_command_before_it_runs() -> None:
    bus = EventBus()
    control = RecordingControl()

    def refuse(event: AdminCommandStarted) -> None:
        raise PgError("58030", "could not write audit record")

    bus.subscribe(AdminCommandStarted, refuse, Delivery.INLINE, subscriber="audit", on_error=FailurePolicy.DENY)
    console = AdminConsole(CommandRegistry(control_commands(control)), is_member, bus)
    bound = console.match("PAUSE")
    assert bound is not None
    with pytest.raises(PgError) as caught:
        await console.run(bound, ADMIN)
    assert caught.value.sqlstate == "58030"
    assert control.told == []
