"""SASLprep (RFC 4013): two spellings of one password become the same bytes.

As PostgreSQL's pg_saslprep does it: plain ASCII is left alone, and a password that cannot be prepared (bytes that are
not UTF-8, prohibited or unassigned characters, mixed directions, nothing left) is used as it came.
"""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21,
    stringprep.in_table_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
)


def prepare_password(password: str | bytes) -> bytes:
    """The bytes SCRAM hashes for a password. A `str` may hold surrogate escapes: raw bytes that were not UTF-8."""
    raw = password.encode("utf-8", "surrogateescape") if isinstance(password, str) else password
    if raw.isascii():
        return raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    prepared = saslprep(text)
    return raw if prepared is None else prepared.encode("utf-8")


def saslprep(text: str) -> str | None:
    """The prepared string, or None where RFC 4013 prohibits it."""
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in text
        # U+200B is in both tables: a space comes before nothing.
        if stringprep.in_table_c12(char) or not stringprep.in_table_b1(char)
    )
    # RFC 4013 looks for these after normalization. PostgreSQL looks before, and its verifiers are ours.
    if not mapped or any(prohibited(char) for char in mapped for prohibited in _PROHIBITED):
        return None
    if any(stringprep.in_table_d1(char) for char in mapped):
        # Right-to-left text: no left-to-right letter, and it begins and ends right-to-left.
        if any(stringprep.in_table_d2(char) for char in mapped):
            return None
        if not (stringprep.in_table_d1(mapped[0]) and stringprep.in_table_d1(mapped[-1])):
            return None
    return unicodedata.normalize("NFKC", mapped)
