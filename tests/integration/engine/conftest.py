"""Real clusters in directories of their own, small and without fsync, stopped by themselves."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engine.capabilities import EngineInfo
from engine.embedded import EmbeddedCluster, EmbeddedOptions
from engine.osuser import blocking_directory, find_user

ROOT = Path(__file__).resolve().parents[3]
SMALL_SETTINGS = {"shared_buffers": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB", "fsync": "off"}


@dataclass
class Witness:
    """An observer that remembers."""

    ready: list[EngineInfo] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stopped: int = 0

    def engine_ready(self, info: EngineInfo) -> None:
        self.ready.append(info)

    def engine_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def engine_stopped(self) -> None:
        self.stopped += 1


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path that every user can pass: pytest's own is closed to the engine's user."""
    path = Path(tempfile.mkdtemp(prefix="rdb-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory that was started and stopped once: a copy of it saves initdb, seconds on a busy machine."""
    folder = Path(tempfile.mkdtemp(prefix="rdb-"))
    folder.chmod(0o755)

    async def run() -> None:
        cluster = EmbeddedCluster(small(folder / "data"))
        await cluster.start()
        await cluster.stop()

    asyncio.run(run())
    yield folder / "data"
    shutil.rmtree(folder, ignore_errors=True)


def small(data_dir: Path) -> EmbeddedOptions:
    return EmbeddedOptions(data_dir=data_dir, max_connections=30, settings=SMALL_SETTINGS)


@pytest.fixture
def fresh_options(place: Path) -> EmbeddedOptions:
    """Options of a cluster that is not there yet."""
    return small(place / "data")


@pytest.fixture
def options(place: Path, initialised: Path) -> EmbeddedOptions:
    """Options of a cluster that has been started before."""
    subprocess.run(["cp", "-a", str(initialised), str(place / "data")], check=True)
    return small(place / "data")


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
async def cluster(options: EmbeddedOptions, witness: Witness) -> AsyncIterator[EmbeddedCluster]:
    """A cluster that runs."""
    cluster = EmbeddedCluster(options, witness)
    await cluster.start()
    yield cluster
    await cluster.stop("immediate")


async def log_in(cluster: EmbeddedCluster, role: str, database: str) -> Any:
    """A backend as the pool would open it: as the role itself, without a password."""
    address = cluster.address
    return await asyncpg.connect(host=address.host, port=address.port, user=role, database=database, password="")


def with_settings(options: EmbeddedOptions, **settings: str) -> EmbeddedOptions:
    return replace(options, settings={**options.settings, **settings})


def python_for_everybody() -> str:
    """An interpreter that an ordinary user can run with the packages of this environment."""
    nobody = find_user("nobody")
    if nobody is None or os.geteuid() != 0:
        return sys.executable
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        if os.path.exists(candidate) and blocking_directory(Path(os.path.realpath(candidate)), nobody) is None:
            return candidate
    pytest.skip(f"no Python {version} here that an ordinary user can run")


def environment_for_everybody() -> dict[str, str]:
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
    }


class FrontEnd:
    """A front end in a process of its own: tests/integration/engine/front_end.py."""

    def __init__(
        self, data_dir: Path, *arguments: str, uid: int | None = None, wants_ready: bool = True, **settings: str
    ) -> None:
        pairs = [f"{name}={value}" for name, value in {**SMALL_SETTINGS, **settings}.items()]
        is_other = uid is not None and uid != os.geteuid()
        self.process = subprocess.Popen(
            [
                python_for_everybody() if is_other else sys.executable,
                str(ROOT / "tests" / "integration" / "engine" / "front_end.py"),
                str(data_dir),
                *arguments,
                "--",
                *pairs,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment_for_everybody(),
            cwd="/",
            start_new_session=True,
            **({"user": uid, "group": uid, "extra_groups": []} if is_other else {}),
        )
        self.engine_pid = int(self.wait_for("ready")) if wants_ready else 0

    def wait_for(self, word: str) -> str:
        """The rest of the next line that starts with `word`; lines before it are shown when it does not come."""
        assert self.process.stdout is not None
        seen: list[str] = []
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
            seen.append(line)
        self.close()
        pytest.fail(f"the front end ended without saying {word}:\n{''.join(seen)}")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def finish(self, timeout: float = 30) -> int:
        """Let it end in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(timeout)
        self.close()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def front_ends() -> Iterator[list[FrontEnd]]:
    """Front ends started by a test: those it leaves are ended."""
    started: list[FrontEnd] = []
    yield started
    for front_end in started:
        front_end.close()


@pytest.fixture(scope="session")
def shared_cluster_place(initialised: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rdb-"))
    path.chmod(0o755)
    subprocess.run(["cp", "-a", str(initialised), str(path / "data")], check=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def shared_cluster(shared_cluster_place: Path) -> AsyncIterator[EmbeddedCluster]:
    """One data directory for tests that leave nothing behind which another would mind."""
    cluster = EmbeddedCluster(small(shared_cluster_place / "data"))
    await cluster.start()
    yield cluster
    await cluster.stop("immediate")
