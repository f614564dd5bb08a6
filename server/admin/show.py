"""SHOW commands of the core. Columns carry PgBouncer's names where PgBouncer has the thing.

Every command is a function from the sources to rows; nothing here waits for anything. Counters are totals since the
server started.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from server.admin.sources import AdminSources
from server.extension.commands import (
    MONITOR_ROLE,
    PUBLIC,
    AdminColumn,
    AdminCommand,
    AdminResult,
    ColumnType,
    CommandCall,
)

TEXT, INT8, BOOL, FLOAT8, TIMESTAMPTZ = (
    ColumnType.TEXT,
    ColumnType.INT8,
    ColumnType.BOOL,
    ColumnType.FLOAT8,
    ColumnType.TIMESTAMPTZ,
)
Row = tuple[object, ...]
Rows = Callable[[AdminSources], Iterable[Row]]
_MICROSECONDS = 1_000_000
_ROWS_IN_A_TURN = 500

POOLS = (
    AdminColumn("database", TEXT, "database of the pool"),
    AdminColumn("user", TEXT, "role of the pool: its backends are logged in as this role"),
    AdminColumn("cl_active", INT8, "sessions that hold a backend, or are idle and hold none"),
    AdminColumn("cl_waiting", INT8, "sessions that wait for a backend"),
    AdminColumn("sv_active", INT8, "backends held by a session"),
    AdminColumn("sv_idle", INT8, "backends free for the next session"),
    AdminColumn("sv_pinned", INT8, "backends that must stay with their session, see `pins` in SHOW SESSIONS"),
    AdminColumn("sv_login", INT8, "backends being connected"),
    AdminColumn("maxwait", INT8, "how long the session that waits longest has waited, whole seconds"),
    AdminColumn("maxwait_us", INT8, "the microseconds beyond these seconds"),
    AdminColumn("pool_size", INT8, "backends this pool may have now"),
    AdminColumn("pool_mode", TEXT, "always `transaction`"),
    AdminColumn("paused", BOOL, "PAUSE is in force"),
)

SESSIONS = (
    AdminColumn("id", INT8, "process id the client was given; what KILL SESSION takes"),
    AdminColumn("user", TEXT, "role that authenticated"),
    AdminColumn("database", TEXT),
    AdminColumn("application_name", TEXT),
    AdminColumn("state", TEXT, "active, waiting, idle, idle_in_transaction or pinned"),
    AdminColumn("addr", TEXT, "client address; empty for a Unix socket"),
    AdminColumn("port", INT8, "client port"),
    AdminColumn("local_addr", TEXT, "address the client connected to"),
    AdminColumn("tls", TEXT, "protocol and cipher; NULL in the clear"),
    AdminColumn("connect_time", TIMESTAMPTZ),
    AdminColumn("request_time", TIMESTAMPTZ, "last request of the client"),
    AdminColumn("wait", INT8, "how long it has waited for a backend, whole seconds"),
    AdminColumn("wait_us", INT8, "the microseconds beyond these seconds"),
    AdminColumn("backend_pid", INT8, "engine process it holds; NULL where it holds none"),
    AdminColumn("pins", TEXT, "why its backend must stay with it, comma-separated"),
    AdminColumn("prepared_statements", INT8),
    AdminColumn("statements", INT8, "statements run"),
    AdminColumn("context_id", INT8, "sessions with equal settings have equal ids"),
    AdminColumn("replication", BOOL),
    AdminColumn("query", TEXT, "last statement, cut to 1024 characters"),
)

BACKENDS = (
    AdminColumn("pid", INT8, "process id in the engine"),
    AdminColumn("user", TEXT, "role it is logged in as"),
    AdminColumn("database", TEXT),
    AdminColumn("state", TEXT, "active, idle, used, tested, new or being_canceled"),
    AdminColumn("connect_time", TIMESTAMPTZ),
    AdminColumn("release_time", TIMESTAMPTZ, "when a session gave it back last; NULL where none did"),
    AdminColumn("session_id", INT8, "session that holds it; NULL where none does"),
    AdminColumn("prepared_statements", INT8),
    AdminColumn("statements", INT8, "statements run"),
    AdminColumn("context_id", INT8, "settings it has now, see SHOW SESSIONS"),
)

STATS = (
    AdminColumn("database", TEXT),
    AdminColumn("total_xact_count", INT8, "transactions"),
    AdminColumn("total_query_count", INT8, "statements"),
    AdminColumn("total_received", INT8, "bytes from clients"),
    AdminColumn("total_sent", INT8, "bytes to clients"),
    AdminColumn("total_xact_time", INT8, "microseconds in transactions"),
    AdminColumn("total_query_time", INT8, "microseconds in statements"),
    AdminColumn("total_wait_time", INT8, "microseconds that sessions waited for a backend"),
    AdminColumn("total_error_count", INT8, "errors sent to clients"),
    AdminColumn("total_client_parse_count", INT8, "statements that clients prepared"),
    AdminColumn("total_server_parse_count", INT8, "statements prepared on backends"),
)

SETTINGS = (
    AdminColumn("key", TEXT),
    AdminColumn("value", TEXT, "secrets are masked"),
    AdminColumn("default", TEXT),
    AdminColumn("changeable", BOOL, "RELOAD can change it"),
    AdminColumn("origin", TEXT, "where the value comes from: default, a file, a variable, a flag"),
    AdminColumn("description", TEXT),
)

COMMANDS = (
    AdminColumn("name", TEXT),
    AdminColumn("syntax", TEXT),
    AdminColumn("role", TEXT, "role whose members may run it; public is everybody"),
    AdminColumn("alias_of", TEXT, "NULL unless it is another spelling of a command"),
    AdminColumn("feature", TEXT, "core, or the feature that brings it"),
    AdminColumn("description", TEXT),
)

EVENTS = (
    AdminColumn("subscriber", TEXT, "feature, or part of the core"),
    AdminColumn("events", TEXT, "event types it gets, comma-separated"),
    AdminColumn("delivery", TEXT, "inline: the server waits for it; buffered: it has a queue"),
    AdminColumn("on_error", TEXT, "deny or continue; buffered subscribers always continue"),
    AdminColumn("queued", INT8, "events that wait in its queue"),
    AdminColumn("capacity", INT8, "length of its queue; 0 for inline"),
    AdminColumn("delivered", INT8),
    AdminColumn("dropped", INT8, "events lost because the queue was full"),
    AdminColumn("failed", INT8, "calls that raised an error"),
    AdminColumn("last_error", TEXT),
)

HOOKS = (
    AdminColumn("hook", TEXT, "hook point"),
    AdminColumn("feature", TEXT),
    AdminColumn("order", INT8, "lower runs first"),
    AdminColumn("on_error", TEXT, "deny or continue"),
)

FEATURES = (
    AdminColumn("name", TEXT),
    AdminColumn("state", TEXT, "loaded, ready, running, failed or stopped"),
    AdminColumn("requires", TEXT, "features it needs, comma-separated"),
    AdminColumn("origin", TEXT, "entry point, or module:object"),
    AdminColumn("error", TEXT, "why it does not run"),
)

VERSION = (
    AdminColumn("version", TEXT, "of RustyDB"),
    AdminColumn("engine_version", TEXT, "of PostgreSQL underneath"),
    AdminColumn("started_at", TIMESTAMPTZ),
)

DATABASES = (
    AdminColumn("name", TEXT),
    AdminColumn("current_client_connections", INT8, "sessions"),
    AdminColumn("current_connections", INT8, "backends"),
    AdminColumn("pools", INT8),
    AdminColumn("paused", BOOL),
)

LISTS = (AdminColumn("list", TEXT), AdminColumn("items", INT8))

MEM = (AdminColumn("name", TEXT), AdminColumn("value", INT8), AdminColumn("unit", TEXT))


def _pools(sources: AdminSources) -> Iterable[Row]:
    for pool in sorted(sources.control.pools(), key=lambda one: (one.database, one.role)):
        seconds, microseconds = divmod(pool.max_wait_us, _MICROSECONDS)
        yield (
            pool.database,
            pool.role,
            pool.sessions_active,
            pool.sessions_waiting,
            pool.backends_active,
            pool.backends_idle,
            pool.backends_pinned,
            pool.backends_connecting,
            seconds,
            microseconds,
            pool.pool_size,
            "transaction",
            pool.paused,
        )


def _sessions(sources: AdminSources) -> Iterable[Row]:
    for session in sorted(sources.control.sessions(), key=lambda one: one.pid):
        seconds, microseconds = divmod(session.wait_us, _MICROSECONDS)
        yield (
            session.pid,
            session.role,
            session.database,
            session.application_name,
            session.state,
            session.client_addr,
            session.client_port,
            session.local_addr,
            session.tls,
            session.connected_at,
            session.last_request_at or None,
            seconds,
            microseconds,
            session.backend_pid,
            ", ".join(session.pins),
            session.prepared_statements,
            session.statements,
            session.context_id,
            session.replication,
            session.query,
        )


def _backends(sources: AdminSources) -> Iterable[Row]:
    for backend in sorted(sources.control.backends(), key=lambda one: one.pid):
        yield (
            backend.pid,
            backend.role,
            backend.database,
            backend.state,
            backend.connected_at,
            backend.released_at or None,
            backend.session_pid,
            backend.prepared_statements,
            backend.statements,
            backend.context_id,
        )


def _stats(sources: AdminSources) -> Iterable[Row]:
    for stats in sorted(sources.control.stats(), key=lambda one: one.database):
        yield (
            stats.database,
            stats.transactions,
            stats.statements,
            stats.bytes_received,
            stats.bytes_sent,
            stats.transaction_time_us,
            stats.statement_time_us,
            stats.wait_time_us,
            stats.errors,
            stats.parses,
            stats.prepares,
        )


def _settings(sources: AdminSources) -> Iterable[Row]:
    for one in sources.settings():
        setting = one.setting
        yield setting.name, one.value, setting.default, setting.reloadable, one.origin, setting.doc


def _commands(sources: AdminSources) -> Iterable[Row]:
    for one in sources.registry:
        command = one.command
        doc = " ".join(command.doc.split())
        yield one.name, one.readable_syntax, command.role, command.alias_of or None, command.feature, doc


def _events(sources: AdminSources) -> Iterable[Row]:
    for one in sources.bus.stats():
        yield (
            one.subscriber,
            ", ".join(one.events),
            one.delivery.value,
            one.on_error.value,
            one.queued,
            one.capacity,
            one.delivered,
            one.dropped,
            one.failed,
            one.last_error,
        )


def _hooks(sources: AdminSources) -> Iterable[Row]:
    for one in sources.hooks.entries():
        yield one.point, one.feature, one.order, one.on_error.value


def _features(sources: AdminSources) -> Iterable[Row]:
    for one in sources.features():
        yield one.name, one.state.value, ", ".join(one.requires), one.origin, one.error


def _version(sources: AdminSources) -> Iterable[Row]:
    control = sources.control
    yield control.version(), control.engine_version(), control.started_at()


def _databases(sources: AdminSources) -> Iterable[Row]:
    control = sources.control
    pools = control.pools()
    backends: dict[str, int] = {}
    sessions: dict[str, int] = {}
    for backend in control.backends():
        backends[backend.database] = backends.get(backend.database, 0) + 1
    for session in control.sessions():
        sessions[session.database] = sessions.get(session.database, 0) + 1
    for name in sorted({pool.database for pool in pools} | set(backends) | set(sessions)):
        mine = [pool for pool in pools if pool.database == name]
        yield (
            name,
            sessions.get(name, 0),
            backends.get(name, 0),
            len(mine),
            bool(mine) and all(pool.paused for pool in mine),
        )


def _lists(sources: AdminSources) -> Iterable[Row]:
    control = sources.control
    pools, sessions, backends = control.pools(), control.sessions(), control.backends()
    held = sum(1 for backend in backends if backend.session_pid is not None)
    yield "databases", len({pool.database for pool in pools})
    yield "users", len({pool.role for pool in pools})
    yield "pools", len(pools)
    yield "used_clients", len(sessions)
    yield "used_servers", held
    yield "free_servers", len(backends) - held


def _memory(sources: AdminSources) -> Iterable[Row]:
    del sources  # the process as a whole: no part of the server counts its own memory
    resident = resident_bytes()
    if resident is not None:
        yield "resident", resident, "bytes"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield "peak_resident", peak if sys.platform == "darwin" else peak * 1024, "bytes"


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()


def show_commands(sources: AdminSources) -> tuple[AdminCommand, ...]:
    """All SHOW commands of the core, with their aliases."""

    def show(
        what: str, columns: tuple[AdminColumn, ...], rows: Rows, doc: str, *, role: str = MONITOR_ROLE, alias: str = ""
    ) -> tuple[AdminCommand, ...]:
        async def handler(call: CommandCall) -> AdminResult:
            del call  # SHOW commands of the core take no arguments
            found: list[Row] = []
            for row in rows(sources):
                found.append(row)
                if len(found) % _ROWS_IN_A_TURN == 0:
                    await asyncio.sleep(0)  # thousands of sessions are no reason to hold the loop
            return AdminResult(found)

        command = AdminCommand(f"SHOW {what}", role, columns, handler, doc)
        if not alias:
            return (command,)
        return command, replace(command, syntax=f"SHOW {alias}", alias_of=f"SHOW {what}")

    return (
        *show("POOLS", POOLS, _pools, "One row a pool: a pool serves one role in one database."),
        *show("SESSIONS", SESSIONS, _sessions, "One row a client session.", alias="CLIENTS"),
        *show("BACKENDS", BACKENDS, _backends, "One row a connection to the engine.", alias="SERVERS"),
        *show("STATS", STATS, _stats, "Totals of each database since the server started."),
        *show("SETTINGS", SETTINGS, _settings, "All settings of RustyDB and their values.", alias="CONFIG"),
        *show("DATABASES", DATABASES, _databases, "Databases that have sessions or backends now."),
        *show("LISTS", LISTS, _lists, "How many databases, users, pools, sessions and backends there are."),
        *show("MEM", MEM, _memory, "Memory of the RustyDB process. The engine's is its own."),
        *show("EVENTS", EVENTS, _events, "Subscribers of the event bus, with what they got and what was dropped."),
        *show("HOOKS", HOOKS, _hooks, "Hooks that features have registered, in the order they run."),
        *show("FEATURES", FEATURES, _features, "Features of `features.enabled` and whether they run."),
        *show("VERSION", VERSION, _version, "Versions of RustyDB and of its engine.", role=PUBLIC),
        *show(
            "COMMANDS",
            COMMANDS,
            _commands,
            "All admin commands, with their syntax and the role they need.",
            role=PUBLIC,
            alias="HELP",
        ),
    )
