"""The generated table is the engine's own list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from protocol import sqlstate

ROOT = Path(__file__).resolve().parents[3]


def test_table_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/gen_sqlstate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_names_are_postgresqls() -> None:
    assert sqlstate.INVALID_PASSWORD == "28P01"
    assert sqlstate.CONDITION_NAMES["42P01"] == "undefined_table"
    assert sqlstate.CLASS_NAMES["53"] == "Insufficient Resources"


def test_every_state_has_five_characters() -> None:
    states = [value for name, value in vars(sqlstate).items() if name.isupper() and isinstance(value, str)]
    assert len(states) > 200
    assert all(len(state) == 5 and state.isascii() and state.upper() == state for state in states)
