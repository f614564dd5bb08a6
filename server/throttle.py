"""Failed logins, remembered per client address and role.

After `auth.throttle_failures` failures of one role from one address within `auth.throttle_seconds`, further attempts of
that pair are refused for as long again, whatever their password. A login that succeeds forgets its pair. The table is
bounded: beyond `MAX_PAIRS` the pair that failed longest ago is forgotten. Pure: the clock is injected.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from server.config import Config

MAX_PAIRS: Final = 20_000
_IPV6_SITE_BITS: Final = 64  # one customer's network: addresses within it cost nothing


class _Failures:
    __slots__ = ("blocked_until", "count", "since")

    def __init__(self, since: float) -> None:
        self.count = 0
        self.since = since
        self.blocked_until = 0.0


class FailureThrottle:
    """Who has failed too often. Settings are read at the time of use, so a reload needs no call."""

    def __init__(
        self, config: Config, *, clock: Callable[[], float] = time.monotonic, max_pairs: int = MAX_PAIRS
    ) -> None:
        self._auth = config.auth
        self._clock = clock
        self._max_pairs = max_pairs
        self._pairs: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def blocked_for(self, address: str, role: str) -> float:
        """Seconds until the pair may try again; 0.0 where it may now."""
        if not self._pairs:
            return 0.0
        failures = self._pairs.get((_network(address), role))
        if failures is None or self._auth.throttle_failures == 0:
            return 0.0
        return max(0.0, failures.blocked_until - self._clock())

    def failed(self, address: str, role: str) -> None:
        """Count one failed login."""
        limit = self._auth.throttle_failures
        if limit == 0:
            return
        now = self._clock()
        pair = (_network(address), role)
        failures = self._pairs.get(pair)
        if failures is None or now - failures.since > self._auth.throttle_seconds:
            failures = self._pairs[pair] = _Failures(now)
        self._pairs.move_to_end(pair)
        failures.count += 1
        if failures.count >= limit:
            # The next window starts from here, so that the count begins anew once the block is over.
            failures.since = now
            failures.blocked_until = now + self._auth.throttle_seconds
        if len(self._pairs) > self._max_pairs:
            self._pairs.popitem(last=False)

    def succeeded(self, address: str, role: str) -> None:
        """Forget the failures of a pair."""
        if self._pairs:
            self._pairs.pop((_network(address), role), None)


def _network(address: str) -> str:
    """What counts as one address: an IPv6 client owns its whole /64."""
    if ":" not in address:
        return address
    try:
        site = ipaddress.ip_network((address.partition("%")[0], _IPV6_SITE_BITS), strict=False)
    except ValueError:
        return address
    return str(site.network_address)
