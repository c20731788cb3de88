"""asyncpg: its own implementation of the protocol, binary everywhere, statement cache, pool, COPY, cancellation."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import io
import sys
import uuid

import asyncpg


async def main(url: str) -> None:
    pool = await asyncpg.create_pool(url, min_size=2, max_size=5)
    async with pool.acquire() as connection:
        await connection.execute("DROP TABLE IF EXISTS apg_event, apg_counter")
        await connection.execute(
            "CREATE TABLE apg_event (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, u uuid UNIQUE, at timestamptz,"
            " amount numeric(12,2), tags text[], data jsonb, ip inet, gap interval, f float8)"
        )
        await connection.execute("CREATE TABLE apg_counter (id int PRIMARY KEY, n int)")
        rows = [
            (
                uuid.UUID(int=n), dt.datetime(2024, 5, 1, n, tzinfo=dt.UTC), decimal.Decimal(n) / 8, ["x"] * (n % 3),
                f'{{"n": {n}}}', f"10.0.0.{n}", dt.timedelta(hours=n), n / 3,
            )
            for n in range(20)
        ]  # fmt: skip
        await connection.executemany(
            "INSERT INTO apg_event (u, at, amount, tags, data, ip, gap, f) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            rows,
        )
        for record in await connection.fetch("SELECT * FROM apg_event WHERE id <= $1 ORDER BY id", 5):
            print("record", dict(record))
        print("value", await connection.fetchval("SELECT sum(amount) FROM apg_event WHERE at >= $1", rows[10][1]))
        print("row", await connection.fetchrow("SELECT id FROM apg_event WHERE u = $1", uuid.UUID(int=7)))
        statement = await connection.prepare("SELECT id FROM apg_event WHERE ip = ANY ($1::inet[]) ORDER BY id")
        print("prepared", await statement.fetch(["10.0.0.3", "10.0.0.9"]))
        print("attributes", [a.name for a in statement.get_attributes()])
        async with connection.transaction():
            total = 0
            async for record in connection.cursor("SELECT id FROM apg_event ORDER BY id DESC", prefetch=6):
                total += record["id"]
            print("cursor", total)
        await nested(connection)
        copied = await connection.copy_records_to_table(
            "apg_counter", records=[(n, 0) for n in range(500)], columns=["id", "n"]
        )
        out = io.BytesIO()
        await connection.copy_from_query("SELECT * FROM apg_counter ORDER BY id LIMIT 3", output=out, format="csv")
        print("copy", copied, out.getvalue())
        await connection.execute("ALTER TABLE apg_event ADD COLUMN extra int DEFAULT 3")
        print("after alter", await connection.fetchval("SELECT sum(extra) FROM apg_event"))
        try:
            await connection.execute("SELECT pg_sleep(30)", timeout=0.2)
        except TimeoutError:
            print("timed out", await connection.fetchval("SELECT 'still usable'"))
    await concurrent(pool)
    await pool.close()


async def nested(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("DELETE FROM apg_event WHERE id > 10")
            try:
                async with connection.transaction():
                    await connection.execute("INSERT INTO apg_event (u) VALUES ($1)", uuid.UUID(int=1))
            except asyncpg.UniqueViolationError as error:
                print("unique", error.sqlstate, error.constraint_name)
            print("inside", await connection.fetchval("SELECT count(*) FROM apg_event"))
            raise ValueError("undo")
    except ValueError:
        print("outside", await connection.fetchval("SELECT count(*) FROM apg_event"))


async def concurrent(pool: asyncpg.Pool) -> None:
    async def bump(times: int) -> None:
        async with pool.acquire() as connection:
            for _ in range(times):
                while True:
                    try:
                        async with connection.transaction(isolation="repeatable_read"):
                            n = await connection.fetchval("SELECT n FROM apg_counter WHERE id = 1")
                            await connection.execute("UPDATE apg_counter SET n = $1 WHERE id = 1", n + 1)
                        break
                    except asyncpg.SerializationError:
                        continue

    await asyncio.gather(*(bump(10) for _ in range(5)))
    print("counter", await pool.fetchval("SELECT n FROM apg_counter WHERE id = 1"))
    await pool.execute("DROP TABLE apg_event, apg_counter")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
