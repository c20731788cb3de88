"""SQLAlchemy ORM: relationships, cascades, version counters, bulk writes, upserts, reflection, isolation levels."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal

from sqlalchemy import ForeignKey, Index, Numeric, String, create_engine, func, inspect, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload
from sqlalchemy.orm.exc import StaleDataError


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "sa_author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    born: Mapped[dt.date | None]
    books: Mapped[list[Book]] = relationship(back_populates="author", cascade="all, delete-orphan", order_by="Book.id")


class Book(Base):
    __tablename__ = "sa_book"
    __table_args__ = (Index("sa_book_title", func.lower(text("title"))),)
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("sa_author.id", ondelete="CASCADE"))
    title: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))
    tags: Mapped[list[str]] = mapped_column(ARRAY(String), default=list)
    data: Mapped[dict[str, object]] = mapped_column(JSONB, default=dict)
    version: Mapped[int] = mapped_column()
    author: Mapped[Author] = relationship(back_populates="books")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


def main(url: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for n, name in enumerate(("Ada", "Ben", "Cleo")):
            author = Author(name=name, born=dt.date(1970 + n, 1, 1))
            author.books = [
                Book(title=f"{name} {i}", price=Decimal(i) + n, tags=[name], data={"i": i}) for i in range(4)
            ]
            session.add(author)
        session.commit()
        print("authors", session.scalar(select(func.count()).select_from(Author)))
        query = select(Author).options(selectinload(Author.books)).order_by(Author.name)
        for author in session.scalars(query):
            print(
                author.name, [(b.title, str(b.price), b.tags, b.data) for b in sorted(author.books, key=lambda b: b.id)]
            )
        rows = session.execute(
            select(Author.name, func.sum(Book.price)).join(Book).group_by(Author.name).having(func.sum(Book.price) > 6)
        )
        print("sums", sorted((name, str(total)) for name, total in rows))
        print("json", session.scalar(select(Book.title).where(Book.data["i"].astext == "2").order_by(Book.title)))
        changes(session)
    stale(engine.connect().engine)
    upsert(engine.connect().engine)
    reflected = inspect(engine)
    print("columns", [(c["name"], str(c["type"]), c["nullable"]) for c in reflected.get_columns("sa_book")])
    print("keys", [f["constrained_columns"] for f in reflected.get_foreign_keys("sa_book")])
    print("indexes", sorted(str(i["name"]) for i in reflected.get_indexes("sa_book")))
    Base.metadata.drop_all(engine)
    engine.dispose()


def changes(session: Session) -> None:
    ada = session.scalars(select(Author).where(Author.name == "Ada")).one()
    ada.books.pop(0)
    ada.books[0].price += 10
    session.add(Author(name="Dora"))
    session.commit()
    print("books", session.scalar(select(func.count()).select_from(Book)), ada.books[0].version)
    session.add(Author(name="Ben"))
    try:
        session.commit()
    except IntegrityError as error:
        session.rollback()
        print("refused", type(error.orig).__name__)
    with session.begin_nested() as savepoint:
        session.execute(text("DELETE FROM sa_book"))
        savepoint.rollback()
    session.delete(session.scalars(select(Author).where(Author.name == "Cleo")).one())
    session.commit()
    print("left", session.scalar(select(func.count()).select_from(Book)))


def stale(engine: object) -> None:
    """Optimistic locking: the second writer of a version is told."""
    with Session(engine) as one, Session(engine) as two:  # type: ignore[arg-type]
        title = select(Book).order_by(Book.id)
        first, second = one.scalars(title).first(), two.scalars(title).first()
        assert first is not None and second is not None
        two.commit()  # ends the snapshot; the object keeps its version
        first.title = "changed by one"
        one.commit()
        two.expire_on_commit = False
        second.title = "changed by two"
        try:
            two.commit()
            print("second write", second.title)
        except StaleDataError:
            two.rollback()
            print("stale", two.scalars(title).first().title)  # type: ignore[union-attr]


def upsert(engine: object) -> None:
    with Session(engine) as session:  # type: ignore[arg-type]
        statement = insert(Author).values([{"name": "Ada", "born": None}, {"name": "Eve", "born": None}])
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"born": dt.date(2000, 1, 1)})
        print("upserted", sorted(session.scalars(statement.returning(Author.name))))
        session.execute(insert(Author), [{"name": f"bulk {n}"} for n in range(300)])
        session.commit()
        print("bulk", session.scalar(select(func.count()).select_from(Author)))
    with Session(engine, autoflush=False) as session:  # type: ignore[arg-type]
        session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        print("level", session.scalar(text("SHOW transaction_isolation")))


if __name__ == "__main__":
    main(sys.argv[1])
