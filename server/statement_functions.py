"""Direct calls of PostgreSQL's own functions that leave something behind or answer about the session: effects and
needs by name.

Only names are known here: a user's function of the same name in another schema gets the same effects, and the
resolution against the catalog adds what it may hide.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.sql_parser import Node
from server.statement_info import Effect, EffectKind, Needs, PinReason
from server.statement_settings import constant_text, set_config_effects
from server.statement_walk import qualified

_LOCK = Effect(EffectKind.PIN, PinReason.ADVISORY_LOCK)
_SETTLE = Effect(EffectKind.SETTLE)
_SEQUENCE = Effect(EffectKind.SEQUENCE)
_SEQUENCE_READ = Effect(EffectKind.SEQUENCE_READ)

_FIXED_EFFECTS: dict[str, Effect] = {
    "setseed": Effect(EffectKind.PIN, PinReason.RANDOM_SEED),
    "pg_advisory_lock": _LOCK,
    "pg_advisory_lock_shared": _LOCK,
    "pg_try_advisory_lock": _LOCK,
    "pg_try_advisory_lock_shared": _LOCK,
    "pg_advisory_unlock": _SETTLE,
    "pg_advisory_unlock_shared": _SETTLE,
    "pg_advisory_unlock_all": _SETTLE,
    "nextval": _SEQUENCE,
    "setval": _SEQUENCE,
    "currval": _SEQUENCE_READ,
    "lastval": _SEQUENCE_READ,
}

PID_FUNCTIONS = frozenset(
    {
        "pg_backend_pid",
        "pg_cancel_backend",
        "pg_terminate_backend",
        "pg_blocking_pids",
        "pg_safe_snapshot_blocking_pids",
        "pg_log_backend_memory_contexts",
    }
)
PID_RELATIONS = frozenset(
    {
        "pg_stat_activity",
        "pg_locks",
        "pg_stat_ssl",
        "pg_stat_gssapi",
        "pg_stat_progress_analyze",
        "pg_stat_progress_basebackup",
        "pg_stat_progress_cluster",
        "pg_stat_progress_copy",
        "pg_stat_progress_create_index",
        "pg_stat_progress_vacuum",
        "pg_stat_replication",
        "pg_replication_slots",
    }
)
_NAMED_STATE_FUNCTIONS = frozenset({"pg_prepared_statement", "pg_cursor", "pg_listening_channels"})
_NAMED_STATE_RELATIONS = frozenset({"pg_prepared_statements", "pg_cursors"})


@dataclass(frozen=True, slots=True)
class CallEffects:
    """What the function calls of one statement amount to."""

    effects: tuple[Effect, ...] = ()
    constant_bound: bool = False


def call_effects(calls: list[Node], certain: list[Node]) -> CallEffects:
    """Effects of the calls of one statement; those in `certain` are evaluated exactly once, in that order.

    The walk meets calls in no useful order: the certain ones come first, as they stand in the text.
    """
    effects: list[Effect] = []
    constant_bound = False
    order = certain + [call for call in calls if not any(call is known for known in certain)]
    for call in order:
        schema, name = qualified(call.get("funcname"))
        if schema not in ("", "pg_catalog"):
            continue
        if name == "set_config":
            constant_bound = True
            runs_once = any(call is known for known in certain)
            effects.extend(set_config_effects(call.get("args", []), runs_once))
        elif name == "pg_notify":
            constant_bound = True
            effects.append(Effect(EffectKind.NOTIFY, constant_text((call.get("args") or [{}])[0]) or ""))
        elif name in _FIXED_EFFECTS:
            effects.append(_FIXED_EFFECTS[name])
    # A lock and an unlock in one statement leave it unknown which came last: the pin stands, then the engine is asked.
    effects.sort(key=lambda effect: effect.kind is EffectKind.SETTLE)
    return CallEffects(tuple(dict.fromkeys(effects)), constant_bound)


def certain_calls(select: Node) -> list[Node]:
    """The calls of `SELECT f(...), g(...)`, which PostgreSQL evaluates once each and in order; none where anything
    may differ.
    """
    if set(select) - {"targetList", "limitOption", "op"} or select.get("op") != "SETOP_NONE":
        return []
    values = [target["ResTarget"].get("val", {}) for target in select.get("targetList", ())]
    return [value["FuncCall"] for value in values if "FuncCall" in value]


def naming_needs(functions: set[tuple[str, str]], relations: set[tuple[str, str]]) -> Needs:
    """What the engine must be told, or the text be changed, because it asks about this session."""
    needs = Needs.NOTHING
    function_names = _builtin_names(functions)
    relation_names = _builtin_names(relations)
    if function_names & PID_FUNCTIONS or relation_names & PID_RELATIONS:
        needs |= Needs.REWRITE_PIDS
    if function_names & _NAMED_STATE_FUNCTIONS or relation_names & _NAMED_STATE_RELATIONS:
        needs |= Needs.MATERIALISE
    return needs


def _builtin_names(names: set[tuple[str, str]]) -> set[str]:
    return {name for schema, name in names if schema in ("", "pg_catalog")}
