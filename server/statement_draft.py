"""What is known of one statement while it is being read, and the effects that many statements share."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.sql_parser import Node
from server.statement_facts import Mentions, Scope
from server.statement_info import Effect, EffectKind, Kind, Needs, PinReason

HIDDEN = Effect(EffectKind.PIN, PinReason.HIDDEN_STATE)
TEMPORARY = Effect(EffectKind.PIN, PinReason.TEMP_TABLE)
TEMPORARY_IN_TRANSACTION = Effect(EffectKind.PIN, PinReason.TEMP_TABLE, "transaction")
SETTLE = Effect(EffectKind.SETTLE)
CATALOG = Effect(EffectKind.CATALOG)
SEQUENCE = Effect(EffectKind.SEQUENCE)
INSERTS = Effect(EffectKind.SEQUENCE, "insert")


@dataclass(slots=True)
class Draft:
    """What is known of one statement while its functions look at it."""

    name: str
    node: Node
    mentions: Mentions
    calls: list[Node]
    kind: Kind = Kind.DDL
    effects: list[Effect] = field(default_factory=list)
    needs: Needs = Needs.NOTHING
    scope: Scope = Scope.NOTHING
    databases: tuple[str, ...] = ()
    object_name: str = ""
    refusal: tuple[str, str, str] | None = None  # SQLSTATE, message, detail
    constant_bound: bool = False
    certain: list[Node] = field(default_factory=list)
    runs_calls: bool = True  # false for plain EXPLAIN and for DDL that only stores its expressions
