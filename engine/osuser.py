"""Which operating-system users the front end and the engine run as, and what each of them can reach.

PostgreSQL refuses to run as root. Started by an ordinary user, front end and engine share that user. Started by root,
the engine gets a user of its own (`engine.os_user`, else `rustydb-engine`, made where it is missing), and the front end
stays root or, where `security.frontend_os_user` says so, becomes that user once everything that needs root is done
(`drop_privileges`). docs/decisions/0003-operating-system-users.md has the reasons.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineUserError

ENGINE_USER_NAME = "rustydb-engine"
FALLBACK_USER_NAMES = ("postgres", "daemon", "nobody")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OsUser:
    """A user of the operating system. `name` is None where the uid has no entry in the user database."""

    uid: int
    gid: int
    name: str | None

    def __str__(self) -> str:
        return self.name or f"uid {self.uid}"


@dataclass(frozen=True, slots=True)
class OsUsers:
    """Who runs what."""

    frontend: OsUser
    engine: OsUser

    @property
    def is_separate(self) -> bool:
        """Front end and engine are two users: neither can touch what belongs to the other alone."""
        return self.frontend.uid != self.engine.uid


def current_user() -> OsUser:
    """The effective user of this process."""
    uid = os.geteuid()
    try:
        name: str | None = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    return OsUser(uid=uid, gid=os.getegid(), name=name)


def find_user(name: str) -> OsUser | None:
    """A user by name, or by number."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        if not name.isdecimal():
            return None
        try:
            entry = pwd.getpwuid(int(name))
        except KeyError:
            return None
    return OsUser(uid=entry.pw_uid, gid=entry.pw_gid, name=entry.pw_name)


def choose_users(engine_os_user: str | None = None, frontend_os_user: str | None = None) -> OsUsers:
    """Decide who runs what; as root, make the engine's user where it is missing.

    Raises EngineUserError where a named user does not exist, is root, or cannot be switched to.
    """
    frontend = choose_frontend(frontend_os_user)
    if os.geteuid() != 0:
        _check_is_us(engine_os_user, "engine.os_user")
        return OsUsers(frontend=frontend, engine=frontend)
    engine = _engine_user_for_root(engine_os_user)
    if engine.uid == frontend.uid:
        logger.warning("front end and engine both run as %s: nothing protects the audit trail from the engine", engine)
    return OsUsers(frontend=frontend, engine=engine)


def choose_frontend(frontend_os_user: str | None = None) -> OsUser:
    """Who the front end runs as: ourselves, or the user that root is to be given up for."""
    if os.geteuid() != 0:
        _check_is_us(frontend_os_user, "security.frontend_os_user")
        return current_user()
    return _named_user(frontend_os_user, "security.frontend_os_user") if frontend_os_user else current_user()


def drop_privileges(user: OsUser) -> None:
    """Become `user` for good. Nothing that needs root works afterwards, in any thread."""
    if os.geteuid() == user.uid:
        return
    if os.geteuid() != 0:
        raise EngineUserError(f"cannot become {user}", detail=f"This process runs as {current_user()}, not as root.")
    os.setgroups(supplementary_groups(user))
    os.setgid(user.gid)
    os.setuid(user.uid)


def supplementary_groups(user: OsUser) -> list[int]:
    """Groups that `user` belongs to, its own included."""
    if user.name is None:
        return [user.gid]
    return os.getgrouplist(user.name, user.gid)


def spawn_arguments(user: OsUser) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` that start a program as `user`; none where we are that user."""
    if os.geteuid() == user.uid:
        return {"umask": 0o077}
    return {"user": user.uid, "group": user.gid, "extra_groups": [], "umask": 0o077}


def blocking_directory(path: Path, user: OsUser) -> Path | None:
    """The first directory on the way to `path` that `user` cannot pass, or None. Goes by mode bits, not by ACLs."""
    if user.uid == 0:
        return None
    resolved = path.resolve()
    for directory in [*reversed(resolved.parents), resolved]:
        try:
            status = directory.stat()
        except FileNotFoundError:
            return None
        except PermissionError:
            return directory.parent
        if stat.S_ISDIR(status.st_mode) and not _may(status, user, stat.S_IXOTH):
            return directory
    return None


def _may(status: os.stat_result, user: OsUser, bit: int) -> bool:
    """Whether the mode bits let `user` do what `bit` (one of S_IROTH, S_IWOTH, S_IXOTH) stands for."""
    if status.st_uid == user.uid:
        return bool(status.st_mode & (bit << 6))
    if status.st_gid in (user.gid, *supplementary_groups(user)):
        return bool(status.st_mode & (bit << 3))
    return bool(status.st_mode & bit)


def _check_is_us(wanted: str | None, setting: str) -> None:
    me = current_user()
    if wanted and find_user(wanted) != me:
        raise EngineUserError(
            f'{setting} is "{wanted}", but RustyDB runs as {me}',
            detail="Only root can start a program as another user.",
            hint=f"Start RustyDB as root, or remove {setting}.",
        )


def _named_user(name: str, setting: str) -> OsUser:
    user = find_user(name)
    if user is None:
        raise EngineUserError(
            f'{setting} is "{name}", but there is no such user',
            hint=f"Make it: useradd --system --no-create-home --shell /usr/sbin/nologin {name}",
        )
    return user


def _engine_user_for_root(wanted: str | None) -> OsUser:
    if wanted:
        user = _named_user(wanted, "engine.os_user")
        if user.uid == 0:
            raise EngineUserError(
                'engine.os_user is "root", but PostgreSQL refuses to run as root',
                hint="Name an unprivileged user, or remove the setting.",
            )
        return user
    existing = find_user(ENGINE_USER_NAME)
    if existing is not None:
        return existing
    reason = _create_system_user(ENGINE_USER_NAME)
    made = find_user(ENGINE_USER_NAME)
    if made is not None:
        logger.info("made the system user %s for the engine", ENGINE_USER_NAME)
        return made
    for name in FALLBACK_USER_NAMES:
        fallback = find_user(name)
        if fallback is not None and fallback.uid != 0:
            logger.warning(
                "the engine runs as the existing user %s, whose other programs can reach its files: "
                "the user %s could not be made (%s)",
                name,
                ENGINE_USER_NAME,
                reason,
            )
            return fallback
    raise EngineUserError(
        "there is no unprivileged user for the engine to run as",
        detail=f"PostgreSQL refuses to run as root, and making {ENGINE_USER_NAME} failed: {reason}.",
        hint="Make a system user and name it in engine.os_user.",
    )


def _create_system_user(name: str) -> str:
    """Try the tools that distributions have; returns why the last one failed, "" where one succeeded."""
    nologin = shutil.which("nologin", path="/usr/sbin:/sbin") or "/bin/false"
    commands = (
        # shadow: Debian, Fedora, Arch, SUSE
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", nologin],
        # BusyBox: Alpine
        ["adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", nologin],
    )
    reason = "neither useradd nor adduser is installed"
    for command in commands:
        program = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
        if program is None:
            continue
        try:
            result = subprocess.run(
                [program, *command[1:], name], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
            continue
        if result.returncode == 0:
            return ""
        reason = _last_line(result.stderr.splitlines()) or f"{command[0]} ended with status {result.returncode}"
    return reason


def group_name(gid: int) -> str:
    """A group for messages."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def _last_line(lines: Iterable[str]) -> str:
    last = ""
    for line in lines:
        last = line.strip() or last
    return last
