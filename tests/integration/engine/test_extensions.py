"""Extensions that PostgreSQL keeps for superusers: the listed ones are the administrator's, the others nobody's."""

from __future__ import annotations

import asyncpg
import pytest

from engine.embedded import EmbeddedCluster
from engine.extensions import LISTED_EXTENSIONS
from tests.integration.engine.conftest import log_in

pytestmark = pytest.mark.integration


async def test_the_administrator_creates_uses_and_drops_every_listed_extension(cluster: EmbeddedCluster) -> None:
    connection = await log_in(cluster, "postgres", "postgres")
    try:
        available = {row["name"] for row in await connection.fetch("SELECT name FROM pg_available_extensions")}
        for name in LISTED_EXTENSIONS:
            if name in available:
                await connection.execute(f"CREATE EXTENSION {name} CASCADE")
        owners = await connection.fetch(
            "SELECT DISTINCT extowner::regrole::text AS owner FROM pg_extension WHERE extname <> 'plpgsql'"
        )
        assert [row["owner"] for row in owners] == ["postgres"]
        await connection.execute("CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'example.org')")
        await connection.execute("DROP EXTENSION postgres_fdw CASCADE")
    finally:
        await connection.close()


@pytest.mark.parametrize("name", ["file_fdw", "pageinspect", "pg_surgery"])
async def test_an_extension_that_reaches_files_or_pages_is_refused(cluster: EmbeddedCluster, name: str) -> None:
    connection = await log_in(cluster, "postgres", "postgres")
    try:
        available = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", name
        )
        if available:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"CREATE EXTENSION {name}")
    finally:
        await connection.close()


async def test_no_extension_opens_the_private_socket(cluster: EmbeddedCluster) -> None:
    """The engine's own user may be the one that may log in as any role: libpq in the engine must not profit."""
    connection = await log_in(cluster, "postgres", "postgres")
    address = cluster.address
    target = f"host={address.host} port={address.port} dbname=postgres user=rustydb_internal"
    try:
        await connection.execute("CREATE EXTENSION dblink; CREATE EXTENSION postgres_fdw")
        for conninfo in (target, target + " password=x"):
            with pytest.raises(asyncpg.PostgresError):
                await connection.fetch(
                    "SELECT * FROM dblink($1, 'SELECT current_user::text') AS t (who text)", conninfo
                )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT dblink_connect_u($1)", target)
        await connection.execute(
            f"CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{address.host}', dbname 'postgres');"
            "CREATE USER MAPPING FOR postgres SERVER self OPTIONS (user 'rustydb_internal', password 'x');"
            "CREATE FOREIGN TABLE roles (rolname text) SERVER self"
            " OPTIONS (schema_name 'pg_catalog', table_name 'pg_authid')"
        )
        with pytest.raises(asyncpg.PostgresError):
            await connection.fetch("SELECT * FROM roles")
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(f"CREATE SUBSCRIPTION s CONNECTION '{target} password=x' PUBLICATION p")
    finally:
        await connection.close()
