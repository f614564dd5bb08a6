"""Statement understanding: what a Query or Parse text is, needs and leaves behind in the session, before it runs.

Two layers. *Facts* are what the text says by itself; they are kept by exact text and by template (the text with its
constants taken out), so a text that differs from a known one only in constants is never parsed. *Resolution* holds
the facts against one database's catalog, which knows what its functions and relations may hide; its results live in
`DatabaseCatalog.cache`.

Called by a session for every text that is not in that cache, on the event loop. Synchronous; never raises for any
bytes; no text can end the process, because `sql_parser` asks `sql_guard` first.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from engine.catalog import DatabaseCatalog
from server import sql_parser
from server.statement_draft import CATALOG, HIDDEN, SEQUENCE
from server.statement_facts import Scope, StatementFacts, TextFacts
from server.statement_info import Effect, EffectKind, Kind, Needs, PinReason, QueryInfo, StatementInfo
from server.statement_reader import OPAQUE, read_text

StatementCatalog = DatabaseCatalog[QueryInfo]

EXPENSIVE_BYTES = 4096
"""A longer text takes more than about two milliseconds to understand: see `Analyzer.is_expensive`."""

_MAX_CONSOLE_BYTES = 4096
_MAX_SHAPE_BYTES = 1024
_SIMPLE_TEXT = re.compile(rb"[A-Za-z0-9_ \t\r\n,.*=<>()+;-]*")
_INTEGERS = re.compile(rb"(?<![A-Za-z0-9_.])[0-9]+(?![A-Za-z0-9_.])")
_CATALOG_RELOAD = Effect(EffectKind.CATALOG, value="reload")
_LISTEN_AMONG_OTHERS = Effect(EffectKind.PIN, PinReason.LISTEN)
_EMPTY = QueryInfo((StatementInfo(Kind.EMPTY, ""),), is_plain=True)


class Analyzer:
    """Understands statement texts. One a server; its memory is bounded by `max_entries` texts and as many templates."""

    def __init__(
        self, console_match: Callable[[str], object | None] = lambda text: None, *, max_entries: int = 4096
    ) -> None:
        self._console_match = console_match
        self._max_entries = max_entries
        self._texts: dict[bytes, TextFacts] = {}
        self._templates: dict[bytes, TextFacts] = {}
        self._shapes: dict[bytes, int] = {}
        self._next_template_id = 1

    def analyse(self, text: bytes, catalog: StatementCatalog) -> QueryInfo:
        """What `text` is in `catalog`'s database. Remembers the answer in `catalog.cache`."""
        info = catalog.cache.get(text)
        if info is not None:
            return info
        shape = _shape(text)
        if shape is not None and (template_id := self._shapes.get(shape)) is not None:
            info = catalog.templates.get(template_id)
            if info is not None:
                return info
        info = self._console_command(text) or self._analyse_sql(text, catalog)
        if shape is not None and info.template_id and catalog.templates.get(info.template_id) is info:
            if len(self._shapes) >= self._max_entries:
                self._shapes.clear()
            self._shapes[shape] = info.template_id
        catalog.remember(text, info)
        return info

    @staticmethod
    def is_expensive(text: bytes) -> bool:
        """Whether a text that is not known yet should be read in a thread: `read` there, then `learn` and `analyse`."""
        return len(text) > EXPENSIVE_BYTES

    def is_known(self, text: bytes) -> bool:
        """Whether `analyse` can do without reading `text` again."""
        return text in self._texts

    @staticmethod
    def read(text: bytes) -> TextFacts:
        """What `text` says by itself. Safe in a thread: the parser lets go of the interpreter lock."""
        return read_text(text)

    def learn(self, text: bytes, facts: TextFacts) -> TextFacts:
        """Keep what `read` found, for `analyse`."""
        _bound(self._texts, self._max_entries)
        self._texts[text] = facts
        return facts

    def facts(self, text: bytes) -> TextFacts:
        """What `text` says by itself, from the caches where possible. Long texts rarely repeat with other constants."""
        facts = self._texts.get(text)
        if facts is not None:
            return facts
        if self.is_expensive(text):
            return self.learn(text, read_text(text))
        facts = self._template_facts(text)
        return self.learn(text, facts) if facts.is_constant_bound else facts

    def _template_facts(self, text: bytes) -> TextFacts:
        template = sql_parser.normalize(text)
        if template is None:
            return OPAQUE
        known = self._templates.get(template)
        if known is not None and not known.is_constant_bound:
            return known
        facts = read_text(text)
        template_id = known.template_id if known is not None else self._new_template_id()
        facts = TextFacts(facts.statements, template_id, facts.is_opaque)
        _bound(self._templates, self._max_entries)
        self._templates[template] = facts
        return facts

    def _new_template_id(self) -> int:
        self._next_template_id += 1
        return self._next_template_id - 1

    def _console_command(self, text: bytes) -> QueryInfo | None:
        if len(text) > _MAX_CONSOLE_BYTES:
            return None
        try:
            command = self._console_match(text.decode())
        except UnicodeDecodeError:
            return None
        if command is None:
            return None
        statement = StatementInfo(Kind.ADMIN, "")
        return QueryInfo((statement,), is_plain=False, needs=Needs.ADMIN, console_command=command)

    def _analyse_sql(self, text: bytes, catalog: StatementCatalog) -> QueryInfo:
        facts = self.facts(text)
        if facts.is_constant_bound or not facts.template_id:
            return resolve(facts, catalog)
        info = catalog.templates.get(facts.template_id)
        if info is None:
            info = resolve(facts, catalog)
            catalog.remember_template(facts.template_id, info)
        return info


def _shape(text: bytes) -> bytes | None:
    """`text` with its whole numbers taken out, where that needs no parser; None where it might.

    A text of nothing but plain words, numbers and these signs has no quotes, comments, dollars or backslashes: a run of
    digits that touches no word or point is an integer constant there, wherever it stands. Two texts of one shape
    thus have one
    template, and what is known of the template holds unless it depends on constants (then no shape is kept).
    """
    if len(text) > _MAX_SHAPE_BYTES or _SIMPLE_TEXT.fullmatch(text) is None or b"--" in text:
        return None
    return _INTEGERS.sub(b"0", text)


def resolve(facts: TextFacts, catalog: StatementCatalog) -> QueryInfo:
    """Hold `facts` against what the database's functions and relations may hide."""
    if not facts.statements:
        return _EMPTY
    needs = Needs.NOTHING
    databases: list[str] = []
    statements = []
    for statement in facts.statements:
        needs |= statement.needs
        databases.extend(statement.databases)
        statements.append(_resolve_statement(statement, catalog, alone=len(facts.statements) == 1))
    if len(statements) == 1 and facts.statements[0].effects and _is_listen(facts.statements[0]):
        needs |= Needs.LISTENER
    refusal = next((one.refusal for one in facts.statements if one.refusal is not None), None)
    if refusal is not None:
        needs |= Needs.REFUSE
    kinds = [effect.kind for statement in statements for effect in statement.effects]
    return QueryInfo(
        tuple(statements),
        is_plain=not kinds and not needs,
        needs=needs,
        databases=tuple(dict.fromkeys(databases)),
        refusal=refusal,
        template_id=facts.template_id,
        has_effects=bool(kinds),
        begins_transaction=EffectKind.BEGIN in kinds,
        reads_sequence=EffectKind.SEQUENCE_READ in kinds,
    )


def _is_listen(statement: StatementFacts) -> bool:
    return statement.effects[0].kind in (EffectKind.LISTEN, EffectKind.UNLISTEN)


def _resolve_statement(facts: StatementFacts, catalog: StatementCatalog, *, alone: bool) -> StatementInfo:
    mentions = facts.mentions
    hides = catalog.may_hide_state(mentions, is_ddl=bool(facts.scope))
    effects = [effect for effect in facts.effects if _stands(effect, facts, catalog)]
    if (hides or facts.scope & Scope.ROUTINES) and HIDDEN not in effects:
        # New code may be called in the same transaction, before the catalog can be read again.
        effects.append(HIDDEN)
    if catalog.calls_sequence(mentions.functions):
        effects.append(SEQUENCE)
    if CATALOG in effects and (facts.scope & (Scope.ROUTINES | Scope.SEQUENCES) or hides):
        effects[effects.index(CATALOG)] = _CATALOG_RELOAD
    if not alone and facts.effects and _is_listen(facts):
        effects.append(_LISTEN_AMONG_OTHERS)
    return StatementInfo(
        kind=facts.kind,
        tag=facts.tag,
        effects=tuple(dict.fromkeys(effects)),
        relations_read=frozenset(mentions.relations_read),
        relations_written=frozenset(mentions.relations_written),
        functions=frozenset(mentions.functions),
        name=facts.name,
    )


def _stands(effect: Effect, facts: StatementFacts, catalog: StatementCatalog) -> bool:
    """Whether an effect holds in this database: an INSERT advances a sequence only where a default calls one."""
    if effect.kind is not EffectKind.SEQUENCE or effect.argument != "insert":
        return True
    return catalog.advances_sequence(facts.mentions.relations_written)


def _bound(cache: dict[bytes, TextFacts], limit: int) -> None:
    """Make room for one entry; the older half goes."""
    if len(cache) >= limit:
        for oldest in list(cache)[: len(cache) // 2 + 1]:
            del cache[oldest]
