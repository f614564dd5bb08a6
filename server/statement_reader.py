"""From text to facts: parses, and reads each statement with the reader of its type.

The readers of statements that hold other statements (EXPLAIN, PREPARE, DO) are here, because they come back to
`read_statement`.
"""

from __future__ import annotations

from dataclasses import replace

from server import sql_parser, statement_ddl, statement_effects
from server.plpgsql_walk import embedded_queries
from server.sql_parser import Node
from server.statement_draft import CATALOG, HIDDEN, Draft
from server.statement_facts import BodyFacts, Mentions, Scope, StatementFacts, TextFacts
from server.statement_functions import call_effects, naming_needs
from server.statement_info import Effect, EffectKind, Kind, Needs, PinReason
from server.statement_tags import tag_of
from server.statement_walk import strings, walk

_UNREADABLE = StatementFacts(Kind.OPAQUE, "", Mentions(), (HIDDEN, CATALOG), scope=Scope.ROUTINES)
OPAQUE = TextFacts((_UNREADABLE,), is_opaque=True)
"""Beyond our bounds, or rejected by the grammar. Effects are those of a statement that completed: rejected text never
does.
"""

UNPROVED_BODY = BodyFacts(Mentions(), scope=Scope.ROUTINES, is_unproved=True)

_LASTING = frozenset(
    {
        EffectKind.SET,
        EffectKind.RESET,
        EffectKind.RESET_ALL,
        EffectKind.SESSION_AUTHORIZATION,
        EffectKind.DISCARD_ALL,
        EffectKind.DISCARD_TEMP,
        EffectKind.LISTEN,
        EffectKind.UNLISTEN,
        EffectKind.DEALLOCATE,
    }
)
"""Effects that outlive the transaction they come about in."""


def read_text(text: bytes) -> TextFacts:
    """Parse `text` and say what each statement is; OPAQUE where it cannot be parsed."""
    statements = sql_parser.parse(text)
    if statements is None:
        return OPAQUE
    return TextFacts(tuple(read_statement(statement["stmt"]) for statement in statements if "stmt" in statement))


def read_statement(wrapped: Node) -> StatementFacts:
    """Facts of one statement node, e.g. {"SelectStmt": {...}}."""
    name, node = next(iter(wrapped.items()))
    mentions = Mentions()
    draft = Draft(name, node, mentions, walk(wrapped, mentions))
    _READERS.get(name, statement_ddl.read_ddl)(draft)
    if draft.runs_calls:
        called = call_effects(draft.calls, draft.certain)
        draft.effects.extend(called.effects)
        draft.constant_bound = draft.constant_bound or called.constant_bound
    return StatementFacts(
        kind=draft.kind,
        tag=tag_of(name, node),
        mentions=mentions,
        effects=tuple(draft.effects),
        needs=draft.needs | naming_needs(mentions.functions, mentions.relations_read),
        scope=draft.scope,
        databases=draft.databases,
        name=draft.object_name,
        constant_bound=draft.constant_bound,
        refusal=draft.refusal,
    )


def _read_explain(draft: Draft) -> None:
    wrapped = draft.node.get("query", {})
    inner = read_statement(wrapped) if wrapped else None
    analyzes = any(_option_is_on(option["DefElem"], "analyze") for option in draft.node.get("options", ()))
    draft.kind = Kind.READ
    draft.runs_calls = False
    if inner is None:
        return
    draft.needs |= inner.needs
    draft.constant_bound = inner.constant_bound or "options" in draft.node
    if analyzes:
        draft.kind = inner.kind
        draft.effects.extend(inner.effects)
        draft.scope = inner.scope
    else:
        draft.mentions.relations_read |= draft.mentions.relations_written
        draft.mentions.relations_written.clear()


def _option_is_on(option: Node, name: str) -> bool:
    if option.get("defname") != name:
        return False
    argument = option.get("arg")
    if argument is None:
        return True
    word = strings([argument])[0].lower() if "String" in argument else str(argument.get("Integer", {}).get("ival", 0))
    return word not in ("false", "off", "0")


def _read_prepared(draft: Draft) -> None:
    draft.kind = Kind.PREPARED
    draft.object_name = draft.node.get("name", "")
    if draft.name == "DeallocateStmt":
        draft.effects.append(Effect(EffectKind.DEALLOCATE, draft.object_name))
        if draft.object_name:
            draft.needs |= Needs.MATERIALISE
        return
    draft.needs |= Needs.MATERIALISE
    if draft.name == "PrepareStmt":
        # Its effects come with each EXECUTE, which does not show them: the pins are taken now.
        inner = read_statement(draft.node["query"])
        draft.effects.append(Effect(EffectKind.PIN, PinReason.SQL_PREPARE))
        draft.effects.extend(deferred_effects(inner.effects))
        draft.runs_calls = False


def deferred_effects(effects: tuple[Effect, ...]) -> list[Effect]:
    """What effects that will come about unseen mean now: pins stay, whatever else outlives the transaction becomes a
    pin.
    """
    deferred: dict[Effect, None] = {}
    for effect in effects:
        if effect.kind is EffectKind.PIN:
            deferred[effect] = None
        elif effect.kind in _LASTING:
            deferred[Effect(EffectKind.PIN, PinReason.COMPUTED_SETTING)] = None
        elif effect.kind in (EffectKind.SEQUENCE, EffectKind.SEQUENCE_READ):
            deferred[effect] = None
    return list(deferred)


# -- bodies of routines ----------------------------------------------------------------------------------------------


def read_sql_body(text: bytes) -> BodyFacts:
    """Facts of the statements of an SQL-language routine, or of a whole CREATE FUNCTION ... BEGIN ATOMIC text."""
    facts = read_text(text)
    return UNPROVED_BODY if facts.is_opaque else _body_facts(list(facts.statements))


def read_plpgsql_body(create_text: bytes) -> BodyFacts:
    """Facts of a PL/pgSQL routine, given its whole CREATE FUNCTION text, or of a DO text."""
    functions = sql_parser.parse_plpgsql(create_text)
    if functions is None:
        return UNPROVED_BODY
    found = embedded_queries(functions)
    statements = []
    for query in found.queries:
        parsed = sql_parser.parse(query.text.encode(), query.mode)
        if parsed is None:
            return UNPROVED_BODY
        statements += [read_statement(statement["stmt"]) for statement in parsed if "stmt" in statement]
    facts = _body_facts(statements)
    facts.mentions.types |= {("", name) for name in found.types}
    return replace(facts, is_unproved=True) if found.is_dynamic else facts


def _body_facts(statements: list[StatementFacts]) -> BodyFacts:
    mentions, scope = Mentions(), Scope.NOTHING
    effects: dict[Effect, None] = {}
    for statement in statements:
        mentions.add(statement.mentions)
        scope |= statement.scope
        effects.update(dict.fromkeys(deferred_effects(statement.effects)))
    return BodyFacts(mentions, tuple(effects), scope)


def _read_do(draft: Draft) -> None:
    draft.kind = Kind.CALL
    draft.constant_bound = True
    language, body = "plpgsql", ""
    for option in draft.node.get("args", ()):
        value = "".join(strings([option["DefElem"].get("arg", {})]))
        if option["DefElem"].get("defname") == "language":
            language = value.lower()
        else:
            body = value
    facts = read_plpgsql_body(_do_text(body)) if language == "plpgsql" else UNPROVED_BODY
    draft.mentions.add(facts.mentions)
    draft.scope |= facts.scope
    draft.effects.extend(facts.effects)
    if facts.is_unproved:
        draft.effects.append(HIDDEN)
    if facts.scope:
        draft.effects.append(CATALOG)


def _do_text(body: str) -> bytes:
    tag = "$body$"
    while tag in body:
        tag = tag[:-1] + "x$"
    return f"DO {tag}{body}{tag}".encode()


_READERS = {
    **statement_effects.READERS,
    **statement_ddl.READERS,
    "ExplainStmt": _read_explain,
    **dict.fromkeys(("PrepareStmt", "ExecuteStmt", "DeallocateStmt"), _read_prepared),
    "DoStmt": _read_do,
}
