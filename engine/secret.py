"""Giving RustyDB's own role a password, where peer authentication cannot name us (`engine.nameless`).

Neither initdb nor single-user mode works without a name, so the password is set through a connection: for a moment
pg_hba.conf trusts our own role on the socket, whose directory (0700) lets nobody else through. That happens once;
afterwards the role proves itself with the secret in `keys/internal.secret`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace

import asyncpg

from engine.address import EngineAddress
from engine.control import INTERNAL_ROLE, EngineControl
from engine.errors import EngineStartError
from engine.layout import DataLayout, write_private_file
from engine.osuser import OsUser
from engine.postgres_conf import TRUST_INTERNAL_HBA, Login, render_hba
from engine.process import Postmaster
from protocol.scram import ScramVerifier

_TRIES = 200
_TRY_SECONDS = 0.02


def internal_secret(layout: DataLayout, owner: OsUser) -> str:
    """The password of our own role; made once, in the front end's `keys`."""
    path = layout.keys / "internal.secret"
    try:
        secret = path.read_text(encoding="ascii").strip()
    except OSError:
        secret = ""
    if not secret:
        secret = secrets.token_urlsafe(32)
        write_private_file(path, secret, owner)
    return secret


async def ensure_secret(
    control: EngineControl,
    address: Callable[[], EngineAddress],
    layout: DataLayout,
    owner: OsUser,
    postmaster: Postmaster,
    secret: str,
) -> None:
    """Make the engine know the secret. Raises EngineStartError where it cannot be taught."""
    if await _is_accepted(control):
        return
    teacher = EngineControl(lambda: replace(address(), user_secret=None), default_database="template1")
    write_private_file(layout.hba_file, TRUST_INTERNAL_HBA, owner, mode=0o640)
    try:
        postmaster.reload()
        await _until_accepted(teacher)
        await teacher.execute(f"ALTER ROLE {INTERNAL_ROLE} PASSWORD '{ScramVerifier.build(secret)}'")
    finally:
        await teacher.close()
        write_private_file(layout.hba_file, render_hba(Login.SCRAM), owner, mode=0o640)
        postmaster.reload()
    await _until_accepted(control)


async def _until_accepted(control: EngineControl) -> None:
    """The postmaster reads pg_hba.conf again some milliseconds after it was told to."""
    for _ in range(_TRIES):
        if await _is_accepted(control):
            return
        await asyncio.sleep(_TRY_SECONDS)
    raise EngineStartError(
        f"the engine does not accept the secret of the role {INTERNAL_ROLE}",
        hint="Start RustyDB once as a user with an entry in the user database.",
    )


async def _is_accepted(control: EngineControl) -> bool:
    try:
        await control.fetchval("SELECT 1", database="template1")
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    await control.close_database("template1")
    return True
