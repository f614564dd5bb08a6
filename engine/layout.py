"""Where things lie in the data directory, who owns them, and the lock that keeps a second front end out.

    <data_dir>/            front end   0711 with two users, else 0700
      rustydb.lock         front end   0600  held as long as a front end lives
      engine.log           front end   0600  FIFO: what the engine writes to its log
      conf/                front end   2750  postgresql.conf, pg_hba.conf, pg_ident.conf: the engine's group reads them
      programs/            front end   0755  copy of PostgreSQL's programs, where the engine cannot reach them elsewhere
      engine/              engine      0700  pgdata
      socket/              engine      0700  the private Unix socket; 2710 and the front end's group with two users
      audit/ keys/ tls/    front end   0700

Nothing that root writes lies in a directory that the engine's user can change, so the engine cannot lead it astray
with a symbolic link.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.address import SOCKET_PATH_MAX_BYTES
from engine.errors import DataDirectoryError, DataDirectoryFull, DataDirectoryInUse, DataDirectoryUnreachable
from engine.osuser import OsUser, OsUsers, blocking_directory

ENGINE_PORT = 5432  # only a part of the socket's name: the engine has no TCP port


@dataclass(frozen=True, slots=True)
class DataLayout:
    """Paths below one data directory."""

    data_dir: Path

    @property
    def lock_file(self) -> Path:
        return self.data_dir / "rustydb.lock"

    @property
    def log_fifo(self) -> Path:
        return self.data_dir / "engine.log"

    @property
    def conf(self) -> Path:
        return self.data_dir / "conf"

    @property
    def conf_file(self) -> Path:
        return self.conf / "postgresql.conf"

    @property
    def hba_file(self) -> Path:
        return self.conf / "pg_hba.conf"

    @property
    def ident_file(self) -> Path:
        return self.conf / "pg_ident.conf"

    @property
    def extensions(self) -> Path:
        """What extension_control_path names; PostgreSQL looks in `extension` below it."""
        return self.conf / "extensions"

    @property
    def control_files(self) -> Path:
        """Our own control files of extensions."""
        return self.extensions / "extension"

    @property
    def programs(self) -> Path:
        return self.data_dir / "programs"

    @property
    def engine(self) -> Path:
        return self.data_dir / "engine"

    @property
    def pgdata(self) -> Path:
        return self.engine / "pgdata"

    @property
    def unfinished_pgdata(self) -> Path:
        """initdb works here; renamed to `pgdata` when it is done."""
        return self.engine / "pgdata.new"

    @property
    def socket(self) -> Path:
        return self.data_dir / "socket"

    @property
    def audit(self) -> Path:
        return self.data_dir / "audit"

    @property
    def keys(self) -> Path:
        return self.data_dir / "keys"

    @property
    def tls(self) -> Path:
        return self.data_dir / "tls"

    @property
    def password_file(self) -> Path:
        """The generated password of the administrator."""
        return self.keys / "postgres.password"


def create_data_dir(layout: DataLayout, users: OsUsers) -> None:
    """Make the data directory itself, and check that the engine's user gets through to it.

    Raises DataDirectoryUnreachable naming the directory that keeps the engine out: it is never opened up.
    """
    try:
        if not layout.data_dir.exists():
            _make_parents(layout.data_dir.parent, users)
        _make_directory(layout.data_dir, users.frontend, 0o711 if users.is_separate else 0o700)
    except OSError as error:
        raise directory_error(layout.data_dir, error) from error
    blocked = blocking_directory(layout.data_dir, users.engine)
    if blocked is not None:
        raise DataDirectoryUnreachable(
            f'the engine\'s user {users.engine} cannot pass the directory "{blocked}"',
            detail=f'It lies on the way to the data directory "{layout.data_dir}".',
            hint="Choose a data directory that every user can get to, such as /var/lib/rustydb, "
            f'or let others pass: chmod o+x "{blocked}".',
        )


def create_directories(layout: DataLayout, users: OsUsers) -> None:
    """Make everything below the data directory that is not there, and set owners and modes right."""
    try:
        _make_directory(layout.engine, users.engine, 0o700)
        # The set-group-id bit gives the engine's group to what a front end that is not in it writes there.
        for directory in (layout.conf, layout.extensions, layout.control_files):
            _make_directory(directory, users.frontend, 0o2750 if users.is_separate else 0o700, gid=users.engine.gid)
        create_frontend_directories(layout, users.frontend)
        if not layout.log_fifo.exists():
            _make_fifo(layout.log_fifo, users.frontend)
    except OSError as error:
        raise directory_error(layout.data_dir, error) from error


def create_frontend_directories(layout: DataLayout, frontend: OsUser) -> None:
    """What the front end alone may enter."""
    try:
        for directory in (layout.audit, layout.keys, layout.tls):
            _make_directory(directory, frontend, 0o700)
    except OSError as error:
        raise directory_error(layout.data_dir, error) from error


def create_socket_directory(layout: DataLayout, users: OsUsers) -> Path:
    """The directory of the engine's socket: in the data directory, or a short one where that path is too long.

    A socket's path has at most 107 bytes. With two users the directory belongs to the engine, the front end's group
    may pass it, and the set-group-id bit gives the socket that group, though the engine is not in it.
    """
    directory = layout.socket
    is_short = False
    if socket_path_bytes(directory) > SOCKET_PATH_MAX_BYTES:
        directory = _runtime_directory(layout.data_dir, users)
        is_short = True
    try:
        if is_short:
            _make_private_directory(directory, users.engine)
        if users.is_separate:
            _make_directory(directory, users.engine, 0o2710, gid=users.frontend.gid)
        else:
            _make_directory(directory, users.engine, 0o700)
    except OSError as error:
        raise directory_error(directory, error) from error
    return directory


def socket_path_bytes(directory: Path) -> int:
    """Length of the path of the engine's socket in `directory`, in bytes."""
    return len(os.fsencode(directory / f".s.PGSQL.{ENGINE_PORT}"))


def acquire_lock(layout: DataLayout, owner: OsUser) -> int:
    """Take the data directory for this process; returns the descriptor to close when done with it.

    The kernel lets go of it when the process ends in whatever way. Raises DataDirectoryInUse.
    """
    try:
        descriptor = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise directory_error(layout.lock_file, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise directory_error(layout.lock_file, error) from error
        raise DataDirectoryInUse(
            f'another RustyDB uses the data directory "{layout.data_dir}"',
            detail=f"Its process id is {holder}." if holder else None,
            hint="Stop it first, or choose another data directory.",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _chown(layout.lock_file, owner.uid, owner.gid)
    return descriptor


def write_private_file(path: Path, text: str, owner: OsUser, mode: int = 0o600) -> None:
    """Write a file as a whole: readers see the old one or the new one. Only for directories of the front end.

    Its group is the directory's.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _chown(temporary, owner.uid, os.stat(path.parent).st_gid)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        raise directory_error(path, error) from error


def directory_error(path: Path, error: OSError) -> DataDirectoryError:
    """The error of the tree for an error of the operating system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    place = error.filename if isinstance(error.filename, str) else str(path)
    return DataDirectoryError(
        f'cannot use "{place}": {os.strerror(error.errno) if error.errno else error}',
        hint="Check its owner and permissions, or choose another data directory with --data-dir.",
    )


def disk_full(path: Path, detail: str | None = None) -> DataDirectoryFull:
    """The error for a full disk, with how much is left."""
    try:
        status = os.statvfs(path if path.exists() else path.parent)
        left = f"{status.f_bavail * status.f_frsize >> 20} MiB are free on its file system."
    except OSError:
        left = None
    return DataDirectoryFull(
        f'no space left on the device that holds "{path}"',
        detail=detail or left,
        hint="Free some space, then start again: no committed data is lost.",
    )


def _runtime_directory(data_dir: Path, users: OsUsers) -> Path:
    """A short path that belongs to this data directory alone."""
    name = "rustydb-" + hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    candidates: list[Path] = []
    if os.geteuid() == 0 or users.frontend.uid == 0:
        candidates.append(Path("/run"))
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and not users.is_separate:
        candidates.append(Path(runtime))
    candidates.append(Path("/tmp"))  # the directory made in it is checked against planted ones
    for parent in candidates:
        is_usable = os.access(parent, os.W_OK | os.X_OK) and socket_path_bytes(parent / name) <= SOCKET_PATH_MAX_BYTES
        if is_usable and blocking_directory(parent, users.engine) is None:
            return parent / name
    raise DataDirectoryError(
        f'the path of the engine\'s socket in "{data_dir}" is longer than {SOCKET_PATH_MAX_BYTES} bytes',
        detail="No runtime directory (/run, XDG_RUNTIME_DIR, /tmp) can be written either.",
        hint="Choose a data directory with a shorter path.",
    )


def _make_private_directory(path: Path, owner: OsUser) -> None:
    """Make a directory in a place where others can make some too, or take one that is already ours.

    mkdir never follows a symbolic link; what is there already must be a real directory of the right owner.
    """
    try:
        os.mkdir(path, 0o700)
        _chown(path, owner.uid, owner.gid)
        return
    except FileExistsError:
        pass
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (owner.uid, os.geteuid()) or status.st_mode & 0o027:
        raise DataDirectoryError(
            f'"{path}" is needed for the engine\'s socket, but it is not a private directory of {owner}',
            detail="Another user may have made it.",
            hint="Remove it, or choose a data directory with a shorter path.",
        )


def _make_parents(path: Path, users: OsUsers) -> None:
    """Parents that are missing, passable for the engine's user: only ones we make ourselves."""
    missing: list[Path] = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        os.mkdir(directory, 0o755 if users.is_separate else 0o700)
        os.chmod(directory, 0o755 if users.is_separate else 0o700)


def _make_directory(path: Path, owner: OsUser, mode: int, gid: int | None = None) -> None:
    """Make a directory, or set the owner and mode of one that is there.

    Works on a descriptor: where root does it for an unprivileged front end, that user must not be able to point it
    elsewhere with a symbolic link. A front end for itself may keep its directories behind one.
    """
    wanted_gid = owner.gid if gid is None else gid
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    is_for_another = os.geteuid() == 0 and owner.uid != 0
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(path, flags | os.O_NOFOLLOW if is_for_another else flags)
    try:
        status = os.fstat(descriptor)
        if (status.st_uid, status.st_gid) != (owner.uid, wanted_gid):
            if os.geteuid() != 0 and status.st_uid != os.geteuid():
                raise DataDirectoryError(
                    f'the directory "{path}" belongs to another user',
                    detail=f"It belongs to uid {status.st_uid}; RustyDB runs as uid {os.geteuid()}.",
                    hint="Start RustyDB as the same user as before, or as root.",
                )
            os.fchown(descriptor, owner.uid, wanted_gid)
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _make_fifo(path: Path, owner: OsUser) -> None:
    try:
        os.mkfifo(path, 0o600)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            return  # some network file systems have none: the log then goes through a plain pipe
        raise
    _chown(path, owner.uid, owner.gid)


def _chown(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)
    elif os.stat(path).st_gid != gid:
        os.chown(path, -1, gid, follow_symlinks=False)
