"""The core's side of the front door: opens sessions, keeps them, and does for them what concerns more than one.

`SessionHub` owns the sessions, the backends and what they share: contexts, databases, the pool, the shared listeners. It
is the `SessionOpener` of the front door and the `SessionHost` of every session. What it does on the query path is nothing: a
session talks to its pool block and its backend directly.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING

from engine import connect
from engine.catalog_load import CatalogReader
from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.scan import READY_IDLE, message
from server.cleanup import BackendCleaner
from server.context import ContextRegistry
from server.database import DatabaseState
from server.extension.events import SessionClosed, SessionOpened
from server.extension.hooks import Deny
from server.listen import ListenHub
from server.metrics import ServerMetrics
from server.observer import QueryObserver, session_info
from server.pool.pool import Pool
from server.pool.seat import Seat
from server.pool.settings import PoolKey, PoolSettings
from server.routine_facts import read_routine
from server.session import ClientSession
from server.session_state import Phase
from server.special import SpecialRuns
from server.statement import Analyzer
from server.statement_functions import PID_RELATIONS
from server.statement_info import EffectKind, QueryInfo
from server.totals import DatabaseTotals
from server.tunnel import open_tunnel
from server.virtual_pid import PID_COLUMNS_QUERY, PidRewriter
from server.welcome import Welcome, WelcomeBook

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from server.admin.console import AdminConsole
    from server.config import Config
    from server.effects import EffectTracker
    from server.extension.bus import EventBus
    from server.extension.hooks import Hooks
    from server.front_door import AuthenticatedClient, Slot
    from server.pool.block import Block

_log = logging.getLogger("rustydb.session")

_FIRST_VIRTUAL_PID = 10_000_000
_LAST_VIRTUAL_PID = 2_147_483_000
"""Above any process id of the system, so that nobody takes one for the other."""
_CANCELS_AT_ONCE = 32
_DRAIN_STEP_SECONDS = 0.05
_LAST_WORDS_SECONDS = 10.0


class SessionHub:
    """See the module's text. Made by the composition root."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        console: AdminConsole,
        metrics: ServerMetrics,
        *,
        hooks: Hooks,
        bus: EventBus,
    ) -> None:
        self.config = config
        self.cluster = cluster
        self.console = console
        self.metrics = metrics
        self.hooks = hooks
        self.bus = bus
        self.observer = QueryObserver(hooks, bus)
        self.contexts = ContextRegistry()
        self.databases: dict[str, DatabaseState] = {}
        self.sessions: dict[int, ClientSession] = {}
        self.backends: dict[int, BackendConnection] = {}
        self.max_message_bytes = config.session.max_message_bytes
        self.pool: Pool[BackendConnection] = Pool(
            connect=self._connect,
            disconnect=self._disconnect,
            settings=pool_settings(config),
            loop=asyncio.get_running_loop(),
        )
        self.is_draining = False
        self.on_roles_changed: list[Callable[[], None]] = []
        self._analyzer = Analyzer(console.match, max_entries=config.session.analysis_cache_entries)
        self._reader = CatalogReader(cluster.control, read_routine)
        self._special = SpecialRuns(self)
        self._welcomes = WelcomeBook(self.contexts)
        self._listeners: dict[str, ListenHub] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._session_tasks: dict[ClientSession, asyncio.Task[object]] = {}
        self._pid_rewriter: PidRewriter | None = None
        self._next_pid = _FIRST_VIRTUAL_PID
        self._serials = itertools.count(1)
        self._cancels = asyncio.Semaphore(_CANCELS_AT_ONCE)
        self._quarantined: dict[BackendConnection, ClientSession] = {}
        self._slots: dict[int, Slot] = {}
        self.drain_mode = "wait_for_servers"
        self._drain_stopped = asyncio.Event()

    # -- SessionOpener ---------------------------------------------------------------------------------------------

    async def open(self, client: AuthenticatedClient) -> None:
        """Start a session for an authenticated client."""
        if self.is_draining:
            raise PgError("57P03", "the database system is shutting down", severity="FATAL")
        if client.replication is not None:
            await self._open_tunnel(client)
            return
        identity = client.identity
        database = await self.database(identity.database)
        block = self.pool.block(PoolKey(identity.database, identity.role))
        block.attach()
        try:
            welcome = self._welcomes.find(block.key, client.parameters)
            if welcome is None:
                welcome = await self._welcomes.learn(block, client.parameters, self.contexts.empty)
        except BaseException:
            block.detach()
            raise
        try:
            session = self._make(client, database, block, welcome)
            if self.hooks.on_session_start:
                asked = self.hooks.ask_on_session_start(session_info(session))
                decision = await asked if isinstance(asked, Awaitable) else asked
                if isinstance(decision, Deny):
                    raise decision.error
        except BaseException:
            block.detach()
            raise
        self._start(session, client, welcome)

    def _make(
        self,
        client: AuthenticatedClient,
        database: DatabaseState,
        block: Block[BackendConnection],
        welcome: Welcome,
    ) -> ClientSession:
        session = ClientSession(
            host=self,
            transport=client.transport,
            identity=client.identity,
            protocol_version=client.protocol_version,
            database=database,
            block=block,
            context=welcome.context,
            reported=welcome.reported,
            defaults=welcome.defaults,
            pid=self._new_pid(),
            serial=next(self._serials),
            secret=secrets.token_bytes(32 if client.protocol_version >= (3, 2) else 4),
            now=perf_counter(),
        )
        session.encoding = welcome.encoding
        return session

    def _start(self, session: ClientSession, client: AuthenticatedClient, welcome: Welcome) -> None:
        """From here on the transport is the session's."""
        pid = session.pid
        self.sessions[pid] = session
        self._slots[pid] = client.slot
        if self.bus.has_subscribers(SessionOpened):
            self.bus.publish(SessionOpened(session_info(session), time.time()))
        client.transport.set_protocol(session)
        burst = b"".join(client.pending_output) + welcome.burst
        client.pending_output.clear()
        client.transport.write(burst + message(b"K", pid.to_bytes(4, "big") + session.secret) + b"Z\0\0\0\x05I")
        if client.received:
            session.data_received(client.received)

    def cancel(self, pid: int, secret: bytes) -> None:
        """CancelRequest. A wrong key is ignored."""
        session = self.sessions.get(pid)
        if session is None or not hmac.compare_digest(session.secret, secret):
            return
        self.cancel_session(session)

    def cancel_session(self, session: ClientSession) -> bool:
        """Cancel what a session is doing; False where it does nothing."""
        if session.phase is Phase.WAITING:
            if session.block.cancel(session):
                session.failed(PgError("57014", "canceling statement due to user request"))
            return True
        backend = session.backend
        if backend is None or not backend.plans or session.phase not in (Phase.ACTIVE, Phase.OPEN, Phase.COPY_IN):
            return False
        backend.cancels_in_flight += 1
        self._spawn(self._cancel_backend(backend), "cancel request")
        return True

    async def _cancel_backend(self, backend: BackendConnection) -> None:
        try:
            async with self._cancels:
                await connect.cancel(self.cluster.address, backend.pid, backend.secret)
        finally:
            backend.cancels_in_flight -= 1
            if not backend.cancels_in_flight:
                session = self._quarantined.pop(backend, None)
                if session is not None:
                    session.block.release(backend, reusable=not backend.is_lost)

    # -- SessionHost -----------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run something in a task that the hub owns."""
        self._spawn(work, name)

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[object]:
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)

    def run_special(self, session: ClientSession, request: bytes, info: QueryInfo | None) -> None:
        """Give a run that needs work a task of its own."""
        self._own(session, self._special.run(session, request, info), "special run")

    def _own(self, session: ClientSession, work: Coroutine[object, object, None], name: str) -> None:
        """Run work of one session; it ends with the session."""
        task = self._spawn(work, name)
        self._session_tasks[session] = task

        def done(_: object) -> None:
            if self._session_tasks.get(session) is task:
                del self._session_tasks[session]

        task.add_done_callback(done)

    def run_judged(
        self, session: ClientSession, request: bytes, answer: Awaitable[bytes | None] | bytes | None
    ) -> None:
        """Go on with a simple Query that hooks changed, answered, or have yet to decide about."""
        self._own(session, self._special.judged(session, request, answer), "judged run")

    def run_after(self, session: ClientSession, pending: Awaitable[None], chunk: bytes) -> None:
        """Wait for those who must know before the client does."""
        self._own(session, self._special.after(session, pending, chunk), "end of a run")

    def leave(self, session: ClientSession, backend: BackendConnection | None, reason: str) -> None:
        """A session ended."""
        self.sessions.pop(session.pid, None)
        slot = self._slots.pop(session.pid, None)
        if slot is not None:
            slot.release()
        task = self._session_tasks.pop(session, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if session.channels:
            hub = self._listeners.get(session.database.name)
            if hub is not None:
                hub.unsubscribe(session)
        session.block.detach()
        session.database.stats.add_session(session)
        if self.bus.has_subscribers(SessionClosed):
            self.bus.publish(self._closed(session, reason))
        if backend is not None:
            self._clean(session, backend, reason)
        if session.transport.get_write_buffer_size():
            # A client that does not read must not keep its last words in memory for ever.
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, session.transport.abort)

    @staticmethod
    def _closed(session: ClientSession, reason: str) -> SessionClosed:
        return SessionClosed(
            session_info(session),
            reason,
            session.ended_by or None,
            int((perf_counter() - session.connected_at) * 1e6),
            session.statements,
            session.transactions,
            session.received_bytes,
            session.sent_bytes,
            session.status != READY_IDLE,
            time.time(),
        )

    def _clean(self, session: ClientSession, backend: BackendConnection, reason: str) -> None:
        """Bring an abandoned backend to rest and give it back."""
        block = session.block
        if backend.is_lost or session.is_tainted or session.has_cut_copy:
            backend.owner = None
            block.release(backend, reusable=False)
            return

        def done(reusable: bool) -> None:
            if reusable and backend.cancels_in_flight:
                self._quarantined[backend] = session
            else:
                block.release(backend, reusable=reusable)

        cleaner = BackendCleaner(
            backend,
            pins=frozenset(session.pins),
            was_dirty=session.effects is not None,
            empty=self.contexts.empty,
            done=done,
        )
        cleaner.start(in_copy=session.left_in_copy, wants_sync=session.left_open)
        if reason != "terminate" and backend.plans and not backend.is_lost:
            backend.cancels_in_flight += 1
            self._spawn(self._cancel_backend(backend), "cancel of an abandoned statement")

    def quarantine(self, session: ClientSession, backend: BackendConnection) -> None:
        """Keep a backend out of the pool until the cancel requests sent to it have settled."""
        self._quarantined[backend] = session

    def statement_settled(self, session: ClientSession, tracker: EffectTracker) -> None:
        """A transaction ended that concerns more than its session."""
        for effect in tracker.listens if not tracker.rolled_back else ():
            self.subscribe(session, effect.argument, on=effect.kind is EffectKind.LISTEN)
        if tracker.routines_changed:
            session.database.reload_catalog()
        if tracker.roles_changed:
            self._welcomes.clear()
            self.pool.reconnect(None)
            for callback in self.on_roles_changed:
                callback()

    # -- SpecialHost -----------------------------------------------------------------------------------------------

    async def make_way(self, session: ClientSession, databases: tuple[str, ...]) -> None:
        """Close what is idle in these databases, and our own connections there."""
        for name in databases:
            hub = self._listeners.get(name)
            if hub is not None:
                hub.close_connection()
            await self.cluster.control.close_database(name)
            await self.pool.evict_database(name)
            self._welcomes.forget_database(name)

    async def listen(self, session: ClientSession, channel: str) -> None:
        """Make the shared listener hear a channel."""
        name = session.database.name
        hub = self._listeners.get(name)
        if hub is None:
            hub = self._listeners[name] = ListenHub(lambda: self._dial_listener(name), self.virtual_pid)
        await hub.hear(channel)

    def subscribe(self, session: ClientSession, channel: str, *, on: bool) -> None:
        """Add or drop a subscription."""
        hub = self._listeners.get(session.database.name)
        if on:
            if session.channels is None:
                session.channels = set()
            session.channels.add(channel)
            if hub is not None:
                hub.subscribe(session, channel)
        elif session.channels:
            if hub is not None:
                hub.unsubscribe(session, channel)
            if channel:
                session.channels.discard(channel)
            else:
                session.channels.clear()

    async def rewrite_pids(self, session: ClientSession, text: bytes) -> bytes:
        """Virtual process ids in a statement's text."""
        rewriter = self._pid_rewriter
        if rewriter is None:
            rows = await self.cluster.control.fetch(PID_COLUMNS_QUERY, sorted(PID_RELATIONS))
            rewriter = self._pid_rewriter = PidRewriter({row["relname"]: row["columns"] for row in rows})
        leased = [
            (backend.pid, owner.pid)
            for backend in self.backends.values()
            if isinstance(owner := backend.owner, ClientSession) and owner is not session
        ]
        return rewriter.rewrite(text, session.pid, leased).text

    def sync_listener(self, session: ClientSession, then: Callable[[], None]) -> None:
        """Call `then` when the session has every notification sent before now."""
        hub = self._listeners.get(session.database.name)
        if hub is None:
            then()
        else:
            hub.sync(then)

    def virtual_pid(self, pid: int) -> int:
        """The session that used a backend last, as clients know it; the number itself for processes that are not ours."""
        backend = self.backends.get(pid)
        return backend.last_session_pid if backend is not None and backend.last_session_pid else pid

    # -- databases and backends ------------------------------------------------------------------------------------

    async def database(self, name: str) -> DatabaseState:
        """What the server knows of a database, its catalog read."""
        state = self.databases.get(name)
        if state is None:
            totals = DatabaseTotals(self.metrics.database(name), self.metrics.count_error)
            state = self.databases[name] = DatabaseState(
                name,
                contexts=self.contexts,
                analyzer=self._analyzer,
                reader=self._reader,
                stats=totals,
                max_prepared_statements=self.config.session.max_prepared_statements,
            )
        if not state.catalog.is_current:
            await state.load_catalog()
        return state

    async def _connect(self, key: PoolKey) -> BackendConnection:
        """Dial for the pool."""
        connection = await connect.dial(
            self.cluster.address,
            database=key.database,
            role=key.role,
            credentials=self._credentials(key.role),
            timeout_seconds=self.config.pool.server_connect_timeout,
        )
        connection.seat = Seat()
        connection.context = self.contexts.empty
        connection.on_lost = self._lost
        self.backends[connection.pid] = connection
        return connection

    def _credentials(self, role: str) -> connect.Credentials:
        secret = self.cluster.address.user_secret
        return connect.Credentials(password=secret(role) if secret is not None else None)

    async def _dial_listener(self, database: str) -> BackendConnection:
        control = self.cluster.control
        return await connect.dial(
            self.cluster.address, database=database, role=control.role, credentials=self._credentials(control.role)
        )

    def _disconnect(self, backend: BackendConnection) -> None:
        self.backends.pop(backend.pid, None)
        backend.on_lost = None
        if backend.plans:
            backend.abort()
        else:
            backend.close()

    def _lost(self, backend: BackendConnection) -> None:
        self.backends.pop(backend.pid, None)
        self.pool.conn_lost(backend)

    def engine_lost(self) -> None:
        """Every backend is dead: what was learned from the engine before is void."""
        self._welcomes.clear()

    async def _open_tunnel(self, client: AuthenticatedClient) -> None:
        """A replication connection: logged in as the client's role, then spliced."""
        await open_tunnel(client, self.cluster.address, self._credentials(client.identity.role), self._new_pid())

    def _new_pid(self) -> int:
        while True:
            pid = self._next_pid
            self._next_pid = _FIRST_VIRTUAL_PID if pid >= _LAST_VIRTUAL_PID else pid + 1
            if pid not in self.sessions:
                return pid

    # -- time ------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Once a second: end sessions that were idle for too long. Zero turns a limit off."""
        server, session_settings = self.config.server, self.config.session
        now = perf_counter()
        for session in list(self.sessions.values()):
            if session.phase is not Phase.IDLE:
                continue
            idle = now - session.last_request_at
            if session.status != READY_IDLE:
                limit = session_settings.idle_transaction_timeout
                if 0 < limit < idle:
                    session.fatal(
                        PgError("25P03", "terminating connection due to idle-in-transaction timeout", severity="FATAL")
                    )
            elif session.pins and 0 < session_settings.pin_timeout < idle:
                reasons = ", ".join(sorted(session.pins))
                session.fatal(
                    PgError(
                        "57P05",
                        "terminating connection due to pin timeout",
                        detail=f"The session kept a database connection for itself: {reasons}.",
                        severity="FATAL",
                    )
                )
            elif 0 < server.client_idle_timeout < idle:
                session.fatal(PgError("57P05", "terminating connection due to idle-session timeout", severity="FATAL"))

    # -- the end ---------------------------------------------------------------------------------------------------

    def kill(self, session: ClientSession) -> None:
        """End a session as pg_terminate_backend does. Its own command, if that is what asks, is answered first."""
        if session.phase is Phase.BUSY:
            session.is_killed = True
        else:
            session.fatal(PgError("57P01", "terminating connection due to administrator command", severity="FATAL"))

    async def drain(self, timeout_seconds: float) -> None:
        """Refuse new clients, end idle ones, and wait for the others (`drain_mode`), at most so long."""
        self.is_draining = True
        wait_for_clients = self.drain_mode == "wait_for_clients"
        deadline = perf_counter() + timeout_seconds
        while self.sessions and not self._drain_stopped.is_set():
            if not wait_for_clients:
                for session in list(self.sessions.values()):
                    if session.phase is Phase.IDLE and session.status == READY_IDLE:
                        self.kill(session)
            remaining = deadline - perf_counter()
            if remaining <= 0 and not wait_for_clients:
                _log.warning("%d sessions did not end within the shutdown timeout", len(self.sessions))
                return
            try:
                async with asyncio.timeout(_DRAIN_STEP_SECONDS):
                    await self._drain_stopped.wait()
            except TimeoutError:
                continue

    def stop_draining(self) -> None:
        """Wait for nobody any more."""
        self._drain_stopped.set()

    def retune(self) -> None:
        """The configuration was read again."""
        self.pool.retune(pool_settings(self.config))
        self.max_message_bytes = self.config.session.max_message_bytes

    async def close(self) -> None:
        """End everything that is left."""
        self.is_draining = True
        for session in list(self.sessions.values()):
            session.fatal(PgError("57P01", "terminating connection due to administrator command", severity="FATAL"))
        for hub in self._listeners.values():
            hub.close()
        self.pool.close()
        for backend in list(self.backends.values()):
            backend.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def pool_settings(config: Config) -> PoolSettings:
    """The pool's part of the configuration."""
    pool = config.pool
    return PoolSettings(
        max_backends=pool.max_backends,
        default_pool_size=pool.default_pool_size,
        min_pool_size=pool.min_pool_size,
        reserve_pool_timeout=pool.reserve_pool_timeout,
        query_wait_timeout=pool.query_wait_timeout,
        server_idle_timeout=pool.server_idle_timeout,
        server_lifetime=pool.server_lifetime,
        server_connect_timeout=pool.server_connect_timeout,
        connect_burst=pool.connect_burst,
    )
