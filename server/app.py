"""The composition root: the parts of one server, put together, started in order and stopped in the reverse.

    engine -> hub (pool, sessions) -> features -> HTTP -> front door

`run(config)` is what `rustydb serve` calls: it owns the event loop and the signals. SIGTERM and SIGINT drain: new
clients
are refused, transactions under way may end within `server.shutdown_timeout`, then sessions are told 57P01. A second
signal ends them at once. SIGHUP reads the configuration again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time

import uvloop
from prometheus_client import CollectorRegistry

from engine.capabilities import EngineInfo
from engine.cluster import Cluster, open_cluster
from engine.errors import EngineError
from server.admin.console import AdminConsole
from server.admin.control import control_commands
from server.admin.show import show_commands
from server.admin.sources import AdminSources
from server.config import Config, ConfigError, ConfigProblem
from server.control_room import ControlRoom
from server.drain import sweep
from server.extension.bus import EventBus
from server.extension.commands import CommandRegistry
from server.extension.context import QueryContext
from server.extension.events import (
    ConfigReloaded,
    EngineLost,
    EngineStarted,
    FeatureFailed,
    ServerStarted,
    ServerStopping,
)
from server.extension.hooks import Hooks
from server.extension.http_routes import HttpRoutes
from server.extension.services import Services
from server.features import FeatureError, FeatureHost, Surface
from server.http.app import HttpServer
from server.hub import SessionHub
from server.listener import FrontDoor, FrontDoorError
from server.log import configure_logging
from server.loop_lag import LoopLagMonitor
from server.membership import Membership
from server.metrics import ServerMetrics
from server.metrics_collector import MetricsCollector
from server.statement_info import QueryInfo
from server.statement_log import log_statements
from server.version import rustydb_version

_log = logging.getLogger("rustydb")

_SWEEP_SECONDS = 1.0
EXIT_CANNOT_START = 1


class RustyServer:
    """One running server. `start`, then `wait`, then `stop`."""

    def __init__(self, config: Config, cluster: Cluster) -> None:
        self.config = config
        self.bus = EventBus(config.events.buffer_size, on_failure=self._on_subscriber_failure)
        self.hooks = Hooks(report=self._on_hook_failure, analyse=self._analyse)
        self.commands = CommandRegistry()
        self.metrics = ServerMetrics()
        self.registry = CollectorRegistry()
        self.lag = LoopLagMonitor()
        self.http_routes = HttpRoutes()
        self.cluster = cluster
        self._stopping = asyncio.Event()
        self._is_serving = False
        self._is_engine_up = False
        self._drain = True
        self._http: HttpServer | None = None
        self._front_door: FrontDoor | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._features = FeatureHost(
            Surface(
                bus=self.bus,
                hooks=self.hooks,
                commands=self.commands,
                http=self.http_routes,
                metrics=self.registry,
                services=Services(),
                data_dir=config.server.data_dir,
                settings=lambda _: {},
            )
        )

    async def start(self) -> None:
        """From nothing to accepting clients. Raises EngineError, FrontDoorError, FeatureError, OSError."""
        config = self.config
        began = time.monotonic()
        self.bus.start()
        await self.cluster.start()
        membership = Membership(self.cluster.control)
        console = AdminConsole(self.commands, membership.is_member, self.bus)
        self.hub = SessionHub(config, self.cluster, console, self.metrics, hooks=self.hooks, bus=self.bus)
        control = ControlRoom(
            self.hub,
            self.lag,
            version=rustydb_version(),
            reload=self.reload,
            shutdown=self._on_shutdown,
            is_ready=lambda: self.why_not_ready() is None,
        )
        sources = AdminSources(control, self.bus, self.hooks, self.commands, config.values, self._features.statuses)
        for command in (*show_commands(sources), *control_commands(control)):
            self.commands.register(command)
        self.metrics.subscribe(self.bus)
        if config.log.statements:
            log_statements(self.bus)
        self.registry.register(
            MetricsCollector(
                self.metrics,
                control,
                self.bus,
                session_counts=control.session_counts,
                analysis_cache=control.analysis_cache,
            )
        )
        self._features.load(config.features.enabled)
        self._features.setup()
        await self._features.start()
        self._front_door = FrontDoor(config, self.cluster.control, self.hub, report_failure=self.bus.deliver)
        self.hub.on_roles_changed += [self._front_door.invalidate_roles, membership.clear]
        if config.server.http_host:
            self._http = HttpServer(self.registry, self.why_not_ready, self.http_routes)
            await self._http.start(config.server.http_host, config.server.http_port)
        await self._front_door.start()
        self.lag.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="sweeper")
        self._is_serving = True
        where = tuple(str(address) for address in self._front_door.addresses)
        self.bus.publish(ServerStarted(rustydb_version(), where, self._features.running, time.time()))
        self._announce(time.monotonic() - began)

    def _announce(self, seconds: float) -> None:
        assert self._front_door is not None
        where = ", ".join(str(address) for address in self._front_door.addresses)
        _log.info("ready in %.2f s: accepting clients on %s", seconds, where)
        if self._http is not None and self._http.addresses:
            host, port = self._http.addresses[0]
            _log.info("metrics and health on http://%s:%d", host, port)
        result = getattr(self.cluster, "bootstrap_result", None)
        path = getattr(result, "password_file", None)
        if path is not None:
            _log.info("the password of the administrator postgres is in %s", path)

    async def wait(self) -> None:
        """Until somebody wants the server to end."""
        await self._stopping.wait()

    async def stop(self) -> None:
        """Drain, then end everything, the engine last."""
        if self._is_serving:
            mode = self.hub.drain.mode if self._drain else "immediate"
            self.bus.publish(ServerStopping(mode, "", time.time()))
        self._is_serving = False
        if self._front_door is not None:
            await self._front_door.stop_accepting()
        if hasattr(self, "hub"):
            if self._drain:
                self.hub.is_draining = True
                await self.hub.drain.run(self.hub, self.config.server.shutdown_timeout)
            await self.hub.close()
        if self._front_door is not None:
            await self._front_door.close()
        await self._features.stop()
        if self._http is not None:
            await self._http.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.lag.stop()
        await self.bus.stop()
        await self.cluster.stop("fast")
        _log.info("stopped")

    def request_stop(self, *, drain: bool = True) -> None:
        """End the server; a second request does not wait for anybody."""
        if self._stopping.is_set() or not drain:
            self._drain = False
            if hasattr(self, "hub"):
                self.hub.drain.hurry()
        self._stopping.set()

    def _on_shutdown(self, mode: str) -> None:
        if mode == "immediate":
            self.request_stop(drain=False)
            return
        self.hub.drain.mode = mode
        self.request_stop()

    async def reload(self) -> list[str]:
        """Read the configuration again; returns the settings that changed.

        Raises ConfigError for a wrong one, and for a certificate or rules that cannot be used: the old ones stay.
        """
        try:
            report = self.config.reload()
        except ConfigError as error:
            _log.error("configuration not reloaded: %s", error)
            raise
        self.hub.retune()
        problems = self._front_door.reload() if self._front_door is not None else []
        for change in report.restart_required:
            _log.warning("%s takes effect at the next start", change.name)
        changed = tuple(change.name for change in report.changed)
        pending = tuple(change.name for change in report.restart_required)
        await self.bus.deliver(ConfigReloaded(changed, pending, "", time.time()))
        if problems:
            raise ConfigError([ConfigProblem("certificate or rules", None, "RELOAD", problem) for problem in problems])
        return list(changed)

    def reload_soon(self) -> None:
        """SIGHUP."""
        self.hub.tasks.spawn(self._reload_logged(), "reload")

    async def _reload_logged(self) -> None:
        try:
            changed = await self.reload()
        except ConfigError:
            return
        _log.info("configuration reloaded: %s", ", ".join(changed) or "nothing changed")

    def why_not_ready(self) -> str | None:
        """None while clients are accepted and the engine answers."""
        if not self._is_serving:
            return "the server is starting or stopping"
        return None if self._is_engine_up else "the database engine is not available"

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            sweep(self.hub, self.config)

    # -- extensions ------------------------------------------------------------------------------------------------

    def _analyse(self, text: str, context: QueryContext) -> QueryInfo:
        """The text of a Rewrite."""
        return self.hub.databases[context.session.database].analyse(text.encode(), None)

    def _on_hook_failure(self, feature: str, where: str, error: BaseException, is_fatal: bool) -> None:
        _log.error("feature %s failed in %s", feature, where, exc_info=error)
        self.bus.publish(FeatureFailed(feature, where, repr(error), is_fatal, time.time()))

    def _on_subscriber_failure(self, subscriber: str, where: str, error: BaseException) -> None:
        _log.error("subscriber %s failed in %s", subscriber, where, exc_info=error)

    # -- EngineObserver --------------------------------------------------------------------------------------------

    def engine_ready(self, info: EngineInfo) -> None:
        """The engine accepts connections."""
        self._is_engine_up = True
        self.bus.publish(
            EngineStarted(info.version, info.version_num, str(info.system_identifier), info.epoch, 0, time.time())
        )

    def engine_lost(self, reason: str) -> None:
        """The engine is gone; it is being brought back."""
        self._is_engine_up = False
        if hasattr(self, "hub"):
            self.hub.engine_lost()
        self.bus.publish(EngineLost(reason, self.cluster.info.epoch, False, time.time()))

    def engine_stopped(self) -> None:
        """The engine stopped because we asked it to."""
        self._is_engine_up = False


class EngineRelay:
    """The observer of an engine that is opened before the server that wants to hear of it."""

    def __init__(self) -> None:
        self.target: RustyServer | None = None

    def engine_ready(self, info: EngineInfo) -> None:
        """Passed on."""
        if self.target is not None:
            self.target.engine_ready(info)

    def engine_lost(self, reason: str) -> None:
        """Passed on."""
        if self.target is not None:
            self.target.engine_lost(reason)

    def engine_stopped(self) -> None:
        """Passed on."""
        if self.target is not None:
            self.target.engine_stopped()


async def _serve(config: Config, cluster: Cluster, observer: EngineRelay) -> int:
    server = RustyServer(config, cluster)
    observer.target = server
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(server.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if starting.done():
            starting.result()
            loop.add_signal_handler(signal.SIGHUP, server.reload_soon)
            await stopping
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    except (EngineError, FrontDoorError, FeatureError, OSError) as error:
        _say_why(error)
        return EXIT_CANNOT_START
    finally:
        stopping.cancel()
        await server.stop()
    return 0


def _say_why(error: Exception) -> None:
    """Detail and hint are in the error's own text."""
    sys.stderr.write(f"rustydb: {error}\n")


def run(config: Config) -> int:
    """Serve until a signal ends it; returns the exit code."""
    configure_logging(config.log.level, config.log.format)
    observer = EngineRelay()
    try:
        cluster = open_cluster(config, observer)
        cluster.prepare()  # what needs root, before there is a thread or a loop
        cluster.give_up_root()
    except (EngineError, OSError) as error:
        _say_why(error)
        return EXIT_CANNOT_START
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, cluster, observer))
