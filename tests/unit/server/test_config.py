from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.config import SETTINGS, Config, ConfigError, PoolSettings, ServerSettings, find_config_file, load_config

SECRET = "correct horse battery staple"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.env, raising=False)
        if setting.short_env:
            monkeypatch.delenv(setting.short_env, raising=False)
    monkeypatch.delenv("RUSTYDB_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rustydb.toml"
    path.write_text(text)
    return path


def problems_of(**sources: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(**sources)  # type: ignore[arg-type]
    return [str(problem) for problem in caught.value.problems]


def test_the_defaults_are_a_valid_configuration() -> None:
    config = load_config()
    assert config == Config()
    assert config.file is None
    assert (config.server.host, config.server.port, config.server.http_port) == ("localhost", 5432, 8432)


def test_a_file_is_overridden_by_the_environment_and_that_by_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[server]\nport = 1\nhttp_port = 1\nhost = "file"\n[pool]\nquery_wait_timeout = "5min"\n')
    monkeypatch.setenv("RUSTYDB_SERVER__PORT", "2")
    monkeypatch.setenv("RUSTYDB_SERVER__HTTP_PORT", "2")
    config = load_config(config_file=path, flags={"server.port": 3, "server.host": None})
    assert (config.server.port, config.server.http_port, config.server.host) == (3, 2, "file")
    assert config.pool.query_wait_timeout == 300.0
    origins = {value.setting.name: value.origin for value in config.values()}
    assert origins["server.port"] == "command line"
    assert origins["server.http_port"] == "$RUSTYDB_SERVER__HTTP_PORT"
    assert origins["server.host"] == str(path)
    assert origins["pool.max_backends"] == "default"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_reached_by_its_variable(setting: object, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(value for value in Config().values() if value.setting is setting)
    if row.setting.secret or not row.value:
        return
    monkeypatch.setenv(row.setting.env, row.value)
    found = next(value for value in load_config().values() if value.setting is setting)
    assert (found.value, found.origin) == (row.value, f"${row.setting.env}")


def test_the_long_variable_wins_over_the_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTYDB_PORT", "1111")
    assert load_config().server.port == 1111
    monkeypatch.setenv("RUSTYDB_SERVER__PORT", "2222")
    assert load_config().server.port == 2222


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("RUSTYDB_PORT", "70000", "a whole number from 0 to 65535 is expected"),
        ("RUSTYDB_PORT", "fünf", "a whole number from 0 to 65535 is expected"),
        ("RUSTYDB_SERVER__MAX_CLIENTS", "0", "a whole number, at least 1 is expected"),
        ("RUSTYDB_POOL__SERVER_LIFETIME", "-3s", "a duration such as 30s or 5min is expected"),
        ("RUSTYDB_POOL__SERVER_LIFETIME", "3 fortnights", "valid units are us, ms, s, min, h, d"),
        ("RUSTYDB_SESSION__MAX_MESSAGE_BYTES", "8GB", "a size such as 64MB"),
        ("RUSTYDB_TLS__MODE", "maybe", "one of disable, allow, require is expected"),
        ("RUSTYDB_SECURITY__SUPERUSER", "perhaps", "on or off is expected"),
    ],
)
def test_a_wrong_value_names_setting_value_origin_and_what_was_expected(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    (problem,) = problems_of()
    assert repr(value) in problem
    assert f"(${variable})" in problem
    assert expected in problem


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, '[server]\nport = true\nmax_clients = "many"\n[log]\nlevel = "loud"\n')
    problems = problems_of(config_file=path)
    assert [problem.split()[0] for problem in problems] == ["server.port", "server.max_clients", "log.level"]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("[server]\nprot = 1\n", "server.prot (rustydb.toml): unknown setting; did you mean server.port?"),
        ("[servr]\nport = 1\n", "[servr] (rustydb.toml): unknown setting; did you mean server?"),
        ("[pool]\nzzzzzzzzzzzzzzzzzz = 1\n", "see docs/settings.md"),
        ("server = 3\n", "a table [server] is expected"),
        ("[server\n", "line 1"),
    ],
)
def test_a_file_that_makes_no_sense_is_explained(tmp_path: Path, text: str, suggestion: str) -> None:
    (problem,) = problems_of(config_file=write(tmp_path, text))
    assert suggestion in problem.replace(str(tmp_path) + "/", "")


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("RUSTYDB_PROT", "RUSTYDB_PORT"),
        ("RUSTYDB_LOG_LEVEL", "RUSTYDB_LOG__LEVEL"),
        ("RUSTYDB_SERVR__PORT", "RUSTYDB_SERVER__PORT"),
    ],
)
def test_an_unknown_variable_suggests_the_nearest(
    variable: str, suggestion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert problems_of() == [f"{variable} (environment): unknown setting; did you mean {suggestion}?"]


def test_variables_that_kubernetes_sets_for_a_service_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RUSTYDB_PORT": "tcp://10.0.0.7:5432",
        "RUSTYDB_PORT_5432_TCP": "tcp://10.0.0.7:5432",
        "RUSTYDB_PORT_5432_TCP_ADDR": "10.0.0.7",
        "RUSTYDB_SERVICE_HOST": "10.0.0.7",
        "RUSTYDB_SERVICE_PORT_POSTGRES": "5432",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_config().server.port == 5432


def test_a_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in problems_of(config_file=tmp_path / "missing.toml")[0]
    monkeypatch.setenv("RUSTYDB_CONFIG", str(tmp_path / "gone.toml"))
    assert "gone.toml" in problems_of()[0]


def test_the_file_is_looked_for_here_and_then_in_the_configuration_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "config" / "rustydb"
    home.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (home / "rustydb.toml").write_text("")
    assert find_config_file() == home / "rustydb.toml"
    here = write(tmp_path, "")
    assert find_config_file() == here


def test_a_place_that_may_not_be_looked_into_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    (closed / "rustydb").mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(closed))
    real_stat = os.stat

    def stat(path: object, *arguments: object, **options: object) -> object:
        if str(path).startswith(str(closed)):  # as root no permission is ever missing
            raise PermissionError(path)
        return real_stat(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", stat)
    assert find_config_file() != closed / "rustydb" / "rustydb.toml"
    assert load_config().server.port == 5432


def test_the_data_of_a_user_without_a_home_lie_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert ServerSettings().data_dir == tmp_path / "xdg" / "rustydb"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ServerSettings().data_dir == tmp_path / "home" / ".local" / "share" / "rustydb"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert ServerSettings().data_dir == tmp_path / "data"


def test_settings_of_the_engine_come_from_file_and_environment_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[engine.settings]\nwork_mem = "4MB"\nfsync = true\nmax_wal_senders = 5\n')
    monkeypatch.setenv("RUSTYDB_ENGINE__SETTINGS__WORK_MEM", "8MB")
    assert load_config(config_file=path).engine.settings == {"work_mem": "8MB", "fsync": "on", "max_wal_senders": "5"}


def test_names_of_features_are_a_list_in_the_file_and_separated_by_commas_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[features]\nenabled = ["audit", "lineage"]\n')
    assert load_config(config_file=path).features.enabled == ["audit", "lineage"]
    monkeypatch.setenv("RUSTYDB_FEATURES__ENABLED", "audit, backup")
    assert load_config(config_file=path).features.enabled == ["audit", "backup"]


def test_the_engine_gets_connections_beyond_the_pool() -> None:
    assert Config(pool=PoolSettings(max_backends=50)).engine.max_connections == 70


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"engine.mode": "remote"}, "engine.dsn"),
        ({"pool.min_pool_size": 30}, "pool.min_pool_size"),
        ({"engine.max_connections": 100}, "at least pool.max_backends + 20 = 120 is expected"),
        ({"tls.cert_file": "/x"}, "tls.cert_file"),
    ],
)
def test_settings_that_contradict_each_other_are_named(flags: dict[str, object], problem: str) -> None:
    assert problem in problems_of(flags=flags)[0]


def test_empty_paths_mean_none() -> None:
    config = load_config(flags={"server.unix_socket_dir": "", "auth.hba_file": ""})
    assert config.server.unix_socket_dir is None
    assert config.auth.hba_file is None


def test_the_socket_lies_in_the_data_directory_unless_said_otherwise() -> None:
    assert ServerSettings(data_dir=Path("/srv/db")).unix_socket_dir == Path("/srv/db/run")


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTYDB_PASSWORD", SECRET)
    monkeypatch.setenv("RUSTYDB_ENGINE__DSN", f"postgresql://u:{SECRET}@h/")
    config = load_config()
    assert config.auth.password == SECRET
    shown = repr(config) + str(config) + "".join(f"{value}" for value in config.values())
    assert SECRET not in shown
    assert problems_of(flags={"auth.password": [SECRET]}) == [
        "auth.password = '********' (command line): a text is expected"
    ]


def test_the_configuration_cannot_be_changed_by_assignment() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.server.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.server = ServerSettings()


def test_a_reload_changes_what_can_change_and_names_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "[server]\nport = 6000\nmax_clients = 10\n")
    config = load_config(config_file=path, flags={"log.level": "debug"})
    section = config.server
    write(tmp_path, '[server]\nport = 7000\nmax_clients = 20\n[log]\nlevel = "error"\n')
    report = config.reload()
    assert [(change.name, change.old, change.new) for change in report.changed] == [("server.max_clients", "10", "20")]
    assert [(change.name, change.old, change.new) for change in report.restart_required] == [
        ("server.port", "6000", "7000")
    ]
    assert section.max_clients == 20
    assert section.port == 6000
    assert config.log.level == "debug"


def test_a_wrong_reload_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "[server]\nmax_clients = 10\n")
    config = load_config(config_file=path)
    write(tmp_path, "[server]\nmax_clients = 20\n[pool]\nconnect_burst = 0\n")
    with pytest.raises(ConfigError, match=r"pool\.connect_burst"):
        config.reload()
    assert config.server.max_clients == 10


def test_unknown_and_wrong_settings_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path, '[pool]\nmax_backends = "many"\nmax_bakcends = 3\n[sever]\nx = 1\n')
    found = problems_of(config_file=path)
    assert len(found) == 3
    assert any(problem.startswith("pool.max_backends = 'many'") for problem in found)


def test_a_setting_of_the_engine_by_flag() -> None:
    config = load_config(flags={"engine.settings.Work_Mem": "9MB", "engine.settings.geqo": "off"})
    assert config.engine.settings == {"work_mem": "9MB", "geqo": "off"}
