"""SHOW and control commands of the core over a recorded server."""

from __future__ import annotations

import datetime as dt

import pytest

from protocol import values
from protocol.errors import PgError
from server.admin import encode
from server.admin.console import AdminConsole
from server.admin.control import control_commands
from server.admin.show import resident_bytes, show_commands
from server.admin.sources import AdminSources, FeatureState, FeatureStatus
from server.config import Config, ConfigError, ConfigProblem
from server.extension.bus import EventBus
from server.extension.commands import AdminCaller, AdminResult, CommandRegistry, RegisteredCommand
from server.extension.events import EngineLost
from server.extension.hooks import CONTINUE, Hooks
from tests.unit.server.admin.support import RecordingControl, session


class Bench:
    """A console with every command of the core."""

    def __init__(self, control: RecordingControl | None = None) -> None:
        self.control = control or RecordingControl()
        self.bus = EventBus()
        self.hooks = Hooks()
        self.registry = CommandRegistry(control_commands(self.control))
        failed = FeatureStatus("cache", "cache", FeatureState.FAILED, ("audit",), "start: OSError: disk")
        sources = AdminSources(
            self.control, self.bus, self.hooks, self.registry, lambda: Config().values(), lambda: [failed]
        )
        for command in show_commands(sources):
            self.registry.register(command)

        async def everybody(role: str, required: str) -> bool:
            return True

        self.console = AdminConsole(self.registry, everybody, self.bus)

    async def run(self, text: str) -> AdminResult:
        bound = self.console.match(text)
        assert bound is not None, text
        return await self.console.run(bound, AdminCaller("root", 1, False))

    async def dicts(self, text: str) -> list[dict[str, object]]:
        bound = self.console.match(text)
        assert bound is not None, text
        names = [column.name for column in bound.columns]
        return [dict(zip(names, row, strict=True)) for row in (await self.run(text)).rows]


COMMANDS = list(Bench().registry)


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: one.name)
async def test_every_row_fits_its_columns_in_both_formats(one: RegisteredCommand) -> None:
    if not one.name.startswith("SHOW"):
        return
    bench = Bench()
    bench.bus.subscribe(EngineLost, lambda events: None, subscriber="test")
    bench.hooks.add_before_query(lambda asked: CONTINUE, feature="test")
    result = await bench.run(one.name)
    columns = one.command.columns
    assert result.rows
    for formats in ((), (1,)):
        assert len(encode.data_rows(result, columns, formats)) == len(result.rows)
    for row in result.rows:
        for column, value in zip(columns, row, strict=True):
            expected: dict[int, tuple[type, ...]] = {
                values.TEXT: (str,),
                values.INT8: (int,),
                values.BOOL: (bool,),
                values.FLOAT8: (float,),
                values.TIMESTAMPTZ: (float, dt.datetime),
            }
            assert value is None or isinstance(value, expected[column.type_oid]), (one.name, column.name, value)


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: one.name)
def test_show_answers_with_postgresqls_tag(one: RegisteredCommand) -> None:
    assert one.tag == ("SHOW" if one.name.startswith("SHOW") else one.name)


async def test_show_sessions_says_who_waits_and_what_is_pinned() -> None:
    rows = await Bench().dicts("SHOW SESSIONS")
    assert [row["id"] for row in rows] == [4711, 4712]
    first = rows[0]
    assert (first["wait"], first["wait_us"], first["pins"]) == (2, 5, "cursor WITH HOLD, temporary table")
    assert (first["request_time"], first["tls"]) == (None, None)


async def test_show_pools_has_pgbouncers_columns() -> None:
    (row,) = await Bench().dicts("SHOW POOLS")
    assert list(row)[:4] == ["database", "user", "cl_active", "cl_waiting"]
    assert (row["maxwait"], row["maxwait_us"], row["pool_mode"]) == (2, 5, "transaction")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("SHOW CLIENTS", "SHOW SESSIONS"),
        ("SHOW SERVERS", "SHOW BACKENDS"),
        ("SHOW CONFIG", "SHOW SETTINGS"),
        ("SHOW HELP", "SHOW COMMANDS"),
    ],
)
async def test_pgbouncers_names_are_aliases(alias: str, name: str) -> None:
    bench = Bench()
    assert await bench.dicts(alias) == await bench.dicts(name)
    found = next(row for row in await bench.dicts("SHOW COMMANDS") if row["name"] == alias)
    assert found["alias_of"] == name


async def test_show_settings_masks_secrets() -> None:
    rows = {row["key"]: row for row in await Bench().dicts("SHOW SETTINGS")}
    assert rows["log.level"]["changeable"] is True
    assert rows["server.port"]["changeable"] is False


async def test_show_databases_and_lists_count() -> None:
    bench = Bench(RecordingControl(all_sessions=[session(1), session(2, database="other")]))
    rows = await bench.dicts("SHOW DATABASES")
    assert [(row["name"], row["current_client_connections"], row["current_connections"]) for row in rows] == [
        ("other", 1, 0),
        ("shop", 1, 2),
    ]
    lists = {row["list"]: row["items"] for row in await bench.dicts("SHOW LISTS")}
    assert (lists["used_clients"], lists["used_servers"], lists["free_servers"], lists["pools"]) == (2, 1, 1, 1)


async def test_show_events_shows_what_was_dropped() -> None:
    bench = Bench()
    bench.bus.subscribe(EngineLost, lambda events: None, subscriber="slow", buffer_size=1)
    for number in range(3):
        bench.bus.publish(EngineLost("test", number, True, 0.0))
    (row,) = await bench.dicts("SHOW EVENTS")
    assert (row["subscriber"], row["events"], row["queued"], row["dropped"]) == ("slow", "EngineLost", 1, 2)


async def test_show_features_says_why_one_does_not_run() -> None:
    (row,) = await Bench().dicts("SHOW FEATURES")
    assert (row["state"], row["error"]) == ("failed", "start: OSError: disk")


async def test_show_memory_is_that_of_this_process() -> None:
    resident = resident_bytes()
    assert resident is not None
    rows = {row["name"]: row["value"] for row in await Bench().dicts("SHOW MEM")}
    assert isinstance(rows["resident"], int)
    assert abs(rows["resident"] - resident) < 50_000_000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("PAUSE", ("pause", None)),
        ("PAUSE Shop", ("pause", "shop")),
        ('PAUSE "Shop"', ("pause", "Shop")),
        ("RESUME shop", ("resume", "shop")),
        ("RECONNECT", ("reconnect", None)),
        ("RELOAD", ("reload", None)),
        ("KILL SESSION 4711", ("kill", 4711)),
        ("SHUTDOWN", ("shutdown", "immediate")),
        ("SHUTDOWN WAIT_FOR_SERVERS", ("shutdown", "wait_for_servers")),
        ("shutdown wait_for_clients;", ("shutdown", "wait_for_clients")),
    ],
)
async def test_control_commands_reach_the_server(text: str, told: tuple[str, object]) -> None:
    bench = Bench()
    await bench.run(text)
    assert bench.control.told == [told]


async def test_reload_returns_what_changed() -> None:
    assert await Bench().dicts("RELOAD") == [{"setting": "log.level"}]


async def test_a_wrong_configuration_is_an_error_that_names_every_problem() -> None:
    class Wrong(RecordingControl):
        async def reload(self) -> list[str]:
            raise ConfigError([ConfigProblem("log.level", "loud", "environment", "one of debug, info is expected")])

    with pytest.raises(PgError) as caught:
        await Bench(Wrong()).run("RELOAD")
    assert caught.value.sqlstate == "F0000"
    assert caught.value.detail is not None
    assert "log.level" in caught.value.detail


async def test_killing_a_session_that_is_not_there_is_an_error() -> None:
    with pytest.raises(PgError) as caught:
        await Bench().run("KILL SESSION 1")
    assert caught.value.sqlstate == "42704"
