"""The project's own files: nothing of one machine or one registry in them, lock files that fit pyproject.toml."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import lock

ROOT = Path(__file__).resolve().parents[2]


def tracked_files() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.split("\0") if name]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {package: version for package, _, version in (line.partition("==") for line in lines)}


def test_the_lock_files_hold_an_exact_version_of_everything_asked_for() -> None:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locks = {
        "requirements.lock": tree["project"]["dependencies"],
        "requirements-dev.lock": tree["dependency-groups"]["dev"],
    }
    known: dict[str, str] = {}
    for name, requirements in locks.items():
        known |= pins(name)
        for text in requirements:
            requirement = Requirement(text)
            assert requirement.specifier.contains(known[requirement.name]), text


def test_the_lock_files_hold_all_that_is_needed_in_turn() -> None:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = pins("requirements.lock")
    assert lock.closure(tree["project"]["dependencies"]).items() <= runtime.items()
    dev = lock.closure(tree["dependency-groups"]["dev"])
    assert dev.items() <= (runtime | pins("requirements-dev.lock")).items()


def test_no_registry_is_named_in_a_tracked_file() -> None:
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "deb.debian" + ".org", "proxy.golang" + ".org")
    for name in tracked_files():
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert not any(host.encode() in content for host in hosts), name


@pytest.mark.parametrize("package", ["protocol", "engine", "server", "enterprise"])
def test_every_root_package_is_declared(package: str) -> None:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"{package}*" in tree["tool"]["setuptools"]["packages"]["find"]["include"]
