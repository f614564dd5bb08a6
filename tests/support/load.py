"""Clients in the background of a test: a bystander that must not notice, writers that keep a ledger, a crowd."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.target import Target
from tests.support.wire_client import ScramExchange, WireClient, WireError, message, query, startup


class Bystander:
    """A client with a session of its own that asks all the time, and checks every answer. Use as a context manager:
    on leaving, every error it met is raised. `slowest_seconds` is its longest wait for an answer."""

    def __init__(self, target: Target) -> None:
        self._client = WireClient.login(target, timeout_seconds=30)
        self._client.simple("SET own.bystander TO 'here'")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answers = 0
        self.slowest_seconds = 0.0
        self.errors: list[str] = []

    def _ask(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            try:
                found = self._client.simple(f"SELECT {number}, current_setting('own.bystander')")
            except (WireError, OSError) as error:
                self.errors.append(f"statement {number}: {error!r}")
                return
            if found != [[str(number), "here"]]:
                self.errors.append(f"statement {number} was answered {found}")
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
            self.answers += 1
            time.sleep(0.005)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(35)
        self._client.close()
        if kind is None:
            assert self.errors == []
            assert self.answers > 0


@dataclass(slots=True)
class Ledger:
    """What a writer was told: numbers whose INSERT was acknowledged, and the one whose fate it does not know."""

    acknowledged: list[int] = field(default_factory=list)
    unknown: int | None = None
    end: str = ""


def write_until_refused(
    target: Target, first: int, ledger: Ledger, in_blocks: bool, stop: threading.Event | None = None
) -> None:
    """Insert first, first + 1, ... into `ledger(n)`, one transaction each, until an error comes or `stop` is set."""
    with WireClient.login(target) as client:
        number = first
        while stop is None or not stop.is_set():
            ledger.unknown = number
            try:
                if in_blocks:
                    client.simple(f"BEGIN; INSERT INTO ledger VALUES ({number})")
                    client.simple("COMMIT")
                else:
                    client.simple(f"INSERT INTO ledger VALUES ({number})")
            except (WireError, OSError) as error:
                ledger.end = str(error)
                return
            ledger.acknowledged.append(number)
            ledger.unknown = None
            number += 1


async def _read_message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = await reader.readexactly(5)
    (length,) = struct.unpack_from("!I", head, 1)
    return chr(head[0]), await reader.readexactly(length - 4)


async def _login_and_ask(target: Target, number: int) -> str | None:
    """One of a crowd: log in, ask, leave. Returns what went wrong, or None."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    exchange = ScramExchange(target.password)
    writer.write(startup({"user": target.user, "database": target.database}))
    try:
        while True:
            kind, body = await _read_message(reader)
            if kind == "E":
                return body.decode(errors="replace")
            if kind == "R" and body[:4] == struct.pack("!I", 10):
                writer.write(exchange.first())
            elif kind == "R" and body[:4] == struct.pack("!I", 11):
                writer.write(exchange.final(body[4:]))
            elif kind == "Z":
                break
        writer.write(query(f"SELECT {number}"))
        answer = b""
        while True:
            kind, body = await _read_message(reader)
            if kind == "D":
                answer = body[6:]
            elif kind == "E":
                return body.decode(errors="replace")
            elif kind == "Z":
                return None if answer == str(number).encode() else f"{number} was answered {answer!r}"
    finally:
        writer.write(message("X"))
        writer.close()


async def crowd(target: Target, count: int) -> list[str]:
    """`count` clients connect at the same moment; returns what went wrong for each that failed."""

    async def one(number: int) -> str | None:
        try:
            return await _login_and_ask(target, number)
        except (OSError, asyncio.IncompleteReadError) as error:
            return repr(error)

    found = await asyncio.gather(*(one(number) for number in range(count)))
    return [trouble for trouble in found if trouble is not None]
