"""How the server's own failures read to a client."""

from __future__ import annotations

import asyncpg

from engine.errors import EngineError
from protocol.errors import PgError
from server.pool.errors import PoolClosed, PoolTimeout, PoolUnavailable


def as_client_error(error: PgError | EngineError | asyncpg.PostgresError) -> PgError:
    """What a client is told whose session cannot start."""
    if isinstance(error, PgError):
        return error
    if isinstance(error, EngineError):
        return PgError("57P03", "the database engine cannot be reached now", detail=error.message)
    return PgError(error.sqlstate or "XX000", error.args[0], detail=error.detail, hint=error.hint)


def pool_error(exc: BaseException) -> PgError:
    """The error a client sees when the pool has no backend for it."""
    if isinstance(exc, PgError):
        # A backend's failed login is FATAL to the backend, not to the client's session.
        return PgError(exc.sqlstate, exc.message, detail=exc.detail, hint=exc.hint)
    if isinstance(exc, PoolTimeout):
        return PgError(
            "53300",
            f"no database connection became free within {exc.waited_seconds:.0f} seconds",
            hint="Raise pool.max_backends or pool.query_wait_timeout, or find long transactions with SHOW SESSIONS.",
        )
    if isinstance(exc, PoolUnavailable):
        cause = exc.last_error
        detail = cause.message if isinstance(cause, PgError) else str(cause)
        return PgError("57P03", "the database engine cannot be reached now", detail=detail)
    if isinstance(exc, PoolClosed):
        return PgError("57P01", "the server is shutting down")
    return PgError("XX000", f"no database connection: {exc}")
