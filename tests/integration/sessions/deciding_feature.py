"""A feature for tests: it decides about statements by a word in a comment, and counts how executions end."""

from __future__ import annotations

import asyncio
from collections import Counter

from protocol.backend_messages import DataRow, FieldDescription, RowDescription
from protocol.errors import PgError
from server.extension.bus import Delivery
from server.extension.commands import MONITOR_ROLE, AdminColumn, AdminCommand, AdminResult, ColumnType
from server.extension.context import QueryContext
from server.extension.events import QueryFinished
from server.extension.feature import FeatureContext, StartPolicy
from server.extension.hooks import CONTINUE, Answer, Deny, QueryDecision, Rewrite
from server.statement_info import Kind

_TEXT = 25


class Deciding:
    """Statements say what is to happen to them: /*deny*/, /*answer*/, /*rewrite*/; with /*later*/ after a moment."""

    name = "deciding"
    requires = ()
    start_policy = StartPolicy.REFUSE

    def __init__(self) -> None:
        self._ends: Counter[tuple[str, str]] = Counter()

    def setup(self, context: FeatureContext) -> None:
        context.hooks.add_before_query(self._decide, feature=self.name)
        context.bus.subscribe(QueryFinished, self._finished, Delivery.INLINE, subscriber=self.name)
        columns = (AdminColumn("text"), AdminColumn("outcome"), AdminColumn("count", ColumnType.INT8))
        command = AdminCommand("SHOW ENDINGS", MONITOR_ROLE, columns, self._show, "Ends.", feature=self.name)
        context.commands.register(command)

    async def start(self) -> None:
        """Nothing to begin."""

    async def stop(self) -> None:
        """Nothing to end."""

    def _show(self, call: object) -> AdminResult:
        return AdminResult([(text, outcome, count) for (text, outcome), count in sorted(self._ends.items())])

    async def _finished(self, event: QueryFinished) -> None:
        self._ends[event.query.text, event.outcome.name] += 1

    def _decide(self, query: QueryContext) -> QueryDecision | asyncio.Future[QueryDecision]:
        if "/*later*/" not in query.text:
            return self._decision(query)
        future: asyncio.Future[QueryDecision] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.002, future.set_result, self._decision(query))
        return future

    @staticmethod
    def _decision(query: QueryContext) -> QueryDecision:
        assert all(statement.kind in Kind for statement in query.query.statements)
        if "/*deny*/" in query.text:
            return Deny(PgError("42501", "the feature said no"))
        if "/*rewrite*/" in query.text:
            return Rewrite("SELECT 'rewritten' AS what")
        if "/*answer*/" in query.text:
            field = FieldDescription("what", type_oid=_TEXT, type_size=-1)
            body = DataRow((b"answered",)).encode() + b"C\0\0\0\x0dSELECT 1\0"
            return Answer(RowDescription((field,)).encode(), body, "SELECT 1", 1)
        return CONTINUE
