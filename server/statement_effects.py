"""Session effects of queries, transaction control and session objects, one small reader a statement type.

A reader fills a draft; `READERS` maps the name of a node to its reader.
"""

from __future__ import annotations

from collections.abc import Callable

from server.statement_ddl import creates_relation
from server.statement_draft import INSERTS, SETTLE, Draft
from server.statement_functions import certain_calls
from server.statement_info import Effect, EffectKind, Kind, PinReason
from server.statement_settings import variable_set_effects
from server.statement_walk import relation_name

_CURSOR_HOLD = 0x0020  # CURSOR_OPT_HOLD of PostgreSQL's parsenodes.h

# -- queries ---------------------------------------------------------------------------------------------------------


def _read_select(draft: Draft) -> None:
    draft.kind = Kind.WRITE if draft.mentions.writes else Kind.READ
    draft.certain = certain_calls(draft.node)
    into = draft.node.get("intoClause")
    if into is not None:
        creates_relation(draft, into.get("rel", {}), into.get("onCommit"))


def _read_assignment(draft: Draft) -> None:
    draft.kind = Kind.WRITE if draft.mentions.writes else Kind.READ


def _read_write(draft: Draft) -> None:
    draft.kind = Kind.WRITE
    if draft.name in ("InsertStmt", "MergeStmt"):
        draft.effects.append(INSERTS)


def _read_copy(draft: Draft) -> None:
    draft.kind = Kind.COPY
    relation = draft.node.get("relation")
    if relation is not None and draft.node.get("is_from"):
        draft.mentions.relations_written.add(relation_name(relation))
        draft.mentions.relations_read.discard(relation_name(relation))
        draft.effects.append(INSERTS)


def _read_truncate(draft: Draft) -> None:
    draft.kind = Kind.WRITE
    draft.mentions.relations_written |= draft.mentions.relations_read
    draft.mentions.relations_read.clear()


def _read_refresh(draft: Draft) -> None:
    draft.kind = Kind.WRITE
    draft.mentions.relations_written |= draft.mentions.relations_read


def _read_call(draft: Draft) -> None:
    draft.kind = Kind.CALL


# -- transactions and settings ---------------------------------------------------------------------------------------

_TRANSACTION_EFFECTS = {
    "TRANS_STMT_BEGIN": EffectKind.BEGIN,
    "TRANS_STMT_START": EffectKind.BEGIN,
    "TRANS_STMT_COMMIT": EffectKind.COMMIT,
    "TRANS_STMT_ROLLBACK": EffectKind.ROLLBACK,
    "TRANS_STMT_SAVEPOINT": EffectKind.SAVEPOINT,
    "TRANS_STMT_RELEASE": EffectKind.RELEASE,
    "TRANS_STMT_ROLLBACK_TO": EffectKind.ROLLBACK_TO,
    "TRANS_STMT_PREPARE": EffectKind.PREPARE_TRANSACTION,
    "TRANS_STMT_COMMIT_PREPARED": EffectKind.COMMIT_PREPARED,
    "TRANS_STMT_ROLLBACK_PREPARED": EffectKind.ROLLBACK_PREPARED,
}


def _read_transaction(draft: Draft) -> None:
    draft.kind = Kind.TRANSACTION
    node = draft.node
    kind = _TRANSACTION_EFFECTS[node["kind"]]
    draft.effects.append(Effect(kind, node.get("savepoint_name") or node.get("gid") or ""))
    draft.constant_bound = "gid" in node
    if node.get("chain"):
        draft.effects.append(Effect(EffectKind.BEGIN))


def _read_set(draft: Draft) -> None:
    draft.kind = Kind.SET
    draft.constant_bound = True
    draft.effects.extend(variable_set_effects(draft.node))


def _read_discard(draft: Draft) -> None:
    draft.kind = Kind.UTILITY
    target = draft.node.get("target", "DISCARD_ALL")
    if target == "DISCARD_ALL":
        draft.effects.append(Effect(EffectKind.DISCARD_ALL))
    elif target == "DISCARD_TEMP":
        draft.effects.append(Effect(EffectKind.DISCARD_TEMP))


# -- named session objects -------------------------------------------------------------------------------------------


def _read_listen(draft: Draft) -> None:
    draft.kind = Kind.UTILITY
    draft.constant_bound = True
    kind = {"ListenStmt": EffectKind.LISTEN, "UnlistenStmt": EffectKind.UNLISTEN, "NotifyStmt": EffectKind.NOTIFY}
    draft.effects.append(Effect(kind[draft.name], draft.node.get("conditionname", "")))


def _read_declare(draft: Draft) -> None:
    draft.kind = Kind.WRITE if draft.mentions.writes else Kind.READ
    draft.object_name = draft.node.get("portalname", "")
    if int(draft.node.get("options", 0)) & _CURSOR_HOLD:
        draft.effects.append(Effect(EffectKind.PIN, PinReason.HELD_CURSOR))


def _read_fetch(draft: Draft) -> None:
    draft.kind = Kind.READ
    draft.object_name = draft.node.get("portalname", "")


def _read_close(draft: Draft) -> None:
    draft.kind = Kind.UTILITY
    draft.object_name = draft.node.get("portalname", "")
    draft.effects.append(SETTLE)


def _read_load(draft: Draft) -> None:
    draft.kind = Kind.UTILITY
    draft.effects.append(Effect(EffectKind.PIN, PinReason.LOAD))


def _read_utility(draft: Draft) -> None:
    draft.kind = Kind.UTILITY


READERS: dict[str, Callable[[Draft], None]] = {
    "SelectStmt": _read_select,
    "PLAssignStmt": _read_assignment,
    "InsertStmt": _read_write,
    "UpdateStmt": _read_write,
    "DeleteStmt": _read_write,
    "MergeStmt": _read_write,
    "TruncateStmt": _read_truncate,
    "RefreshMatViewStmt": _read_refresh,
    "CopyStmt": _read_copy,
    "CallStmt": _read_call,
    "TransactionStmt": _read_transaction,
    "VariableSetStmt": _read_set,
    "DiscardStmt": _read_discard,
    "ListenStmt": _read_listen,
    "UnlistenStmt": _read_listen,
    "NotifyStmt": _read_listen,
    "DeclareCursorStmt": _read_declare,
    "FetchStmt": _read_fetch,
    "ClosePortalStmt": _read_close,
    "LoadStmt": _read_load,
    "VariableShowStmt": _read_utility,
    "VacuumStmt": _read_utility,
    "CheckPointStmt": _read_utility,
    "LockStmt": _read_utility,
    "ConstraintsSetStmt": _read_utility,
    "ClusterStmt": _read_utility,
    "ReindexStmt": _read_utility,
    "AlterSystemStmt": _read_utility,
}
