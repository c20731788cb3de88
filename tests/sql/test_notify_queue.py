"""A full notification queue is an error before anything is decided, as in stock PostgreSQL (rule Q1).

Here the last transaction that found room may exceed the limit by its own notifications; stock refuses it.
"""

from __future__ import annotations

import pytest
from psycopg import errors

from tests.fixtures.servers import Server, australis_server, stock_server

PAGES = 64
"""The smallest queue that PostgreSQL allows."""


def fill(server: Server) -> int:
    """Notify with a row each until the queue is full: how often that worked. What it leaves is checked."""
    payload = "x" * 7000
    done = 0
    with server.connect() as listener, server.connect() as writer:
        writer.execute("DROP TABLE IF EXISTS notified")
        writer.execute("CREATE TABLE notified (id int PRIMARY KEY)")
        listener.execute("LISTEN ch")
        listener.execute("BEGIN")
        listener.execute("SELECT 1")  # busy: takes nothing out of the queue
        with pytest.raises(errors.ProgramLimitExceeded) as raised:
            while done < 2 * PAGES:
                with writer.transaction():
                    writer.execute("INSERT INTO notified VALUES (%s)", (done,))
                    writer.execute("SELECT pg_notify('ch', %s)", (f"{done} {payload}",))
                done += 1
        assert raised.value.diag.message_primary == "too many notifications in the NOTIFY queue"
        assert writer.execute("SELECT count(*), max(id) FROM notified").fetchone() == (done, done - 1)
        # without notifications all goes on, and with DDL it is the same
        writer.execute("INSERT INTO notified VALUES (-1)")
        with pytest.raises(errors.ProgramLimitExceeded), writer.transaction():
            writer.execute("CREATE TABLE never (id int)")
            writer.execute("NOTIFY ch")
        assert writer.execute("SELECT to_regclass('never')").fetchone() == (None,)
        listener.execute("COMMIT")
        heard = [int(n.payload.split()[0]) for n in listener.notifies(timeout=10, stop_after=done)]
        assert heard == list(range(done))
        writer.execute("SELECT pg_notification_queue_usage()")  # looks for what everybody has read
        with writer.transaction():
            writer.execute("INSERT INTO notified VALUES (-2)")
            writer.execute("NOTIFY ch, 'room again'")
        assert [n.payload for n in listener.notifies(timeout=10, stop_after=1)] == ["room again"]
        assert writer.execute("SHOW max_notify_queue_pages").fetchone() == (str(PAGES),)
    return done


@pytest.mark.timeout(180)
def test_a_full_queue_is_an_error_as_in_stock() -> None:
    with stock_server(settings={"max_notify_queue_pages": str(PAGES)}) as server:
        expected = fill(server)
    with australis_server(settings={"postgresql.max_notify_queue_pages": PAGES}) as server:
        assert expected <= fill(server) <= expected + 1
