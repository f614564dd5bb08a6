"""What a transaction does to the virtual session, and how the session learns what is left of it.

While a run goes on, an `EffectTracker` notes what completed. When the transaction has ended (status `I`), the engine is
asked for the truth instead of modelling commits, rollbacks and savepoints: reported settings are known from
ParameterStatus; the others that were touched, and whatever may have ended a pin, are read by one statement of our own,
before the backend can go to anyone else. The client has its ReadyForQuery by then.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from protocol.errors import PgError
from protocol.expectations import HiddenReplies
from server.context import DERIVED_NAMES, REPORTED_NAMES, quote_literal
from server.statement_info import Effect, EffectKind, PinReason, QueryInfo
from server.statement_reader import deferred_effects

if TYPE_CHECKING:
    from engine.connection import BackendConnection
    from server.session import ClientSession

_PROVABLE: Final = {
    PinReason.ADVISORY_LOCK: (
        "(SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())"
    ),
    PinReason.HELD_CURSOR: "(SELECT count(*) FROM pg_catalog.pg_cursors)",
    PinReason.TEMP_TABLE: (
        "(SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema())"
    ),
}
"""Pins that the engine can prove ended: a count of what is still there."""

REFUSED_ENCODINGS: Final = frozenset({"SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"})

_SESSION_CHARACTERISTICS: Final = (
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
)


class EffectTracker:
    """One transaction's effects on one session. Made when the first statement with an effect is sent."""

    __slots__ = (
        "_expected",
        "_savepoints",
        "catalog_changed",
        "deallocated",
        "listens",
        "must_prove",
        "notified",
        "reverted",
        "roles_changed",
        "rolled_back",
        "routines_changed",
        "touched",
    )

    def __init__(self) -> None:
        self._expected: deque[tuple[Effect, ...]] = deque()
        self.touched: dict[str, bool] = {}  # lower-case setting name -> whether its last change was a RESET
        self.must_prove = False
        self.catalog_changed = False
        self.roles_changed = False
        self.routines_changed = False
        self.notified = False
        self.rolled_back = False
        self.reverted = False  # something was rolled back: a setting that was reset may not be
        self.listens: list[Effect] = []
        self._savepoints: list[tuple[str, int]] = []  # names, and how many `listens` came before

    def expect(self, effects: tuple[Effect, ...]) -> None:
        """One more completion will come; these are its effects."""
        self._expected.append(effects)

    def completed(self, session: ClientSession, tag: bytes | None) -> None:
        """The next expected statement completed; with no tag it stopped at its row limit, and may go on."""
        effects = self._expected.popleft() if self._expected else ()
        if tag is None:
            return
        if tag == b"COMMIT":
            self.rolled_back = False
        for effect in effects:
            if effect.kind is EffectKind.ROLLBACK or (tag == b"ROLLBACK" and effect.kind is EffectKind.COMMIT):
                self.rolled_back = self.reverted = True
                self.listens.clear()
                self._savepoints.clear()
            self._apply(session, effect)

    def failed(self, session: ClientSession) -> None:
        """The run failed: only the next statement can have run in part, and what follows it will not complete."""
        while len(self._expected) > 1:
            self._expected.pop()
        self.abandon(session)
        self.rolled_back = self.reverted = self.must_prove = True

    def abandon(self, session: ClientSession) -> None:
        """What is expected may run without our hearing of it: locks and sequence values outlive even a rollback."""
        for effects in self._expected:
            for effect in effects:
                if effect.kind is EffectKind.PIN or effect.kind is EffectKind.SEQUENCE:
                    self._apply(session, effect)
        self._expected.clear()

    @property
    def advances_sequence(self) -> bool:
        """Whether something is under way that may advance a sequence."""
        return any(effect.kind is EffectKind.SEQUENCE for effects in self._expected for effect in effects)

    def reported(self, name: str) -> None:
        """ParameterStatus: the setting changed, whoever changed it."""
        lower = name.lower()
        if lower not in DERIVED_NAMES:
            self.touched.setdefault(lower, False)

    def _apply(self, session: ClientSession, effect: Effect) -> None:
        kind = effect.kind
        if kind is EffectKind.SET:
            if effect.argument == "session characteristics":
                for name in _SESSION_CHARACTERISTICS:
                    self.touched[name] = False
            else:
                self.touched[effect.argument] = False
        elif kind is EffectKind.RESET:
            self.touched[effect.argument] = True
        elif kind is EffectKind.RESET_ALL:
            self._reset_all(session)
        elif kind is EffectKind.PIN:
            session.pins.add(effect.argument)
            if effect.argument in _PROVABLE:
                self.must_prove = True
            elif effect.argument == PinReason.HIDDEN_STATE:
                session.database.check_catalog()
        elif kind is EffectKind.SETTLE or kind is EffectKind.ROLLBACK:
            self.must_prove = True
        elif kind is EffectKind.SAVEPOINT:
            self._savepoints.append((effect.argument, len(self.listens)))
        elif kind is EffectKind.RELEASE:
            self._release(effect.argument)
        elif kind is EffectKind.ROLLBACK_TO:
            self._roll_back_to(effect.argument)
        elif kind is EffectKind.SESSION_AUTHORIZATION:
            session.pins.add(PinReason.SESSION_AUTHORIZATION)
            self.touched["role"] = True  # it ends a SET ROLE
        elif kind is EffectKind.DISCARD_ALL:
            self._discard_all(session)
        elif kind is EffectKind.DISCARD_TEMP:
            self.must_prove = True
        elif kind is EffectKind.DEALLOCATE:
            deallocate(session, effect.argument)
        elif kind is EffectKind.CATALOG:
            self.catalog_changed = True
            self.routines_changed = self.routines_changed or effect.value == "reload"
            session.database.bump_generation()
        elif kind is EffectKind.ROLES:
            self.roles_changed = True
        elif kind is EffectKind.LISTEN or kind is EffectKind.UNLISTEN:
            self.listens.append(effect)
        elif kind is EffectKind.NOTIFY:
            self.notified = True
        elif kind is EffectKind.SEQUENCE:
            session.advanced_sequence()

    def _roll_back_to(self, savepoint: str) -> None:
        """A LISTEN behind the savepoint did not happen."""
        self.reverted = self.must_prove = True
        for index in reversed(range(len(self._savepoints))):
            name, listens = self._savepoints[index]
            if name == savepoint:
                del self._savepoints[index + 1 :]
                del self.listens[listens:]
                return

    def _release(self, savepoint: str) -> None:
        """The savepoint and those behind it are no more; an older one may have its name."""
        for index in reversed(range(len(self._savepoints))):
            if self._savepoints[index][0] == savepoint:
                del self._savepoints[index:]
                return

    def _reset_all(self, session: ClientSession) -> None:
        for name in (*session.context.settings, *session.baseline.settings, *self.touched):
            if name != "role":
                self.touched[name] = True

    def _discard_all(self, session: ClientSession) -> None:
        self._reset_all(session)
        self.touched["role"] = True
        deallocate(session, "")
        session.pins &= {PinReason.RANDOM_SEED, PinReason.LOAD}
        session.is_materialised = False
        self.listens.append(Effect(EffectKind.UNLISTEN, ""))

    # -- when the transaction has ended ----------------------------------------------------------------------------

    def settle(self, session: ClientSession) -> None:
        """Learn what is left, put it into the session, and let the session go on (`session.settled`)."""
        backend = session.backend
        is_foreign = backend is not None and python_encoding(backend.reported.get("client_encoding", "UTF8"))
        names = [
            name
            for name in self.touched
            if name not in REPORTED_NAMES or (is_foreign and name == "search_path")  # the only one that is not ASCII
        ]
        reasons = [reason for reason in session.pins if reason in _PROVABLE] if self.must_prove else []
        if backend is None or not (names or reasons):
            self._finish(session, names, reasons, None)
            return
        columns = [f"pg_catalog.current_setting({quote_literal(name)}, true)" for name in names]
        columns += [_PROVABLE[reason] for reason in reasons]

        def answered(reply: HiddenReplies) -> None:
            self._finish(session, names, reasons, reply)

        backend.send_hidden("SELECT " + ", ".join(columns), answered)

    def _finish(
        self, session: ClientSession, names: list[str], reasons: list[str], reply: HiddenReplies | None
    ) -> None:
        backend = session.backend
        if backend is None:
            session.settled()
            return
        values: list[bytes | None] = []
        if reply is not None:
            if reply.error is not None and reply.error.sqlstate == "57014":
                self.settle(session)  # a late cancel of the client's statement hit ours: ask again
                return
            if reply.error is not None or not reply.rows:
                session.is_tainted = True
                session.fatal(
                    reply.error or PgError("08006", "the engine did not tell the session's settings", severity="FATAL")
                )
                return
            values = reply.rows[0]
        for reason, count in zip(reasons, values[len(names) :], strict=True):
            if count == b"0":
                session.pins.discard(reason)
        if self.touched:
            codec = python_encoding(backend.reported.get("client_encoding", "UTF8")) or "utf-8"
            known = {
                name: value.decode(codec, errors="replace") if value is not None else None
                for name, value in zip(names, values, strict=False)
            }
            self._settle_settings(session, backend, known)
        if self.catalog_changed or self.roles_changed or self.listens or self.routines_changed:
            if self.catalog_changed:
                session.database.bump_generation()
            session.host.statement_settled(session, self)
        session.settled()

    def _settle_settings(
        self, session: ClientSession, backend: BackendConnection, known: dict[str, str | None]
    ) -> None:
        """Work the touched settings into the backend's and the session's context."""
        old = session.context.settings
        now = dict(old)
        wanted_again: dict[str, str] = {}
        for name, was_reset in self.touched.items():
            reported_as = REPORTED_NAMES.get(name)
            if reported_as is None or name in known:
                value = known.get(name)
            else:
                value = backend.reported.get(reported_as)
            if value is None or (name == "role" and value == "none"):
                now.pop(name, None)
            elif was_reset and (value != old.get(name) or not self.reverted):
                now.pop(name, None)
                if name in session.baseline.settings:
                    wanted_again[name] = session.baseline.settings[name]
            elif name in old or reported_as is None or value != session.defaults.get(reported_as):
                now[name] = value
        contexts = session.database.contexts
        backend.context = contexts.intern(now)
        session.context = contexts.intern({**now, **wanted_again}) if wanted_again else backend.context
        session.encoding = python_encoding(backend.reported.get("client_encoding", "UTF8"))
        encoding = backend.reported.get("client_encoding", "UTF8")
        if encoding in REFUSED_ENCODINGS or backend.reported.get("standard_conforming_strings") == "off":
            session.is_tainted = True
            session.fatal(
                PgError(
                    "0A000",
                    "the session's lexer settings changed to what RustyDB does not allow",
                    detail=f"client_encoding is {encoding}.",
                    hint="Keep standard_conforming_strings on and use a client encoding that is safe on the server.",
                    severity="FATAL",
                )
            )


def pin_deferred(session: ClientSession, info: QueryInfo) -> bool:
    """A statement can now be run by SQL's EXECUTE, which does not show what it does: pin for it, as PREPARE does.

    Returns whether it may advance a sequence.
    """
    advances = False
    for statement in info.statements:
        for effect in deferred_effects(statement.effects):
            if effect.kind is EffectKind.PIN:
                session.pins.add(effect.argument)
            else:
                advances = True
    return advances


def deallocate(session: ClientSession, name: str) -> None:
    """Forget a prepared statement ("": all of them), after the engine has."""
    if name:
        if session.prepared is not None:
            session.prepared.pop(name.encode(), None)
        return
    session.prepared = None
    session.is_materialised = False
    session.pins -= {PinReason.SQL_PREPARE, PinReason.SESSION_CATALOG}
    if session.backend is not None:
        session.backend.prepared.clear()


_ENCODINGS: Final = {
    "UTF8": None,
    "SQL_ASCII": None,
    "UNICODE": None,
    "LATIN1": "latin-1",
    "LATIN2": "iso8859-2",
    "LATIN3": "iso8859-3",
    "LATIN4": "iso8859-4",
    "LATIN5": "iso8859-9",
    "LATIN6": "iso8859-10",
    "LATIN7": "iso8859-13",
    "LATIN8": "iso8859-14",
    "LATIN9": "iso8859-15",
    "LATIN10": "iso8859-16",
    "WIN1250": "cp1250",
    "WIN1251": "cp1251",
    "WIN1252": "cp1252",
    "WIN1253": "cp1253",
    "WIN1254": "cp1254",
    "WIN1255": "cp1255",
    "WIN1256": "cp1256",
    "WIN1257": "cp1257",
    "WIN1258": "cp1258",
    "WIN866": "cp866",
    "WIN874": "cp874",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "ISO_8859_5": "iso8859-5",
    "ISO_8859_6": "iso8859-6",
    "ISO_8859_7": "iso8859-7",
    "ISO_8859_8": "iso8859-8",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
    "EUC_CN": "gb2312",
}


def python_encoding(client_encoding: str) -> str | None:
    """The codec in which statement texts come; None where they are UTF-8 already. Unknown ones are read as Latin 1."""
    return _ENCODINGS.get(client_encoding, "latin-1")
