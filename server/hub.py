"""The core's side of the front door: opens sessions, keeps them, and does for them what concerns more than one.

`SessionHub` owns the sessions, the backends and what they share: contexts, databases, the pool, the shared
listeners. It
is the `SessionOpener` of the front door and the `SessionHost` of every session. What it does on the query path is
nothing: a
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
from contextlib import AsyncExitStack
from time import perf_counter
from typing import TYPE_CHECKING

from engine.catalog_load import CatalogReader
from engine.connection import BackendConnection
from protocol.errors import PgError
from protocol.scan import READY_IDLE, message
from server.backends import Backends
from server.context import ContextRegistry
from server.database import DatabaseState
from server.database_ddl import DatabaseDdl
from server.drain import Drain
from server.extension.events import QueryCancelled, SchemaChanged, SessionClosed, SessionKilled, SessionOpened
from server.extension.hooks import Deny
from server.listen import ListenHubs
from server.metrics import ServerMetrics
from server.observer import QueryObserver, session_info
from server.pool.settings import PoolKey
from server.routine_facts import read_routine
from server.session import ClientSession
from server.session_state import Phase
from server.special import SpecialRuns
from server.statement import Analyzer
from server.statement_functions import PID_RELATIONS
from server.statement_info import EffectKind, QueryInfo
from server.tasks import TaskOwner
from server.totals import DatabaseTotals
from server.tunnel import open_tunnel
from server.virtual_pid import PID_COLUMNS_QUERY, PidRewriter
from server.welcome import Welcome, WelcomeBook, lease

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
_LAST_WORDS_SECONDS = 10.0
_LENT_SECONDS = 1.0
_BUSY_SECONDS = 0.01
_WRITE_HIGH_BYTES = 256 * 1024
"""What may wait for a slow client before the engine is paused."""
_KILLED = "terminating connection due to administrator command"


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
        self.tasks = TaskOwner()
        self.backends = Backends(config, cluster, self.contexts, self.tasks, bus)
        self.pool = self.backends.pool
        self.listeners = ListenHubs(self.backends.dial_listener, self.backends.virtual_pid)
        self.databases: dict[str, DatabaseState] = {}
        self.sessions: dict[int, ClientSession] = {}
        self.max_message_bytes = config.session.max_message_bytes
        self.drain = Drain()
        self.is_draining = False
        self.on_roles_changed: list[Callable[[], None]] = []
        self._analyzer = Analyzer(console.match, max_entries=config.session.analysis_cache_entries)
        self._reader = CatalogReader(cluster.control, read_routine)
        self._special = SpecialRuns(self)
        self._ddl = DatabaseDdl(self)
        self._welcomes = WelcomeBook(self.contexts)
        self._session_tasks: dict[ClientSession, asyncio.Task[object]] = {}
        self._pid_rewriter: PidRewriter | None = None
        self._next_pid = _FIRST_VIRTUAL_PID
        self._serials = itertools.count(1)
        self._slots: dict[int, Slot] = {}
        self._tunnels: dict[int, tuple[bytes, BackendConnection]] = {}  # replication: key and engine's side

    # -- SessionOpener ---------------------------------------------------------------------------------------------

    async def open(self, client: AuthenticatedClient) -> None:
        """Start a session for an authenticated client."""
        if self.is_draining:
            raise PgError("57P03", "the database system is shutting down", severity="FATAL")
        identity = client.identity
        self.backends.remember_keys(identity)
        if client.replication is not None:
            await self._open_tunnel(client)
            return
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
        client.transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        client.transport.set_protocol(session)
        burst = b"".join(client.pending_output) + welcome.burst
        client.pending_output.clear()
        client.transport.write(burst + message(b"K", pid.to_bytes(4, "big") + session.secret) + b"Z\0\0\0\x05I")
        if client.received:
            session.data_received(client.received)

    def cancel(self, pid: int, secret: bytes) -> None:
        """CancelRequest. A wrong key is ignored."""
        session = self.sessions.get(pid)
        if session is None:
            key, backend = self._tunnels.get(pid, (b"", None))
            if backend is not None and hmac.compare_digest(key, secret):
                self.backends.cancel(backend)
            return
        if not hmac.compare_digest(session.secret, secret):
            return
        did_run = self.cancel_session(session)
        if self.bus.has_subscribers(QueryCancelled):
            query_id = 0 if did_run else None
            self.bus.publish(QueryCancelled(session_info(session), query_id, "client", time.time()))

    def cancel_session(self, session: ClientSession) -> bool:
        """Cancel what a session is doing; False where it does nothing."""
        if session.phase is Phase.WAITING:
            if session.block.cancel(session):
                session.failed(PgError("57014", "canceling statement due to user request"))
            return True
        if session.phase is Phase.BUSY:
            # Something of our own comes before the statement: the cancel waits until that has been sent.
            asyncio.get_running_loop().call_later(_BUSY_SECONDS, self._cancel_later, session, session.statements)
            return True
        backend = session.backend
        if backend is None or not backend.plans or session.phase not in (Phase.ACTIVE, Phase.OPEN, Phase.COPY_IN):
            return False
        self.backends.cancel(backend)
        return True

    def _cancel_later(self, session: ClientSession, statements: int) -> None:
        if session.statements == statements and session.is_open:
            self.cancel_session(session)

    # -- SessionHost -----------------------------------------------------------------------------------------------

    def run_special(self, session: ClientSession, request: bytes, info: QueryInfo | None) -> None:
        """Give a run that needs work a task of its own."""
        self._own(session, self._special.run(session, request, info), "special run")

    def _own(self, session: ClientSession, work: Coroutine[object, object, None], name: str) -> None:
        """Run work of one session; it ends with the session."""
        before = self._session_tasks.get(session)
        if before is not None and before is not asyncio.current_task():
            before.cancel()  # it waited for a backend that never came: its run has failed
        task = self.tasks.spawn(work, name)
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
        self.listeners.subscribe(session.database.name, session, "", on=False)
        session.block.detach()
        session.database.stats.add_session(session)
        if self.bus.has_subscribers(SessionClosed):
            self.bus.publish(self._closed(session, reason))
        if backend is not None:
            self.backends.clean(session, backend, should_cancel=reason != "terminate")
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

    def statement_settled(self, session: ClientSession, tracker: EffectTracker) -> None:
        """A transaction ended that concerns more than its session."""
        for effect in tracker.listens if not tracker.rolled_back else ():
            self.subscribe(session, effect.argument, on=effect.kind is EffectKind.LISTEN)
        if (tracker.catalog_changed or tracker.roles_changed) and self.bus.has_subscribers(SchemaChanged):
            name = "" if tracker.roles_changed else session.database.name
            generation = session.database.generation
            changed = SchemaChanged(name, generation, "", frozenset(), tracker.roles_changed, None, time.time())
            self.bus.publish(changed)
        if tracker.routines_changed:
            session.database.reload_catalog()
        if tracker.roles_changed:
            self._welcomes.clear()
            self.pool.reconnect(None)
            for callback in self.on_roles_changed:
                callback()

    # -- SpecialHost -----------------------------------------------------------------------------------------------

    async def make_way(self, session: ClientSession, text: bytes, databases: tuple[str, ...]) -> None:
        """Close what is idle in these databases until the session's run is over."""
        await self._ddl.make_way(session, text, databases)

    def forget_database(self, name: str) -> None:
        """A database may go, or become another."""
        self._welcomes.forget_database(name)
        if not any(session.database.name == name for session in self.sessions.values()):
            self.databases.pop(name, None)

    def run_ended(self, session: ClientSession, stack: AsyncExitStack) -> None:
        """Undo what was held until the end of a run."""
        self.tasks.spawn(stack.aclose(), "end of a database statement")

    async def listen(self, session: ClientSession, channel: str) -> None:
        """Make the shared listener of the session's database hear a channel."""
        await self.listeners.hear(session.database.name, channel)

    def subscribe(self, session: ClientSession, channel: str, *, on: bool) -> None:
        """Add or drop ("": all) a subscription that the listener already hears."""
        self.listeners.subscribe(session.database.name, session, channel, on=on)

    def sync_listener(self, session: ClientSession, then: Callable[[], None]) -> None:
        """Call `then` when the session has every notification sent before now."""
        self.listeners.sync(session.database.name, then)

    def virtual_pid(self, pid: int) -> int:
        """The session that used a backend last."""
        return self.backends.virtual_pid(pid)

    def quarantine(self, session: ClientSession, backend: BackendConnection) -> None:
        """Give the backend back once the cancels sent to it have settled."""
        self.backends.quarantine(session, backend)

    async def rewrite_pids(self, session: ClientSession, text: bytes) -> bytes:
        """Virtual process ids in a statement's text."""
        rewriter = self._pid_rewriter
        if rewriter is None:
            rows = await self.cluster.control.fetch(PID_COLUMNS_QUERY, sorted(PID_RELATIONS))
            rewriter = self._pid_rewriter = PidRewriter({row["relname"]: row["columns"] for row in rows})
        leased = [
            (backend.pid, owner.pid)
            for backend in self.backends.by_pid.values()
            if isinstance(owner := backend.owner, ClientSession) and owner is not session
        ]
        rewritten = rewriter.rewrite(text, session.pid, leased)
        session.rewritten = (text, rewritten)
        return rewritten.text

    @property
    def analyses(self) -> int:
        """How many texts had to be analysed since the server started."""
        return sum(state.analyses for state in self.databases.values())

    async def lend_backends(self, session: ClientSession, pids: set[int]) -> None:
        """Give the idle sessions among `pids` a backend for a moment, so that the engine can signal it.

        pg_terminate_backend() of a session without a backend thus works as it does in PostgreSQL, privileges included.
        """
        for pid in pids:
            target = self.sessions.get(pid)
            if target is None or target is session or not target.can_borrow():
                continue
            backend = await lease(target.block, target.context)
            if target.can_borrow():
                backend.owner = target
                backend.last_session_pid = target.pid
                target.backend = backend
                asyncio.get_running_loop().call_later(_LENT_SECONDS, self._take_back, target, backend)
            else:
                target.block.release(backend)

    def _take_back(self, target: ClientSession, backend: BackendConnection) -> None:
        if target.backend is backend and target.phase is Phase.IDLE and target.status == READY_IDLE and not target.pins:
            target.release()

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

    def engine_lost(self) -> None:
        """Every backend is dead: what was learned from the engine before is void."""
        self._welcomes.clear()

    async def _open_tunnel(self, client: AuthenticatedClient) -> None:
        """A replication connection: logged in as the client's role, then spliced."""
        pid, secret = self._new_pid(), secrets.token_bytes(4)

        def lost() -> None:
            self._tunnels.pop(pid, None)
            client.slot.release()

        credentials = self.backends.credentials(client.identity.role)
        backend = await open_tunnel(client, self.cluster.address, credentials, (pid, secret), lost)
        self._tunnels[pid] = (secret, backend)

    def _new_pid(self) -> int:
        while True:
            pid = self._next_pid
            self._next_pid = _FIRST_VIRTUAL_PID if pid >= _LAST_VIRTUAL_PID else pid + 1
            if pid not in self.sessions and pid not in self._tunnels:
                return pid

    # -- the end ---------------------------------------------------------------------------------------------------

    def kill(self, session: ClientSession, killed_by: str = "") -> None:
        """End a session as pg_terminate_backend does. Its own command, if that is what asks, is answered first."""
        if killed_by and self.bus.has_subscribers(SessionKilled):
            self.bus.publish(SessionKilled(session_info(session), killed_by, "KILL SESSION", time.time()))
        if session.phase is Phase.BUSY:
            session.is_killed = True
        else:
            session.fatal(PgError("57P01", _KILLED, severity="FATAL"))

    def retune(self) -> None:
        """The configuration was read again."""
        self.backends.retune()
        self.max_message_bytes = self.config.session.max_message_bytes

    async def close(self) -> None:
        """End everything that is left."""
        self.is_draining = True
        for session in list(self.sessions.values()):
            session.fatal(PgError("57P01", _KILLED, severity="FATAL"))
        for _, backend in list(self._tunnels.values()):
            backend.transport.close()
        self.listeners.close()
        self.backends.close()
        await self.tasks.close()
