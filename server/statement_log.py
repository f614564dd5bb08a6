"""`log.statements`: one log line for every statement, with its session and query ids. Off the query path, and off
by default.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.extension.events import QueryFinished
from server.log import log_context

if TYPE_CHECKING:
    from server.extension.bus import EventBus

_log = logging.getLogger("rustydb.statement")

_SHOWN_CHARACTERS = 2000


def log_statements(bus: EventBus) -> None:
    """Subscribe: texts are logged as they came, without the values of parameters."""
    bus.subscribe(QueryFinished, _write, subscriber="log.statements")


def _write(events: Sequence[QueryFinished]) -> None:
    for event in events:
        query = event.query
        with log_context(session_id=query.session.session_id, query_id=query.query_id):
            _log.info(
                "%s %s@%s %.3f ms %s: %s",
                event.command_tag or event.sqlstate or event.outcome.value,
                query.session.role,
                query.session.database,
                event.duration_us / 1000,
                event.outcome.value,
                query.text[:_SHOWN_CHARACTERS],
            )
