"""Running PostgreSQL under a uid that has no entry in the user database, as containers with `--user 12345` do.

initdb ends with "could not look up effective user ID" there, and peer authentication cannot name the front end. Two
honest ways out, tried in this order, make the engine's processes see a user database in which our uid has a name:

1. nss_wrapper (Debian's libnss-wrapper) with a generated passwd file, as the official PostgreSQL image does;
2. a user namespace in which our uid is shown as one that has a name.

Where neither is to be had, a cluster that is there already is started with a generated SCRAM secret for our own role,
and a new one cannot be made: `identify` says so.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from engine.layout import DataLayout, write_private_file
from engine.osuser import OsUser
from engine.postgres_conf import Login

NAMELESS_USER = "rustydb"
_NSS_WRAPPER_PATTERNS = ("/usr/lib/*/libnss_wrapper.so", "/usr/lib64/libnss_wrapper.so", "/usr/lib/libnss_wrapper.so")


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """How the engine's programs are started, and as whom they see the front end."""

    frontend_name: str  # what pg_ident.conf maps
    login: Login = Login.PEER
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    can_run_initdb: bool = True


def identify(frontend: OsUser, layout: DataLayout) -> EngineIdentity:
    """The identity for this machine; the common case is a user with a name, and costs nothing."""
    if frontend.name is not None:
        return EngineIdentity(frontend_name=frontend.name)
    return _by_nss_wrapper(frontend, layout) or _by_user_namespace() or _by_secret()


def _by_nss_wrapper(frontend: OsUser, layout: DataLayout) -> EngineIdentity | None:
    libraries = [path for pattern in _NSS_WRAPPER_PATTERNS for path in sorted(glob.glob(pattern))]
    if not libraries:
        return None
    passwd, group = layout.conf / "passwd", layout.conf / "group"
    write_private_file(
        passwd, f"{NAMELESS_USER}:x:{frontend.uid}:{frontend.gid}:RustyDB:/:/bin/false\n", frontend, mode=0o644
    )
    write_private_file(group, f"{NAMELESS_USER}:x:{frontend.gid}:\n", frontend, mode=0o644)
    environment = {
        "LD_PRELOAD": libraries[0],
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": str(group),
    }
    return _tested(EngineIdentity(frontend_name=NAMELESS_USER, environment=environment))


def _by_user_namespace() -> EngineIdentity | None:
    unshare = shutil.which("unshare", path="/usr/bin:/bin")
    shown = _named_uid()
    if unshare is None or shown is None:
        return None
    prefix = (unshare, "--user", f"--map-user={shown.pw_uid}", f"--map-group={shown.pw_gid}", "--")
    return _tested(EngineIdentity(frontend_name=shown.pw_name, prefix=prefix))


def _by_secret() -> EngineIdentity:
    return EngineIdentity(frontend_name=NAMELESS_USER, login=Login.SCRAM, can_run_initdb=False)


def _named_uid() -> pwd.struct_passwd | None:
    """A uid to be shown as: it has a name, is not root, and is not the one that stands for every unmapped uid."""
    overflow = int(_read("/proc/sys/kernel/overflowuid") or 65534)
    entries = sorted(pwd.getpwall(), key=lambda entry: entry.pw_uid)
    return next((entry for entry in entries if entry.pw_uid not in (0, overflow)), None)


def _tested(identity: EngineIdentity) -> EngineIdentity | None:
    """The identity, if `id` run in it gives the expected name."""
    program = shutil.which("id", path="/usr/bin:/bin")
    if program is None:
        return None
    try:
        result = subprocess.run(
            [*identity.prefix, program, "-un"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env=os.environ | identity.environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return identity if result.returncode == 0 and result.stdout.strip() == identity.frontend_name else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
