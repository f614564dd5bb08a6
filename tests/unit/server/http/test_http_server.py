"""The HTTP port over real sockets: health, metrics, refusals."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.extension.bus import EventBus
from server.extension.http_routes import HttpRoute
from server.http.app import MAX_BODY_BYTES, HttpServer
from server.metrics import ServerMetrics
from server.metrics_collector import MetricsCollector
from tests.unit.server.admin.support import RecordingControl


class Site:
    """A running HttpServer and a client for it."""

    def __init__(self, server: HttpServer, client: aiohttp.ClientSession) -> None:
        self.server = server
        self.client = client
        self.reason: str | None = None

    @property
    def url(self) -> str:
        host, port = self.server.addresses[0]
        return f"http://{host}:{port}"

    async def get(self, path: str, **options: object) -> tuple[int, str]:
        async with self.client.get(self.url + path, **options) as response:  # type: ignore[arg-type]
            return response.status, await response.text()


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.match_info['name']}")


async def fail(request: web.Request) -> web.Response:
    raise KeyError("secret detail")


async def echo(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


ROUTES = (
    HttpRoute("GET", "/hello/{name}", hello, "test", "Says hello."),
    HttpRoute("GET", "/fail", fail, "test", "Fails."),
    HttpRoute("POST", "/echo", echo, "test", "Counts bytes."),
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    registry = CollectorRegistry()
    registry.register(MetricsCollector(ServerMetrics(), RecordingControl(), EventBus()))
    found: list[Site] = []
    server = HttpServer(registry, lambda: found[0].reason, ROUTES, max_connections=4)
    await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as client:
        found.append(Site(server, client))
        yield found[0]
    await server.stop()


async def test_livez_answers_while_the_loop_runs(site: Site) -> None:
    assert await site.get("/livez") == (200, "ok\n")


async def test_readyz_gives_the_reason_why_not(site: Site) -> None:
    assert await site.get("/readyz") == (200, "ready\n")
    site.reason = "the engine is not running"
    assert await site.get("/readyz") == (503, "not ready: the engine is not running\n")


async def test_metrics_are_text_that_prometheus_reads(site: Site) -> None:
    async with site.client.get(site.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    assert families["rustydb_statements"].samples[0].value == 12
    assert families["rustydb_build_info"].samples[0].labels["engine_version"] == "18.1"


async def test_metrics_are_openmetrics_for_who_asks(site: Site) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with site.client.get(site.url + "/metrics", headers=accept) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")


async def test_headers_say_little_and_forbid_guessing(site: Site) -> None:
    async with site.client.get(site.url + "/livez") as response:
        assert response.headers["Server"] == "RustyDB"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/metrics/", "/../etc/passwd", "/%2e%2e/etc/passwd", "/static/..%2f..%2fetc/passwd"]
)
async def test_a_path_that_is_not_there_is_404_and_reaches_no_file(site: Site, path: str) -> None:
    reader, writer = await asyncio.open_connection(*site.server.addresses[0])
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    reply = (await reader.read()).decode()
    writer.close()
    assert reply.startswith("HTTP/1.1 404")
    assert reply.endswith("404 Not Found\n")


async def test_a_method_that_is_not_there_is_405_with_allow(site: Site) -> None:
    async with site.client.post(site.url + "/metrics") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
        assert await response.text() == "405 Method Not Allowed\n"


async def test_head_is_answered_without_a_body(site: Site) -> None:
    async with site.client.head(site.url + "/livez") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_routes_of_features_are_served(site: Site) -> None:
    assert await site.get("/hello/world") == (200, "hello world")


async def test_an_error_in_a_route_is_a_plain_500_that_tells_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert await site.get("/fail") == (500, "500 Internal Server Error\n")
    assert "secret detail" in caplog.text


async def test_a_body_that_is_too_large_is_refused(site: Site) -> None:
    async with site.client.post(site.url + "/echo", data=b"x" * 1000) as response:
        assert await response.text() == "1000"
    async with site.client.post(site.url + "/echo", data=io.BytesIO(b"x" * (MAX_BODY_BYTES + 1))) as response:
        assert response.status == 413


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"garbage\r\n\r\n",
    ],
)
async def test_garbage_and_overlong_requests_end_their_connection_only(site: Site, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_connection(*site.server.addresses[0])
    writer.write(request_bytes)
    writer.write_eof()
    reply = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert not reply or reply.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert await site.get("/livez") == (200, "ok\n")


async def test_connections_beyond_the_limit_are_dropped_and_come_back_after(site: Site) -> None:
    held = [await asyncio.open_connection(*site.server.addresses[0]) for _ in range(4)]
    for _, writer in held:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    for reader, _ in held:
        await reader.readuntil(b"ok\n")
    reader, writer = await asyncio.open_connection(*site.server.addresses[0])
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    writer.close()
    for _, one in held:
        one.close()
    await asyncio.sleep(0.05)
    assert await site.get("/livez") == (200, "ok\n")


async def test_a_connection_that_asks_nothing_is_closed_in_time() -> None:
    server = HttpServer(CollectorRegistry(), lambda: None, first_request_seconds=0.05)
    await server.start("127.0.0.1", 0)
    silent, silent_writer = await asyncio.open_connection(*server.addresses[0])
    slow, slow_writer = await asyncio.open_connection(*server.addresses[0])
    polite, polite_writer = await asyncio.open_connection(*server.addresses[0])
    slow_writer.write(b"GET /livez HTTP/1.1\r\nHost:")
    polite_writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    await polite.readuntil(b"ok\n")
    assert await asyncio.wait_for(silent.read(), 2) == b""
    assert await asyncio.wait_for(slow.read(), 2) == b""
    polite_writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(polite.readuntil(b"ready\n"), 2)
    for writer in (silent_writer, slow_writer, polite_writer):
        writer.close()
    await server.stop()


async def test_a_port_that_is_taken_is_an_oserror_and_leaves_nothing(site: Site) -> None:
    other = HttpServer(CollectorRegistry(), lambda: None)
    with pytest.raises(OSError):
        await other.start(*site.server.addresses[0])
    await other.stop()


async def test_a_server_that_was_not_started_stops_quietly() -> None:
    server = HttpServer(CollectorRegistry(), lambda: None)
    assert server.addresses == ()
    await server.stop()
