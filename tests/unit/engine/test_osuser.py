"""Who runs what, and what a user can reach."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import EngineUserError
from engine.osuser import (
    OsUser,
    OsUsers,
    blocking_directory,
    choose_users,
    current_user,
    drop_privileges,
    find_user,
    spawn_arguments,
)

STRANGER = OsUser(uid=54321, gid=54321, name=None)


def test_a_user_is_found_by_name_and_by_number() -> None:
    root = find_user("root")
    assert root is not None
    assert root == find_user("0")
    assert find_user("no-such-user-at-all") is None
    assert find_user("54321987") is None


def test_a_directory_closed_to_others_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0o700)
    found = blocking_directory(closed / "below", STRANGER)
    assert found is not None
    assert closed.is_relative_to(found)
    assert blocking_directory(closed / "below", current_user()) is None


@pytest.mark.parametrize(("mode", "is_blocked"), [(0o711, False), (0o755, False), (0o744, True), (0o710, True)])
def test_passing_takes_the_execute_bit(tmp_path: Path, mode: int, is_blocked: bool) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    directory.chmod(mode)
    found = blocking_directory(directory, STRANGER)
    assert (found == directory.resolve()) is is_blocked or found in directory.resolve().parents


def test_an_ordinary_user_runs_both() -> None:
    if os.geteuid() == 0:
        pytest.skip("root runs the engine as another user")
    users = choose_users()
    assert users.frontend == users.engine == current_user()
    assert not users.is_separate


def test_an_ordinary_user_cannot_name_another() -> None:
    if os.geteuid() == 0:
        pytest.skip("root can")
    with pytest.raises(EngineUserError, match=r"engine\.os_user"):
        choose_users(engine_os_user="root")


@pytest.mark.root
def test_root_never_runs_the_engine() -> None:
    assert choose_users().engine.uid != 0
    with pytest.raises(EngineUserError, match="refuses"):
        choose_users(engine_os_user="root")


@pytest.mark.root
def test_a_missing_user_is_an_error_with_the_command_that_makes_it() -> None:
    with pytest.raises(EngineUserError) as caught:
        choose_users(engine_os_user="no-such-user-at-all")
    assert "useradd" in str(caught.value)
    with pytest.raises(EngineUserError, match=r"security\.frontend_os_user"):
        choose_users(frontend_os_user="no-such-user-at-all")


def test_privileges_are_not_gained_by_dropping_them() -> None:
    drop_privileges(current_user())
    if os.geteuid() != 0:
        with pytest.raises(EngineUserError):
            drop_privileges(STRANGER)


def test_a_program_of_our_own_needs_no_switch() -> None:
    assert "user" not in spawn_arguments(current_user())
    assert OsUsers(current_user(), STRANGER).is_separate
