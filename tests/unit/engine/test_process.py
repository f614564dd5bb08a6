"""postmaster.pid, and processes that are watched without being children."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.osuser import current_user
from engine.process import DirectHost, PidFile, find_orphan, is_alive, parse_pid_file, read_pid_file, wait_process

READY = "4711\n/data/pgdata\n1790000000\n5432\n/data/socket\n\n  1234567    42\nready   \n"


def test_a_pid_file_is_taken_apart() -> None:
    assert parse_pid_file(READY) == PidFile(4711, "/data/pgdata", 1790000000, 5432, "/data/socket")


@pytest.mark.parametrize("text", ["", "4711\n", "x\n/d\n1\n2\n/s\n", "4711\n/d\nx\n2\n/s\n"])
def test_a_cut_pid_file_says_nothing(text: str) -> None:
    assert parse_pid_file(text) is None


def test_a_pid_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(READY)
    (tmp_path / "postmaster.pid").symlink_to(tmp_path / "elsewhere")
    assert read_pid_file(tmp_path) is None


def test_a_pid_that_now_is_another_program_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(READY.replace("4711", str(os.getpid())))
    assert find_orphan(tmp_path) is None


def test_a_pid_that_nobody_has_is_no_engine(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "postmaster.pid").write_text(READY.replace("4711", child.stdout.decode().strip()))
    assert find_orphan(tmp_path) is None


async def test_the_end_of_a_process_is_noticed_at_once() -> None:
    host = DirectHost(current_user())
    with open(os.devnull, "wb") as sink:
        pid = host.spawn(["/bin/sleep", "30"], {}, sink.fileno())
    assert is_alive(pid)
    assert os.getsid(pid) == pid
    waiter = asyncio.create_task(wait_process(pid))
    await asyncio.sleep(0)
    host.signal(pid, 15)
    await asyncio.wait_for(waiter, 5)
    assert not is_alive(pid)
    assert host.reap(pid) == -15
    host.signal(pid, 15)


async def test_waiting_for_a_process_that_is_gone_returns() -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    await asyncio.wait_for(wait_process(int(child.stdout)), 5)
