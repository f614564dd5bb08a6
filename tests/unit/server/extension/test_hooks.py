"""Hooks: order, decisions, failures, and what they cost when nobody registered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol.errors import PgError
from server.extension.context import NO_PARAMETERS, Conversation, QueryContext, QueryView, SessionInfo
from server.extension.events import CacheUse, Outcome, QueryFinished, TransactionOutcome, Verdict
from server.extension.failure import FailurePolicy
from server.extension.hooks import (
    CONTINUE,
    Answer,
    Continue,
    Deny,
    HookOrder,
    Hooks,
    Judgement,
    QueryDecision,
    Rewrite,
)
from server.extension.transactions import CommitNeeds, CommitScope, TransactionFacts


def session() -> SessionInfo:
    return SessionInfo(
        4711, 1, "alice", 16400, False, "shop", "psql", "scram-sha-256", "127.0.0.1", 40000, "127.0.0.1", None, (3, 0),
        False, 0.0,
    )  # fmt: skip


def query_view(template_id: int) -> QueryView:
    return cast(QueryView, SimpleNamespace(statements=(), template_id=template_id))


def context(text: str = "SELECT 1") -> QueryContext:
    return QueryContext(
        1,
        session(),
        0,
        "alice",
        text,
        query_view(1),
        Conversation.SIMPLE,
        NO_PARAMETERS,
        (),
        0,
        "",
        "",
        "I",
        0.0,
        0,
        {},
    )


def finished() -> QueryFinished:
    return QueryFinished(context(), Outcome.OK, None, "SELECT 1", 1, 60, 20, 100, 0, 99, "I", CacheUse.BYPASS, False)


async def ask(hooks: Hooks, asked: QueryContext | None = None) -> Judgement:
    judged = hooks.ask_before_query(asked or context())
    return judged if isinstance(judged, Judgement) else await judged


def refuse(sqlstate: str = "42501") -> Deny:
    return Deny(PgError(sqlstate, "no"), "not allowed")


def test_nobody_registered_is_false_and_answers_at_once() -> None:
    hooks = Hooks()
    assert not hooks.before_query
    assert not hooks.after_query
    assert not hooks.transform_rows
    assert not hooks.on_session_start
    assert not hooks.commit
    judged = hooks.ask_before_query(context())
    assert isinstance(judged, Judgement)
    assert (judged.verdict, judged.decided_by) == (Verdict.CONTINUE, "")
    assert hooks.ask_on_session_start(session()) is CONTINUE
    assert hooks.tell_after_query(finished()) is None
    assert hooks.ask_transform_rows(context()) == ()


async def test_hooks_run_by_order_and_then_by_registration() -> None:
    hooks = Hooks()
    seen: list[str] = []

    def note(name: str) -> Any:
        def hook(asked: QueryContext) -> QueryDecision:
            seen.append(name)
            return CONTINUE

        return hook

    hooks.add_before_query(note("cache"), feature="cache", order=HookOrder.ANSWER)
    hooks.add_before_query(note("rules"), feature="rules", order=HookOrder.ADMIT)
    hooks.add_before_query(note("quota"), feature="quota", order=HookOrder.ADMIT)
    await ask(hooks)
    assert seen == ["rules", "quota", "cache"]
    assert [entry.feature for entry in hooks.entries()] == ["rules", "quota", "cache"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_first_deny_ends_the_round(is_async: bool) -> None:
    hooks = Hooks()
    seen: list[str] = []

    async def wait_and_deny(asked: QueryContext) -> QueryDecision:
        await asyncio.sleep(0)
        return refuse()

    hooks.add_before_query(wait_and_deny if is_async else lambda asked: refuse(), feature="rules")
    hooks.add_before_query(lambda asked: cast(Any, seen.append("late")) or CONTINUE, feature="cache", order=300)
    judged = await ask(hooks)
    assert isinstance(judged.decision, Deny)
    assert (judged.verdict, judged.decided_by, judged.reason) == (Verdict.DENY, "rules", "not allowed")
    assert seen == []


async def test_an_answer_ends_the_round() -> None:
    hooks = Hooks()
    hooks.add_before_query(lambda asked: Answer(b"", b"", "SELECT 0", 0, "hit"), feature="cache")
    judged = await ask(hooks)
    assert (judged.verdict, judged.decided_by, judged.reason) == (Verdict.ANSWER, "cache", "hit")


@pytest.mark.parametrize("is_async", [False, True])
async def test_hooks_after_a_rewrite_see_the_new_text_and_its_analysis(is_async: bool) -> None:
    hooks = Hooks(analyse=lambda text, asked: query_view(len(text)))
    seen: list[tuple[str, int]] = []

    async def rewrite_later(asked: QueryContext) -> QueryDecision:
        await asyncio.sleep(0)
        return Rewrite("SELECT mask(1)", "masked")

    def look(asked: QueryContext) -> QueryDecision:
        seen.append((asked.text, asked.query.template_id))
        return CONTINUE

    hooks.add_before_query(
        rewrite_later if is_async else lambda asked: Rewrite("SELECT mask(1)", "masked"), feature="mask"
    )
    hooks.add_before_query(look, feature="cache", order=HookOrder.ANSWER)
    judged = await ask(hooks)
    assert seen == [("SELECT mask(1)", 14)]
    assert (judged.verdict, judged.decided_by, judged.context.text) == (Verdict.REWRITE, "mask", "SELECT mask(1)")


async def test_a_hook_that_returns_an_equal_continue_continues_too() -> None:
    hooks = Hooks()
    hooks.add_before_query(lambda asked: Continue(), feature="a")
    hooks.add_before_query(lambda asked: refuse(), feature="b")
    assert (await ask(hooks)).decided_by == "b"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "policy", "sqlstate", "is_reported"),
    [
        (PgError("53400", "quota"), FailurePolicy.CONTINUE, "53400", False),
        (ValueError("bug"), FailurePolicy.DENY, "XX000", True),
        (ValueError("bug"), FailurePolicy.CONTINUE, None, True),
    ],
)
async def test_what_a_hook_raises_is_a_refusal_or_goes_by_its_policy(
    is_async: bool, error: Exception, policy: FailurePolicy, sqlstate: str | None, is_reported: bool
) -> None:
    reported: list[tuple[str, str, bool]] = []
    hooks = Hooks(report=lambda feature, where, raised, is_fatal: reported.append((feature, where, is_fatal)))

    def fail(asked: QueryContext) -> QueryDecision:
        raise error

    async def fail_later(asked: QueryContext) -> QueryDecision:
        await asyncio.sleep(0)
        raise error

    hooks.add_before_query(fail_later if is_async else fail, feature="rules", on_error=policy)
    judged = await ask(hooks)
    denied = judged.decision.error.sqlstate if isinstance(judged.decision, Deny) else None
    assert denied == sqlstate
    expected = [("rules", "hook before_query", policy is FailurePolicy.DENY)] if is_reported else []
    assert reported == expected


async def test_a_hook_registered_during_a_round_waits_for_the_next() -> None:
    hooks = Hooks()

    async def register(asked: QueryContext) -> QueryDecision:
        await asyncio.sleep(0)
        hooks.add_before_query(lambda asked: refuse(), feature="late", order=500)
        return CONTINUE

    hooks.add_before_query(register, feature="a")
    assert (await ask(hooks)).verdict is Verdict.CONTINUE
    assert (await ask(hooks)).verdict is Verdict.DENY


async def test_session_start_takes_the_first_deny() -> None:
    hooks = Hooks()

    async def allow(asked: SessionInfo) -> Continue:
        return CONTINUE

    hooks.add_on_session_start(allow, feature="a")
    pending = hooks.ask_on_session_start(session())
    assert isinstance(pending, Awaitable)
    assert await pending is CONTINUE
    hooks.add_on_session_start(lambda asked: refuse("53300"), feature="b")
    pending = hooks.ask_on_session_start(session())
    assert isinstance(pending, Awaitable)
    decision = await pending
    assert isinstance(decision, Deny)
    assert decision.error.sqlstate == "53300"


async def test_after_query_goes_on_after_a_failure_and_waits_for_who_waits() -> None:
    hooks = Hooks()
    seen: list[str] = []

    def fail(done: QueryFinished) -> None:
        raise ValueError

    async def slow(done: QueryFinished) -> None:
        await asyncio.sleep(0)
        seen.append("slow")
        raise ValueError

    hooks.add_after_query(fail, feature="a")
    hooks.add_after_query(slow, feature="b")
    hooks.add_after_query(lambda done: seen.append("last"), feature="c")
    pending = hooks.tell_after_query(finished())
    assert pending is not None
    await pending
    assert seen == ["slow", "last"]


class Upper:
    def transform_fields(self, fields: Sequence[Any]) -> Sequence[Any]:
        return fields

    def transform_row(self, values: Sequence[bytes | None]) -> Sequence[bytes | None]:
        return values


def test_transformers_are_collected_and_none_leaves_rows_alone() -> None:
    hooks = Hooks()
    first, second = Upper(), Upper()
    hooks.add_transform_rows(lambda asked: None, feature="a")
    hooks.add_transform_rows(lambda asked: first, feature="b")
    hooks.add_transform_rows(lambda asked: second, feature="c")
    assert hooks.ask_transform_rows(context()) == (first, second)


def test_a_transformer_that_cannot_be_made_denies_rather_than_shows_bare_rows() -> None:
    hooks = Hooks()

    def fail(asked: QueryContext) -> Upper:
        raise ValueError

    hooks.add_transform_rows(fail, feature="mask")
    answer = hooks.ask_transform_rows(context())
    assert isinstance(answer, Deny)
    assert answer.error.sqlstate == "XX000"


class Participant:
    def __init__(self, name: str, order: int) -> None:
        self.name = name
        self.order = order

    def needs(self, scope: CommitScope) -> CommitNeeds:
        return CommitNeeds.NOTHING

    def on_transaction_learned(self, facts: TransactionFacts) -> None:
        return None

    def before_commit(self, facts: TransactionFacts) -> None:
        return None

    def after_outcome(self, facts: TransactionFacts, outcome: TransactionOutcome) -> None:
        return None


def test_commit_participants_are_ordered_and_unique() -> None:
    hooks = Hooks()
    hooks.add_commit_participant(Participant("audit", 200))
    hooks.add_commit_participant(Participant("cache", 100))
    assert [one.name for one in hooks.commit] == ["cache", "audit"]
    with pytest.raises(ValueError, match="registered twice"):
        hooks.add_commit_participant(Participant("audit", 1))


def test_removing_a_feature_takes_all_its_hooks() -> None:
    hooks = Hooks()
    for name in ("a", "b"):
        hooks.add_before_query(lambda asked: CONTINUE, feature=name)
        hooks.add_after_query(lambda done: None, feature=name)
        hooks.add_transform_rows(lambda asked: None, feature=name)
        hooks.add_on_session_start(lambda asked: CONTINUE, feature=name)
        hooks.add_commit_participant(Participant(name, 1))
    hooks.remove_feature("a")
    assert {entry.feature for entry in hooks.entries()} == {"b"}
    assert len(hooks.entries()) == 5


def test_a_hook_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name of its feature"):
        Hooks().add_before_query(lambda asked: CONTINUE, feature="")
