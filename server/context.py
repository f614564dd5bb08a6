"""Session contexts: interned maps of the settings that a session has changed.

Two sessions with equal maps share one `SessionContext` object, so that "does this backend already look as this session
left it" is one identity comparison. The same object partitions prepared statements (and later cache entries). Names
are lower case; values are PostgreSQL's own canonical text, as `current_setting` gives it.

Bringing a backend from one context to another is `replay_sql`: a unit of its own, never inside a client's text.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final
from weakref import WeakValueDictionary

REPORTED_NAMES: Final = {
    "application_name": "application_name",
    "client_encoding": "client_encoding",
    "datestyle": "DateStyle",
    "default_transaction_read_only": "default_transaction_read_only",
    "in_hot_standby": "in_hot_standby",
    "integer_datetimes": "integer_datetimes",
    "intervalstyle": "IntervalStyle",
    "is_superuser": "is_superuser",
    "scram_iterations": "scram_iterations",
    "search_path": "search_path",
    "server_encoding": "server_encoding",
    "server_version": "server_version",
    "session_authorization": "session_authorization",
    "standard_conforming_strings": "standard_conforming_strings",
    "timezone": "TimeZone",
}
"""Lower-case name to the spelling of PostgreSQL 18's ParameterStatus."""

DERIVED_NAMES: Final = frozenset(
    {
        "in_hot_standby",
        "integer_datetimes",
        "is_superuser",
        "server_encoding",
        "server_version",
        "session_authorization",
    }
)
"""Reported, but never set by replay: they follow from the connection, or from `role`."""

_PARSE_NEUTRAL: Final = frozenset(
    {
        "application_name",
        "client_min_messages",
        "deadlock_timeout",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "jit",
        "lock_timeout",
        "maintenance_work_mem",
        "statement_timeout",
        "synchronous_commit",
        "transaction_timeout",
        "work_mem",
    }
)
"""Settings that cannot change what a text means, so that statements prepared under them may be shared."""

_AWAITED: Final = frozenset({"role", "row_security", "search_path", "session_authorization"})


class ParseContext:
    """What of a context can change the meaning of a text. Interned, compared by identity: part of a statement's key."""

    __slots__ = ("__weakref__",)


class SessionContext:
    """One interned map, compared by identity. Contexts under which texts parse the same share one `parse`."""

    __slots__ = ("__weakref__", "id", "parse", "settings")

    def __init__(self, id_: int, settings: Mapping[str, str], parse: ParseContext) -> None:
        self.id = id_
        self.settings = settings
        self.parse = parse

    def __repr__(self) -> str:
        return f"SessionContext({self.id}, {dict(self.settings)!r})"


_Key = frozenset[tuple[str, str]]


class ContextRegistry:
    """Interns contexts. Those that no session and no backend holds are forgotten."""

    def __init__(self) -> None:
        self._contexts: WeakValueDictionary[_Key, SessionContext] = WeakValueDictionary()
        self._parses: WeakValueDictionary[_Key, ParseContext] = WeakValueDictionary()
        self._ids = itertools.count(1)
        self.empty = self.intern({})

    def intern(self, settings: Mapping[str, str]) -> SessionContext:
        """The context with exactly these settings."""
        key = frozenset(settings.items())
        found = self._contexts.get(key)
        if found is None:
            parse_key = frozenset(item for item in key if item[0] not in _PARSE_NEUTRAL)
            parse = self._parses.get(parse_key)
            if parse is None:
                parse = self._parses[parse_key] = ParseContext()
            found = self._contexts[key] = SessionContext(next(self._ids), dict(settings), parse)
        return found


def quote_literal(value: str) -> str:
    """A string constant in ASCII, whatever standard_conforming_strings and client_encoding say (databases are UTF8)."""
    if "\\" in value or not value.isascii():
        escaped = value.replace("\\", "\\\\").replace("'", "''")
        return " E'" + "".join(c if c.isascii() else f"\\U{ord(c):08X}" for c in escaped) + "'"
    return "'" + value.replace("'", "''") + "'"


def replay_sql(current: SessionContext | None, wanted: SessionContext) -> str:
    """Statements that bring a backend from `current` (None: unknown) to `wanted`; empty where nothing differs."""
    if current is wanted:
        return ""
    before: Mapping[str, str] = current.settings if current is not None else {}
    after = wanted.settings
    changed = [(name, value) for name, value in after.items() if before.get(name) != value]
    gone = [name for name in before if name not in after]
    parts: list[str] = []
    role_changes = current is None or before.get("role") != after.get("role")
    if role_changes:
        parts.append("RESET ROLE")
    if current is None:
        parts.append("RESET ALL")
    parts.extend(f"RESET {quote_name(name)}" for name in gone if name != "role")
    sets = [pair for pair in changed if pair[0] != "role"]
    if role_changes and "role" in after:
        sets.append(("role", after["role"]))
    if sets:
        calls = ", ".join(
            f"pg_catalog.set_config({quote_literal(name)}, {quote_literal(value)}, false)" for name, value in sets
        )
        parts.append("SELECT " + calls)
    return "; ".join(parts)


def quote_name(name: str) -> str:
    """A setting's name for RESET: each part of a custom name quoted by itself, in ASCII."""
    return ".".join(_quote_part(part) for part in name.split("."))


def _quote_part(part: str) -> str:
    if part.isascii():
        return '"' + part.replace('"', '""') + '"'
    escaped = part.replace("\\", "\\\\").replace('"', '""')
    return 'U&"' + "".join(c if c.isascii() else f"\\+{ord(c):06X}" for c in escaped) + '"'


def must_await_replay(current: SessionContext | None, wanted: SessionContext) -> bool:
    """Whether a failed replay could let the statement behind it do or show something wrong."""
    if current is None:
        return True
    names = {name for name, _ in current.settings.items() ^ wanted.settings.items()}
    return any(name in _AWAITED or "." in name for name in names)
