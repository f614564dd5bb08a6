"""SQLAlchemy over psycopg, psycopg2 and asyncpg, against the bare engine and RustyDB: ORM and reflection."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest

from tests.support.target import Target

sa: Any = pytest.importorskip("sqlalchemy", reason="the package sqlalchemy is not installed")
orm: Any = pytest.importorskip("sqlalchemy.orm")
pytest.importorskip("psycopg2", reason="the package psycopg2-binary is not installed")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]


def tables() -> Any:
    metadata = sa.MetaData()
    author = sa.Table(
        "author",
        metadata,
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.String(50), nullable=False, unique=True),
        sa.Column("born", sa.Date, comment="may be unknown"),
    )
    sa.Table(
        "book",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("author_id", sa.ForeignKey(author.c.id, ondelete="CASCADE"), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("tags", sa.ARRAY(sa.Text), server_default="{}"),
        sa.Column("price", sa.Numeric(10, 2)),
        sa.CheckConstraint("price > 0", name="book_price_positive"),
        sa.Index("book_title", "title", postgresql_using="btree"),
    )
    return metadata


@pytest.mark.parametrize("dialect", ["psycopg", "psycopg2"])
def test_reflection_finds_everything(database: Target, dialect: str) -> None:
    engine = sa.create_engine(database.url_for(f"postgresql+{dialect}"))
    tables().create_all(engine)
    found = sa.MetaData()
    found.reflect(engine)
    book = found.tables["book"]
    assert set(found.tables) == {"author", "book"}
    assert [column.name for column in book.columns] == ["id", "author_id", "title", "tags", "price"]
    assert next(iter(book.foreign_keys)).column.table.name == "author"
    assert {index.name for index in book.indexes} == {"book_title"}
    inspector = sa.inspect(engine)
    assert [check["name"] for check in inspector.get_check_constraints("book")] == ["book_price_positive"]
    assert inspector.get_unique_constraints("author")[0]["column_names"] == ["name"]
    assert inspector.get_columns("author")[2]["comment"] == "may be unknown"
    engine.dispose()


@pytest.mark.parametrize("dialect", ["psycopg", "psycopg2"])
def test_orm_session_writes_and_reads(database: Target, dialect: str) -> None:
    engine = sa.create_engine(database.url_for(f"postgresql+{dialect}"), pool_size=2)
    metadata = tables()
    metadata.create_all(engine)
    registry = orm.registry(metadata=metadata)

    class Author:
        pass

    class Book:
        pass

    registry.map_imperatively(Book, metadata.tables["book"])
    registry.map_imperatively(Author, metadata.tables["author"], properties={"books": orm.relationship(Book)})
    with orm.Session(engine) as session:
        author: Any = Author()
        author.name = "Ada"
        for number in range(100):
            book: Any = Book()
            book.title, book.tags, book.price = f"Book {number}", ["a", "b"], number + 1
            author.books.append(book)
        session.add(author)
        session.commit()
        query = sa.select(Author).options(orm.selectinload(Author.books))  # type: ignore[attr-defined]
        loaded: Any = session.scalars(query).one()
        assert len(loaded.books) == 100
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.execute(sa.insert(metadata.tables["author"]).values(name="Ada"))
        session.delete(loaded.books[0])
        session.commit()
    registry.dispose()
    engine.dispose()


def test_two_phase_session(database: Target) -> None:
    engine = sa.create_engine(database.url_for("postgresql+psycopg"))
    tables().create_all(engine)
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(sa.text("INSERT INTO author (name) VALUES ('Bob')"))
        transaction.prepare()
        transaction.commit()
        assert connection.scalar(sa.text("SELECT count(*) FROM author")) == 1
    engine.dispose()


def test_pre_ping_and_isolation_level_options(database: Target) -> None:
    engine = sa.create_engine(
        database.url_for("postgresql+psycopg"), pool_pre_ping=True, isolation_level="REPEATABLE READ"
    )
    for _ in range(3):
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SHOW transaction_isolation")) == "repeatable read"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM"))
    engine.dispose()


async def test_asyncpg_dialect(database: Target) -> None:
    pytest.importorskip("greenlet", reason="the package greenlet is not installed")
    aio: Any = importlib.import_module("sqlalchemy.ext.asyncio")
    engine = aio.create_async_engine(database.url_for("postgresql+asyncpg"), connect_args={"ssl": False}, pool_size=5)
    metadata = tables()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)

    async def add(number: int) -> None:
        async with engine.begin() as connection:
            await connection.execute(sa.insert(metadata.tables["author"]).values(name=f"Author {number}"))

    await asyncio.gather(*(add(n) for n in range(20)))
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT count(*) FROM author")) == 20
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        assert set(names) == {"author", "book"}
    await engine.dispose()
