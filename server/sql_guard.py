"""Decides whether client text may be handed to the SQL parser at all. Bounds, not understanding.

libpg_query parses with a heap-allocated stack but walks the finished tree recursively, in `parse` and, with the largest
frames, in `normalize`. Its frames were measured at up to 420 bytes a tree level (8 MiB stack: `normalize` dies
between 10,000 and 20,000 levels of `AT LOCAL`, `parse` beyond 60,000), so a text is safe when its tree cannot be
deeper than MAX_TREE_DEPTH. Called by `sql_parser` before every parse; knows nothing of sessions or of SQL's meaning.

The bound on the depth of the tree, for texts longer than FREE_BYTES:

1. One lexer pass drops what cannot nest: literals, quoted identifiers, comments, white space. It follows
   PostgreSQL's lexer under `standard_conforming_strings = on`, so a bracket hidden in a literal is never counted and
   one outside is never missed.
2. What is left is a skeleton: brackets, separators, and one mark for every word or operator. Brackets nest at most
   MAX_BRACKET_DEPTH deep. Innermost brackets are removed again and again. A path through the tree passes, in each
   round, through at most one run of marks without a separator, so the longest runs of all rounds added up bound its
   depth. Set operations cross separators and are counted whole, wherever the words stand.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from itertools import accumulate

from server.sql_lexer import (
    DOLLAR_TAG,
    NUMBER,
    OPERATOR,
    PARAMETER,
    QUOTED_IDENTIFIER,
    SPACE,
    STRING,
    tokens,
)

MAX_TEXT_BYTES = 1 << 20
"""Longer texts are not looked at: understanding them would hold the event loop for longer than they are worth."""

FREE_BYTES = 4096
"""Texts up to this length need no scan: two bytes buy at most one tree level (`+1+1+1`), so 2,048 levels."""

MAX_TREE_DEPTH = 3000
MAX_BRACKET_DEPTH = 200


MAX_OPERATOR_RUN = 512
MAX_COMMENTS_IN_RUN = 16


class Verdict(Enum):
    """Why a text may or may not be parsed."""

    SAFE = auto()
    TOO_LONG = auto()
    TOO_DEEP = auto()
    NOT_TEXT = auto()  # a NUL byte, or not UTF-8


# One group: the first byte of what nests, empty for the rest. findall then does the whole scan in C.
_PLAIN_TOKEN = re.compile(
    rb"(?:" + rb"|".join((SPACE, STRING, QUOTED_IDENTIFIER, PARAMETER, NUMBER, rb"\.")) + rb")"
    rb"|(.)(?:(?<=[A-Za-z_\x80-\xff])[A-Za-z_0-9$\x80-\xff]*+"
    rb"|(?<=" + OPERATOR + rb")(?:(?!--)" + OPERATOR + rb")*+)?",
    re.DOTALL,
)
_NEEDS_LEXER = re.compile(rb"/\*|" + DOLLAR_TAG)
_NESTING_KINDS = frozenset({"word", "operator", "other"})
_SET_OPERATION = re.compile(rb"(?i:union|intersect|except)")
_INNERMOST = re.compile(rb"[(\[][o,;]*+[)\]]")
_RUN_END = re.compile(rb"[^o]++")
_LONG_OPERATOR_RUN = re.compile(rb"[-+*/<>=~!@\#%^&|`?]{512,}")
_BRACKET_STEPS = tuple(1 if byte in b"([" else -1 if byte in b")]" else 0 for byte in range(256))
_MARKS = bytes(byte if byte in b"()[],;" else ord("o") for byte in range(256))


def judge(text: bytes) -> Verdict:
    """Say whether `text` may be parsed. Linear in its length; about 0.2 microseconds for a short one."""
    if len(text) > MAX_TEXT_BYTES:
        return Verdict.TOO_LONG
    if b"\0" in text:
        return Verdict.NOT_TEXT
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return Verdict.NOT_TEXT
    if len(text) > MAX_OPERATOR_RUN and _is_slow_to_lex(text):
        return Verdict.TOO_DEEP
    if len(text) <= FREE_BYTES or _depth_bound(text) <= MAX_TREE_DEPTH:
        return Verdict.SAFE
    return Verdict.TOO_DEEP


def _is_slow_to_lex(text: bytes) -> bool:
    """PostgreSQL's lexer reads a run of operator characters again for every `/*` nested in it and every `+` at its
    end.
    """
    for run in _LONG_OPERATOR_RUN.findall(text):
        if run.count(b"/*") > MAX_COMMENTS_IN_RUN or run.count(b"+") > MAX_OPERATOR_RUN // 2:
            return True
    return False


def _depth_bound(text: bytes) -> int:
    """An upper bound of the depth of the parse tree; some number beyond MAX_TREE_DEPTH where it is too deep."""
    skeleton = _skeleton(text)
    bound = len(_SET_OPERATION.findall(text))
    if (
        max(accumulate(map(_BRACKET_STEPS.__getitem__, skeleton.translate(None, b"o,;"))), default=0)
        > MAX_BRACKET_DEPTH
    ):
        return MAX_TREE_DEPTH + 1
    removed = 1
    while removed and bound <= MAX_TREE_DEPTH:
        bound += max(map(len, _RUN_END.split(skeleton)), default=0) + 1
        skeleton, removed = _INNERMOST.subn(b"", skeleton)
    return bound


def _skeleton(text: bytes) -> bytes:
    """Brackets and separators as they are, `o` for a word or an operator; nothing else."""
    if _NEEDS_LEXER.search(text) is None:
        return b"".join(_PLAIN_TOKEN.findall(text)).translate(_MARKS)
    return b"".join(
        b"o" if token.kind in _NESTING_KINDS else text[token.start : token.end]
        for token in tokens(text)
        if token.kind in _NESTING_KINDS or token.kind == "structure"
    )
