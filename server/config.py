"""The configuration: `rustydb.toml`, `RUSTYDB_*` variables and flags, over the table in `server/settings_table.py`.

`load_config()` reads all three and gives a `Config`, or raises one `ConfigError` that names every wrong setting, its
value, where it came from and what was expected. Everybody reads `config.<section>.<name>`, at the time of use: a
reload (`Config.reload`) changes the reloadable settings in place. `Config()` without arguments is the defaults alone,
and `Config(server=ServerSettings(port=0))` the defaults with changes, for tests.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.settings_table import (
    ENV_PREFIX,
    AuthSettings,
    EngineSettings,
    EventSettings,
    FeatureSettings,
    LogSettings,
    PoolSettings,
    Section,
    SecuritySettings,
    ServerSettings,
    SessionSettings,
    Setting,
    TlsSettings,
    settings_of,
)

CONFIG_FILE_NAME: Final = "rustydb.toml"
ENGINE_RESERVE: Final = (
    20  # engine connections beyond pool.max_backends: control, listeners, replication, an administrator
)
IGNORED_ENV: Final = ("RUSTYDB_CONFIG", "RUSTYDB_TEST_", "RUSTYDB_BENCH_")
# Kubernetes and Docker set these for a service named rustydb (RUSTYDB_PORT=tcp://..., RUSTYDB_SERVICE_HOST=...).
_SERVICE_LINK = re.compile(r"RUSTYDB(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?|ENV_\w+)\Z")


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong: `str()` is the sentence an operator reads."""

    name: str
    value: str | None
    origin: str
    message: str

    def __str__(self) -> str:
        shown = f" = {self.value!r}" if self.value is not None else ""
        return f"{self.name}{shown} ({self.origin}): {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every reason."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class SettingValue:
    """One setting with its value now: a row of `SHOW SETTINGS` and of `rustydb check-config --all`."""

    setting: Setting
    value: str  # as text, secrets masked
    origin: str  # "default", a file, a variable or a flag


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting whose value in the file or environment is no longer the running one. Values are masked where secret."""

    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What `Config.reload` did. `changed` is in force; `restart_required` is not until a restart."""

    changed: tuple[SettingChange, ...]
    restart_required: tuple[SettingChange, ...]


class Config(BaseSettings):
    """All settings, by section."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    server: ServerSettings = Field(default_factory=ServerSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    pool: PoolSettings = Field(default_factory=PoolSettings)
    session: SessionSettings = Field(default_factory=SessionSettings)
    tls: TlsSettings = Field(default_factory=TlsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    log: LogSettings = Field(default_factory=LogSettings)
    events: EventSettings = Field(default_factory=EventSettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)

    _file: Path | None = PrivateAttr(default=None)
    _flags: dict[str, object] = PrivateAttr(default_factory=dict)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: `load_config` merges the other sources itself, to know where each value came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _derive(self) -> Self:
        """What follows from several settings together."""
        needed = self.pool.max_backends + ENGINE_RESERVE
        if self.engine.max_connections == 0:
            _replace(self.engine, "max_connections", needed)
        if self.pool.min_pool_size > self.pool.default_pool_size:
            raise ValueError("pool.min_pool_size|at most pool.default_pool_size is expected")
        if self.engine.mode == "embedded" and self.engine.max_connections < needed:
            raise ValueError(
                f"engine.max_connections|at least pool.max_backends + {ENGINE_RESERVE} = {needed} is expected"
            )
        if self.engine.mode == "remote" and not self.engine.dsn:
            raise ValueError("engine.dsn|engine.mode = 'remote' needs a connection string")
        if (self.tls.cert_file is None) != (self.tls.key_file is None):
            raise ValueError("tls.cert_file|tls.cert_file and tls.key_file are expected together")
        if self.tls.mode == "require" and not self.server.host and self.server.unix_socket_dir is None:
            raise ValueError("server.host|an address or server.unix_socket_dir is expected: nobody could connect")
        return self

    @property
    def file(self) -> Path | None:
        """The configuration file that was read, if any."""
        return self._file

    def values(self) -> list[SettingValue]:
        """Every setting with its value and origin, in the order of the table; secrets masked."""
        return [
            SettingValue(setting, setting.render(self._value(setting)), self._origins.get(setting.name, "default"))
            for setting in SETTINGS
        ]

    def reload(self) -> ReloadReport:
        """Read file and environment again and put the reloadable changes in force, all or none.

        Raises ConfigError, with nothing changed, where the new configuration is wrong.
        """
        fresh = load_config(config_file=self._file, flags=self._flags)
        changed: list[SettingChange] = []
        restart: list[SettingChange] = []
        for setting in SETTINGS:
            old, new = self._value(setting), fresh._value(setting)
            if old == new:
                continue
            change = SettingChange(setting.name, setting.render(old), setting.render(new))
            (changed if setting.reloadable else restart).append(change)
            if setting.reloadable:
                _replace(getattr(self, setting.section), setting.field, new)
                self._origins[setting.name] = fresh._origins.get(setting.name, "default")
        return ReloadReport(tuple(changed), tuple(restart))

    def _value(self, setting: Setting) -> object:
        value: object = getattr(getattr(self, setting.section), setting.field)
        return value


SECTIONS: Final[dict[str, type[Section]]] = {
    name: info.annotation
    for name, info in Config.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}
SETTINGS: Final[tuple[Setting, ...]] = tuple(settings_of(SECTIONS))
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_BY_ENV: Final = {setting.env: setting for setting in SETTINGS} | {s.short_env: s for s in SETTINGS if s.short_env}


def load_config(*, config_file: Path | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """Read the file, the environment and the flags (`{"server.port": 5433}`), the later ones winning.

    `config_file`: must exist where given; without one the usual places are tried (see `find_config_file`).
    """
    path = config_file if config_file is not None else find_config_file()
    gathered = _Gathered()
    if path is not None:
        gathered.add_file(path)
    gathered.add_environment(os.environ)
    gathered.add_flags(flags or {})
    try:
        config = Config.model_validate(gathered.tree)
    except ValidationError as error:
        wrong = [_problem(detail, gathered) for detail in _independent(error)]
        raise ConfigError(gathered.problems + wrong) from None
    if gathered.problems:
        raise ConfigError(gathered.problems)
    config._file = path
    config._flags = dict(flags or {})
    config._origins = gathered.origins
    return config


def find_config_file() -> Path | None:
    """`$RUSTYDB_CONFIG`, else the first `rustydb.toml` here, in the user's configuration directory, in /etc/rustydb."""
    named = os.environ.get("RUSTYDB_CONFIG")
    if named:
        return Path(named)
    xdg = os.environ.get("XDG_CONFIG_HOME", "")
    user = Path(xdg) if os.path.isabs(xdg) else Path(os.path.expanduser("~")) / ".config"
    places = (Path.cwd(), user / "rustydb", Path("/etc/rustydb"))
    found = (place / CONFIG_FILE_NAME for place in places)
    # os.path.isfile: a place that this user may not look into is passed over. With HOME of another user it can be.
    return next((path for path in found if os.path.isfile(path)), None)


class _Gathered:
    """Raw values of all sources, merged, and where each came from."""

    def __init__(self) -> None:
        self.tree: dict[str, dict[str, Any]] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[ConfigProblem] = []

    def add_file(self, path: Path) -> None:
        origin = str(path)
        if not path.is_file():
            self.problems.append(ConfigProblem("config file", origin, "--config or RUSTYDB_CONFIG", "no such file"))
            return
        try:
            tree = TomlConfigSettingsSource(Config, toml_file=path)()
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.problems.append(ConfigProblem("config file", None, origin, str(error)))
            return
        for section, values in tree.items():
            if section not in SECTIONS:
                self._unknown(section, origin, list(SECTIONS), f"[{section}]")
            elif not isinstance(values, dict):
                self.problems.append(ConfigProblem(section, str(values), origin, f"a table [{section}] is expected"))
            else:
                for field, value in values.items():
                    self._add(f"{section}.{field}", value, origin)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        names = sorted(name for name in environ if name.startswith(ENV_PREFIX))
        # The long form is the more exact one: it wins over the short one.
        for name in sorted(names, key=lambda item: "__" in item):
            if name.startswith(IGNORED_ENV) or _is_service_link(name, environ[name]):
                continue
            engine_value = name.partition("RUSTYDB_ENGINE__SETTINGS__")[2].lower()
            if engine_value:
                self._put_engine_setting(engine_value, environ[name], f"${name}")
            elif name in _BY_ENV:
                self._put(_BY_ENV[name].name, environ[name], f"${name}")
            else:
                self._unknown(name, "environment", list(_BY_ENV), name)

    def add_flags(self, flags: Mapping[str, object]) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        for name, value in InitSettingsSource(Config, init_kwargs=given)().items():
            engine_value = name.partition("engine.settings.")[2].lower()
            if engine_value:
                self._put_engine_setting(engine_value, value, "command line")
            else:
                self._add(name, value, "command line")

    def _put_engine_setting(self, name: str, value: object, origin: str) -> None:
        known = self.tree.get("engine", {}).get("settings", {})
        self._put("engine.settings", (dict(known) if isinstance(known, dict) else {}) | {name: value}, origin)

    def _add(self, name: str, value: object, origin: str) -> None:
        if name in _BY_NAME:
            self._put(name, value, origin)
        else:
            self._unknown(name, origin, list(_BY_NAME), name)

    def _put(self, name: str, value: object, origin: str) -> None:
        section, _, field = name.partition(".")
        self.tree.setdefault(section, {})[field] = value
        self.origins[name] = origin

    def _unknown(self, name: str, origin: str, known: list[str], shown: str) -> None:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; see docs/settings.md"
        self.problems.append(ConfigProblem(shown, None, origin, f"unknown setting{hint}"))


def _is_service_link(name: str, value: str) -> bool:
    return _SERVICE_LINK.match(name) is not None or (name == "RUSTYDB_PORT" and "://" in value)


def _independent(error: ValidationError) -> list[Any]:
    """Without the errors that only say that a default could not be computed from another wrong value."""
    return [detail for detail in error.errors(include_url=False) if detail["type"] != "default_factory_not_called"]


def _problem(detail: Any, gathered: _Gathered) -> ConfigProblem:
    """One sentence from one of pydantic's errors. `loc` is (section, field); () for rules over several settings."""
    location = tuple(map(str, detail["loc"]))
    reason = str(detail.get("ctx", {}).get("error", "")) if detail["type"] == "value_error" else ""
    if len(location) < 2:
        name, _, message = reason.partition("|")
        setting, expectation = _BY_NAME[name], message
    else:
        setting = _BY_NAME[".".join(location[:2])]
        expectation = f"{setting.expected} is expected" + (f" ({reason})" if "unit" in reason else "")
    raw = gathered.tree.get(setting.section, {}).get(setting.field)
    origin = gathered.origins.get(setting.name, "default")
    value = None if raw is None else setting.render(raw) if setting.secret else str(raw)
    return ConfigProblem(setting.name, value, origin, expectation)


def _replace(section: Section, field: str, value: object) -> None:
    """Change one field of a frozen section: for `Config` alone."""
    section.__dict__[field] = value
