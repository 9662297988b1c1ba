"""The gateway's login at a real PostgreSQL server, and at servers that lie."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from ptm.config import PostgresSource, TcpSource
from ptm.errors import RunnerError
from ptm.node.gateway import Gateways, usage
from tests.datasources import PostgresServer, make_certificate, postgres
from tests.node.test_gateway import read_all, secret

pytestmark = pytest.mark.slow
__all__ = ["postgres"]


@contextlib.contextmanager
def gateway(folder: Path, source: PostgresSource | TcpSource) -> Iterator[Path]:
    """The socket that leads to a source."""
    gateways = Gateways()
    gateways.serve("task", folder / "g", {"db": source})
    try:
        yield folder / "g" / "sockets" / "3030.sock"
    finally:
        gateways.close()


def source_of(server: PostgresServer, folder: Path, **changes: Any) -> PostgresSource:
    settings: dict[str, Any] = {
        "kind": "postgres",
        "host": server.host,
        "port": server.port,
        "database": "warehouse",
        "user": "reader",
        "password_file": secret(folder / "password", server.password),
        "ca_file": server.ca,
    }
    return PostgresSource(**{**settings, **changes})


def connect(path: Path, user: str = "whoever", **settings: Any) -> pg8000.native.Connection:
    return pg8000.native.Connection(user, unix_sock=str(path), timeout=10, **settings)


@pytest.mark.parametrize("tls", ["verify", "off"])
def test_a_container_queries_without_a_password_as_the_sites_role_in_the_sites_database(
    postgres: PostgresServer, tmp_path: Path, tls: str
) -> None:
    with gateway(tmp_path, source_of(postgres, tmp_path, tls=tls)) as path:
        connection = connect(path, database="postgres", application_name="fit")
        assert connection.run("SELECT sum(age) FROM cohort") == [[178]]
        assert connection.run("SELECT current_user, current_database(), current_setting('application_name')") == [
            ["reader", "warehouse", "fit"]
        ]
        encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.run(encrypted) == [[tls == "verify"]]
        with pytest.raises(pg8000.native.DatabaseError, match="permission denied"):
            connection.run("DELETE FROM cohort")
        connection.close()
    (used,) = usage(tmp_path / "g", ["db"])
    assert used.requests == 1 and used.bytes_in > 100 and used.bytes_out > 100


def test_a_large_answer_streams_and_one_too_large_is_broken_off(postgres: PostgresServer, tmp_path: Path) -> None:
    with gateway(tmp_path, source_of(postgres, tmp_path, answer_mb=4)) as path:
        connection = connect(path)
        assert connection.run("SELECT sum(length(x)) FROM (SELECT repeat('x', 1000) AS x FROM generate_series(1, 3000)) AS t")
        assert len(connection.run("SELECT repeat('x', 1000) FROM generate_series(1, 3000)")) == 3000
        with pytest.raises((pg8000.native.Error, OSError, struct.error)):
            connection.run("SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
    with gateway(tmp_path, source_of(postgres, tmp_path)) as path:
        assert connect(path).run("SELECT 1") == [[1]], "another connection is not harmed"


def test_what_changes_the_session_at_the_start_does_not_pass(postgres: PostgresServer, tmp_path: Path) -> None:
    with gateway(tmp_path, source_of(postgres, tmp_path)) as path:
        answer = raw(
            path, startup(user="owner", database="postgres", replication="database", options="-c session_preload_libraries=x")
        )
        assert b"ReadyForQuery" not in answer and answer[:1] == b"R"
        connection = connect(path, user="owner", replication="true")
        assert connection.run("SELECT current_user") == [["reader"]]
        with pytest.raises(pg8000.native.DatabaseError):
            connection.run("IDENTIFY_SYSTEM")


@pytest.mark.parametrize(
    "sql",
    [
        "COPY cohort TO PROGRAM 'cat > /tmp/x'",
        "COPY (SELECT 1) TO '/tmp/ptm-planted'",
        "COPY cohort FROM PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT rolpassword FROM pg_authid",
        "CREATE EXTENSION dblink",
        "SET ROLE owner",
        "SET SESSION AUTHORIZATION owner",
        "ALTER ROLE reader SUPERUSER",
        "SELECT pg_reload_conf()",
    ],
)
def test_what_a_role_that_may_only_read_cannot_do_a_container_cannot_do(
    postgres: PostgresServer, tmp_path: Path, sql: str
) -> None:
    with gateway(tmp_path, source_of(postgres, tmp_path)) as path:
        with pytest.raises(pg8000.native.DatabaseError, match=r"permission denied|must be superuser|must have|Must be"):
            connect(path).run(sql)


def test_the_word_that_cancels_somebodys_query_does_not_pass(postgres: PostgresServer, tmp_path: Path) -> None:
    """With the process and the key that the server itself gave the container."""
    with gateway(tmp_path, source_of(postgres, tmp_path)) as path:
        connection = connect(path)
        identity, key = connection._backend_key_data[:4], connection._backend_key_data[4:8]
        slow: list[object] = []
        query = threading.Thread(target=lambda: slow.extend(connection.run("SELECT pg_sleep(1)")))
        query.start()
        time.sleep(0.2)
        assert b"cancels nothing" in raw(path, struct.pack("!II", 16, 80877102) + identity + key)
        query.join()
    assert slow == [[""]]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!II", 2**31, 196608),
        struct.pack("!II", 0, 196608),
        struct.pack("!II", 8, 131072),
        struct.pack("!IIII", 16, 80877102, 1, 2),
        struct.pack("!II", 8, 80877103) * 5,
        struct.pack("!II", 9, 196608) + b"x",
    ],
)
def test_a_start_that_is_none_gets_nowhere_and_harms_nobody(postgres: PostgresServer, tmp_path: Path, sent: bytes) -> None:
    with gateway(tmp_path, source_of(postgres, tmp_path)) as path:
        assert b"reader" not in raw(path, sent)
        assert connect(path).run("SELECT 1") == [[1]]


@pytest.mark.parametrize(
    ("change", "logged"),
    [
        ({"database": "nowhere"}, "refuses the login"),
        ({"user": "nobody-there"}, "refuses the login"),
        ({"port": 1}, "does not answer"),
        ({"password_file": None}, "no password_file"),
        ({"ca_file": None}, "does not answer"),
        ({"host": "localhost"}, "does not answer"),
    ],
)
def test_a_login_that_fails_is_told_to_the_site_and_not_to_the_container(
    postgres: PostgresServer, tmp_path: Path, change: dict[str, Any], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    with gateway(tmp_path, source_of(postgres, tmp_path, **change)) as path:
        answer = raw(path, startup(user="x"))
    assert answer[:1] == b"E" and b"refuses the site's own login" in answer
    assert not any(word in answer for word in (b"127.0.0.1", b"reader", b"warehouse", postgres.password.encode()))
    assert logged in caplog.text and postgres.password not in caplog.text


def test_a_wrong_password_is_a_failed_login(postgres: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = secret(tmp_path / "wrong", "not-the-password")
    with gateway(tmp_path, source_of(postgres, tmp_path, password_file=wrong)) as path:
        assert raw(path, startup(user="x"))[:1] == b"E"
    assert "password authentication failed" in caplog.text and "not-the-password" not in caplog.text


# servers that lie

Liar = Callable[[socket.socket], None]


@contextlib.contextmanager
def lying(act: Liar) -> Iterator[tuple[int, list[bytes]]]:
    """A server that does what it likes; and everything that it was told."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.settimeout(5)
                with connection:
                    told.append(connection.recv(65536))
                    act(connection)
                    while part := connection.recv(65536):
                        told.append(part)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], told
        thread.join(6)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


SASL = message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("asks for the password in clear", [message(b"R", struct.pack("!I", 3))]),
        ("asks for MD5", [message(b"R", struct.pack("!I", 5) + b"salt")]),
        ("offers a mechanism of its own", [message(b"R", struct.pack("!I", 10) + b"PLAIN\0\0")]),
        ("lets in half way", [SASL, message(b"R", struct.pack("!I", 0))]),
        (
            "proves nothing",
            [SASL, message(b"R", struct.pack("!I", 11) + b"r=x,s=eA==,i=4096"), message(b"R", struct.pack("!I", 0))],
        ),
        ("speaks HTTP", [b"HTTP/1.1 400 Bad Request\r\n\r\n"]),
        ("sends without end", [message(b"v", b"x" * 1000)] * 50),
        ("sends a giant", [b"R" + struct.pack("!I", 2**31)]),
    ],
)
def test_a_server_that_lies_gets_no_password_and_no_container(tmp_path: Path, name: str, said: list[bytes]) -> None:
    def act(connection: socket.socket) -> None:
        for part in said:
            connection.sendall(part)
            time.sleep(0.05)

    path = secret(tmp_path / "password", "the-secret-of-the-site")
    with lying(act) as (port, told):
        source = PostgresSource(
            kind="postgres", host="127.0.0.1", port=port, database="d", user="u", password_file=path, tls="off"
        )
        with gateway(tmp_path, source) as socket_path:
            assert raw(socket_path, startup(user="x"))[:1] == b"E", name
    assert b"the-secret" not in b"".join(told)


def test_what_a_server_says_before_tls_is_not_taken_for_what_it_says_after(tmp_path: Path) -> None:
    make_certificate(tmp_path)

    def act(connection: socket.socket) -> None:
        connection.sendall(b"S" + message(b"R", struct.pack("!I", 0)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
        context.wrap_socket(connection, server_side=True)

    with lying(act) as (port, _):
        source = PostgresSource(
            kind="postgres", host="127.0.0.1", port=port, database="d", user="u", ca_file=tmp_path / "server.crt"
        )
        with gateway(tmp_path, source) as path:
            assert raw(path, startup(user="x"))[:1] == b"E"


def test_a_server_without_tls_is_refused_unless_the_site_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with lying(lambda connection: connection.sendall(b"N")) as (port, told):
        source = PostgresSource(kind="postgres", host="127.0.0.1", port=port, database="d", user="u")
        with gateway(tmp_path, source) as path:
            assert raw(path, startup(user="x"))[:1] == b"E"
    assert told == [struct.pack("!II", 8, 80877103)] and "has no TLS" in caplog.text


# plain TCP


def test_plain_tcp_goes_to_one_place_and_is_counted_and_bounded(tmp_path: Path) -> None:
    with lying(lambda connection: connection.sendall(b"answer")) as (port, told):
        with gateway(tmp_path, TcpSource(kind="tcp", host="127.0.0.1", port=port)) as path:
            assert raw(path, b"question") == b"answer"
    assert told == [b"question"]
    (used,) = usage(tmp_path / "g", ["db"])
    assert (used.requests, used.bytes_in, used.bytes_out) == (1, 8, 6)
    with lying(lambda connection: connection.sendall(b"x" * 2_000_000)) as (port, _):
        with gateway(tmp_path, TcpSource(kind="tcp", host="127.0.0.1", port=port, answer_mb=1)) as path:
            assert len(raw(path, b"question")) <= 1024 * 1024


def test_a_gateway_ends_at_once_while_connections_are_open(tmp_path: Path) -> None:
    gateways = Gateways()
    with lying(lambda connection: time.sleep(1)) as (port, told):
        gateways.serve("task", tmp_path / "g", {"db": TcpSource(kind="tcp", host="127.0.0.1", port=port)})
        with socket.socket(socket.AF_UNIX) as inside:
            inside.connect(str(tmp_path / "g" / "sockets" / "3030.sock"))
            inside.sendall(b"x")
            while not told:
                time.sleep(0.01)
            begun = time.monotonic()
            gateways.stop("task", tmp_path / "g")
            assert time.monotonic() - begun < 5
            inside.settimeout(5)
            assert read_all(inside) == b""
    gateways.close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("")
    with (
        pytest.raises(RunnerError, match="gateway could not be started"),
        gateway(tmp_path, TcpSource(kind="tcp", host="h", port=1)),
    ):
        pass


def startup(**settings: str) -> bytes:
    body = struct.pack("!I", 196608) + b"".join(f"{name}\0{value}\0".encode() for name, value in settings.items()) + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def raw(path: Path, sent: bytes) -> bytes:
    """What comes back for these bytes, until the other side ends or says nothing for a second."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return read_all(connection)
        return b""
