"""What the pool has to say to the operator, in the log."""

from __future__ import annotations

import logging

from server.pool.settings import PoolKey
from server.pool.stats import SilentObserver

_log = logging.getLogger("rustydb.pool")


class PoolLog(SilentObserver):
    """Logs what an operator should know; the coming and going of connections only at debug level."""

    def connect_failed(self, key: PoolKey, exc: BaseException, seconds: float) -> None:
        """A login failed; the clients that wait hear of it themselves where it is final."""
        _log.debug("login as %s in %s failed after %.3f s: %s", key.role, key.database, seconds, exc)

    def wait_timed_out(self, key: PoolKey, waited_seconds: float) -> None:
        """A client waited too long for a connection."""
        _log.warning("query_wait_timeout: a client of %s@%s waited %.1f s", key.role, key.database, waited_seconds)

    def breaker_changed(self, key: PoolKey | None, is_open: bool) -> None:
        """Logins keep failing, or work again."""
        where = "the engine" if key is None else f"{key.role}@{key.database}"
        if is_open:
            _log.error("logins at %s keep failing: clients without a connection are refused at once", where)
        else:
            _log.info("logins at %s work again", where)

    def callback_failed(self, key: PoolKey, exc: Exception) -> None:
        """A bug of ours."""
        _log.error("a callback of the pool of %s@%s failed", key.role, key.database, exc_info=exc)
