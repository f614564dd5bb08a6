"""CREATE, DROP and RENAME DATABASE while sessions are pooled.

PostgreSQL wants nobody connected to a database that is dropped, renamed or copied. Idle pooled connections are not
somebody: they make way until the statement is over, and so do our own. Sessions are: as in PostgreSQL their database
cannot be dropped (but WITH (FORCE), which ends them) or renamed.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from protocol.errors import PgError
from server import sql_parser

if TYPE_CHECKING:
    from server.hub import SessionHub
    from server.session import ClientSession


class DatabaseDdl:
    """Makes way, and forgets what is known of a database that went."""

    def __init__(self, hub: SessionHub) -> None:
        self._hub = hub

    async def make_way(self, session: ClientSession, text: bytes, databases: tuple[str, ...]) -> None:
        """Until the session's run is over, `databases` have no connections but sessions' own. Raises PgError 55006."""
        hub = self._hub
        dropped, forced, renamed = _targets(text)
        for name in (*dropped, *renamed):
            self._check_sessions(session, name, ends_them=name in forced)
        stack = AsyncExitStack()
        session.keep_until_run_ends(stack)
        for name in databases:
            hub.listeners.make_way(name)
            state = hub.databases.get(name)
            if state is not None:
                state.stop_looking()
            await hub.cluster.control.close_database(name)
            if name == session.database.name:
                await hub.pool.evict_database(name)
            else:
                await stack.enter_async_context(hub.pool.evicting(name))
            hub.forget_database(name)

    def _check_sessions(self, session: ClientSession, name: str, *, ends_them: bool) -> None:
        others = [one for one in self._hub.sessions.values() if one.database.name == name and one is not session]
        if not others:
            return
        if ends_them:
            for other in others:
                self._hub.kill(other)
            return
        count = len(others)
        what = "There is 1 other session" if count == 1 else f"There are {count} other sessions"
        raise PgError(
            "55006", f'database "{name}" is being accessed by other users', detail=f"{what} using the database."
        )


def _targets(text: bytes) -> tuple[list[str], set[str], list[str]]:
    """Databases that are dropped, those of them by force, and those that are renamed."""
    dropped: list[str] = []
    forced: set[str] = set()
    renamed: list[str] = []
    for statement in sql_parser.parse(text) or ():
        node = statement.get("stmt", {})
        drop, rename = node.get("DropdbStmt"), node.get("RenameStmt")
        if drop is not None:
            dropped.append(drop["dbname"])
            options = [option.get("DefElem", {}).get("defname") for option in drop.get("options", ())]
            if "force" in options:
                forced.add(drop["dbname"])
        elif rename is not None and rename.get("renameType") == "OBJECT_DATABASE":
            renamed.append(rename["subname"])
    return dropped, forced, renamed
