"""Making a new cluster with initdb.

initdb works in a directory beside the final one, which gets its name when everything is on disk: a first start that was
interrupted leaves nothing that looks like a cluster.
"""

from __future__ import annotations

import ctypes
import locale
import logging
import os
import subprocess

from engine.control import INTERNAL_ROLE
from engine.errors import EngineError, EngineStartError, EngineUserError
from engine.layout import DataLayout, disk_full
from engine.nameless import EngineIdentity
from engine.osuser import OsUser, spawn_arguments
from engine.programs import Programs

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 300
_NO_SPACE = "No space left on device"


def is_initialized(layout: DataLayout) -> bool:
    return (layout.pgdata / "PG_VERSION").exists()


def initialize(
    layout: DataLayout, programs: Programs, user: OsUser, identity: EngineIdentity, *, is_durable: bool = True
) -> None:
    """Make the cluster. Raises EngineStartError, DataDirectoryFull or EngineUserError, each with what to do.

    A cluster that will run with `fsync = off` need not be `is_durable` at its birth either.
    """
    if layout.pgdata.exists() and any(layout.pgdata.iterdir()):
        raise EngineStartError(
            f'"{layout.pgdata}" is neither empty nor a database cluster',
            hint="Move it away, or restore the cluster that was there.",
        )
    if not identity.can_run_initdb:
        raise EngineUserError(
            f"a new database cluster cannot be made as {user}, which has no entry in the user database",
            detail="PostgreSQL's initdb needs the name of its user, and neither libnss_wrapper nor user namespaces "
            "are available to give it one.",
            hint="Install libnss-wrapper, or add a user with that uid to /etc/passwd.",
        )
    target = layout.unfinished_pgdata
    _run_as(user, ["rm", "-rf", "--", str(target)])
    logger.info("making a new database cluster in %s", layout.pgdata)
    command = [
        *identity.prefix,
        str(programs.initdb),
        f"--pgdata={target}",
        f"--username={INTERNAL_ROLE}",
        "--encoding=UTF8",
        *_locale_options(programs.major),
        "--auth=peer",
        "--data-checksums",
        "--no-instructions",
        *([] if is_durable else ["--no-sync"]),
    ]
    try:
        _run_as(user, command, identity.environment)
        _run_as(user, ["mv", "-T", "--", str(target), str(layout.pgdata)])
    except EngineError as error:
        if _NO_SPACE in (error.detail or ""):
            raise disk_full(layout.data_dir, error.detail) from error
        raise


def _locale_options(major: int) -> list[str]:
    """One sort order everywhere and for ever: by code point, whatever the machine's C library is upgraded to."""
    if major < 17:
        # The built-in provider came with PostgreSQL 17; C.UTF-8 of the C library sorts and classifies alike.
        return ["--locale-provider=libc", "--locale=C.UTF-8"]
    return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", f"--lc-ctype={_character_locale()}"]


def _character_locale() -> str:
    """What LC_CTYPE is: pg_trgm and others ask the C library what is a letter, and in "C" only ASCII's are."""
    library = ctypes.CDLL(None)
    library.newlocale.restype = ctypes.c_void_p
    library.newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library.freelocale.argtypes = (ctypes.c_void_p,)
    for name in ("C.UTF-8", "en_US.UTF-8"):
        made = library.newlocale(1 << locale.LC_CTYPE, name.encode(), None)
        if made:
            library.freelocale(made)
            return name
    return "C"


def _run_as(user: OsUser, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a program of the engine's side as the engine's user: what lies there is that user's to arrange."""
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
            cwd="/",
            env=engine_environment() | (environment or {}),
            **spawn_arguments(user),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineStartError(f"could not run {os.path.basename(command[0])} as {user}", detail=str(error)) from error
    if result.returncode != 0:
        output = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        names = (os.path.basename(part) for part in command)
        name = next((name for name in names if name in ("initdb", "rm", "mv")), "")
        raise EngineStartError(f"{name} failed with status {result.returncode}", detail=output or None)


def engine_environment() -> dict[str, str]:
    """The environment of the engine's processes: nothing of ours but PATH.

    PG* variables would change what the programs do, and ours may hold RUSTYDB_PASSWORD.
    """
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC0"}
