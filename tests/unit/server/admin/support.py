"""A server that does nothing but remember what it was told: the admin side needs no more of one."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.snapshots import BackendSnapshot, PoolSnapshot, PoolStats, SessionSnapshot


def session(pid: int = 4711, **changes: object) -> SessionSnapshot:
    fields: dict[str, object] = {
        "pid": pid,
        "role": "alice",
        "database": "shop",
        "application_name": "psql",
        "state": "pinned",
        "client_addr": "192.0.2.7",
        "client_port": 40123,
        "local_addr": "192.0.2.1",
        "tls": None,
        "connected_at": 1_700_000_000.25,
        "last_request_at": 0.0,
        "wait_us": 2_000_005,
        "backend_pid": 99,
        "pins": ("cursor WITH HOLD", "temporary table"),
        "prepared_statements": 3,
        "statements": 12,
        "query": "SELECT 'ä'",
        "context_id": 7,
        "replication": False,
    } | changes
    return SessionSnapshot(**fields)  # type: ignore[arg-type]


@dataclass
class RecordingControl:
    """Implements ServerControl over lists."""

    all_sessions: list[SessionSnapshot] = field(default_factory=lambda: [session(4712), session(4711)])
    all_backends: list[BackendSnapshot] = field(
        default_factory=lambda: [
            BackendSnapshot(99, "alice", "shop", "active", 1_700_000_000.0, 0.0, 4711, 3, 12, 7),
            BackendSnapshot(98, "alice", "shop", "idle", 1_700_000_000.0, 1_700_000_001.0, None, 0, 0, 0),
        ]
    )
    all_pools: list[PoolSnapshot] = field(
        default_factory=lambda: [PoolSnapshot("shop", "alice", 2, 1, 1, 1, 1, 0, 2_000_005, 20, False)]
    )
    all_stats: list[PoolStats] = field(
        default_factory=lambda: [PoolStats("shop", 10, 12, 1000, 2000, 5_000_000, 4_000_000, 3_000_000, 1, 2, 3)]
    )
    told: list[tuple[str, object]] = field(default_factory=list)
    is_up: bool = True

    def sessions(self) -> list[SessionSnapshot]:
        return self.all_sessions

    def backends(self) -> list[BackendSnapshot]:
        return self.all_backends

    def pools(self) -> list[PoolSnapshot]:
        return self.all_pools

    def stats(self) -> list[PoolStats]:
        return self.all_stats

    async def pause(self, database: str | None) -> None:
        self.told.append(("pause", database))

    def resume(self, database: str | None) -> None:
        self.told.append(("resume", database))

    def reconnect(self, database: str | None) -> None:
        self.told.append(("reconnect", database))

    async def reload(self) -> list[str]:
        self.told.append(("reload", None))
        return ["log.level"]

    def kill_session(self, pid: int) -> bool:
        self.told.append(("kill", pid))
        return any(one.pid == pid for one in self.all_sessions)

    def shutdown(self, mode: str) -> None:
        self.told.append(("shutdown", mode))

    def version(self) -> str:
        return "0.1.0"

    def engine_version(self) -> str:
        return "18.1"

    def started_at(self) -> float:
        return 1_700_000_000.0

    def is_ready(self) -> bool:
        return self.is_up

    def loop_lag_us(self) -> tuple[int, int]:
        return 150, 4_000
