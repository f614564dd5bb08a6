"""Rewritten statements give a real engine's answers with virtual numbers in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from server.statement_functions import PID_RELATIONS
from server.virtual_pid import PID_COLUMNS_QUERY, PidRewriter
from tests.support.engine_process import BareEngine

pytestmark = pytest.mark.integration

OWN, OTHER = 900_001, 900_002


class Session:
    """A connection whose statements are rewritten, and another backend it knows as OTHER."""

    def __init__(self, connection: Any, other: Any, columns: dict[str, list[str]]) -> None:
        self.connection = connection
        self.other = other
        self._rewriter = PidRewriter(columns)
        self.mapping = [(other.get_server_pid(), OTHER)]

    async def fetch(self, sql: str, *args: object) -> list[tuple[tuple[str, object], ...]]:
        text = self._rewriter.rewrite(sql.encode(), OWN, self.mapping).text.decode()
        return [tuple(row.items()) for row in await self.connection.fetch(text, *args)]


@pytest.fixture
async def session(engine: BareEngine) -> AsyncIterator[Session]:
    target = engine.target
    login = {"host": target.host, "port": target.port, "user": target.user, "password": target.password}
    connection = await asyncpg.connect(database="postgres", **login)
    other = await asyncpg.connect(database="postgres", **login)
    rows = await connection.fetch(PID_COLUMNS_QUERY, sorted(PID_RELATIONS))
    yield Session(connection, other, {row["relname"]: row["columns"] for row in rows})
    await connection.close()
    await other.close()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select pg_backend_pid()", [(("pg_backend_pid", OWN),)]),
        ("select pg_backend_pid()::text, pg_backend_pid() as x", [(("pg_backend_pid", str(OWN)), ("x", OWN))]),
        ("select * from pg_backend_pid()", [(("pg_backend_pid", OWN),)]),
        ("select p.x from pg_backend_pid() as p(x)", [(("x", OWN),)]),
        ("select * from pg_backend_pid() with ordinality as p(x, n)", [(("x", OWN), ("n", 1))]),
        ("select pg_backend_pid() group by pg_backend_pid()", [(("pg_backend_pid", OWN),)]),
        ("values (pg_backend_pid())", [(("column1", OWN),)]),
        ("select pid from pg_stat_activity where pid = pg_backend_pid()", [(("pid", OWN),)]),
        (
            "select pg_stat_activity.pid from pg_stat_activity where pid > 900000 order by pid",
            [(("pid", OWN),), (("pid", OTHER),)],
        ),
        ("select count(*) > 0 as held from pg_locks l where l.pid = pg_backend_pid()", [(("held", True),)]),
        (f"select pg_blocking_pids({OTHER})", [(("pg_blocking_pids", []),)]),
        (f"select pg_cancel_backend({OTHER})", [(("pg_cancel_backend", True),)]),
        (f"select pg_cancel_backend(pid) from pg_stat_activity where pid = {OTHER}", [(("pg_cancel_backend", True),)]),
        (f"select pg_cancel_backend({OTHER} + 0)", [(("pg_cancel_backend", True),)]),
        ("with pg_stat_activity as (select 5 as pid) select * from pg_stat_activity", [(("pid", 5),)]),
    ],
)
async def test_answers(session: Session, sql: str, expected: list[tuple[tuple[str, object], ...]]) -> None:
    assert await session.fetch(sql) == expected


async def test_parameters_keep_working(session: Session) -> None:
    assert await session.fetch("select pg_cancel_backend($1), $2::text as b", OTHER, "x") == [
        (("pg_cancel_backend", True), ("b", "x"))
    ]


async def test_every_view_keeps_its_columns(session: Session) -> None:
    for view in sorted(PID_RELATIONS):
        plain = await session.connection.prepare(f"select * from {view}")
        text = session._rewriter.rewrite(f"select * from {view}".encode(), OWN, session.mapping).text.decode()
        rewritten = await session.connection.prepare(text)
        assert [(a.name, a.type) for a in rewritten.get_attributes()] == [
            (a.name, a.type) for a in plain.get_attributes()
        ]
        await session.fetch(f"table {view}")


async def test_terminate_ends_the_other_backend(session: Session) -> None:
    assert await session.fetch(f"select pg_terminate_backend({OTHER}, 5000)") == [(("pg_terminate_backend", True),)]
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await session.other.fetchval("select 1")
