"""The servers that are compared, on one set of engine settings.

RustyDB tunes its own engine to the machine; the bare engine (also the one behind PgBouncer) is given the very same
settings, read back from RustyDB's engine, so that what differs is only what stands in front.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.binaries import BinaryMissing
from tests.support.certificates import make_certificate
from tests.support.engine_process import BareEngine
from tests.support.pgbouncer_process import PgBouncer
from tests.support.processes import make_folder
from tests.support.rustydb_process import RustyServer
from tests.support.target import ENGINE, PGBOUNCER, RUSTYDB, Target
from tests.support.wire_client import WireClient

POOL_SIZE = 20
MAX_CLIENTS = 5000
DATABASE, ROLE, PASSWORD = "bench", "bench", "bench-password"
# What names a place of the one engine, or a way into it.
OWN_SETTINGS = (
    *(
        "listen_addresses",
        "port",
        "unix_socket",
        "data_directory",
        "config_file",
        "hba_file",
        "ident_file",
        "event_source",
    ),
    *("event_source", "external_pid_file", "cluster_name", "ssl", "log", "syslog", "password_encryption"),
)
SETTINGS_QUERY = """
SELECT name, current_setting(name) FROM pg_settings
WHERE source IN ('configuration file', 'command line') AND context <> 'internal' ORDER BY name
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """What runs. Targets log in as the role `bench`, owner of the database `bench`."""

    targets: Mapping[str, Target]
    rustydb: RustyServer | None
    settings: Mapping[str, str]
    notes: tuple[str, ...]
    stack: contextlib.ExitStack

    def close(self) -> None:
        self.stack.close()


def start(names: list[str], settings: Mapping[str, str]) -> Servers:
    """Start the named servers. `settings` are RUSTYDB_* names without the prefix, laid over the benchmark's own."""
    stack = contextlib.ExitStack()
    try:
        return _start(names, settings, stack)
    except BaseException:
        stack.close()
        raise


def _start(names: list[str], settings: Mapping[str, str], stack: contextlib.ExitStack) -> Servers:
    targets: dict[str, Target] = {}
    notes: list[str] = []
    engine_settings: dict[str, str] = {}
    rustydb: RustyServer | None = None
    if RUSTYDB in names:
        chosen = {"POOL__DEFAULT_POOL_SIZE": str(POOL_SIZE), "SERVER__MAX_CLIENTS": str(MAX_CLIENTS), **settings}
        rustydb = RustyServer(chosen)
        stack.callback(rustydb.close)
        rustydb.start()
        engine_settings = settings_of(rustydb.target)
        targets[RUSTYDB] = prepare(rustydb.target)
    if ENGINE in names or PGBOUNCER in names:
        engine = BareEngine({"max_connections": "200", **engine_settings})
        stack.callback(engine.close)
        engine.start()
        targets[ENGINE] = prepare(engine.target)
        if PGBOUNCER in names:
            try:
                targets[PGBOUNCER] = _start_pgbouncer(targets[ENGINE], engine, stack)
                notes.append(
                    f"PgBouncer {'.'.join(map(str, PgBouncer.version()))}, pool of {POOL_SIZE}, transaction mode"
                )
            except BinaryMissing as error:
                notes.append(str(error))
        if ENGINE not in names:
            del targets[ENGINE]
    return Servers(
        {name: targets[name] for name in names if name in targets}, rustydb, engine_settings, tuple(notes), stack
    )


def _start_pgbouncer(upstream: Target, engine: BareEngine, stack: contextlib.ExitStack) -> Target:
    with WireClient.login(engine.target) as client:
        verifier = client.value(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{upstream.user}'") or ""
    pooler = PgBouncer(upstream, verifier, POOL_SIZE, make_certificate(make_folder("certificate")))
    stack.callback(pooler.close)
    return pooler.start().target


def settings_of(target: Target) -> dict[str, str]:
    """The engine's settings that its configuration gives and that say nothing of its place."""
    with WireClient.login(target) as client:
        rows = client.simple(SETTINGS_QUERY)
    return {str(name): value or "" for name, value in rows if not str(name).startswith(OWN_SETTINGS)}


def prepare(target: Target) -> Target:
    """Make the benchmark's role and database on a server."""
    with WireClient.login(target) as client:
        client.simple(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        client.simple(f"GRANT {ROLE} TO CURRENT_USER")
        client.simple(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    return target.with_role(ROLE, PASSWORD).with_database(DATABASE)
