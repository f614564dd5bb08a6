"""Effects of a statement whose arguments are parameters: known when values are bound to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from server.prepared import bind_values
from server.statement_info import Effect, EffectKind, QueryInfo

_TRUE: Final = frozenset({b"\x01", b"t", b"tr", b"tru", b"true", b"y", b"ye", b"yes", b"on", b"1"})


def with_parameters(info: QueryInfo, run: bytes, pos: int, end: int) -> QueryInfo:
    """Effects whose arguments are parameters of the statement, with the values bound here."""
    if not any(any(effect.parameters) for statement in info.statements for effect in statement.effects):
        return info
    values = bind_values(run, pos, end)
    statement = info.statements[0]
    effects = tuple(_bound(effect, values) for effect in statement.effects)
    return replace(info, statements=(replace(statement, effects=effects),))


def _bound(effect: Effect, values: list[bytes | None]) -> Effect:
    name_at, value_at, local_at = effect.parameters

    def value(index: int) -> bytes | None:
        return values[index - 1] if 0 < index <= len(values) else None

    name, kind, text = effect.argument, effect.kind, effect.value
    if name_at:
        name = (value(name_at) or b"").decode(errors="replace").lower()
    if value_at:
        raw = value(value_at)
        text = raw.decode(errors="replace") if raw is not None else None
    if local_at and (value(local_at) or b"f").strip(b" ").lower() in _TRUE:
        kind = EffectKind.SET_LOCAL
    return Effect(kind, name, text)
