"""The grammar of an admin command, compiled from its syntax line.

The syntax line is the one declaration: the parser, the hint of a syntax error and the documentation come from it.

    SHOW CACHE ENTRIES [ FOR TABLE <relation:qualified> ]
    SHUTDOWN [ WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS ]
    CREATE CACHE POLICY <name> ON { TABLE <relation:qualified> | ALL } [ WITH ( { <o> = <v:value> } [, ...] ) ]
    EXPLAIN CACHE <statement:text>

Upper-case words and punctuation stand for themselves, `<name:kind>` is an argument, `[ ]` is optional, `{ | }` a
choice, `[, ...]` repeats the one element before it (group with `{ }`) with commas between, `...` repeats it without.
Choices are tried in order and the first that matches is taken (a parsing expression grammar): put the longer one first.

Kinds: identifier (the default), qualified, integer, number, string, value, text (the rest of the command, as written).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from server.extension.lexer import MAX_COMMAND_LENGTH, Lexer, Token, TokenKind, is_word_start, skip_blank

Value: TypeAlias = str | int | float | tuple[str, ...]

KINDS: Final = frozenset({"identifier", "qualified", "integer", "number", "string", "value", "text"})
_INTEGER_LIMIT: Final = 2**63


class GrammarError(ValueError):
    """A syntax line that cannot be compiled: a mistake of whoever registers the command."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands for the value of `$index` until the command runs. `kind` is the kind of the argument it was given for."""

    index: int
    kind: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a text does not match. `offset` counts characters from 0."""

    sqlstate: str
    message: str
    offset: int
    hint: str | None = None


class Arguments:
    """What a command was given: values by name, in order, and the optional keywords that were there (upper case)."""

    __slots__ = ("_values", "keywords")

    def __init__(self, values: tuple[tuple[str, Value | Placeholder], ...], keywords: tuple[str, ...]) -> None:
        self._values = values
        self.keywords = keywords

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self._values)

    def get(self, name: str) -> Value | None:
        """The first value of `name`, None where it was left out."""
        return next((value for key, value in self._values if key == name and not isinstance(value, Placeholder)), None)

    def all(self, name: str) -> tuple[Value, ...]:
        """All values of a repeated argument."""
        return tuple(value for key, value in self._values if key == name and not isinstance(value, Placeholder))

    def text(self, name: str) -> str | None:
        """`get` for an argument that is a str."""
        value = self.get(name)
        return None if value is None else str(value)

    def integer(self, name: str) -> int:
        """`get` for an integer argument that the syntax requires."""
        value = self.get(name)
        if not isinstance(value, int):
            raise KeyError(name)
        return value

    def has(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        return tuple(value for _, value in self._values if isinstance(value, Placeholder))

    def bind(self, parameters: dict[int, Value | None]) -> Arguments:
        """Put values in the place of placeholders; None leaves the argument out."""
        bound: list[tuple[str, Value | Placeholder]] = []
        for key, value in self._values:
            if isinstance(value, Placeholder):
                given = parameters[value.index]
                if given is not None:
                    bound.append((key, given))
            else:
                bound.append((key, value))
        return Arguments(tuple(bound), self.keywords)


NO_ARGUMENTS: Final = Arguments((), ())


# Nodes


@dataclass(frozen=True, slots=True)
class Literal:
    """A keyword (upper case) or one character of punctuation."""

    text: str


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Optional:
    item: Node


@dataclass(frozen=True, slots=True)
class Choice:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: Node
    separator: str  # "," or ""


Node: TypeAlias = Literal | Argument | Sequence | Optional | Choice | Repeat


# Compiling a syntax line


def _pieces(syntax: str) -> Iterator[str]:
    at, length = 0, len(syntax)
    while at < length:
        char = syntax[at]
        if char.isspace():
            at += 1
            continue
        if char == "<":
            end = syntax.find(">", at) + 1
            if not end:
                raise GrammarError(f"unclosed < in {syntax!r}")
        elif syntax.startswith("...", at):
            end = at + 3
        elif is_word_start(char):
            end = at + 1
            while end < length and (syntax[end].isalnum() or syntax[end] == "_"):
                end += 1
        else:
            end = at + 1
        yield syntax[at:end]
        at = end


class _Compiler:
    def __init__(self, syntax: str) -> None:
        self._syntax = syntax
        self._pieces = list(_pieces(syntax))
        self._at = 0

    def compile(self) -> Sequence:
        node = self._choice(closing="")
        return node if isinstance(node, Sequence) else Sequence((node,))

    def _peek(self, ahead: int = 0) -> str:
        index = self._at + ahead
        return self._pieces[index] if index < len(self._pieces) else ""

    def _choice(self, closing: str) -> Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        if self._peek() != closing:
            raise GrammarError(f"unexpected {self._peek() or 'end'!r} in {self._syntax!r}")
        self._at += bool(closing)
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._peek() not in ("", "|", "]", "}"):
            if self._peek() == "..." or [self._peek(i) for i in range(4)] == ["[", ",", "...", "]"]:
                if not items:
                    raise GrammarError(f"nothing to repeat in {self._syntax!r}")
                separator = "" if self._peek() == "..." else ","
                self._at += 1 if self._peek() == "..." else 4
                items[-1] = Repeat(items[-1], separator)
                continue
            items.append(self._element())
        if not items:
            raise GrammarError(f"empty branch in {self._syntax!r}")
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _element(self) -> Node:
        piece = self._peek()
        self._at += 1
        if piece == "[":
            return Optional(self._choice("]"))
        if piece == "{":
            return self._choice("}")
        if piece.startswith("<"):
            name, _, kind = piece[1:-1].partition(":")
            kind = kind or "identifier"
            if kind not in KINDS or not name.isidentifier():
                raise GrammarError(f"bad argument {piece!r} in {self._syntax!r}")
            return Argument(name, kind)
        if is_word_start(piece) and piece != piece.upper():
            raise GrammarError(f"keyword {piece!r} of {self._syntax!r} must be upper case")
        return Literal(piece)


def compile_syntax(syntax: str) -> Sequence:
    """The grammar of one syntax line. Raises GrammarError."""
    if not syntax.isascii():
        raise GrammarError(f"syntax must be ASCII: {syntax!r}")
    return _Compiler(syntax).compile()


def head_of(grammar: Sequence) -> tuple[str, ...]:
    """The fixed words a command begins with: what it is recognised by."""
    head: list[str] = []
    for item in grammar.items:
        if not isinstance(item, Literal):
            break
        head.append(item.text)
    return tuple(head)


def readable(syntax: str) -> str:
    """The syntax line as people read it: `<name:kind>` becomes `name`."""
    shown = " ".join(piece[1:-1].partition(":")[0] if piece.startswith("<") else piece for piece in _pieces(syntax))
    return shown.replace("[ , ... ]", "[, ...]").replace("( ", "(").replace(" )", ")")


# Matching a text


class Matcher:
    """Matches one text against one grammar and remembers how far it came, for the error."""

    def __init__(self, lexer: Lexer) -> None:
        self._lexer = lexer
        self._values: list[tuple[str, Value | Placeholder]] = []
        self._keywords: list[str] = []
        self._farthest = -1
        self._range_problem: Problem | None = None

    def match(self, grammar: Sequence, head_length: int) -> Arguments | Problem:
        """Arguments, or why the text does not match.

        The first `head_length` literals are known to match and are not kept as keywords.
        """
        at: int | None = head_length
        for item in grammar.items[head_length:]:
            assert at is not None
            at = self._node(item, at)
            if at is None:
                return self._problem()
        assert at is not None
        at = self._skip_semicolons(at)
        token = self._lexer.at(at)
        if token.kind is not TokenKind.END:
            self._fail(at)
            before = self._lexer.at(at - 1)
            if before.kind is TokenKind.SYMBOL and before.value == ";" and token.kind is not TokenKind.BROKEN:
                return Problem(
                    "42601",
                    "an admin command cannot share a text with other statements",
                    token.start,
                    "Send it as a text of its own.",
                )
            return self._problem()
        return Arguments(tuple(self._values), tuple(self._keywords))

    def _skip_semicolons(self, at: int) -> int:
        while self._lexer.at(at).kind is TokenKind.SYMBOL and self._lexer.at(at).value == ";":
            at += 1
        return at

    def _node(self, node: Node, at: int) -> int | None:
        if isinstance(node, Literal):
            return self._literal(node, at)
        if isinstance(node, Argument):
            return self._argument(node, at)
        if isinstance(node, Sequence):
            return self._sequence(node, at)
        if isinstance(node, Choice):
            return next((end for end in (self._attempt(one, at) for one in node.items) if end is not None), None)
        if isinstance(node, Optional):
            end = self._attempt(node.item, at)
            return at if end is None else end
        return self._repeat(node, at)

    def _attempt(self, node: Node, at: int) -> int | None:
        """Match, and forget what was captured where it fails."""
        values, keywords = len(self._values), len(self._keywords)
        end = self._node(node, at)
        if end is None:
            del self._values[values:]
            del self._keywords[keywords:]
        return end

    def _sequence(self, node: Sequence, at: int) -> int | None:
        for item in node.items:
            end = self._node(item, at)
            if end is None:
                return None
            at = end
        return at

    def _repeat(self, node: Repeat, at: int) -> int | None:
        end = self._node(node.item, at)
        while end is not None:
            after = end
            if node.separator:
                token = self._lexer.at(end)
                if token.kind is not TokenKind.SYMBOL or token.value != node.separator:
                    return end
                after = end + 1
            following = self._attempt(node.item, after)
            if following is None or following == after:
                return None if node.separator else end
            end = following
        return None

    def _literal(self, node: Literal, at: int) -> int | None:
        token = self._lexer.at(at)
        if token.kind is TokenKind.WORD:
            if token.value == node.text.lower():
                self._keywords.append(node.text)
                return at + 1
        elif token.kind is TokenKind.SYMBOL and token.value == node.text:
            return at + 1
        return self._fail(at)

    def _argument(self, node: Argument, at: int) -> int | None:
        if node.kind == "text":
            return self._raw_text(node, at)
        if node.kind == "qualified":
            return self._qualified(node, at)
        token = self._lexer.at(at)
        if token.kind is TokenKind.PARAMETER:
            index = int(token.value) if len(token.value) < 6 else 0
            if not 0 < index < 65536:
                self._range_problem = Problem("42P02", f"there is no parameter ${token.value}", token.start)
                return self._fail(at)
            self._values.append((node.name, Placeholder(index, node.kind)))
            return at + 1
        if node.kind in ("identifier", "value") and token.kind in (TokenKind.WORD, TokenKind.QUOTED):
            self._values.append((node.name, token.value))
            return at + 1
        if node.kind in ("string", "value") and token.kind is TokenKind.STRING:
            self._values.append((node.name, token.value))
            return at + 1
        if node.kind in ("integer", "number", "value"):
            return self._number(node, at)
        return self._fail(at)

    def _number(self, node: Argument, at: int) -> int | None:
        token = self._lexer.at(at)
        sign = 1
        if token.kind is TokenKind.SYMBOL and token.value in "+-":
            sign = -1 if token.value == "-" else 1
            at += 1
            token = self._lexer.at(at)
        if token.kind is not TokenKind.NUMBER or (node.kind == "integer" and "." in token.value):
            return self._fail(at)
        if "." in token.value:
            self._values.append((node.name, sign * float(token.value)))
            return at + 1
        # Beyond int8 it is refused before it is converted: the text may have thousands of digits.
        if len(token.value) > 25 or not -_INTEGER_LIMIT <= sign * int(token.value) < _INTEGER_LIMIT:
            self._range_problem = Problem("22003", "value is out of range for type bigint", token.start)
            return self._fail(at)
        self._values.append((node.name, sign * int(token.value)))
        return at + 1

    def _qualified(self, node: Argument, at: int) -> int | None:
        parts: list[str] = []
        while True:
            token = self._lexer.at(at)
            if token.kind not in (TokenKind.WORD, TokenKind.QUOTED):
                return self._fail(at)
            parts.append(token.value)
            at += 1
            dot = self._lexer.at(at)
            if dot.kind is not TokenKind.SYMBOL or dot.value != ".":
                self._values.append((node.name, tuple(parts)))
                return at
            at += 1

    def _raw_text(self, node: Argument, at: int) -> int | None:
        # Everything from here on is the argument: the lexer is not asked what it is.
        text = self._lexer.text
        start = skip_blank(text, self._lexer.at(at - 1).end if at else 0)
        rest = text[start:].rstrip().rstrip(";").rstrip() if start >= 0 else ""
        if not rest:
            return self._fail(at)
        self._values.append((node.name, rest))
        self._lexer.end_at(at)
        return at

    def _fail(self, at: int) -> int | None:
        self._farthest = max(self._farthest, at)
        return None

    def _problem(self) -> Problem:
        if self._range_problem is not None:
            return self._range_problem
        return problem_at(self._lexer.text, self._lexer.at(max(self._farthest, 0)))


def problem_at(text: str, token: Token) -> Problem:
    """A syntax error in PostgreSQL's words."""
    if token.kind is TokenKind.END:
        return Problem("42601", "syntax error at end of input", len(text))
    if token.kind is TokenKind.BROKEN:
        if token.start == token.end and len(text) > MAX_COMMAND_LENGTH:
            return Problem("54000", f"admin command is longer than {MAX_COMMAND_LENGTH} characters", token.start)
        return Problem("42601", "unterminated quoted text or comment", token.start)
    return Problem("42601", f'syntax error at or near "{text[token.start : token.end]}"', token.start)
