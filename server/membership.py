"""Who is a member of a predefined role: read from pg_auth_members, never by pg_has_role (true for every superuser)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.control import EngineControl

_MEMBERS: Final = """
WITH RECURSIVE granted(oid) AS (
    SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.member
    WHERE r.rolname = $1 AND (m.inherit_option OR m.set_option)
    UNION
    SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN granted g ON g.oid = m.member
    WHERE m.inherit_option OR m.set_option
)
SELECT r.rolname FROM granted g JOIN pg_catalog.pg_roles r ON r.oid = g.oid
"""
"""A membership with the admin option alone (neither INHERIT nor SET) gives nothing but the right to grant."""

_MAX_AGE_SECONDS: Final = 5.0
_MAX_ENTRIES: Final = 10_000


class Membership:
    """Memberships by role, remembered for a few seconds and until a role statement passes."""

    def __init__(self, control: EngineControl) -> None:
        self._control = control
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    def clear(self) -> None:
        """Roles changed."""
        self._known.clear()

    async def is_member(self, role: str, required: str) -> bool:
        """Whether `role` is a member of `required`, directly or through other roles."""
        now = time.monotonic()
        known = self._known.get(role)
        if known is None or now - known[0] > _MAX_AGE_SECONDS:
            rows = await self._control.fetch(_MEMBERS, role)
            if len(self._known) >= _MAX_ENTRIES:
                self._known.clear()
            known = self._known[role] = (now, frozenset(row["rolname"] for row in rows))
        return required in known[1]
