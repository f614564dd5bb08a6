"""Errors of the engine say what happened, what is known and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.engine_log import LogLine, parse_log_line
from engine.errors import DataDirectoryFull, DataDirectoryInUse, EngineError, EngineStartError
from engine.layout import DataLayout
from engine.prepare import start_failure

LAYOUT = DataLayout(Path("/nonexistent/data"))


def lines(*texts: str) -> list[LogLine]:
    return [parse_log_line(f"1 {text}") for text in texts]


def test_an_error_reads_as_message_detail_and_hint() -> None:
    assert str(EngineError("m", detail="d", hint="h")) == "m\nDETAIL: d\nHINT: h"
    assert str(EngineError("m")) == "m"


def test_a_failed_start_repeats_the_last_fatal_message() -> None:
    said = lines("00000 postmaster|LOG:  hello", "F0000 postmaster|FATAL:  configuration file contains errors")
    error = start_failure(LAYOUT, said, 1)
    assert isinstance(error, EngineStartError)
    assert error.detail == "configuration file contains errors"
    assert "status 1" in error.message


def test_a_failed_start_without_fatal_message_repeats_what_was_said() -> None:
    error = start_failure(LAYOUT, [parse_log_line("postgres: cannot execute binary file")], 126)
    assert "cannot execute" in str(error)


@pytest.mark.parametrize("kind", ["startup", "postmaster", "checkpointer"])
def test_no_space_left_is_recognised_by_its_sqlstate(kind: str) -> None:
    said = lines(f"53100 {kind}|PANIC:  could not write to file: No space left on device")
    assert isinstance(start_failure(LAYOUT, said, 1), DataDirectoryFull)


def test_a_foreign_postmaster_is_recognised() -> None:
    said = lines('F0001 postmaster|FATAL:  lock file "postmaster.pid" already exists')
    assert isinstance(start_failure(LAYOUT, said, 1), DataDirectoryInUse)
