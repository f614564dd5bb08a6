"""pytest plugin: writes each test's outcome as a JSON line to the file named by OUTCOME_LOG, as soon as it is known.

Loaded into the test run of a driver (`-p outcome_log`), so it imports nothing of this project. A run that hangs or dies
still leaves what it had.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for the call, and one for a set-up or tear-down that did not pass."""
    if report.when != "call" and report.passed:
        return
    outcome: str = report.outcome if report.when == "call" or report.skipped else "error"
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if report.skipped else "xpassed"
    text = "" if outcome == "passed" else report.longreprtext[-3000:]
    line = json.dumps({"test": report.nodeid, "outcome": outcome, "text": text})
    with Path(os.environ["OUTCOME_LOG"]).open("a") as log:
        log.write(line + "\n")
