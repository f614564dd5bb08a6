"""Understands the body of a stored routine, for the catalog's proof: the reader that `engine.catalog_load` is given."""

from __future__ import annotations

from dataclasses import replace

from engine.catalog_load import RoutineFacts, RoutineSource
from server.statement_facts import BodyFacts, Scope
from server.statement_info import EffectKind
from server.statement_reader import read_plpgsql_body, read_sql_body


def read_routine(source: RoutineSource) -> RoutineFacts:
    """What `source` names, and whether its text alone shows it unproved. DDL inside counts: it may define anything."""
    text = source.text.encode()
    if source.language == "plpgsql":
        body = read_plpgsql_body(text)
    else:
        body = read_sql_body(text)
        if source.is_definition:
            body = replace(body, scope=Scope.NOTHING)  # the CREATE FUNCTION around it is not run
    kinds = {effect.kind for effect in body.effects}
    mentions = body.mentions
    return RoutineFacts(
        is_unproved=body.is_unproved or bool(body.scope) or EffectKind.PIN in kinds,
        functions=frozenset(mentions.functions),
        relations_read=frozenset(mentions.relations_read),
        relations_written=frozenset(mentions.relations_written),
        operators=frozenset(mentions.operators),
        types=frozenset(mentions.types),
        attributes=frozenset(mentions.attributes),
        advances_sequence=_mentions_nextval(body),
    )


def _mentions_nextval(body: BodyFacts) -> bool:
    return any(name in ("nextval", "setval") for _, name in body.mentions.functions)
