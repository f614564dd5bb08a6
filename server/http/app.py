"""The HTTP port: /metrics, /livez, /readyz, and the routes of features, in the server's own event loop.

Values are collected on the loop, where what they are read from lives, and rendered to text in a thread. Requests are
bounded in line, header and body size, in number of connections and in the time to their first request; there is no
static file handler in here, so no path reaches a file.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from server.extension.http_routes import HttpRoute

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_LINE_BYTES: Final = 8190
MAX_CONNECTIONS: Final = 256
FIRST_REQUEST_SECONDS: Final = 10.0
KEEPALIVE_SECONDS: Final = 30.0
SHUTDOWN_SECONDS: Final = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)


class _Snapshot(CollectorRegistry):
    """Families that have been collected, in the shape that prometheus_client renders."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return iter(self._families)


class _TooMany(asyncio.Protocol):
    """Takes a connection beyond the limit and drops it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class HttpServer:
    """The HTTP side of one server. `start` listens, `stop` ends all connections."""

    def __init__(
        self,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str | None],
        routes: Iterable[HttpRoute] = (),
        *,
        max_connections: int = MAX_CONNECTIONS,
        first_request_seconds: float = FIRST_REQUEST_SECONDS,
    ) -> None:
        """`why_not_ready()` is None while clients are accepted and the engine is reachable, else the reason for
        /readyz.
        """
        self._registry = registry
        self._why_not_ready = why_not_ready
        self._max_connections = max_connections
        self._first_request_seconds = first_request_seconds
        self._silent: set[web.RequestHandler] = set()  # have not sent a whole request head yet
        self._app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._note_request, _plain_errors])
        self._app.router.add_get("/metrics", self._metrics)
        self._app.router.add_get("/livez", self._livez)
        self._app.router.add_get("/readyz", self._readyz)
        for route in routes:
            add = self._app.router.add_get if route.method == "GET" else None
            if add is not None:
                add(route.path, route.handler)
            else:
                self._app.router.add_route(route.method, route.path, route.handler)
        self._app.on_response_prepare.append(_set_headers)
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    @property
    def app(self) -> web.Application:
        return self._app

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of every listening socket; the real port where 0 was asked for."""
        if self._server is None:
            return ()
        return tuple(one.getsockname()[:2] for one in self._server.sockets if one.family != socket.AF_UNIX)

    async def start(self, host: str, port: int) -> None:
        """Listen. `host` may hold several addresses separated by commas. Raises OSError where it cannot."""
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            handle_signals=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        hosts = [one.strip() for one in host.split(",") if one.strip()]
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._new_connection, hosts or None, port, reuse_address=True, backlog=128
            )
        except OSError:
            await self._runner.cleanup()
            self._runner = None
            raise

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._server is not None:
            await self._server.wait_closed()
        self._server = None
        self._runner = None

    def _new_connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server if self._runner is not None else None
        if server is None or len(server.connections) >= self._max_connections:
            return _TooMany()
        handler = server()
        self._silent.add(handler)
        asyncio.get_running_loop().call_later(self._first_request_seconds, self._drop_if_silent, handler)
        return handler

    def _drop_if_silent(self, handler: web.RequestHandler) -> None:
        """A client that holds a place and asks nothing must not keep a health check out."""
        if handler in self._silent:
            self._silent.discard(handler)
            handler.force_close()

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        families = list(self._registry.collect())
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = await asyncio.to_thread(encode, _Snapshot(families))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _livez(self, request: web.Request) -> web.Response:
        del request  # that this runs is the answer
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        reason = self._why_not_ready()
        if reason is None:
            return web.Response(text="ready\n")
        return web.Response(text=f"not ready: {reason}\n", status=503)


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as one line of text; what a handler raises is logged and told to nobody."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type != "text/plain":
            raise
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.Response(text=f"{error.status} {error.reason}\n", status=error.status, headers=headers)
    except Exception:  # noqa: BLE001 - a feature's handler may raise anything
        _log.exception("HTTP %s %s failed", request.method, request.path)
        return web.Response(text="500 Internal Server Error\n", status=500)


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers["Server"] = "RustyDB"
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
