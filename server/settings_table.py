"""Every setting of RustyDB, declared once: name, type, default, documentation, reloadable or not, secret or not.

The file (`rustydb.toml`), the environment, the flags, `SHOW SETTINGS`, `rustydb check-config`, `docs/settings.md` and
`deploy/config/full.toml` all come from these classes. `server/config.py` reads values into them. Nothing here reads
the environment or a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from server.units import format_byte_count, format_seconds, parse_byte_count, parse_seconds


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a field whose text form has a unit."""

    name: str  # "seconds" or "bytes"


def _empty_is_none(value: object) -> object:
    if value == "":
        return None
    return os.path.expanduser(value) if isinstance(value, str) else value


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a whole number is expected")
    return value


def _split_names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _texts(value: object) -> object:
    """Values of postgresql.conf are texts; a TOML file may give numbers and booleans."""
    if not isinstance(value, dict):
        return value
    return {key: ("on" if item else "off") if isinstance(item, bool) else str(item) for key, item in value.items()}


Seconds = Annotated[float, BeforeValidator(parse_seconds), Ge(0), Unit("seconds")]
ByteCount = Annotated[int, BeforeValidator(parse_byte_count), Ge(0), Unit("bytes")]
Count = Annotated[int, BeforeValidator(_no_bool), Ge(0)]
Port = Annotated[int, BeforeValidator(_no_bool), Ge(0), Le(65535)]
DataPath = Annotated[Path, BeforeValidator(_empty_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
Names = Annotated[list[str], BeforeValidator(_split_names)]
EngineValues = Annotated[dict[str, str], BeforeValidator(_texts)]


def _setting(
    default: Any,
    doc: str,
    *,
    reloadable: bool = False,
    secret: bool = False,
    short_env: str | None = None,
    default_text: str | None = None,
) -> Any:
    """Declare one setting. `default` may be a function (of the values before it); `default_text` then describes it."""
    arguments: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    marks: dict[str, Any] = {
        "reloadable": reloadable,
        "secret": secret,
        "short_env": short_env,
        "default_text": default_text,
    }
    return Field(description=doc, repr=not secret, json_schema_extra=marks, **arguments)


def default_data_dir() -> Path:
    """`/var/lib/rustydb` for root, else `rustydb` in the user's XDG data directory; `data` here for a homeless user."""
    if os.geteuid() == 0:
        return Path("/var/lib/rustydb")
    xdg = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg) / "rustydb"
    try:
        return Path.home() / ".local" / "share" / "rustydb"
    except RuntimeError:  # a uid without an entry in the user database, and no HOME
        return Path.cwd() / "data"


def _default_socket_dir(values: dict[str, Any]) -> Path | None:
    data_dir = values.get("data_dir")
    return data_dir / "run" if isinstance(data_dir, Path) else None


class Section(BaseModel):
    """One table of the file. Frozen for everybody but `Config.reload`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)


class ServerSettings(Section):
    """Listening, limits of clients, shutting down."""

    data_dir: DataPath = _setting(
        default_data_dir,
        "Directory of everything RustyDB keeps: the engine's cluster, certificates, keys.",
        short_env="RUSTYDB_DATA_DIR",
        default_text="/var/lib/rustydb as root, else $XDG_DATA_HOME/rustydb",
    )
    host: str = _setting(
        "localhost",
        "Addresses to listen on, separated by commas; `*` means all, empty means no TCP.",
        short_env="RUSTYDB_HOST",
    )
    port: Port = _setting(
        5432, "TCP port, and number of the Unix socket; 0 lets the system choose.", short_env="RUSTYDB_PORT"
    )
    unix_socket_dir: OptionalPath = _setting(
        _default_socket_dir,
        "Directory of the Unix socket that clients connect to; empty means none.",
        default_text="run in the data directory",
    )
    http_host: str = _setting(
        "localhost",
        "Addresses of the HTTP port (/metrics, /livez, /readyz), separated by commas; empty turns it off.",
        short_env="RUSTYDB_HTTP_HOST",
    )
    http_port: Port = _setting(8432, "HTTP port; 0 lets the system choose.", short_env="RUSTYDB_HTTP_PORT")
    max_clients: Annotated[Count, Ge(1)] = _setting(
        10000, "Most clients connected at once; the next one gets 53300.", reloadable=True
    )
    authentication_timeout: Annotated[Seconds, Ge(0.001)] = _setting(
        60.0, "A client that has not proved who it is by then is disconnected.", reloadable=True
    )
    shutdown_timeout: Seconds = _setting(
        30.0, "On SIGTERM, transactions that run are given this long before they are ended.", reloadable=True
    )
    client_idle_timeout: Seconds = _setting(
        0.0,
        "A client idle outside a transaction for longer is disconnected with 57P05; 0 means never.",
        reloadable=True,
    )
    tcp_keepalive: Seconds = _setting(
        60.0, "Quiet time on a client's TCP connection before keepalive probes start; 0 turns them off."
    )


class EngineSettings(Section):
    """The PostgreSQL underneath."""

    mode: Literal["embedded", "remote"] = _setting(
        "embedded",
        "`embedded` runs a private cluster in the data directory; `remote` uses the one that engine.dsn names.",
    )
    bin_dir: OptionalPath = _setting(
        None,
        "Directory with the programs of PostgreSQL 16 to 18; empty means the ones installed with RustyDB.",
    )
    dsn: str = _setting("", "Connection string of the remote engine.", secret=True)
    max_connections: Count = _setting(
        0, "max_connections of the embedded engine; 0 means pool.max_backends and a reserve of 20 for RustyDB itself."
    )
    start_timeout: Annotated[Seconds, Ge(0.001)] = _setting(
        60.0, "How long the engine may take to start; crash recovery that makes progress is waited for."
    )
    stop_timeout: Annotated[Seconds, Ge(0.001)] = _setting(
        60.0, "How long the engine may take to stop before the next harder way is tried."
    )
    os_user: str = _setting(
        "",
        "Operating-system user that the engine runs as when RustyDB is started by root; empty lets RustyDB pick one.",
    )
    settings: EngineValues = _setting(
        dict, "Further settings of postgresql.conf, name by name; they win over RustyDB's own.", default_text="none"
    )


class PoolSettings(Section):
    """Connections to the engine. Names are PgBouncer's where it has them."""

    max_backends: Annotated[Count, Ge(1)] = _setting(
        100, "Most connections to the engine for clients' sessions, over all databases and roles."
    )
    default_pool_size: Annotated[Count, Ge(1)] = _setting(
        20, "Most connections of one database and role while others need connections too.", reloadable=True
    )
    min_pool_size: Count = _setting(
        0, "Connections of one database and role that are kept open while it is in use.", reloadable=True
    )
    reserve_pool_timeout: Seconds = _setting(
        0.1, "A client that has waited this long may use connections beyond default_pool_size.", reloadable=True
    )
    query_wait_timeout: Seconds = _setting(
        120.0,
        "A statement that has waited this long for a connection fails with 53300; 0 means it waits on.",
        reloadable=True,
    )
    server_idle_timeout: Seconds = _setting(
        600.0, "A connection to the engine that nobody used for this long is closed; 0 means never.", reloadable=True
    )
    server_lifetime: Seconds = _setting(
        3600.0, "A connection to the engine older than this is closed when it is free; 0 means never.", reloadable=True
    )
    server_connect_timeout: Annotated[Seconds, Ge(0.001)] = _setting(
        15.0, "How long opening one connection to the engine may take.", reloadable=True
    )
    connect_burst: Annotated[Count, Ge(1)] = _setting(
        16, "Most connections to the engine being opened at the same time.", reloadable=True
    )


class SessionSettings(Section):
    """What one client's session may use."""

    max_prepared_statements: Annotated[Count, Ge(1)] = _setting(
        200,
        "Prepared statements kept on one connection to the engine; the least used is closed first.",
        reloadable=True,
    )
    analysis_cache_entries: Annotated[Count, Ge(16)] = _setting(4096, "Statement texts whose analysis is remembered.")
    max_message_bytes: Annotated[ByteCount, Ge(65536), Le(1073741823)] = _setting(
        1073741823, "Longest message accepted from a client, as PostgreSQL's own limit.", reloadable=True
    )
    pin_timeout: Seconds = _setting(
        0.0,
        "A session that is idle outside a transaction but keeps a connection pinned for longer ends; 0 means never.",
        reloadable=True,
    )
    idle_transaction_timeout: Seconds = _setting(
        0.0, "A session idle in a transaction for longer ends with 25P03; 0 means never.", reloadable=True
    )


class TlsSettings(Section):
    """Encryption between clients and RustyDB."""

    mode: Literal["disable", "allow", "require"] = _setting(
        "allow", "`allow` offers TLS and takes clients without, `require` refuses those (not on the Unix socket)."
    )
    cert_file: OptionalPath = _setting(
        None,
        "Certificate chain, PEM; read again on reload. Empty means a self-signed one, made at the first start.",
        reloadable=True,
        default_text="self-signed, in the data directory",
    )
    key_file: OptionalPath = _setting(
        None, "Private key of the certificate, PEM.", reloadable=True, default_text="beside the self-signed certificate"
    )
    ca_file: OptionalPath = _setting(None, "Authorities whose client certificates are accepted, PEM.", reloadable=True)
    min_version: Literal["TLSv1.2", "TLSv1.3"] = _setting("TLSv1.2", "Oldest TLS version spoken.")


class AuthSettings(Section):
    """Who may log in."""

    method: Literal["scram-sha-256"] = _setting(
        "scram-sha-256", "Authentication method where no host-based rule says otherwise."
    )
    hba_file: OptionalPath = _setting(
        None, "Host-based rules in the form of pg_hba.conf; empty means everybody by auth.method.", reloadable=True
    )
    throttle_failures: Count = _setting(
        10,
        "Failed logins of one role from one address after which the next ones are delayed; 0 turns it off.",
        reloadable=True,
    )
    throttle_seconds: Seconds = _setting(30.0, "How long failed logins are remembered for the delay.", reloadable=True)
    scram_iterations: Annotated[Count, Ge(4096)] = _setting(
        4096, "Iterations of SCRAM verifiers that RustyDB makes itself."
    )
    password: str = _setting(
        "",
        "Password of the administrator `postgres`, set at the first start; empty means one is generated into a file.",
        secret=True,
        short_env="RUSTYDB_PASSWORD",
        default_text="generated",
    )


class SecuritySettings(Section):
    """Privileges of RustyDB's own users."""

    superuser: bool = _setting(
        False,
        "Break-glass: makes the administrator `postgres` a true superuser of the engine, above audit and governance.",
    )
    frontend_os_user: str = _setting(
        "",
        "Operating-system user that the front end runs as when started by root; empty means it stays root.",
    )


class LogSettings(Section):
    """Log output, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least level logged.", reloadable=True)
    format: Literal["text", "json"] = _setting("text", "`text` for people, `json` for collectors: one object a line.")
    statements: bool = _setting(False, "Log every statement; costs throughput.", reloadable=True)


class EventSettings(Section):
    """The event bus."""

    buffer_size: Annotated[Count, Ge(16)] = _setting(
        8192, "Events kept for one buffered subscriber; beyond that the newest are dropped and counted."
    )


class FeatureSettings(Section):
    """Features beyond the core."""

    enabled: Names = _setting(list, "Features to load: entry point names or module:object.", default_text="none")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings."""

    section: str
    field: str
    doc: str
    expected: str  # what a value may be, in words
    default: str  # as text, in PostgreSQL's units
    reloadable: bool
    secret: bool
    unit: str | None
    short_env: str | None

    @property
    def name(self) -> str:
        return f"{self.section}.{self.field}"

    @property
    def env(self) -> str:
        return f"{ENV_PREFIX}{self.section}__{self.field}".upper()

    def render(self, value: object) -> str:
        """A value as text: units as PostgreSQL writes them, secrets masked."""
        if self.secret:
            return "********" if value else ""
        return render_value(value, self.unit)


ENV_PREFIX: Final = "RUSTYDB_"


def render_value(value: object, unit: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if unit == "seconds" and isinstance(value, int | float):
        return format_seconds(value)
    if unit == "bytes" and isinstance(value, int):
        return format_byte_count(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def settings_of(sections: dict[str, type[Section]]) -> Iterator[Setting]:
    """The table, in the order of declaration."""
    for section, model in sections.items():
        for field, info in model.model_fields.items():
            marks: Any = info.json_schema_extra
            if not isinstance(marks, dict) or not info.description:
                raise TypeError(f"{model.__name__}.{field} is not declared with _setting")
            unit = next((item.name for item in info.metadata if isinstance(item, Unit)), None)
            yield Setting(
                section=section,
                field=field,
                doc=info.description,
                expected=_expected(info, unit),
                default=marks["default_text"] or render_value(info.get_default(), unit),
                reloadable=marks["reloadable"],
                secret=marks["secret"],
                unit=unit,
                short_env=marks["short_env"],
            )


def _expected(info: FieldInfo, unit: str | None) -> str:
    """What a value may be, in words, from the field's type."""
    annotation = info.annotation
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    lows = [item.ge for item in info.metadata if isinstance(item, Ge)]
    highs = [item.le for item in info.metadata if isinstance(item, Le)]
    low, high = (render_value(bound, unit) if bound is not None else "" for bound in (_last(lows), _last(highs)))
    limits = f" from {low} to {high}" if high else f", at least {low}" if low not in ("", "0") else ""
    if unit == "seconds":
        return f"a duration such as 30s or 5min{limits}"
    if unit == "bytes":
        return f"a size such as 64MB{limits}"
    if annotation is bool:
        return "on or off"
    if annotation is int:
        return f"a whole number{limits}"
    origin = get_origin(annotation)
    if origin is list:
        return "a list of names"
    if origin is dict:
        return "a table of names and values"
    if annotation is Path or Path in get_args(annotation):
        return "a path"
    return "a text"


def _last(bounds: list[Any]) -> Any:
    return max(bounds, default=None)
