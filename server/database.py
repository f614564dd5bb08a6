"""One database as the server knows it: what its texts mean, its shared statements, its totals.

`infos` is the exact-text dictionary of the query path (the catalog's own cache): a hit costs one lookup. It is emptied
when what functions may do changes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg

from engine.catalog import CatalogLoader, DatabaseCatalog
from engine.errors import EngineError
from protocol.scan import F_PARSE, length_at
from server.prepared import StatementRegistry
from server.statement_info import Needs, QueryInfo
from server.totals import DatabaseTotals

if TYPE_CHECKING:
    from server.context import ContextRegistry
    from server.statement import Analyzer

_log = logging.getLogger("rustydb.catalog")

_PARSE_ENTRIES = 10_000
_CHECK_SECONDS = 1.0
_PARSE_TEXT_BYTES = 16 * 1024
"""Longer texts are looked up by the text alone: they would push many short ones out."""


class DatabaseState:
    """Shared by all sessions of one database."""

    def __init__(
        self,
        name: str,
        *,
        contexts: ContextRegistry,
        analyzer: Analyzer,
        reader: CatalogLoader,
        stats: DatabaseTotals,
        max_prepared_statements: int,
    ) -> None:
        self.name = name
        self.contexts = contexts
        self.statements = StatementRegistry()
        self.catalog: DatabaseCatalog[QueryInfo] = DatabaseCatalog(name)
        self.generation = 0
        self.analyses = 0
        self.stats = stats
        self.infos = self.catalog.cache
        self.parses: dict[bytes, QueryInfo] = {}
        self.max_prepared_statements = max_prepared_statements
        self.plain_info = QueryInfo(statements=(), is_plain=True)
        self.sequence_readers: set[str] = set()  # roles that call currval or lastval here
        self._analyzer = analyzer
        self._reader = reader
        self._loading: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_current(self) -> bool:
        """What functions may do is known."""
        return self.catalog.is_current

    def bump_generation(self) -> None:
        """The catalog changed: a fresh Parse of a text prepared before may mean something else now."""
        self.generation += 1
        self.parses.clear()

    def reload_catalog(self) -> None:
        """Functions, triggers or rules changed: sessions wait for the new reading before their next new statement."""
        self.bump_generation()
        self.catalog.invalidate()
        self._loading = None

    async def load_catalog(self) -> None:
        """Read the catalog, once for all who wait for it. Where it cannot be read, nothing is proved."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.get_running_loop().create_task(self._load(), name="catalog reading")
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        while not self.catalog.is_current:
            await self.catalog.load(self._reader)
        self.parses.clear()

    def is_slow(self, text: bytes) -> bool:
        """A long text that is not known: reading it on the event loop would hold everybody up."""
        return self._analyzer.is_expensive(text) and text not in self.infos and not self._analyzer.is_known(text)

    def has_slow_text(self, run: bytes) -> bool:
        """Whether a run of extended messages holds such a text."""
        pos = 0
        while pos < len(run):
            end = pos + 1 + length_at(run, pos + 1)[0]
            if run[pos] == F_PARSE:
                start = run.index(0, pos + 5, end) + 1
                if self.is_slow(run[start : run.index(0, start, end)]):
                    return True
            pos = end
        return False

    async def read_ahead(self, text: bytes, encoding: str | None) -> None:
        """Read a long text in a thread, so that `analyse` is quick."""
        if encoding is not None:
            text = _transcode(text, encoding)
        if self.is_slow(text):
            self._analyzer.learn(text, await asyncio.to_thread(self._analyzer.read, text))

    def check_catalog(self) -> None:
        """A statement ran that may have changed the catalog unseen: look once it is quiet, while the old reading
        stands.
        """
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._check = None
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="catalog check")

    def stop_looking(self) -> None:
        """The database may go: do not connect to it for a look that nobody waits for."""
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        try:
            if await self.catalog.load(self._reader):
                self.parses.clear()
        except (OSError, EngineError, asyncpg.PostgresError) as error:
            _log.warning("the catalog of %s could not be read: %s", self.name, error)
            self.reload_catalog()

    def analyse(self, text: bytes, encoding: str | None) -> QueryInfo:
        """What a Query text does; remembered in `infos`."""
        self.analyses += 1
        return self._analyzer.analyse(_transcode(text, encoding) if encoding is not None else text, self.catalog)

    def info_of_parse(self, text_and_types: bytes, encoding: str | None) -> QueryInfo:
        """What the text of a Parse message does."""
        self.stats.parses += 1
        if encoding is None:
            found = self.parses.get(text_and_types)
            if found is not None:
                return found
        text = text_and_types[: text_and_types.index(0)]
        info = self.analyse(text, encoding)
        if encoding is None and len(text_and_types) <= _PARSE_TEXT_BYTES:
            if len(self.parses) >= _PARSE_ENTRIES:
                _drop_half(self.parses)
            self.parses[text_and_types] = info
        return info

    def adopt(self, text_and_types: bytes, info: QueryInfo) -> None:
        """A text that we wrote in the place of a client's keeps that one's analysis."""
        self.parses[text_and_types] = replace(info, needs=Needs.NOTHING)


def _transcode(text: bytes, encoding: str) -> bytes:
    return text.decode(encoding, errors="replace").encode()


def _drop_half(entries: dict[bytes, QueryInfo]) -> None:
    """Forget the older half: dictionaries keep insertion order."""
    for key in list(entries)[: len(entries) // 2]:
        del entries[key]
