"""What the statement tests share: a catalog that proves the usual functions, and short ways to ask."""

from __future__ import annotations

from engine.catalog import CatalogSnapshot, DatabaseCatalog
from server.statement import Analyzer, StatementCatalog
from server.statement_info import Effect, EffectKind, QueryInfo

PROVED = frozenset(
    """
    lower count now nextval abs pg_backend_pid random current_setting pg_advisory_xact_lock pg_try_advisory_xact_lock
    """.split()
)


def proving_catalog(**facts: object) -> StatementCatalog:
    """A current catalog in which `PROVED` functions are proved and nothing is unproved but what `facts` say."""
    catalog: StatementCatalog = DatabaseCatalog("test")
    catalog.install(CatalogSnapshot(proved_names=PROVED, **facts))  # type: ignore[arg-type]
    return catalog


ANALYZER = Analyzer()
"""One for all, as a server has one: templates are numbered by it."""


def analyse(text: str, catalog: StatementCatalog | None = None) -> QueryInfo:
    return ANALYZER.analyse(text.encode(), catalog if catalog is not None else proving_catalog())


def effects(text: str, catalog: StatementCatalog | None = None) -> list[Effect]:
    """The effects of all statements of `text`, in order."""
    return [effect for statement in analyse(text, catalog).statements for effect in statement.effects]


def pins(text: str, catalog: StatementCatalog | None = None) -> list[str]:
    """The reasons of its pins."""
    return [effect.argument for effect in effects(text, catalog) if effect.kind is EffectKind.PIN]
