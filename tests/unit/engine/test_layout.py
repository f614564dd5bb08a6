"""The data directory: its lock, the socket's place, and directories that somebody else planted."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from engine.errors import DataDirectoryError, DataDirectoryFull, DataDirectoryInUse
from engine.layout import (
    DataLayout,
    acquire_lock,
    create_data_dir,
    create_directories,
    create_socket_directory,
    directory_error,
    socket_path_bytes,
    write_private_file,
)
from engine.osuser import OsUsers, current_user

US = OsUsers(current_user(), current_user())


@pytest.fixture
def layout(tmp_path: Path) -> DataLayout:
    layout = DataLayout(tmp_path / "data")
    create_data_dir(layout, US)
    return layout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_one_user_keeps_everything_to_himself(layout: DataLayout) -> None:
    create_directories(layout, US)
    socket = create_socket_directory(layout, US)
    private = (layout.data_dir, layout.engine, layout.audit, layout.keys, layout.tls, layout.conf, socket)
    assert {path.name: mode(path) for path in private} == {path.name: 0o700 for path in private}


def test_modes_that_were_changed_are_set_right_again(layout: DataLayout) -> None:
    create_directories(layout, US)
    layout.keys.chmod(0o777)
    create_directories(layout, US)
    assert mode(layout.keys) == 0o700


def test_a_second_front_end_is_refused_and_told_the_process(layout: DataLayout) -> None:
    descriptor = acquire_lock(layout, US.frontend)
    with pytest.raises(DataDirectoryInUse) as caught:
        acquire_lock(layout, US.frontend)
    assert str(os.getpid()) in str(caught.value)
    os.close(descriptor)
    os.close(acquire_lock(layout, US.frontend))


def test_the_lock_file_is_not_a_link_to_elsewhere(layout: DataLayout, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    layout.lock_file.symlink_to(victim)
    with pytest.raises(DataDirectoryError):
        acquire_lock(layout, US.frontend)
    assert victim.read_text() == "keep"


@pytest.fixture
def deep_layout(tmp_path: Path) -> DataLayout:
    layout = DataLayout(tmp_path / ("long" * 20) / uuid4().hex)
    create_data_dir(layout, US)
    return layout


def test_a_socket_path_that_is_too_long_gets_a_short_place(
    deep_layout: DataLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    directory = create_socket_directory(deep_layout, US)
    try:
        assert not directory.is_relative_to(deep_layout.data_dir)
        assert socket_path_bytes(directory) <= 107
        assert mode(directory) == 0o700
        assert create_socket_directory(deep_layout, US) == directory
    finally:
        directory.rmdir()


def test_a_planted_link_is_not_taken_for_the_short_place(
    deep_layout: DataLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    directory = create_socket_directory(deep_layout, US)
    directory.rmdir()
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    directory.symlink_to(target)
    try:
        with pytest.raises(DataDirectoryError, match="private directory"):
            create_socket_directory(deep_layout, US)
    finally:
        directory.unlink()


def test_a_planted_open_directory_is_not_taken_for_the_short_place(
    deep_layout: DataLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    directory = create_socket_directory(deep_layout, US)
    directory.chmod(0o777)
    try:
        with pytest.raises(DataDirectoryError, match="private directory"):
            create_socket_directory(deep_layout, US)
    finally:
        shutil.rmtree(directory)


def test_socket_paths_are_measured_in_bytes() -> None:
    assert socket_path_bytes(Path("/ä")) == len("/ä/.s.PGSQL.5432".encode())


def test_a_private_file_replaces_a_link_instead_of_following_it(layout: DataLayout, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    target = layout.data_dir / "file"
    target.symlink_to(victim)
    write_private_file(target, "secret", US.frontend)
    assert (victim.read_text(), target.read_text()) == ("keep", "secret")
    assert (mode(target), target.is_symlink()) == (0o600, False)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_an_error_of_its_own(number: int, tmp_path: Path) -> None:
    error = directory_error(tmp_path, OSError(number, os.strerror(number)))
    assert isinstance(error, DataDirectoryFull)
    assert "MiB are free" in str(error)


def test_another_errno_is_named_with_its_file(tmp_path: Path) -> None:
    error = directory_error(tmp_path, PermissionError(errno.EACCES, "x", "/some/file"))
    assert "/some/file" in str(error)
    assert "Permission denied" in str(error)
