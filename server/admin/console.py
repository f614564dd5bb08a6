"""The admin console: recognises admin commands in client texts, checks the caller's role, runs them.

The session core calls `match` once for a new text, before the SQL parser sees it, and keeps the answer with the text's
analysis. Role, transaction state and arguments are checked in `run`, here and once for all commands.

What is ours and what is PostgreSQL's:

- A text whose first word begins no statement of PostgreSQL, and begins one of ours (PAUSE, KILL ...), is ours, right or
  wrong.
- A text that begins with all the fixed words of a command (SHOW POOLS, CREATE AUDIT POLICY) is ours, right or wrong.
- A text that shares at least two words with a longer command of ours and cannot be PostgreSQL's (SHOW AUDIT POLICEIS)
  is ours: the client gets our syntax error with its hint.
- Everything else is PostgreSQL's: SHOW ALL, SHOW server_version, SHOW POOLZ, SHOW "pools", SHOW pools.x.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from protocol.errors import PgError
from server.extension.bus import EventBus
from server.extension.commands import (
    POSTGRESQL_FIRST_WORDS,
    POSTGRESQL_SHOWS,
    PUBLIC,
    AdminCaller,
    AdminColumn,
    AdminResult,
    CommandCall,
    CommandRegistry,
    RegisteredCommand,
)
from server.extension.events import AdminCommandRun, AdminCommandStarted, Outcome
from server.extension.grammar import NO_ARGUMENTS, Arguments, Matcher, Placeholder, Problem, Value, problem_at
from server.extension.lexer import (
    MAX_COMMAND_LENGTH,
    Lexer,
    Token,
    TokenKind,
    is_word_start,
    skip_blank,
    skip_semicolons,
    word_end,
)

IsMember = Callable[[str, str], Awaitable[bool]]
"""`await is_member(role, required_role)`: by pg_auth_members, inherited or not, never true for a superuser as such."""

INT8_OID = 20
FLOAT8_OID = 701
TEXT_OID = 25
_PARAMETER_OIDS = {"integer": INT8_OID, "number": FLOAT8_OID}
_ENDS = (TokenKind.END, TokenKind.BROKEN)


@dataclass(frozen=True, slots=True)
class BoundCommand:
    """A text that is ours. Immutable: keep it with the text's analysis and run it as often as it is executed."""

    registered: RegisteredCommand
    text: str
    arguments: Arguments
    problem: Problem | None
    parameter_oids: tuple[int, ...]  # of $1, $2, ...; for ParameterDescription

    @property
    def columns(self) -> tuple[AdminColumn, ...]:
        """() for a command that returns no rows: Describe answers NoData."""
        return self.registered.command.columns

    @property
    def name(self) -> str:
        return self.registered.name

    @property
    def tag(self) -> str:
        """Of CommandComplete, unless the result has another."""
        return self.registered.tag

    @property
    def error(self) -> PgError | None:
        """A syntax error, for Parse to report; a new exception each time. `run` raises it too."""
        problem = self.problem
        if problem is None:
            return None
        hint = problem.hint or f"The syntax is: {self.registered.readable_syntax}"
        return PgError(problem.sqlstate, problem.message, hint=hint, position=problem.offset + 1)


class AdminConsole:
    """The dispatcher of all admin commands."""

    __slots__ = ("_bus", "_is_member", "_log", "_registry")

    def __init__(
        self,
        registry: CommandRegistry,
        is_member: IsMember,
        bus: EventBus,
        log: logging.Logger | None = None,
    ) -> None:
        self._registry = registry
        self._is_member = is_member
        self._bus = bus
        self._log = log or logging.getLogger(__name__)

    @property
    def registry(self) -> CommandRegistry:
        return self._registry

    def match(self, text: str) -> BoundCommand | None:
        """The command that `text` is, None where it is not ours. Never raises; looks at the first word only, mostly."""
        start = _first_word(text)
        if start < 0:
            return None
        word = text[start : word_end(text, start)]
        candidates = self._registry.starting_with(word.lower())
        if not candidates or not word.isascii():
            return None
        lexer = Lexer(text)
        at = 0
        while lexer.at(at).kind is TokenKind.SYMBOL and lexer.at(at).value == ";":
            at += 1
        if at:
            # Semicolons before the first word: rare, and simpler to look at without them (offsets stay those of the
            # text).
            lexer = Lexer(text, lexer.at(at).start)
        return self._match_candidates(lexer, candidates)

    def _match_candidates(self, lexer: Lexer, candidates: Sequence[RegisteredCommand]) -> BoundCommand | None:
        if any(_shared(lexer, own) == len(own) for own in POSTGRESQL_SHOWS):
            return None
        nearest, shared = candidates[0], 0
        for candidate in candidates:
            length = _shared(lexer, candidate.head)
            if length == len(candidate.head):
                return None if _is_dotted(lexer, length) else _bind(lexer, candidate)
            if length > shared:
                nearest, shared = candidate, length
        if nearest.head[0] in POSTGRESQL_FIRST_WORDS:
            follows = lexer.at(shared)
            is_name_shown = nearest.head[0] == "SHOW" and (follows.kind in _ENDS or _is_symbol(follows, ";."))
            if shared < 2 or is_name_shown:
                return None
        return BoundCommand(nearest, lexer.text, NO_ARGUMENTS, problem_at(lexer.text, lexer.at(shared)), ())

    async def run(
        self, bound: BoundCommand, caller: AdminCaller, parameters: Sequence[Value | None] = ()
    ) -> AdminResult:
        """Run a command for `caller`. `parameters` are the decoded values of $1, $2, ... (`encode.decode_parameters`).

        Raises PgError: 42601 with position and hint, 42501 where the role is missing, 25001 inside a transaction block
        for commands that may not be there, and what the handler raises; XX000 for a handler's bug.
        """
        started = time.monotonic_ns()
        rows, sqlstate, outcome = 0, None, Outcome.OK
        try:
            result = await self._run(bound, caller, parameters)
            rows = len(result.rows)
        except PgError as error:
            sqlstate = error.sqlstate
            outcome = Outcome.DENIED if sqlstate == "42501" else Outcome.ERROR
            raise
        except BaseException:
            outcome = Outcome.CANCELLED
            raise
        finally:
            if self._bus.has_subscribers(AdminCommandRun):
                await self._bus.deliver(
                    AdminCommandRun(
                        bound.name,
                        bound.text,
                        caller.role,
                        caller.session_id,
                        outcome,
                        sqlstate,
                        rows,
                        (time.monotonic_ns() - started) // 1000,
                        time.time(),
                    )
                )
        return result

    async def _run(self, bound: BoundCommand, caller: AdminCaller, parameters: Sequence[Value | None]) -> AdminResult:
        if (error := bound.error) is not None:
            raise error
        command = bound.registered.command
        await self._authorize(bound, caller)
        if caller.in_transaction and not command.in_transaction_block:
            raise PgError("25001", f"{bound.name} cannot run inside a transaction block")
        arguments = bound.arguments
        if arguments.placeholders:
            if len(parameters) < len(bound.parameter_oids):
                raise PgError("08P01", f"{bound.name} needs {len(bound.parameter_oids)} parameters")
            arguments = arguments.bind({index + 1: value for index, value in enumerate(parameters)})
        if self._bus.has_subscribers(AdminCommandStarted):
            await self._bus.deliver(
                AdminCommandStarted(bound.name, bound.text, caller.role, caller.session_id, time.time())
            )
        try:
            answer = command.handler(CommandCall(caller, arguments, bound.text))
            return answer if isinstance(answer, AdminResult) else await answer
        except PgError:
            raise
        except Exception as error:
            self._log.exception("admin command %s failed", bound.name)
            raise PgError(
                "XX000", f"{bound.name} failed: {type(error).__name__}", hint="The server log has the error."
            ) from error

    async def _authorize(self, bound: BoundCommand, caller: AdminCaller) -> None:
        required = bound.registered.command.role
        if required in (PUBLIC, caller.role) or await self._is_member(caller.role, required):
            return
        raise PgError(
            "42501",
            f"permission denied to run {bound.name}",
            detail=f'Only roles that are members of "{required}" may run it. A superuser is none without a grant.',
            hint=f'An administrator can say: GRANT {required} TO "{caller.role.replace(chr(34), chr(34) * 2)}"',
        )


def _first_word(text: str) -> int:
    """Offset of the first word, behind blanks, comments and empty statements; -1 where the text begins with something
    else.
    """
    at = 0
    while True:
        at = skip_blank(text, at)
        if at < 0 or at >= len(text) or at > MAX_COMMAND_LENGTH:
            return -1
        if text[at] != ";":
            return at if is_word_start(text[at]) else -1
        at = skip_semicolons(text, at)


def _shared(lexer: Lexer, head: tuple[str, ...]) -> int:
    """How many tokens of `head` the text begins with."""
    for index, word in enumerate(head):
        token = lexer.at(index)
        if token.kind is TokenKind.WORD:
            if token.value.upper() != word:
                return index
        elif token.kind is not TokenKind.SYMBOL or token.value != word:
            return index
    return len(head)


def _is_symbol(token: Token, symbols: str) -> bool:
    return token.kind is TokenKind.SYMBOL and token.value in symbols


def _is_dotted(lexer: Lexer, at: int) -> bool:
    """`SHOW pools.x` shows a custom setting of that name."""
    return _is_symbol(lexer.at(at), ".")


def _bind(lexer: Lexer, candidate: RegisteredCommand) -> BoundCommand:
    matched = Matcher(lexer).match(candidate.grammar, len(candidate.head))
    if isinstance(matched, Problem):
        return BoundCommand(candidate, lexer.text, NO_ARGUMENTS, matched, ())
    return BoundCommand(candidate, lexer.text, matched, None, _parameter_oids(matched.placeholders))


def _parameter_oids(placeholders: Sequence[Placeholder]) -> tuple[int, ...]:
    kinds = {one.index: one.kind for one in placeholders}
    count = max(kinds, default=0)
    return tuple(_PARAMETER_OIDS.get(kinds.get(index, ""), TEXT_OID) for index in range(1, count + 1))
