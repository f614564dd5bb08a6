"""Runs a golden trace: a script of what clients send, interleaved with what the server answered when it was recorded.

A line of a `.trace` file is one of (`a` is the name of a connection):

    # text                         a comment
    a connect [key=value ...]      open, log in and read up to ReadyForQuery; nothing of that is recorded
    a open                         open a TCP connection only
    a > Query("SELECT 1")          queue a message; arguments are Python literals, see `FRONTEND`; %b% is b's process id
    a send                         write what is queued
    a wait Name [count]            write what is queued and read until `count` messages of this type have come
    a wait login | byte | closed   answer SCRAM up to ReadyForQuery | one bare byte | the end of the connection
    a silent                       nothing comes for a short while
    a cancel                       send a CancelRequest with the connection's key
    a drop                         close the socket without Terminate
    a < ...                        recorded answer: the golden part, see `trace_render`

`run` ignores the recorded answers and returns the whole file with the answers of this run in their place.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support import wire_client as wire
from tests.support.target import Target
from tests.support.trace_render import NAMES_TO_KINDS, Renderer, sort_parameter_runs
from tests.support.wire_client import ConnectionEnded, WireClient, WireError

ANSWER_SECONDS = 10.0
SILENCE_SECONDS = 0.3
ROLE, PASSWORD, DATABASE = "tracer", "tracer-password", "traces"


class TraceError(Exception):
    """A trace file breaks the language above; the message names file and line."""


def function_call(
    oid: int, arguments: list[bytes | None], formats: tuple[int, ...] = (), result_format: int = 0
) -> bytes:
    body = oid.to_bytes(4, "big") + len(formats).to_bytes(2, "big")
    body += b"".join(code.to_bytes(2, "big") for code in formats) + len(arguments).to_bytes(2, "big")
    for value in arguments:
        body += b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value
    return wire.message("F", body + result_format.to_bytes(2, "big"))


def startup(protocol: str = "3.0", **parameters: str) -> bytes:
    major, _, minor = protocol.partition(".")
    return wire.startup({"user": ROLE, "database": DATABASE, **parameters}, int(major) << 16 | int(minor))


def untyped(code: int) -> bytes:
    return (8).to_bytes(4, "big") + code.to_bytes(4, "big")


FRONTEND: dict[str, Callable[..., bytes]] = {
    "Query": wire.query,
    "Parse": wire.parse,
    "Bind": wire.bind,
    "Describe": wire.describe,
    "Execute": wire.execute,
    "Close": wire.close,
    "Sync": wire.sync,
    "Flush": wire.flush,
    "Terminate": wire.terminate,
    "CopyData": wire.copy_data,
    "CopyDone": wire.copy_done,
    "CopyFail": wire.copy_fail,
    "FunctionCall": function_call,
    "Message": wire.message,
    "Startup": startup,
    "SSLRequest": lambda: untyped(wire.SSL_REQUEST),
    "GSSENCRequest": lambda: untyped(wire.GSSENC_REQUEST),
    "Raw": lambda data: bytes(data),
}


def frontend_message(source: str) -> bytes:
    """The bytes of `Name(arguments)` as a trace writes it."""
    call = ast.parse(source, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in FRONTEND:
        raise TraceError(f"not a message: {source}")
    arguments = [ast.literal_eval(argument) for argument in call.args]
    keywords: dict[str, Any] = {}
    for word in call.keywords:
        value = ast.literal_eval(word.value)
        keywords |= value if word.arg is None else {word.arg: value}
    return FRONTEND[call.func.id](*arguments, **keywords)


class TraceRun:
    """One run of one trace against one target."""

    def __init__(self, target: Target) -> None:
        self._target = replace(target, user=ROLE, password=PASSWORD, database=DATABASE)
        self._clients: dict[str, WireClient] = {}
        self._queued: dict[str, list[bytes]] = {}
        self._renderer = Renderer()

    def run(self, script: str) -> str:
        """The script with this run's answers."""
        result: list[str] = []
        try:
            for number, line in enumerate(script.splitlines(), 1):
                if " < " in line and not line.startswith("#"):
                    continue
                result.append(line)
                if not line.strip() or line.startswith("#"):
                    continue
                try:
                    result += self._step(line)
                except (TraceError, ValueError, SyntaxError, KeyError) as error:
                    raise TraceError(f"line {number}: {line}: {error}") from error
        finally:
            for client in self._clients.values():
                client.abort()
        return "\n".join(result) + "\n"

    def _step(self, line: str) -> list[str]:
        name, verb, *rest = line.split(maxsplit=2)
        argument = rest[0] if rest else ""
        if verb == ">":
            for known, pid in self._renderer.pids.items():
                argument = argument.replace(f"%{known}%", str(pid))
            self._queued.setdefault(name, []).append(frontend_message(argument))
            return []
        if verb == "connect":
            parameters = dict(word.split("=", 1) for word in argument.split())
            self._clients[name] = WireClient.login(self._target, timeout_seconds=ANSWER_SECONDS, parameters=parameters)
            self._renderer.pids[name] = self._clients[name].pid
            return []
        if verb == "open":
            self._clients[name] = WireClient(self._target.host, self._target.port, ANSWER_SECONDS)
            return []
        client = self._clients[name]
        if verb == "cancel":
            client.cancel()
            return []
        if verb == "drop":
            client.abort()
            return []
        self._flush(name)
        if verb == "send":
            return []
        answers = self._silence(client) if verb == "silent" else self._wait(client, argument)
        if client.pid:
            self._renderer.pids[name] = client.pid
        return [f"{name} < {answer}" for answer in answers]

    def _flush(self, name: str) -> None:
        queued = self._queued.pop(name, [])
        if queued:
            try:
                self._clients[name].send(*queued)
            except OSError:
                return  # the server closed already: what it said before is read below

    def _silence(self, client: WireClient) -> list[str]:
        time.sleep(SILENCE_SECONDS)
        client.socket.settimeout(0.05)
        try:
            return [self._renderer.render(client.recv())]
        except TimeoutError:
            return ["(silence)"]
        except OSError:
            return ["(closed)"]
        finally:
            client.socket.settimeout(ANSWER_SECONDS)

    def _wait(self, client: WireClient, argument: str) -> list[str]:
        words = argument.split()
        lines: list[str] = []
        try:
            if words[0] == "byte":
                return [f"byte {client.socket.recv(1).decode('latin-1')!r}"]
            if words[0] == "login":
                lines += [self._renderer.render(found) for found in client.authenticate(PASSWORD)]
            elif words[0] == "closed":
                while True:
                    lines.append(self._renderer.render(client.recv()))
            else:
                remaining = int(words[1]) if len(words) > 1 else 1
                while remaining:
                    found = client.recv()
                    lines.append(self._renderer.render(found))
                    remaining -= found.kind == NAMES_TO_KINDS[words[0]]
        except TimeoutError:
            lines.append("(no answer)")
        except ConnectionEnded:
            lines.append("(closed)")
        except OSError:
            lines.append("(closed)")
        except WireError as error:
            lines.append(f"(login failed: {error})")
        return sort_parameter_runs(lines)


def prepare(target: Target) -> None:
    """Make the role and the database that traces run in."""
    with WireClient.login(target) as admin:
        admin.simple(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        admin.simple(f"ALTER ROLE {ROLE} SET timezone TO 'UTC'")
        admin.simple(f"GRANT {ROLE} TO CURRENT_USER")
        admin.simple(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")


def run_file(path: Path, target: Target) -> str:
    """Run a trace in an empty schema `public`."""
    with WireClient.login(replace(target, user=ROLE, password=PASSWORD, database=DATABASE)) as client:
        client.simple("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public")
    return TraceRun(target).run(path.read_text())
