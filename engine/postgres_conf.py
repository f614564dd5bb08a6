"""Builders of postgresql.conf, pg_hba.conf and pg_ident.conf. Pure: settings and a `Machine` in, text out.

There are three layers, each winning over the one before:

1. `tuned_settings`: defaults fitted to the machine, in the generated postgresql.conf, with the operator's
   `engine.settings` merged over them;
2. postgresql.auto.conf, which a superuser's ALTER SYSTEM writes;
3. `pinned_settings`: what RustyDB's guarantees stand on. They are given on the postmaster's command line, which wins
   over both, and `engine.settings` may not name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from engine.errors import EngineConfigError
from engine.machine import Machine

MIB = 1 << 20
GIB = 1 << 30

IDENT_MAP = "rustydb"
LOG_LINE_PREFIX = "%p %e %b|"
"""What `engine.process.parse_log_line` takes apart: process id, SQLSTATE, kind of process."""

_SMALL_SHM_BYTES = 256 * MIB  # Docker's default /dev/shm has 64 MiB: one parallel hash join exhausts it

FORBIDDEN_SETTINGS = frozenset(
    {
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "log_destination",
        "log_directory",
        "log_filename",
        "log_line_prefix",
        "logging_collector",
        "lc_messages",
        "max_connections",
        "port",
        "standard_conforming_strings",
        "backslash_quote",
        "unix_socket_directories",
        "unix_socket_group",
        "unix_socket_permissions",
    }
)
"""Settings that `engine.settings` may not name: RustyDB sets them itself."""


class Login(Enum):
    """How the front end logs in at its embedded engine."""

    PEER = "peer"  # the kernel names our user; it may log in as any role
    SCRAM = "scram-sha-256"  # our uid has no name: a generated secret for our own role, the client's keys for others


@dataclass(frozen=True, slots=True)
class SocketPlace:
    """The private Unix socket: its directory, and whether a second user has to reach it."""

    directory: str
    port: int
    shared_with_group: bool


def tuned_settings(machine: Machine, max_connections: int) -> dict[str, str]:
    """Defaults for this machine. Formulas: PostgreSQL's manual, 19.4, and what pgtune does for mixed load."""
    memory = machine.memory_bytes
    shared_buffers = _clamp(memory // 4, 32 * MIB, 16 * GIB)
    work_mem = _clamp((memory - shared_buffers) // (max_connections * 4), 4 * MIB, 64 * MIB)
    workers = max(8, machine.cores)
    return {
        "shared_buffers": _mib(shared_buffers),
        "effective_cache_size": _mib(max(memory * 3 // 4, 64 * MIB)),
        "maintenance_work_mem": _mib(_clamp(memory // 16, 32 * MIB, 2 * GIB)),
        "work_mem": _mib(work_mem),
        "huge_pages": "try",
        "max_worker_processes": str(workers),
        "max_parallel_workers": str(machine.cores),
        "max_parallel_workers_per_gather": str(_clamp(machine.cores // 2, 0, 4)),
        "max_parallel_maintenance_workers": str(_clamp(machine.cores // 2, 0, 4)),
        "dynamic_shared_memory_type": "posix" if machine.shm_bytes >= _SMALL_SHM_BYTES else "sysv",
        # Solid-state disks are what it runs on nowadays.
        "random_page_cost": "1.1",
        "min_wal_size": "256MB",
        "max_wal_size": "2GB",
        # Publications and subscriptions work without a restart.
        "wal_level": "logical",
        "max_wal_senders": "10",
        "max_replication_slots": "10",
        "track_io_timing": "on",
        "timezone": "Etc/UTC",
        "log_timezone": "Etc/UTC",
        "datestyle": "iso, mdy",
        "default_text_search_config": "pg_catalog.english",
        "lc_monetary": "C",
        "lc_numeric": "C",
        "lc_time": "C",
        "password_encryption": "scram-sha-256",
        # Statement text can hold a secret; the audit trail keeps statements, the engine's log does not.
        "log_min_error_statement": "panic",
        "log_checkpoints": "off",
        "cluster_name": "rustydb",
    }


def operator_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """`engine.settings`, checked. Names are case-insensitive as in postgresql.conf."""
    result: dict[str, str] = {}
    for name, value in settings.items():
        key = name.strip().lower()
        if not key or not all(c.isascii() and (c.isalnum() or c in "_.$") for c in key):
            raise EngineConfigError(
                f'engine.settings has "{name}", which is not the name of a PostgreSQL setting',
                hint='Names are letters, digits and underscores, as in work_mem = "64MB".',
            )
        if key in FORBIDDEN_SETTINGS:
            raise EngineConfigError(
                f'engine.settings may not set "{key}"',
                detail="RustyDB sets it itself: its connection to the engine, its log or its safety depends on it.",
                hint="Use engine.max_connections." if key == "max_connections" else "Remove it.",
            )
        if "\0" in value or "\n" in value:
            raise EngineConfigError(f"engine.settings.{key} has a line break or a NUL byte in its value")
        result[key] = value
    return result


def merged_settings(
    machine: Machine, max_connections: int, operator: Mapping[str, str], control_files: str | None = None
) -> dict[str, str]:
    """Everything that the generated postgresql.conf says. `control_files`: see `engine.extensions`."""
    checked = operator_settings(operator)
    settings = tuned_settings(machine, max_connections)
    settings["max_prepared_transactions"] = str(max_connections)
    settings.update(checked)
    libraries = [name.strip() for name in checked.get("shared_preload_libraries", "").split(",") if name.strip()]
    if "pg_stat_statements" not in libraries:
        libraries.insert(0, "pg_stat_statements")
    settings["shared_preload_libraries"] = ", ".join(libraries)
    if control_files is not None:
        settings["extension_control_path"] = f"{control_files}:{checked.get('extension_control_path', '$system')}"
    return settings


def pinned_settings(socket: SocketPlace, *, max_connections: int, hba_file: str, ident_file: str) -> dict[str, str]:
    """What no file and no ALTER SYSTEM may change: the postmaster's command line."""
    return {
        "listen_addresses": "",
        "port": str(socket.port),
        "unix_socket_directories": quote_list_element(socket.directory),
        "unix_socket_permissions": "0770" if socket.shared_with_group else "0700",
        "hba_file": hba_file,
        "ident_file": ident_file,
        "max_connections": str(max_connections),
        "standard_conforming_strings": "on",
        "backslash_quote": "safe_encoding",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_line_prefix": LOG_LINE_PREFIX,
        "lc_messages": "C",
    }


def command_line(settings: Mapping[str, str]) -> list[str]:
    """Settings as arguments of `postgres`."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def render_conf(settings: Mapping[str, str]) -> str:
    """Text of postgresql.conf."""
    header = (
        "# Generated by RustyDB at every start: changes made here are lost.\n"
        "# Use engine.settings in rustydb.toml, or ALTER SYSTEM.\n"
    )
    return header + "".join(f"{name} = {quote_value(value)}\n" for name, value in sorted(settings.items()))


def render_hba(login: Login) -> str:
    """Text of pg_hba.conf: the private socket, one method, nothing else."""
    method = f"peer map={IDENT_MAP}" if login is Login.PEER else login.value
    return (
        "# Generated by RustyDB at every start. Clients are let in by RustyDB, under auth.hba_file.\n"
        f"local all all {method}\n"
        f"local replication all {method}\n"
    )


TRUST_INTERNAL_HBA = f"local template1 rustydb_internal trust\n{render_hba(Login.SCRAM)}"
"""For the moment in which our own role gets its secret: see `engine.secret`."""


def render_ident(frontend_user: str) -> str:
    """Text of pg_ident.conf: the front end's operating-system user, and nobody else, may be any role."""
    return f"# Generated by RustyDB at every start.\n{IDENT_MAP} {_quote_token(frontend_user)} all\n"


def quote_value(value: str) -> str:
    """A value of postgresql.conf, where a backslash escapes and a quote is doubled."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def quote_list_element(value: str) -> str:
    """One element of a comma-separated list of paths."""
    return '"' + value.replace('"', '""') + '"'


def _quote_token(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes // MIB}MB"
