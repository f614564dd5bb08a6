"""The embedded engine: a private PostgreSQL in the data directory, started, watched, restarted and stopped by us.

    cluster = EmbeddedCluster(data_dir=Path("/var/lib/rustydb"))      # or engine.cluster.open_cluster(config)
    cluster.prepare()                      # optional: everything that needs root; start() does it where it was not done
    await cluster.start()                  # ready: roles and control database are there
    cluster.address                        # where backends dial; every role logs in without a password
    await cluster.control.fetch("SELECT 1")
    await cluster.stop()                   # "fast" by default

`start` raises an `EngineError` that says what to do. Afterwards an engine that ends is started again, at growing
intervals, and the observer hears of it; only `stop` ends that. One cluster object holds the data directory's lock from
`prepare` to `stop`, so a second front end is refused.

As root the engine runs as another user (`engine.osuser`). Where the front end is to give root up, call `prepare` as
root, then `give_up_root`, then run the event loop with `start`: a helper is forked by `prepare`, before any thread.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from engine import bootstrap
from engine.address import EngineAddress
from engine.bootstrap import BootstrapResult
from engine.capabilities import BackendCapabilities, EngineInfo, probe_capabilities, probe_info
from engine.control import CONTROL_DATABASE, INTERNAL_ROLE, EngineControl
from engine.engine_log import EngineLog
from engine.errors import EngineError, EngineStartError, EngineStartTimeout, EngineUnavailable
from engine.layout import ENGINE_PORT, DataLayout
from engine.observer import EngineObserver, NullObserver
from engine.osuser import OsUsers, drop_privileges
from engine.prepare import EmbeddedOptions, PreparedEngine, prepare, start_failure
from engine.process import Postmaster
from engine.readiness import Readiness, probe_readiness
from engine.secret import ensure_secret

logger = logging.getLogger(__name__)

_READY_POLL_SECONDS = 0.01
_RESTART_FIRST_SECONDS = 0.1
_RESTART_LAST_SECONDS = 30.0
_IMMEDIATE_STOP_SECONDS = 10.0
_LAST_RESORT_SECONDS = 10.0

__all__ = ["EmbeddedCluster", "EmbeddedOptions"]


class EmbeddedCluster:
    """A private PostgreSQL cluster. Implements `engine.cluster.Cluster`."""

    def __init__(self, options: EmbeddedOptions | Path, observer: EngineObserver | None = None) -> None:
        self._options = options if isinstance(options, EmbeddedOptions) else EmbeddedOptions(data_dir=options)
        self._observer: EngineObserver = observer or NullObserver()
        self._prepared: PreparedEngine | None = None
        self._log: EngineLog | None = None
        self._control: EngineControl | None = None
        self._postmaster: Postmaster | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._info: EngineInfo | None = None
        self._capabilities: BackendCapabilities | None = None
        self._bootstrap: BootstrapResult | None = None
        self._epoch = 0
        self._is_ready = False
        self._is_stopping = False
        self._reinitialized = asyncio.Event()

    # What others read.

    @property
    def layout(self) -> DataLayout:
        """Paths in the data directory: `keys`, `tls`, `audit`, `password_file`, ..."""
        return DataLayout(self._options.data_dir)

    @property
    def users(self) -> OsUsers:
        """Operating-system users of front end and engine; known after `prepare`."""
        return self._require_prepared().users

    @property
    def address(self) -> EngineAddress:
        """Where backends dial; known after `prepare`."""
        prepared = self._require_prepared()
        return EngineAddress(host=str(prepared.socket_directory), port=ENGINE_PORT, user_secret=prepared.user_secret)

    @property
    def control(self) -> EngineControl:
        """Control queries; usable after `start`."""
        if self._control is None:
            raise EngineUnavailable("the engine has not been started")
        return self._control

    @property
    def info(self) -> EngineInfo:
        """Version and limits; known after `start`."""
        if self._info is None:
            raise EngineUnavailable("the engine has not been started")
        return self._info

    @property
    def capabilities(self) -> BackendCapabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the engine has not been started")
        return self._capabilities

    @property
    def bootstrap_result(self) -> BootstrapResult:
        """Where the administrator's generated password is, if it was generated; known after `start`."""
        if self._bootstrap is None:
            raise EngineUnavailable("the engine has not been started")
        return self._bootstrap

    @property
    def is_running(self) -> bool:
        """The engine accepts connections, as far as we know."""
        return self._is_ready

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster."""
        return self._postmaster.pid if self._postmaster is not None else None

    # What others do.

    def prepare(self) -> None:
        """Take the data directory, make users, directories, programs and cluster. Blocks; idempotent."""
        if self._prepared is None:
            self._prepared = prepare(self._options)

    def give_up_root(self) -> None:
        """Become the front end's user, for good; nothing happens where this process is that user already."""
        drop_privileges(self.users.frontend)

    async def start(self) -> None:
        """Start the engine, or adopt the one that a killed front end left, and wait until it is ready."""
        if self._supervisor is not None:
            return
        self._is_stopping = False
        try:
            if self._prepared is None:
                self._prepared = await asyncio.to_thread(prepare, self._options)
            prepared = self._prepared
            self._log = EngineLog(self.layout.log_fifo, self._on_reinitialize)
            self._log.open()
            self._control = EngineControl(lambda: self.address)
            atexit.register(self._last_resort)
            await self._launch(may_adopt=True)
            await self._prove_ourselves(prepared)
            self._bootstrap = await bootstrap.run(
                self._control,
                self.layout,
                prepared.users.frontend,
                superuser=self._options.superuser,
                password=self._options.password,
                scram_iterations=self._options.scram_iterations,
            )
            self._capabilities = await probe_capabilities(
                self._control, can_login_as_any_role=prepared.user_secret is None, is_exclusive=True
            )
            await self._announce()
        except BaseException:
            await self._abandon_start()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        self._supervisor.add_done_callback(_report_end)

    async def stop(self, mode: str = "fast") -> None:
        """Stop the engine: `smart`, `fast` or `immediate`; harder ways follow when it takes too long. Idempotent."""
        self._is_stopping = True
        self._is_ready = False
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        if self._control is not None:
            await self._control.close()
        was_running = self._postmaster is not None
        await self._stop_postmaster(mode)
        self._close()
        if was_running:
            self._observer.engine_stopped()

    async def reload(self, settings: Mapping[str, str]) -> None:
        """Write `engine.settings` anew and have the engine read them. What needs a restart waits for one."""
        prepared = self._require_prepared()
        prepared.write_configuration(settings)
        if self._postmaster is not None:
            self._postmaster.reload()

    # The life of the postmaster.

    async def _prove_ourselves(self, prepared: PreparedEngine) -> None:
        if prepared.internal_secret is not None and self._postmaster is not None:
            await ensure_secret(
                self.control,
                lambda: self.address,
                self.layout,
                prepared.users.frontend,
                self._postmaster,
                prepared.internal_secret,
            )

    async def _launch(self, *, may_adopt: bool) -> None:
        """From no postmaster to one that accepts connections."""
        prepared, log = self._require_prepared(), self._require_log()
        if may_adopt:
            self._postmaster = await prepared.adopt_or_stop(self._options.stop_timeout)
        if self._postmaster is None:
            log.recent.clear()
            stderr_fd = log.open_for_engine()
            try:
                self._postmaster = prepared.spawn(stderr_fd)
            finally:
                os.close(stderr_fd)
        ended = asyncio.create_task(self._postmaster.wait(), name="engine exit during start")
        try:
            await self._wait_ready(ended)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _wait_ready(self, ended: asyncio.Task[int | None]) -> None:
        log = self._require_log()
        socket_path = self.address.socket_path
        assert socket_path is not None
        started_at = asyncio.get_running_loop().time()
        log.last_line_at = started_at
        while True:
            answer = await probe_readiness(socket_path, INTERNAL_ROLE, CONTROL_DATABASE)
            if answer is Readiness.READY:
                self._reinitialized.clear()
                return
            if ended.done():
                log.drain()
                self._postmaster = None
                raise start_failure(self.layout, log.recent, ended.result())
            now = asyncio.get_running_loop().time()
            since = log.last_line_at if answer is Readiness.STARTING else started_at
            if now - max(since, started_at) > self._options.start_timeout:
                raise EngineStartTimeout(
                    f"the engine did not accept connections within {self._options.start_timeout:g} s",
                    detail="It is still recovering." if answer is Readiness.STARTING else None,
                    hint="Raise engine.start_timeout if the machine is slow.",
                )
            await asyncio.sleep(_READY_POLL_SECONDS)

    async def _announce(self) -> None:
        self._epoch += 1
        self._info = await probe_info(self.control, self._epoch)
        self._is_ready = True
        self._observer.engine_ready(self._info)

    async def _supervise(self) -> None:
        """Restart what ends, for ever."""
        while True:
            postmaster = self._postmaster
            assert postmaster is not None
            ended = asyncio.create_task(postmaster.wait(), name="engine exit")
            crashed = asyncio.create_task(self._reinitialized.wait(), name="engine reinitialization")
            try:
                await asyncio.wait({ended, crashed}, return_when=asyncio.FIRST_COMPLETED)
                status = ended.result() if ended.done() else None
                has_ended = ended.done()
            finally:
                ended.cancel()
                crashed.cancel()
                await asyncio.gather(ended, crashed, return_exceptions=True)
            self._reinitialized.clear()
            if has_ended:
                self._require_log().drain()
                self._postmaster = None
                reason = "the engine ended" if status is None else f"the engine ended ({describe_status(status)})"
            else:
                reason = "a server process crashed, and the engine reinitialized"
            self._lose(reason)
            await self._recover()

    def _lose(self, reason: str) -> None:
        logger.error("%s; restarting", reason)
        self._is_ready = False
        if self._control is not None:
            self._control.abandon()
        self._observer.engine_lost(reason)

    async def _recover(self) -> None:
        """Bring the engine back, at growing intervals."""
        delay = _RESTART_FIRST_SECONDS
        while True:
            try:
                if self._postmaster is None:
                    await self._launch(may_adopt=False)
                else:
                    await self._wait_ready_again()
                await self._announce()
            except (EngineError, asyncpg.PostgresError, OSError) as error:
                logger.error("the engine is not back yet; next try in %.1f s: %s", delay, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RESTART_LAST_SECONDS)
                continue
            logger.info("the engine is back")
            return

    async def _wait_ready_again(self) -> None:
        """After a crash of one server process the postmaster lives and recovers by itself."""
        assert self._postmaster is not None
        ended = asyncio.create_task(self._postmaster.wait(), name="engine exit during recovery")
        try:
            await self._wait_ready(ended)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _stop_postmaster(self, mode: str) -> None:
        postmaster, self._postmaster = self._postmaster, None
        if postmaster is None:
            return
        postmaster.stop(mode)
        try:
            async with asyncio.timeout(self._options.stop_timeout):
                await postmaster.wait()
                return
        except TimeoutError:
            logger.warning("the engine did not stop within %g s: stopping it at once", self._options.stop_timeout)
        postmaster.stop("immediate")
        try:
            async with asyncio.timeout(_IMMEDIATE_STOP_SECONDS):
                await postmaster.wait()
                return
        except TimeoutError:
            logger.error("the engine does not stop: killing it")
        postmaster.kill()
        await postmaster.wait()

    async def _abandon_start(self) -> None:
        if self._control is not None:
            self._control.abandon()
        await self._stop_postmaster("fast")
        self._close()

    def _close(self) -> None:
        atexit.unregister(self._last_resort)
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None

    def _last_resort(self) -> None:
        """The interpreter ends without `stop` having run: the engine must not be left behind."""
        postmaster = self._postmaster
        if postmaster is not None:
            postmaster.stop("fast")
            if not postmaster.wait_blocking(_LAST_RESORT_SECONDS):
                postmaster.stop("immediate")

    def _on_reinitialize(self) -> None:
        self._reinitialized.set()

    def _require_prepared(self) -> PreparedEngine:
        if self._prepared is None:
            raise EngineUnavailable("the engine has not been prepared")
        return self._prepared

    def _require_log(self) -> EngineLog:
        if self._log is None:
            raise EngineStartError("the engine's log is not open")
        return self._log


def _report_end(supervisor: asyncio.Task[None]) -> None:
    """A supervisor that ends by itself is a bug of ours: it must not go unseen."""
    if not supervisor.cancelled() and supervisor.exception() is not None:
        logger.critical("the engine is no longer watched", exc_info=supervisor.exception())


def describe_status(status: int) -> str:
    """An exit status in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
