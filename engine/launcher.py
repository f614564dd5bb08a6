"""A helper process that starts and signals the engine for a front end that has given root up.

Only the engine's own user, or root, may signal it. So before the front end gives root up, `LaunchedHost` forks a helper
that becomes the engine's user for good and then does three things on request: start a program, send a signal, collect
an exit status. It holds no file of the front end but its end of a socket, and ends with it: an engine that runs then is
adopted by the next front end.

It is forked, not executed: the interpreter may lie where the engine's user cannot get to it. So it must be made before
the front end starts threads or an event loop.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine.errors import EngineUnavailable
from engine.osuser import OsUser

_MESSAGE_MAX_BYTES = 1 << 17
_ANSWER_SECONDS = 30.0


class LaunchedHost:
    """Starts and signals processes through the helper. Implements `engine.process.ProcessHost`."""

    def __init__(self, user: OsUser) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._helper_pid = os.fork()
        if self._helper_pid == 0:
            _become_helper(theirs, user)
        theirs.close()
        ours.settimeout(_ANSWER_SECONDS)
        self._socket = ours

    def spawn(self, argv: Sequence[str], environment: Mapping[str, str], stderr_fd: int) -> int:
        pid: int = self._ask({"do": "spawn", "argv": list(argv), "env": dict(environment)}, [stderr_fd])
        return pid

    def signal(self, pid: int, number: int) -> None:
        self._ask({"do": "signal", "pid": pid, "number": int(number)})

    def reap(self, pid: int) -> int | None:
        status: int | None = self._ask({"do": "reap", "pid": pid})
        return status

    def close(self) -> None:
        """End the helper."""
        self._socket.close()
        try:
            os.waitpid(self._helper_pid, 0)
        except ChildProcessError:
            pass

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        try:
            socket.send_fds(self._socket, [orjson.dumps(request)], list(descriptors))
            data = self._socket.recv(_MESSAGE_MAX_BYTES)
        except OSError as error:
            raise EngineUnavailable("the helper that controls the engine is gone", detail=str(error)) from error
        if not data:
            raise EngineUnavailable("the helper that controls the engine is gone")
        answer = orjson.loads(data)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"])
        return answer["result"]


def _become_helper(connection: socket.socket, user: OsUser) -> None:
    """Life of the helper: never returns."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        kept = os.dup2(connection.fileno(), 3) if connection.fileno() != 3 else 3
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.setgroups([])
        os.setgid(user.gid)
        os.setuid(user.uid)
        os.umask(0o077)
        os.chdir("/")
        os.environ.clear()
        serve(socket.socket(fileno=kept))
        status = 0
    finally:
        os._exit(status)


def serve(connection: socket.socket) -> None:
    """Answer requests until the other end is closed."""
    children: dict[int, subprocess.Popen[bytes]] = {}
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_MAX_BYTES, 1)
        if not data:
            return
        try:
            answer: dict[str, Any] = {"result": _perform(orjson.loads(data), descriptors, children)}
        except OSError as error:
            answer = {"errno": error.errno or 0, "message": str(error)}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(orjson.dumps(answer))


def _perform(
    request: dict[str, Any], descriptors: Sequence[int], children: dict[int, subprocess.Popen[bytes]]
) -> int | None:
    if request["do"] == "spawn":
        child = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=descriptors[0],
            stderr=descriptors[0],
            env=request["env"],
            cwd="/",
            start_new_session=True,
        )
        children[child.pid] = child
        return child.pid
    pid: int = request["pid"]
    if request["do"] == "signal":
        try:
            os.kill(pid, request["number"])
        except ProcessLookupError:
            pass
        return None
    ended = children.pop(pid, None)
    return ended.wait() if ended is not None else None
