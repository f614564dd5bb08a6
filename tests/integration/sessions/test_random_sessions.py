"""Random sessions: every answer of RustyDB over shared backends is the one of a bare engine with a connection each.

Reproduce a failure with the seed it names: `RUSTYDB_RANDOM_SEED=7 pytest <this file>`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.integration.sessions.random_sessions import (
    ADMIN_SETUP,
    DATABASE,
    PASSWORD,
    ROLE,
    SESSIONS,
    SETUP,
    Pair,
    Script,
)
from tests.support.engine_process import BareEngine
from tests.support.rustydb_process import RustyServer
from tests.support.target import Target
from tests.support.wire_client import WireClient

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("RUSTYDB_RANDOM_SECONDS", "15"))
SEED = int(os.environ.get("RUSTYDB_RANDOM_SEED", str(time.time_ns() % 1_000_000)))


@pytest.fixture(scope="module")
def targets() -> Iterator[tuple[Target, Target]]:
    """RustyDB with a backend for each session that pins one, and a bare engine with the same defaults."""
    size = str(SESSIONS)
    server = RustyServer({"POOL__DEFAULT_POOL_SIZE": size, "POOL__MAX_BACKENDS": str(SESSIONS + 1)}).start()
    engine = BareEngine({name: _default(server.target, name) for name in ("work_mem", "timezone")}).start()
    yield server.target, engine.target
    engine.close()
    server.close()


def _default(target: Target, setting: str) -> str:
    with WireClient.login(target) as client:
        return client.value(f"SHOW {setting}") or ""


def prepare(target: Target) -> Target:
    """A fresh database for one run."""
    with WireClient.login(target) as admin:
        admin.simple(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        for role in (ROLE, "r1"):
            admin.simple(f"DROP ROLE IF EXISTS {role}")
        for statement in ADMIN_SETUP:
            admin.simple(statement)
        admin.simple(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    own = target.with_role(ROLE, PASSWORD).with_database(DATABASE)
    with WireClient.login(own) as owner:
        for statement in SETUP:
            owner.simple(statement)
    return own


def play(targets: tuple[Target, Target], seed: int, steps: int, seconds: float) -> str:
    """Run a script; "" where all agree, else the steps up to the difference."""
    pair = Pair(prepare(targets[0]), prepare(targets[1]))
    script = Script(seed)
    end = time.monotonic() + seconds
    pair.start()
    try:
        for _ in range(steps):
            difference = pair.take(script.next())
            if difference:
                own = [line for line in pair.log if line[0] == pair.log[-1][0]]
                return "\n".join((f"seed {seed}", *own[-60:], "", *pair.log[-15:], "", difference))
            if pair.is_over or time.monotonic() > end:
                break
    finally:
        pair.close()
    return ""


def test_random_sessions_see_what_they_would_see_on_connections_of_their_own(targets: tuple[Target, Target]) -> None:
    end = time.monotonic() + SECONDS
    seed = SEED
    while (left := end - time.monotonic()) > 0:
        difference = play(targets, seed, 400, left)
        assert not difference, difference
        seed += 1
