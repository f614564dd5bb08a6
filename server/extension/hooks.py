"""The hook points: where a feature may change what happens. Ordered, few, and on one page.

A hook is asked before the server acts and its answer is obeyed; to be told what happened, subscribe to an event. Hook
points are attributes of `Hooks`, each a plain tuple that is empty while nobody registered, so the query path tests its
truth and goes on: `if hooks.before_query: ...`.

A hook may be a plain function or return an awaitable. One that can answer at once (a cached decision) returns the
decision itself and costs one call. `Hooks.ask_...` follows the same rule: it returns the result, or an awaitable of it.

When a hook raises: a PgError is its refusal and reaches the client as it is. Anything else is a failure, and the hook's
policy decides: DENY (the client gets XX000, nothing was sent) or CONTINUE (the hook counts as not registered, this
once).

This module knows of no feature, session or pool.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from protocol.errors import PgError
from server.extension.context import QueryContext, QueryView, SessionInfo
from server.extension.events import QueryFinished, Verdict
from server.extension.facts import fact
from server.extension.failure import FailurePolicy, FailureReporter
from server.extension.transactions import CommitParticipant

if TYPE_CHECKING:
    from protocol.backend_messages import FieldDescription


class HookOrder(enum.IntEnum):
    """Stages of a hook point. Lower runs first; within a stage, the order of registration."""

    ADMIT = 100  # may this run at all: governance
    REWRITE = 200  # what runs instead: masking
    ANSWER = 300  # need it run: caches. Sees what the stages before let through
    OBSERVE = 400


# What before_query and on_session_start answer


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on. Use the constant CONTINUE."""


CONTINUE = Continue()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Run `text` instead. It is analysed like any text, and the hooks after this one see it. Parameters stay what they
    were, so it must take the same ones; where the client already saw a RowDescription, it must return the same columns.
    """

    text: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Do not run it: this is its reply. It takes its place in the reply order of a pipeline.

    `row_description` is an encoded RowDescription message, b"" where the statement returns no rows. In a simple Query
    it is written before the body; in the extended protocol it answers Describe. `body` holds encoded messages, DataRow
    up to and including CommandComplete, in the result formats of the context. Never ReadyForQuery.
    """

    row_description: bytes
    body: bytes
    command_tag: str
    rows: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Deny:
    """Refuse it with `error`.

    A transaction block is left failed, as PostgreSQL leaves it; a pipeline skips to its Sync.
    """

    error: PgError
    reason: str = ""


QueryDecision: TypeAlias = Continue | Rewrite | Answer | Deny
SessionDecision: TypeAlias = Continue | Deny

# The hooks


class RowTransformer(Protocol):
    """Changes the rows of one result. Asking for one turns the undecoded fast path off for this statement."""

    def transform_fields(self, fields: Sequence[FieldDescription]) -> Sequence[FieldDescription]:
        """Called once, before the first row and for Describe. Must keep the number of fields."""

    def transform_row(self, values: Sequence[bytes | None]) -> Sequence[bytes | None]:
        """Called for each DataRow, synchronously: values as on the wire, in the result formats; None is NULL. Must keep
        the number of values. Raising ends the statement with an error after the rows already sent.
        """


OnSessionStart = Callable[[SessionInfo], SessionDecision | Awaitable[SessionDecision]]
BeforeQuery = Callable[[QueryContext], QueryDecision | Awaitable[QueryDecision]]
TransformRows = Callable[[QueryContext], RowTransformer | None]
AfterQuery = Callable[[QueryFinished], Awaitable[None] | None]
CommitHook = CommitParticipant


@dataclass(frozen=True, slots=True)
class HookEntry:
    """One registered hook, as documentation and SHOW EVENTS list it."""

    point: str
    feature: str
    order: int
    on_error: FailurePolicy


@fact
class Judgement:
    """What all before_query hooks together decided: `decision`, and which hook made it ("" for nobody)."""

    decision: QueryDecision
    verdict: Verdict
    decided_by: str
    reason: str
    context: QueryContext  # the one to go on with: another text after a Rewrite


@dataclass(slots=True)
class _Hook:
    """A registered function with what is known about it."""

    function: Callable[..., object]
    feature: str
    order: int
    on_error: FailurePolicy
    failed: int = 0


Analyse = Callable[[str, QueryContext], QueryView]

_VERDICTS: dict[type[object], Verdict] = {
    Continue: Verdict.CONTINUE,
    Rewrite: Verdict.REWRITE,
    Answer: Verdict.ANSWER,
    Deny: Verdict.DENY,
}
_DECISIONS = (Continue, Rewrite, Answer, Deny)
HOOK_POINTS = ("on_session_start", "before_query", "transform_rows", "after_query", "commit")


class Hooks:
    """All hook points. Features register through `add_...`; the core calls `ask_...`.

    The five public tuples are replaced, never changed in place: test their truth, hand them on, do not keep them.
    """

    __slots__ = ("_analyse", "_report", "after_query", "before_query", "commit", "on_session_start", "transform_rows")

    def __init__(self, report: FailureReporter | None = None, analyse: Analyse | None = None) -> None:
        """`report` is told of failures. `analyse(text, context)` understands the text of a Rewrite."""
        self._report = report
        self._analyse = analyse
        self.on_session_start: tuple[_Hook, ...] = ()
        self.before_query: tuple[_Hook, ...] = ()
        self.transform_rows: tuple[_Hook, ...] = ()
        self.after_query: tuple[_Hook, ...] = ()
        self.commit: tuple[CommitHook, ...] = ()

    # Registration

    def add_on_session_start(
        self,
        function: OnSessionStart,
        *,
        feature: str,
        order: int = HookOrder.ADMIT,
        on_error: FailurePolicy = FailurePolicy.DENY,
    ) -> None:
        """Asked after authentication, before the client is told that it succeeded.

        Deny ends the connection with a FATAL error.
        """
        self.on_session_start = _insert(self.on_session_start, _Hook(function, feature, order, on_error))

    def add_before_query(
        self,
        function: BeforeQuery,
        *,
        feature: str,
        order: int = HookOrder.ADMIT,
        on_error: FailurePolicy = FailurePolicy.DENY,
    ) -> None:
        """Asked for every statement before it is sent; also for those that a cache will answer.

        The first Answer or Deny ends the round.
        """
        self.before_query = _insert(self.before_query, _Hook(function, feature, order, on_error))

    def add_transform_rows(
        self,
        function: TransformRows,
        *,
        feature: str,
        order: int = HookOrder.REWRITE,
        on_error: FailurePolicy = FailurePolicy.DENY,
    ) -> None:
        """Asked before a statement that may return rows:

        a transformer, or None to leave them undecoded. Must not wait.
        """
        self.transform_rows = _insert(self.transform_rows, _Hook(function, feature, order, on_error))

    def add_after_query(
        self,
        function: AfterQuery,
        *,
        feature: str,
        order: int = HookOrder.OBSERVE,
        on_error: FailurePolicy = FailurePolicy.CONTINUE,
    ) -> None:
        """Called when the reply is complete and before ReadyForQuery is written.

        It cannot change the reply: what committed has committed.
        """
        self.after_query = _insert(self.after_query, _Hook(function, feature, order, on_error))

    def add_commit_participant(self, participant: CommitParticipant) -> None:
        """Take part in every commit, see `transactions.CommitParticipant`."""
        if any(one.name == participant.name for one in self.commit):
            raise ValueError(f"commit participant {participant.name!r} is registered twice")
        self.commit = tuple(sorted((*self.commit, participant), key=lambda one: one.order))

    def remove_feature(self, feature: str) -> None:
        """Forget the hooks and commit participants of a feature that does not run."""
        self.on_session_start = _without(self.on_session_start, feature)
        self.before_query = _without(self.before_query, feature)
        self.transform_rows = _without(self.transform_rows, feature)
        self.after_query = _without(self.after_query, feature)
        self.commit = tuple(one for one in self.commit if one.name != feature)

    def entries(self) -> list[HookEntry]:
        """Everything that is registered, in the order it runs."""
        found = [
            HookEntry(point, hook.feature, int(hook.order), hook.on_error)
            for point in ("on_session_start", "before_query", "transform_rows", "after_query")
            for hook in getattr(self, point)
        ]
        return found + [HookEntry("commit", one.name, one.order, FailurePolicy.DENY) for one in self.commit]

    # What the core calls

    def ask_on_session_start(self, session: SessionInfo) -> SessionDecision | Awaitable[SessionDecision]:
        """The first Deny, else CONTINUE."""
        if not self.on_session_start:
            return CONTINUE
        return self._session_round(session)

    async def _session_round(self, session: SessionInfo) -> SessionDecision:
        for hook in self.on_session_start:
            try:
                answer = hook.function(session)
                decision = answer if isinstance(answer, _DECISIONS) else await answer  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - a feature may raise anything
                decision = self._failed(hook, "on_session_start", error)
            if isinstance(decision, Deny):
                return decision
        return CONTINUE

    def ask_before_query(self, context: QueryContext) -> Judgement | Awaitable[Judgement]:
        """Ask every before_query hook. An awaitable is returned only if a hook had to wait."""
        return self._query_round(context, 0, CONTINUE, "", None)

    def _query_round(
        self, context: QueryContext, start: int, so_far: QueryDecision, decided_by: str, hooks: tuple[_Hook, ...] | None
    ) -> Judgement | Awaitable[Judgement]:
        # `hooks` holds the round to the hooks it began with, whoever registers meanwhile.
        round_hooks = self.before_query if hooks is None else hooks
        for index in range(start, len(round_hooks)):
            hook = round_hooks[index]
            try:
                answer = hook.function(context)
            except Exception as error:  # noqa: BLE001 - a feature may raise anything
                answer = self._failed(hook, "before_query", error)
            if answer is CONTINUE:
                continue
            if not isinstance(answer, _DECISIONS):
                return self._wait_in_round(context, index, so_far, decided_by, round_hooks, answer)  # type: ignore[arg-type]
            if isinstance(answer, Rewrite):
                context, so_far, decided_by = self._rewritten(context, answer), answer, hook.feature
            elif not isinstance(answer, Continue):
                return _judge(answer, hook.feature, context)
        return _judge(so_far, decided_by, context)

    async def _wait_in_round(
        self,
        context: QueryContext,
        index: int,
        so_far: QueryDecision,
        decided_by: str,
        hooks: tuple[_Hook, ...],
        pending: Awaitable[QueryDecision],
    ) -> Judgement:
        hook = hooks[index]
        try:
            answer = await pending
        except Exception as error:  # noqa: BLE001 - a feature may raise anything
            answer = self._failed(hook, "before_query", error)
        if isinstance(answer, Rewrite):
            context, so_far, decided_by = self._rewritten(context, answer), answer, hook.feature
        elif not isinstance(answer, Continue):
            return _judge(answer, hook.feature, context)
        rest = self._query_round(context, index + 1, so_far, decided_by, hooks)
        return rest if isinstance(rest, Judgement) else await rest

    def ask_transform_rows(self, context: QueryContext) -> tuple[RowTransformer, ...] | Deny:
        """The transformers of this statement, in the order to apply them; () leaves the rows undecoded."""
        found: list[RowTransformer] = []
        for hook in self.transform_rows:
            try:
                transformer = hook.function(context)
            except Exception as error:  # noqa: BLE001 - a feature may raise anything
                decision = self._failed(hook, "transform_rows", error)
                if isinstance(decision, Deny):
                    return decision
                continue
            if transformer is not None:
                found.append(transformer)  # type: ignore[arg-type]
        return tuple(found)

    def tell_after_query(self, finished: QueryFinished) -> Awaitable[None] | None:
        """Call the after_query hooks.

        Returns None when all are done, else what to await. Raises nothing: the statement is over.
        """
        return self._after_round(finished, 0, self.after_query)

    def _after_round(self, finished: QueryFinished, start: int, hooks: tuple[_Hook, ...]) -> Awaitable[None] | None:
        for index in range(start, len(hooks)):
            hook = hooks[index]
            try:
                pending = hook.function(finished)
            except Exception as error:  # noqa: BLE001 - a feature may raise anything
                self._failed(hook, "after_query", error)
                continue
            if pending is not None:
                return self._wait_after(finished, index, hooks, pending)  # type: ignore[arg-type]
        return None

    async def _wait_after(
        self, finished: QueryFinished, index: int, hooks: tuple[_Hook, ...], pending: Awaitable[None]
    ) -> None:
        try:
            await pending
        except Exception as error:  # noqa: BLE001 - a feature may raise anything
            self._failed(hooks[index], "after_query", error)
        rest = self._after_round(finished, index + 1, hooks)
        if rest is not None:
            await rest

    def _rewritten(self, context: QueryContext, rewrite: Rewrite) -> QueryContext:
        query = context.query if self._analyse is None else self._analyse(rewrite.text, context)
        return context.with_text(rewrite.text, query)

    def _failed(self, hook: _Hook, point: str, error: Exception) -> Continue | Deny:
        if isinstance(error, PgError):
            return Deny(error, error.message)
        hook.failed += 1
        is_fatal = hook.on_error is FailurePolicy.DENY
        if self._report is not None:
            self._report(hook.feature, f"hook {point}", error, is_fatal)
        if not is_fatal:
            return CONTINUE
        return Deny(_internal_error(hook.feature), f"feature {hook.feature} failed")


def _insert(hooks: tuple[_Hook, ...], hook: _Hook) -> tuple[_Hook, ...]:
    """`hooks` with one more, in order; hooks of equal order stay in the order of registration."""
    if not hook.feature:
        raise ValueError("a hook needs the name of its feature")
    return tuple(sorted((*hooks, hook), key=lambda one: one.order))


def _without(hooks: tuple[_Hook, ...], feature: str) -> tuple[_Hook, ...]:
    return tuple(hook for hook in hooks if hook.feature != feature)


def _judge(decision: QueryDecision, decided_by: str, context: QueryContext) -> Judgement:
    reason = "" if isinstance(decision, Continue) else decision.reason
    return Judgement(decision, _VERDICTS[type(decision)], decided_by, reason, context)


def _internal_error(feature: str) -> PgError:
    return PgError(
        "XX000",
        f'the feature "{feature}" failed, and its policy is to refuse',
        hint="The server log has the error.",
    )
