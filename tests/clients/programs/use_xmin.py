"""SQLAlchemy with xmin as the version of a row: an ORM's optimistic locking without a column of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sqlalchemy import FetchedValue, Text, create_engine, select, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import UserDefinedType


class Base(DeclarativeBase):
    pass


class Xid(UserDefinedType[str]):
    """A transaction id: sent as text of no type, since xid compares with neither varchar nor bigint."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid"

    def bind_processor(self, dialect: Dialect) -> Callable[[object], str]:
        return str


class Page(Base):
    __tablename__ = "xmin_page"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column("xmin", Xid, system=True, server_default=FetchedValue())
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}  # noqa: RUF012


def main(url: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Page(id=n, title=f"page {n}") for n in range(5))
        session.commit()
    for outcome in ("first writer", "second writer"):
        with Session(engine, expire_on_commit=False) as one, Session(engine, expire_on_commit=False) as two:
            first, second = one.get_one(Page, 1), two.get_one(Page, 1)
            seen = second.version
            two.commit()  # ends the snapshot, keeps the object
            if outcome == "second writer":
                first.title = "one was faster"
                one.commit()
            second.title = f"by the {outcome}"
            try:
                two.commit()
                print(outcome, "kept", second.version != seen)
            except StaleDataError:
                two.rollback()
                print(outcome, "stale")
    with Session(engine) as session:
        page = session.get_one(Page, 2)
        versions = []
        for n in range(3):
            page.title = f"again {n}"
            session.commit()
            versions.append(page.version)
        print("versions differ", len(set(versions)))
        unchanged = session.scalar(text("SELECT xmin::text FROM xmin_page WHERE id = 2"))
        print("the same when read again", unchanged == str(page.version))
        stale = session.execute(
            text("UPDATE xmin_page SET title = 'x' WHERE id = 2 AND xmin::text = :v"), {"v": versions[0]}
        )
        print("stale by hand", stale.rowcount)  # type: ignore[attr-defined]
        fresh = session.execute(
            text("UPDATE xmin_page SET title = 'x' WHERE id = 2 AND xmin::text = :v"), {"v": versions[-1]}
        )
        print("fresh by hand", fresh.rowcount)  # type: ignore[attr-defined]
        session.commit()
        session.delete(page)
        session.commit()
        print("left", session.scalars(select(Page.title).order_by(Page.id)).all())
    Base.metadata.drop_all(engine)
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1])
