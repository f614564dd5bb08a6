"""Routes that features add to the server's HTTP port.

The core has /metrics, /livez and /readyz there. A feature registers its routes before the server starts; the HTTP
server refuses requests larger than its limit, answers 404 and 405, and turns an exception of a handler into a plain
500.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiohttp import web

    HttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CORE_PATHS: Final = ("/metrics", "/livez", "/readyz")
METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """`path` as aiohttp writes it ("/api/v1/sessions/{pid}"). GET also answers HEAD."""

    method: str
    path: str
    handler: HttpHandler
    feature: str
    doc: str


class HttpRouteError(ValueError):
    """A route that cannot be registered."""


class HttpRoutes:
    """All routes of features, in the order of registration."""

    __slots__ = ("_routes",)

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], HttpRoute] = {}

    def add(self, route: HttpRoute) -> None:
        if route.method not in METHODS:
            raise HttpRouteError(f"{route.method} is not one of {', '.join(sorted(METHODS))}")
        if not route.path.startswith("/") or route.path in CORE_PATHS:
            raise HttpRouteError(f"path {route.path!r} is the server's own, or does not begin with /")
        if not route.feature or not route.doc:
            raise HttpRouteError(f"{route.method} {route.path} needs the name of its feature and documentation")
        if (route.method, route.path) in self._routes:
            raise HttpRouteError(f"{route.method} {route.path} is registered twice")
        self._routes[route.method, route.path] = route

    def remove_feature(self, feature: str) -> None:
        """Forget the routes of a feature that does not run."""
        self._routes = {key: route for key, route in self._routes.items() if route.feature != feature}

    def __iter__(self) -> Iterator[HttpRoute]:
        return iter(self._routes.values())
