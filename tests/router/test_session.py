"""Sessions through the router are PostgreSQL sessions: the same answers, the same errors, the client's own address.

Three ways in: the socket is handed over, the bytes are relayed, TLS (always relayed).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg import errors

from tests.fixtures.postgres import program
from tests.fixtures.servers import unprivileged
from tests.router.conftest import PASSWORD, Backend, RouterProcess, StartRouter, eventually

WAYS = ("handed over", "relayed", "TLS", "relayed by asyncio", "TLS by asyncio")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, start_router: StartRouter) -> tuple[RouterProcess, dict[str, str]]:
    """A router and what a client must say to come in that way."""
    kind: str = request.param
    loop = "asyncio" if "asyncio" in kind else "uvloop"
    if kind.startswith("TLS"):
        certificate, key = request.getfixturevalue("certificate")
        return start_router(loop, tls_certificate=certificate, tls_key=key), {"sslmode": "require"}
    return start_router(loop, handover=kind == "handed over"), {"sslmode": "disable"}


Way = tuple[RouterProcess, dict[str, str]]


async def settle() -> None:
    """asyncpg returns before its sockets are closed; a loop that ends then warns about them."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while len(selector.get_map()) > 1:  # noqa: ASYNC110 - the wake-up pipe stays; nothing tells of the others
            await asyncio.sleep(0.01)


def canceled(connection: psycopg.Connection[Any], backend: Backend) -> None:
    """Cancel a long statement from another thread; the request ends without an answer, as it should."""
    (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (None,)

    def asleep() -> bool:
        with backend.maintenance() as watch:
            return (
                watch.execute(
                    "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", (pid,)
                ).fetchone()
                is not None
            )

    with concurrent.futures.ThreadPoolExecutor(1) as other:

        def cancel() -> None:
            eventually(asleep, "the statement runs")  # a request before it would have no effect
            connection.cancel_safe(timeout=20)

        request = other.submit(cancel)
        with pytest.raises(errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        request.result()


def test_a_session(way: Way, backend: Backend) -> None:
    router, how = way
    with router.connect(**how, options="-c work_mem=7MB", application_name="a test") as connection:
        row = connection.execute(
            "SELECT client_addr::text, client_port, inet_client_addr()::text, inet_client_port(), system_user,"
            " current_setting('work_mem'), application_name, usename"
            " FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchone()
        assert row is not None
        port = int(row[1])
        assert row == (
            "127.0.0.1/32", port, "127.0.0.1/32", port, "scram-sha-256:admin", "7MB", "a test", "admin",
        )  # fmt: skip
        title = Path(f"/proc/{connection.info.backend_pid}/cmdline").read_bytes()
        assert title.startswith(b"postgres: admin postgres 127.0.0.1(%d) " % port)
        assert router.status()["sessions"] == 1
        assert router.status()["relayed"] == (0 if how["sslmode"] == "disable" and router.settings["handover"] else 1)
        with pytest.raises(errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(errors.UndefinedObject):
            connection.execute("SHOW australis.session_token")
    eventually(router.idle, "the session is over")


def test_the_clients_port_is_the_clients(way: Way) -> None:
    router, how = way
    with router.connect(**how) as connection:
        row = connection.execute("SELECT inet_client_port()").fetchone()
        sockets = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        ours = f"0100007F:{row[0]:04X}" if row else ""
        assert any(line.split()[1] == ours and line.split()[2] == f"0100007F:{router.port:04X}" for line in sockets)


@pytest.mark.parametrize(
    ("parameters", "sqlstate"),
    [
        ({"password": "wrong"}, "28P01"),
        ({"user": "nobody"}, "28P01"),
        ({"user": "without_password"}, "28P01"),
        ({"user": "old"}, "28P01"),
        ({"user": "nologin", "password": "x"}, "28000"),
        ({"dbname": "nowhere"}, "3D000"),
        ({"options": "-c nonsense=1"}, "42704"),
        ({"options": "-c work_mem=fish"}, "22023"),
        ({"replication": "perhaps"}, "22023"),
    ],
)
def test_refused_logins_say_what_postgresql_says(
    way: Way, backend: Backend, parameters: dict[str, str], sqlstate: str
) -> None:
    router, how = way

    def message(port: int, **more: str) -> str:
        with pytest.raises(psycopg.OperationalError) as error:
            psycopg.connect(router.dsn(**{**parameters, **more, "port": port}))
        text = str(error.value)  # begins with address and port, which differ
        return text[text.index("FATAL:") :]

    said = message(router.port, **how)
    assert said == message(backend.cluster.port, sslmode="disable")
    eventually(router.idle, "nothing is left of the login")

    async def state() -> str:
        renamed = {"dbname": "database", "options": "server_settings", "replication": "server_settings"}
        arguments: dict[str, Any] = {"user": "admin", "password": PASSWORD, "database": "postgres"}
        for name, value in parameters.items():
            arguments[renamed.get(name, name)] = {name: value} if renamed.get(name) == "server_settings" else value
        with pytest.raises(asyncpg.PostgresError) as error:
            await asyncpg.connect(host="127.0.0.1", port=router.port, ssl=False, timeout=20, **arguments)
        await settle()
        return str(error.value.sqlstate)

    if how["sslmode"] == "disable":  # asyncpg does not close its TLS connection when it is refused
        assert asyncio.run(state()) == sqlstate


def test_large_values_and_copy(way: Way) -> None:
    router, how = way
    with router.connect(**how) as connection:
        big = "y" * 20_000_000
        row = connection.execute("SELECT length(%s), repeat('x', 30000000)", (big,)).fetchone()
        assert row is not None
        assert (row[0], len(row[1])) == (20_000_000, 30_000_000)
        connection.execute("CREATE TEMP TABLE t (a int, b text)")
        with connection.cursor() as cursor:
            with cursor.copy("COPY t FROM STDIN") as copy:
                for i in range(20_000):
                    copy.write_row((i, "some text for this row"))
            with cursor.copy("COPY t TO STDOUT") as copy:
                assert sum(len(bytes(block)) for block in copy) == sum(len(f"{i}") + 24 for i in range(20_000))
        with connection.pipeline():
            for i in range(500):
                connection.execute("SELECT %s::int", (i,))


def test_cancel(way: Way, backend: Backend) -> None:
    router, how = way
    with router.connect(**how) as connection:
        canceled(connection, backend)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_cancel_with_a_long_key(way: Way, backend: Backend) -> None:
    router, how = way
    with router.connect(**how, min_protocol_version="3.2", max_protocol_version="3.2") as connection:
        canceled(connection, backend)


def test_asyncpg(way: Way) -> None:
    router, how = way

    async def client() -> None:
        tls: Any = False
        if how["sslmode"] == "require":
            tls = ssl.create_default_context()
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        connection = await asyncpg.connect(
            host="127.0.0.1", port=router.port, user="joan", password=PASSWORD, database="postgres", ssl=tls
        )
        assert await connection.fetchval("SELECT current_user::text || $1", "!") == "joan!"
        with pytest.raises(asyncio.TimeoutError):  # cancels on the server
            await connection.fetchval("SELECT pg_sleep(60)", timeout=0.3)
        await connection.execute("CREATE TEMP TABLE t (a int)")
        await connection.copy_records_to_table("t", records=[(i,) for i in range(5000)])
        assert await connection.fetchval("SELECT sum(a) FROM t") == 12497500
        await connection.close()
        await settle()

    asyncio.run(client())


def test_psql_by_ipv6_and_by_unix_socket(start_router: StartRouter, directory: Path) -> None:
    router = start_router(unix_socket=directory / ".s.PGSQL.5432")
    query = (
        "SELECT inet_client_addr(), inet_server_addr(), client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    )
    for host, port, answer in (
        ("127.0.0.1", router.port, "127.0.0.1|127.0.0.1|"),
        ("::1", router.port, "::1|::1|"),
        (str(directory), 5432, "||-1"),
    ):
        done = subprocess.run(
            [program("psql"), "-XAt", "-h", host, "-p", str(port), "-U", "admin", "-c", query, "postgres"],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert done.stdout.startswith(answer)


def test_replication_connections_log_in(way: Way) -> None:
    router, how = way
    with router.connect(**how, replication="true") as connection:
        result = connection.pgconn.exec_(b"IDENTIFY_SYSTEM")  # replication knows only the simple query protocol
        assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message
        assert result.ntuples == 1


def test_direct_tls_and_cancel_by_tls(
    start_router: StartRouter, backend: Backend, certificate: tuple[Path, Path]
) -> None:
    router = start_router(tls_certificate=certificate[0], tls_key=certificate[1])
    with router.connect(sslmode="require", sslnegotiation="direct") as connection:
        assert connection.info.backend_pid
        canceled(connection, backend)
    with router.connect(sslmode="verify-ca", sslrootcert=str(certificate[0])) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with router.connect(sslmode="disable") as connection:
        assert router.status()["relayed"] == 0
    with pytest.raises(psycopg.OperationalError, match="channel binding"):
        router.connect(sslmode="require", channel_binding="require")


def test_without_certificate_tls_is_declined(start_router: StartRouter) -> None:
    router = start_router()
    with router.connect(sslmode="prefer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
        router.connect(sslmode="require")


def test_session_settings_of_the_socket(start_router: StartRouter) -> None:
    router = start_router()
    with router.connect(options="-c tcp_keepalives_idle=77 -c tcp_user_timeout=5000") as connection:
        row = connection.execute("SELECT current_setting('tcp_keepalives_idle')").fetchone()
        assert row == ("77",), "the backend knows that its socket is TCP now"


# who else might come


def test_a_made_up_token_is_refused(start_router: StartRouter, backend: Backend) -> None:
    start_router()
    with pytest.raises(psycopg.OperationalError, match="the session router does not know this session"):
        _by_unix_socket(backend, b"0" * 32)
    with pytest.raises(psycopg.OperationalError, match="malformed session token"):
        _by_unix_socket(backend, b"short")


def test_a_token_without_a_router_is_refused(backend: Backend) -> None:
    with pytest.raises(psycopg.OperationalError, match="the session router is not available"):
        _by_unix_socket(backend, b"0" * 32)


def _by_unix_socket(backend: Backend, token: bytes) -> None:
    """Log in as a router would; raises what the server says."""
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(backend.upstream))
        pairs = b"australis.session_token\0" + token + b"\0user\0admin\0database\0postgres\0\0"
        sock.sendall((len(pairs) + 8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + pairs)
        data = b""
        while part := sock.recv(4096):
            data += part
            assert not data.startswith(b"R"), "let in"
        raise psycopg.OperationalError(data.decode(errors="replace"))


def test_a_client_cannot_bring_a_token(start_router: StartRouter) -> None:
    router = start_router()
    with pytest.raises(psycopg.OperationalError, match="cannot be set"):
        router.connect(options="").close()
        _raw_startup(router, b"australis.SESSION_token\0" + b"0" * 32 + b"\0")
    with pytest.raises(psycopg.OperationalError, match="invalid configuration parameter name"):
        router.connect(options="-c australis.session_token=" + "0" * 32)


def _raw_startup(router: RouterProcess, more: bytes) -> None:
    with router.socket() as sock:
        pairs = b"user\0admin\0database\0postgres\0" + more + b"\0"
        sock.sendall((len(pairs) + 8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + pairs)
        raise psycopg.OperationalError(sock.recv(4096).decode(errors="replace"))


def test_protocol_options_are_negotiated_by_the_backend(way: Way) -> None:
    router, how = way
    with router.raw(tls=how["sslmode"] == "require") as sock:
        options = b"".join(b"_pq_.option%03d\0on\0" % i for i in range(200))  # answer < one buffer of the backend
        pairs = b"user\0admin\0database\0postgres\0" + options + b"\0"
        sock.sendall((len(pairs) + 8).to_bytes(4, "big") + ((3 << 16) | 9).to_bytes(4, "big") + pairs)
        data = b""
        while b"SCRAM-SHA-256" not in data:
            part = sock.recv(65536)
            assert part
            data += part
        assert data[:1] == b"v"
        assert int.from_bytes(data[5:9], "big") == (3 << 16) | 2
        assert int.from_bytes(data[9:13], "big") == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_of_this_machine_is_refused(backend: Backend) -> None:
    ids = unprivileged()
    assert ids is not None
    command = [str(program("psql")), "-X", "-h", str(backend.run), "-p", str(backend.cluster.port), "-U", "admin"]
    command += ["-c", "SELECT 1", "postgres"]
    backend.run.chmod(0o755)

    def as_user(user: int, group: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=30, user=user, group=group, extra_groups=[]
        )

    assert as_user(*ids).returncode == 0
    other = as_user(2, 2)
    assert other.returncode != 0
    assert "this socket is reserved for the cluster's own maintenance" in other.stderr


# ends of sessions


def test_life_clock(start_router: StartRouter, certificate: tuple[Path, Path]) -> None:
    router = start_router(max_lifetime=0.5, tls_certificate=certificate[0], tls_key=certificate[1])
    for how in ("disable", "require"):
        message = "terminating connection due to administrator command"
        with (
            contextlib.closing(router.connect(sslmode=how)) as connection,
            pytest.raises(errors.AdminShutdown, match=message),
        ):
            connection.execute("SELECT pg_sleep(20)")
    eventually(router.idle, "the sessions are over")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_close_ends_the_sessions(loop: str, start_router: StartRouter, certificate: tuple[Path, Path]) -> None:
    router = start_router(loop, tls_certificate=certificate[0], tls_key=certificate[1])
    connections = [router.connect(sslmode=how) for how in ("disable", "require")]
    router.close()
    for connection in connections:
        with pytest.raises((errors.AdminShutdown, psycopg.OperationalError)):
            connection.execute("SELECT 1")
        connection.close()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        router.connect()


def test_handed_over_sessions_outlive_the_router(start_router: StartRouter, backend: Backend) -> None:
    router = start_router()
    with router.connect() as connection:
        router.kill()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        again = start_router(port=router.port)  # its dead predecessor's sockets are in the way
        with again.connect() as other:
            assert other.execute("SELECT 1").fetchone() == (1,)
    eventually(lambda: backend.backends() == 0, "no backend is left")


def test_two_routers_do_not_share_a_socket(start_router: StartRouter) -> None:
    start_router()
    with pytest.raises(AssertionError, match="Address already in use"):
        start_router()


@pytest.mark.parametrize("how", ["disable", "require"])
def test_a_killed_backend(
    how: str, start_router: StartRouter, certificate: tuple[Path, Path], backend: Backend
) -> None:
    router = start_router(tls_certificate=certificate[0], tls_key=certificate[1])
    victim, witness = router.connect(sslmode=how), router.connect(sslmode=how)
    os.kill(victim.info.backend_pid, signal.SIGKILL)
    for connection in (victim, witness):  # PostgreSQL restarts all
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT pg_sleep(20)")
        connection.close()
    eventually(router.idle, "the sessions are over")

    def logs_in() -> bool:
        try:
            router.connect(sslmode=how).close()
        except psycopg.OperationalError as error:  # meanwhile PostgreSQL's own words
            assert "the database system is" in str(error) or "server closed" in str(error), error
            return False
        return True

    eventually(logs_in, "PostgreSQL is back")
