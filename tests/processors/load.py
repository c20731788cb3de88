"""Clients that move money while the schema changes under them; nothing but 40001 may surprise them.

    python -m tests.processors --seconds 60 --clients 64 [--topology adjudicators=2,shards=2]

Each transfer takes from one account what it gives to another and writes one line of a journal table with a foreign key;
each audit adds up all balances, through another plan every time. Meanwhile one session per query processor changes the
same tables: columns come, go, and change their type (a rewrite), views and functions are replaced, a side table is
truncated, dropped and made again, constraints come and go, indexes are made and made again (online) and dropped, and
the tables are analyzed.

What must hold: the sum of all balances is the same in every answer; a journal line is there for every transfer that was
acknowledged; errors are 40001, and nothing else, on clients and on those who change the schema. A session that is idle
in a transaction for a second while a change waits for it is ended, as PostgreSQL has no other way to tell it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

Connect = Callable[[int], psycopg.Connection[tuple[object, ...]]]

ACCOUNTS = 200
BALANCE = 100
SETUP = f"""
DROP TABLE IF EXISTS account, line, side CASCADE;
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, kind int NOT NULL);
CREATE INDEX account_kind ON account (kind, balance);
CREATE TABLE line (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), source int NOT NULL REFERENCES account, amount int);
CREATE TABLE side (id int PRIMARY KEY, v int);
INSERT INTO account SELECT g, {BALANCE}, g % 7 FROM generate_series(1, {ACCOUNTS}) g;
CREATE VIEW total AS SELECT sum(balance) AS sum, count(*) AS count FROM account;
CREATE FUNCTION all_of() RETURNS bigint LANGUAGE sql AS 'SELECT sum(balance) FROM account';
"""
AUDITS = (
    "SELECT sum(balance), count(*) FROM account",
    "SELECT sum, count FROM total",
    "SELECT all_of(), (SELECT count(*) FROM account)",
    "SELECT sum(balance), count(*) FROM account WHERE kind BETWEEN 0 AND 6",
    "SELECT sum(s), sum(c) FROM (SELECT kind, sum(balance) AS s, count(*) AS c FROM account GROUP BY kind) g",
    "SELECT sum(balance), count(*) FROM account a WHERE EXISTS (SELECT FROM account b WHERE b.id = a.id)",
)
EXPECTED = (ACCOUNTS * BALANCE, ACCOUNTS)


@dataclass
class Result:
    """What happened; `wrong` is what must not have."""

    transfers: int = 0
    audits: int = 0
    changes: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # what the retried were told
    wrong: list[str] = field(default_factory=list)
    lines: int = 0

    def line(self) -> str:
        retried = ", ".join(f"{n} {what}" for what, n in sorted(self.retries.items()))
        codes = ", ".join(f"{n} {code}" for code, n in sorted(self.codes.items()))
        return (
            f"{self.transfers} transfers, {self.audits} audits, {self.changes} schema changes; retried: {retried} "
            f"({codes}); wrong answers and other errors: {len(self.wrong)}"
        )


def changes(number: int, turn: int) -> list[list[str]]:
    """Statements of one schema change each; a list of several is one transaction, one alone is in none."""
    return [
        [f"ALTER TABLE account ADD COLUMN extra_{turn} int DEFAULT {turn}"],
        [f"ALTER TABLE account DROP COLUMN IF EXISTS extra_{turn - 1}"],
        [f"ALTER TABLE account ALTER COLUMN kind TYPE {'bigint' if turn % 2 else 'int'}"],
        ["CREATE OR REPLACE VIEW total AS SELECT sum(balance) AS sum, count(*) AS count FROM account"],
        ["CREATE OR REPLACE FUNCTION all_of() RETURNS bigint LANGUAGE sql AS 'SELECT sum(balance) FROM account'"],
        ["TRUNCATE side", f"INSERT INTO side SELECT g, {turn} FROM generate_series(1, 5) g"],
        ["DROP TABLE IF EXISTS side", "CREATE TABLE side (id int PRIMARY KEY, v int)"],
        [
            f"ALTER TABLE account DROP CONSTRAINT IF EXISTS positive_{number}",
            f"ALTER TABLE account ADD CONSTRAINT positive_{number} CHECK (balance > -1000000) NOT VALID",
        ],
        ["DROP INDEX IF EXISTS account_kind"],
        [f"DROP INDEX IF EXISTS account_kind_{number}"],
        [f"CREATE INDEX {'CONCURRENTLY' if turn % 2 else ''} account_kind_{number} ON account (kind, balance)"],
        [f"REINDEX INDEX {'' if turn % 3 else 'CONCURRENTLY'} account_kind_{number}"],
        ["ANALYZE account"],
        [f"CREATE TABLE passing_{turn} (id int PRIMARY KEY)"],
        [f"DROP TABLE IF EXISTS passing_{turn}"],
        ["COMMENT ON TABLE account IS 'money'"],
        ["GRANT SELECT ON account TO PUBLIC"],
    ]


class Session:
    """A connection that is opened again."""

    def __init__(self, connect: Connect, number: int) -> None:
        self._connect, self._number = connect, number
        self.open()

    def open(self) -> None:
        self.connection = self._connect(self._number)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


class Load:
    """One run."""

    def __init__(self, connect: Connect, changers: int, clients: int, seed: int = 1) -> None:
        """`connect(n)` opens a session of client n; changers come first."""
        self._connect = connect
        self._changers, self._clients, self._seed = changers, clients, seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.result = Result()

    def run(self, seconds: float) -> Result:
        with self._connect(0) as session:
            session.execute(SETUP)
        threads = [threading.Thread(target=self._guard, args=(self._change, n)) for n in range(self._changers)]
        threads += [
            threading.Thread(target=self._guard, args=(self._transfer if n % 3 else self._audit, self._changers + n))
            for n in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        for thread in threads:
            thread.join(120)
            if thread.is_alive():
                self.result.wrong.append(f"{thread.name} does not end")
        with self._connect(0) as session:
            sums = session.execute(AUDITS[0]).fetchone()
            lines = session.execute("SELECT count(*) FROM line").fetchone()
        assert lines is not None
        self.result.lines = int(str(lines[0]))
        if sums != EXPECTED:
            self.result.wrong.append(f"at the end {sums}")
        if self.result.lines != self.result.transfers:
            self.result.wrong.append(f"{self.result.transfers} transfers, but {self.result.lines} lines")
        return self.result

    def _guard(self, body: Callable[[int, random.Random], None], number: int) -> None:
        try:
            body(number, random.Random(f"{self._seed} {number}"))
        except Exception as error:  # noqa: BLE001 - a thread must not die unheard
            with self._lock:
                self.result.wrong.append(f"client {number}: {type(error).__name__} {error}"[:400])
            self._stop.set()

    def _retry(self, session: Session, what: str, error: psycopg.Error) -> None:
        """40001 is the one error that may come, or the end of a session that was idle in a transaction."""
        if session.connection.closed and error.sqlstate in (None, "40001"):
            what = "ended sessions"
            session.open()
        elif error.sqlstate != "40001":
            raise error
        code = next((code for code in ("OC001", "OC000") if code in str(error)), "refused")
        with self._lock:
            self.result.retries[what] += 1
            self.result.codes["lost connections" if error.sqlstate is None else code] += 1

    def _transfer(self, number: int, random: random.Random) -> None:
        with Session(self._connect, number) as session:
            while not self._stop.is_set():
                source, target = random.sample(range(1, ACCOUNTS + 1), 2)
                amount = random.randint(1, 20)
                try:
                    with session.connection.transaction():
                        session.connection.execute(
                            "UPDATE account SET balance = balance - %s WHERE id = %s", (amount, source)
                        )
                        session.connection.execute(
                            "UPDATE account SET balance = balance + %s WHERE id = %s", (amount, target)
                        )
                        session.connection.execute(
                            "INSERT INTO line (source, amount) VALUES (%s, %s)", (source, amount)
                        )
                except psycopg.Error as error:
                    self._retry(session, "transfers", error)
                else:
                    with self._lock:
                        self.result.transfers += 1

    def _audit(self, number: int, random: random.Random) -> None:
        with Session(self._connect, number) as session:
            while not self._stop.is_set():
                query = random.choice(AUDITS)
                if number % 2:  # through an index, whatever it costs
                    session.connection.execute("SET enable_seqscan = off")
                try:
                    found = session.connection.execute(query).fetchone()
                except psycopg.Error as error:
                    self._retry(session, "audits", error)
                    continue
                with self._lock:
                    self.result.audits += 1
                    if found is None or (int(str(found[0])), int(str(found[1]))) != EXPECTED:
                        self.result.wrong.append(f"{query}: {found}")

    def _change(self, number: int, random: random.Random) -> None:
        turn = number * 1_000_000
        done = False
        with Session(self._connect, number) as session:
            while not self._stop.is_set():
                turn += 1
                for statements in changes(number, turn):
                    if self._stop.is_set():
                        break
                    if statements[0].startswith(("REINDEX", "CREATE INDEX")) and not done:
                        continue  # what it builds upon was refused
                    done = False
                    try:
                        if len(statements) == 1:
                            session.connection.execute(statements[0])
                        else:
                            with session.connection.transaction():
                                for statement in statements:
                                    session.connection.execute(statement)
                    except psycopg.Error as error:
                        self._retry(session, "changes", error)
                    else:
                        with self._lock:
                            self.result.changes += 1
                        done = True
                    time.sleep(random.uniform(0.0, 0.05))  # a pace, not a wait: clients must get something done
