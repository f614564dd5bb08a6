"""The engine's log: lines taken apart, levels, and what a client cannot forge."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from engine.engine_log import EngineLog, LogLine, parse_log_line


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("17 00000 postmaster|LOG:  database system is ready to accept connections", logging.INFO),
        ("17 01000 autovacuum worker|WARNING:  something", logging.WARNING),
        ("17 22012 client backend|ERROR:  division by zero", logging.DEBUG),
        ("17 57P01 client backend|FATAL:  terminating connection", logging.DEBUG),
        ("17 XX000 autovacuum worker|ERROR:  broken", logging.ERROR),
        ("17 53100 startup|FATAL:  could not write", logging.ERROR),
        ("17 XX000 client backend|PANIC:  could not write", logging.CRITICAL),
        ("17 00000 startup|DEBUG2:  chatter", logging.DEBUG),
        ("17 53100 startup|HINT:  free some", logging.INFO),
        ("postgres: error while loading shared libraries", logging.WARNING),
    ],
)
def test_severities_become_levels(line: str, level: int) -> None:
    assert parse_log_line(line).level == level


def test_a_line_is_taken_apart() -> None:
    assert parse_log_line("17 53100 client backend|FATAL:  no | space:  left") == LogLine(
        level=logging.DEBUG,
        message="no | space:  left",
        severity="FATAL",
        sqlstate="53100",
        pid=17,
        kind="client backend",
    )


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "log")
    return tmp_path / "log"


async def test_continuation_lines_belong_to_their_message(fifo: Path) -> None:
    log = EngineLog(fifo)
    log.open()
    write = log.open_for_engine()
    forged = (
        "1 00000 client backend|ERROR:  first\n\t2 53100 postmaster|PANIC:  forged\n3 00000 postmaster|LOG:  second\n"
    )
    os.write(write, forged.encode())
    os.close(write)
    log.close()
    assert [line.message for line in log.recent] == ["first\n2 53100 postmaster|PANIC:  forged", "second"]


async def test_lines_arrive_whole_however_they_are_cut(fifo: Path) -> None:
    log = EngineLog(fifo)
    log.open()
    write = log.open_for_engine()
    for byte in "1 00000 postmaster|LOG:  größer\n\tmehr\n".encode():
        os.write(write, bytes([byte]))
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    os.close(write)
    log.close()
    assert "größer" in log.recent[0].message


async def test_the_log_goes_on_with_another_engine(fifo: Path) -> None:
    log = EngineLog(fifo)
    log.open()
    for number in range(2):
        write = log.open_for_engine()
        os.write(write, f"1 00000 postmaster|LOG:  start {number}\n".encode())
        os.close(write)
        await asyncio.sleep(0.01)
    log.close()
    assert [line.message for line in log.recent] == ["start 0", "start 1"]


async def test_without_a_fifo_a_pipe_serves(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "missing")
    log.open()
    write = log.open_for_engine()
    os.write(write, b"1 00000 postmaster|LOG:  here\n")
    os.close(write)
    log.close()
    assert [line.message for line in log.recent] == ["here"]


async def test_a_reinitialization_is_told(fifo: Path) -> None:
    told: list[bool] = []
    log = EngineLog(fifo, lambda: told.append(True))
    log.open()
    write = log.open_for_engine()
    os.write(write, b"1 00000 postmaster|LOG:  all server processes terminated; reinitializing\n")
    os.close(write)
    log.close()
    assert told == [True]


async def test_only_the_postmaster_can_tell_of_a_reinitialization(fifo: Path) -> None:
    told: list[bool] = []
    log = EngineLog(fifo, lambda: told.append(True))
    log.open()
    write = log.open_for_engine()
    os.write(write, b"1 00000 client backend|LOG:  all server processes terminated; reinitializing\n")
    os.close(write)
    log.close()
    assert told == []
