"""PostgreSQL's lexical rules as patterns, and a token scanner over bytes, under `standard_conforming_strings = on`.

Not a way to understand SQL: `sql_guard` bounds nesting with it before a parser may run, and `virtual_pid` finds where
a construct ends that the parser has located. Every function is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

IDENTIFIER = rb"[A-Za-z_\x80-\xff][A-Za-z_0-9$\x80-\xff]*+"
OPERATOR = rb"[-+*/<>=~!@\#%^&|`?:]"
DOLLAR_TAG = rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff]*+)?\$"

# White space that holds a line break joins two literals into one: 'a' <newline> 'b', and the second keeps the escapes
# of the first.
_CONTINUED = rb"'(?>(?:[ \t\f\v\r]|--[^\n\r]*+)*+[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*+[\n\r])*+)'"

SPACE = rb"[ \t\n\r\f\v]++|--[^\n\r]*+"
# An open literal swallows the rest, as it does in PostgreSQL's lexer: that keeps the scan linear.
STRING = rb"[eE]'(?:[^'\\]++|\\.|''|" + _CONTINUED + rb")*+(?:'|\\?\Z)|'(?:[^']++|'')*+(?:'|\Z)"
QUOTED_IDENTIFIER = rb'"(?:[^"]++|"")*+(?:"|\Z)'
PARAMETER = rb"\$\d++"
NUMBER = rb"[0-9]++(?:\.[0-9]*+)?"

_TOKEN = re.compile(
    rb"(?P<space>" + SPACE + rb")"
    rb"|(?P<operand>" + STRING + rb"|" + PARAMETER + rb"|" + NUMBER + rb")"
    rb"|(?P<quoted>" + QUOTED_IDENTIFIER + rb")"
    rb"|(?P<dollar>" + DOLLAR_TAG + rb")"
    rb"|(?P<comment>/\*)"
    rb"|(?P<word>" + IDENTIFIER + rb")"
    rb"|(?P<dot>\.)"
    rb"|(?P<structure>[()\[\],;])"
    rb"|(?P<operator>(?:(?!/\*|--)" + OPERATOR + rb")++)"
    rb"|(?P<other>.)",
    re.DOTALL,
)
_COMMENT_EDGE = re.compile(rb"/\*|\*/")


class Token(NamedTuple):
    """`kind`: operand, quoted, word, dot, structure, operator or other."""

    kind: str
    start: int
    end: int


def tokens(text: bytes, position: int = 0) -> Iterator[Token]:
    """The tokens of `text` from `position` on; white space and comments are left out. Literals of all forms are
    operands.
    """
    end = len(text)
    match = _TOKEN.match
    while position < end:
        found = match(text, position)
        if found is None:
            return
        kind = found.lastgroup or "other"
        start, position = position, found.end()
        if kind == "space":
            continue
        if kind == "comment":
            position = _comment_end(text, position)
            continue
        if kind == "dollar":
            close = text.find(found.group(), position)
            position = end if close < 0 else close + len(found.group())
            kind = "operand"
        yield Token(kind, start, position)


def _comment_end(text: bytes, position: int) -> int:
    """The end of a block comment, which may nest, whose first `/*` ends at `position`; the end of text where it is
    open.
    """
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, position)
        if edge is None:
            return len(text)
        depth += 1 if edge.group() == b"/*" else -1
        position = edge.end()
    return position
