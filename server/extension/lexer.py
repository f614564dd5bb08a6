"""Tokens of admin commands.

Reads PostgreSQL's lexical rules as far as admin commands use them: words, "quoted" words, 'strings' (standard
conforming, with E'' refused), numbers, $n, punctuation, -- and nested /* */ comments. Safe for any text: never
recurses, looks only as far as it is asked to, and what it does not know is a symbol, never an exception.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

MAX_COMMAND_LENGTH: Final = 16384
"""Characters of a command that are ever tokenized; raw statement arguments are not."""

_SPACES: Final = re.compile(r"[ \t\n\r\f\v]*")
_SEMICOLONS: Final = re.compile(r"[; \t\n\r\f\v]*")
_WORD: Final = re.compile(r"[A-Za-z0-9_$\x80-\U0010ffff]*")
_DIGITS: Final = frozenset("0123456789")


class TokenKind(enum.Enum):
    WORD = "word"  # unquoted identifier or keyword; `value` is folded to lower case
    QUOTED = "quoted"  # "identifier"; `value` without quotes
    STRING = "string"  # 'literal'; `value` without quotes
    NUMBER = "number"  # `value` as written
    PARAMETER = "parameter"  # $n; `value` is n
    SYMBOL = "symbol"  # one character
    BROKEN = "broken"  # an unterminated quote or comment
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """`start` and `end` are offsets into the text, in characters."""

    kind: TokenKind
    value: str
    start: int
    end: int


def skip_blank(text: str, at: int) -> int:
    """The offset of the next character that is neither space nor comment; -1 where a comment does not end.

    Beyond MAX_COMMAND_LENGTH it stops looking, and the offset is of any character.
    """
    while True:
        at = _SPACES.match(text, at).end()  # type: ignore[union-attr]  # matches the empty text too
        if at > MAX_COMMAND_LENGTH:
            return at
        if text.startswith("--", at):
            at = _line_end(text, at)
        elif text.startswith("/*", at):
            at = _skip_block_comment(text, at)
            if at < 0:
                return -1
        else:
            return at


def _line_end(text: str, at: int) -> int:
    """Behind the first line feed or carriage return."""
    newline = text.find("\n", at)
    end = len(text) if newline < 0 else newline
    carriage = text.find("\r", at, end)
    return min(carriage if carriage >= 0 else end, len(text) - 1) + 1


def _skip_block_comment(text: str, at: int) -> int:
    depth = 1
    at += 2
    closes = -1
    while depth:
        if closes < at:  # kept from one round to the next: looking again each time would be quadratic
            closes = text.find("*/", at)
        if closes < 0 or at > MAX_COMMAND_LENGTH:
            return -1
        opens = text.find("/*", at, closes + 1)  # "/*/": an opening, not an end
        if opens >= 0:
            depth += 1
            at = opens + 2
        else:
            depth -= 1
            at = closes + 2
    return at


def skip_semicolons(text: str, at: int) -> int:
    """Behind a run of empty statements."""
    return _SEMICOLONS.match(text, at).end()  # type: ignore[union-attr]  # matches the empty text too


def is_word_start(char: str) -> bool:
    """PostgreSQL's ident_start: a letter, an underscore, or anything beyond ASCII."""
    return ("a" <= char <= "z") or ("A" <= char <= "Z") or char == "_" or char > "\x7f"


def word_end(text: str, at: int) -> int:
    """The end of the unquoted word that starts at `at`."""
    return _WORD.match(text, at).end()  # type: ignore[union-attr]  # matches the empty text too


class Lexer:
    """Tokens of one text, made as they are asked for. `at(i)` is the i-th; beyond the last it is always END."""

    __slots__ = ("_is_done", "_offset", "_text", "_tokens")

    def __init__(self, text: str, start: int = 0) -> None:
        """`start`: the offset to begin at. Offsets of tokens are always those of the whole text."""
        self._text = text
        self._tokens: list[Token] = []
        self._offset = start
        self._is_done = False

    @property
    def text(self) -> str:
        return self._text

    def at(self, index: int) -> Token:
        tokens = self._tokens
        while len(tokens) <= index:
            if self._is_done:
                return tokens[-1]
            token = self._next()
            tokens.append(token)
            self._offset = token.end
            self._is_done = token.kind in (TokenKind.END, TokenKind.BROKEN)
        return tokens[index]

    def end_at(self, index: int) -> None:
        """From token `index` on the text is an argument as it stands: that token is END."""
        length = len(self._text)
        del self._tokens[index:]
        self._tokens.append(Token(TokenKind.END, "", length, length))
        self._is_done = True

    def _next(self) -> Token:
        text = self._text
        at = skip_blank(text, self._offset)
        if at < 0 or at > MAX_COMMAND_LENGTH:
            return Token(TokenKind.BROKEN, "", self._offset, self._offset)
        if at >= len(text):
            return Token(TokenKind.END, "", at, at)
        char = text[at]
        if is_word_start(char):
            end = word_end(text, at)
            return Token(TokenKind.WORD, _fold(text[at:end]), at, end)
        if char == '"':
            return self._quoted(at, '"', TokenKind.QUOTED)
        if char == "'":
            return self._quoted(at, "'", TokenKind.STRING)
        if char in _DIGITS or (char == "." and text[at + 1 : at + 2] in _DIGITS):
            return self._number(at)
        if char == "$" and text[at + 1 : at + 2] in _DIGITS:
            end = at + 1
            while end < len(text) and text[end] in _DIGITS:
                end += 1
            return Token(TokenKind.PARAMETER, text[at + 1 : end], at, end)
        return Token(TokenKind.SYMBOL, char, at, at + 1)

    def _quoted(self, start: int, quote: str, kind: TokenKind) -> Token:
        text = self._text
        at = start + 1
        while True:
            at = text.find(quote, at)
            if at < 0:
                return Token(TokenKind.BROKEN, "", start, len(text))
            if not text.startswith(quote, at + 1):
                break
            at += 2
        value = text[start + 1 : at].replace(quote * 2, quote)
        return Token(kind, value, start, at + 1)

    def _number(self, start: int) -> Token:
        text, at, length = self._text, start, len(self._text)
        while at < length and text[at] in _DIGITS:
            at += 1
        if at < length and text[at] == ".":
            at += 1
            while at < length and text[at] in _DIGITS:
                at += 1
        return Token(TokenKind.NUMBER, text[start:at], start, at)


def _fold(word: str) -> str:
    """Lower case as PostgreSQL folds a UTF8 identifier: ASCII letters only."""
    return word.lower() if word.isascii() else "".join(one.lower() if one.isascii() else one for one in word)
