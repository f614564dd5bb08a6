"""Where a test or a benchmark connects to: the one parameter that points it at the engine, PgBouncer or RustyDB."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote

ENGINE = "engine"
PGBOUNCER = "pgbouncer"
RUSTYDB = "rustydb"
TARGET_NAMES = (ENGINE, PGBOUNCER, RUSTYDB)


@dataclass(frozen=True, slots=True)
class Target:
    """One server by TCP on loopback. `pid` is the process whose CPU time and memory are the server's own."""

    name: str
    port: int
    user: str
    password: str
    database: str = "postgres"
    host: str = "127.0.0.1"
    tls: bool = False
    pid: int = 0

    @property
    def sslmode(self) -> str:
        return "require" if self.tls else "disable"

    @property
    def dsn(self) -> str:
        return (
            f"host={self.host} port={self.port} user={self.user} password={self.password} "
            f"dbname={self.database} sslmode={self.sslmode}"
        )

    @property
    def url(self) -> str:
        return self.url_for("postgresql")

    def url_for(self, scheme: str) -> str:
        """An URL without a TLS option, for tools that name theirs differently."""
        return f"{scheme}://{quote(self.user)}:{quote(self.password)}@{self.host}:{self.port}/{quote(self.database)}"

    def environment(self) -> dict[str, str]:
        """libpq's variables."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            "PGSSLMODE": self.sslmode,
        }

    def with_role(self, user: str, password: str) -> Target:
        return replace(self, user=user, password=password)

    def with_database(self, database: str) -> Target:
        return replace(self, database=database)

    def with_tls(self) -> Target:
        return replace(self, tls=True)
