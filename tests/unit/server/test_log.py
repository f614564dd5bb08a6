from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from server.log import configure_logging, log_context, session_logger, set_level

LOGGER = logging.getLogger("server.example")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    set_level("notset")


def records(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_carries_session_and_query() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    session_logger(LOGGER, 7).info("slow", extra={"query_id": 3, "seconds": 1.5})
    (record,) = records(stream)
    assert record | {"time": ""} == {
        "time": "", "level": "info", "logger": "server.example", "message": "slow",
        "session_id": 7, "query_id": 3, "seconds": 1.5,
    }  # fmt: skip


def test_fields_of_a_block_end_with_the_block() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    with log_context(session_id=1), log_context(query_id=2):
        LOGGER.info("inside")
    LOGGER.info("outside")
    inside, outside = records(stream)
    assert (inside["session_id"], inside["query_id"]) == (1, 2)
    assert "session_id" not in outside


def test_text_is_one_line_a_record_whatever_the_message_holds() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    LOGGER.warning("statement: %s", "SELECT 1;\n2026-01-01 forged", extra={"application": "a b", "empty": ""})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        r"""UTC WARNING server.example: statement: SELECT 1;\n2026-01-01 forged application="a b" empty="" """.strip()
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_kept(form: str) -> None:
    stream = io.StringIO()
    configure_logging("info", form, stream)
    try:
        _ = {}["missing"]
    except KeyError:
        LOGGER.exception("failed")
    assert "KeyError: 'missing'" in stream.getvalue()


def test_the_level_is_ours_and_not_the_libraries() -> None:
    stream = io.StringIO()
    configure_logging("warning", "text", stream)
    LOGGER.info("quiet")
    set_level("debug")
    LOGGER.debug("loud")
    logging.getLogger("somelibrary").info("chatter")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["loud"]


def test_configuring_again_replaces_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "text", first)
    configure_logging("info", "text", second)
    LOGGER.info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
