"""Commands of the core that do something, in PgBouncer's words."""

from __future__ import annotations

from protocol.errors import PgError
from server.config import ConfigError
from server.extension.commands import (
    ADMIN_ROLE,
    AdminColumn,
    AdminCommand,
    AdminResult,
    ColumnType,
    CommandCall,
)
from server.snapshots import ServerControl

SHUTDOWN_MODES = {"WAIT_FOR_SERVERS": "wait_for_servers", "WAIT_FOR_CLIENTS": "wait_for_clients"}
RELOADED = (AdminColumn("setting", ColumnType.TEXT, "setting that has another value now"),)


class _Control:
    """The handlers, around the verbs of the running server."""

    def __init__(self, control: ServerControl) -> None:
        self._control = control

    async def pause(self, call: CommandCall) -> AdminResult:
        await self._control.pause(call.arguments.text("database"))
        return AdminResult()

    def resume(self, call: CommandCall) -> AdminResult:
        self._control.resume(call.arguments.text("database"))
        return AdminResult()

    def reconnect(self, call: CommandCall) -> AdminResult:
        self._control.reconnect(call.arguments.text("database"))
        return AdminResult()

    async def reload(self, call: CommandCall) -> AdminResult:
        del call
        try:
            changed = await self._control.reload()
        except ConfigError as error:
            detail = "\n".join(map(str, error.problems))
            raise PgError(
                "F0000", "the configuration is wrong: what is wrong stays as it was", detail=detail
            ) from error
        return AdminResult([(name,) for name in changed])

    def kill_session(self, call: CommandCall) -> AdminResult:
        session_id = call.arguments.integer("session_id")
        if not self._control.kill_session(session_id):
            raise PgError("42704", f"session {session_id} does not exist", hint="SHOW SESSIONS lists them.")
        return AdminResult()

    def shutdown(self, call: CommandCall) -> AdminResult:
        mode = next((SHUTDOWN_MODES[word] for word in call.arguments.keywords), "immediate")
        self._control.shutdown(mode)
        return AdminResult()


def control_commands(control: ServerControl) -> tuple[AdminCommand, ...]:
    """PAUSE, RESUME, RECONNECT, RELOAD, KILL SESSION and SHUTDOWN."""
    verbs = _Control(control)
    return (
        AdminCommand(
            "PAUSE [ <database> ]",
            ADMIN_ROLE,
            (),
            verbs.pause,
            "Give out no more backends, of one database or of all, and return when those given out are back. "
            "Sessions stay connected and their statements wait. Not inside a transaction block: it would wait for "
            "itself.",
            in_transaction_block=False,
        ),
        AdminCommand(
            "RESUME [ <database> ]",
            ADMIN_ROLE,
            (),
            verbs.resume,
            "End a PAUSE.",
        ),
        AdminCommand(
            "RECONNECT [ <database> ]",
            ADMIN_ROLE,
            (),
            verbs.reconnect,
            "Close every backend, of one database or of all, as soon as its session gives it back; new ones are "
            "connected on demand.",
        ),
        AdminCommand(
            "RELOAD",
            ADMIN_ROLE,
            RELOADED,
            verbs.reload,
            "Read the configuration again, as SIGHUP does. Returns the settings that changed; a wrong one is F0000 and "
            "changes nothing.",
        ),
        AdminCommand(
            "KILL SESSION <session_id:integer>",
            ADMIN_ROLE,
            (),
            verbs.kill_session,
            "End a session with 57P01. Its transaction is rolled back. The number is `id` of SHOW SESSIONS.",
        ),
        AdminCommand(
            "SHUTDOWN [ WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS ]",
            ADMIN_ROLE,
            (),
            verbs.shutdown,
            "Stop the server: at once, or when no backend is held any more (WAIT_FOR_SERVERS), or when every client "
            "has gone (WAIT_FOR_CLIENTS). New clients are refused from now on.",
            in_transaction_block=False,
        ),
    )
