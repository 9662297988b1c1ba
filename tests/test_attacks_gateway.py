"""What a container may send to its gateway: nothing of it floods the node's log or reaches the endpoint changed."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import logging
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from ptm.config import Home, HttpSource, PostgresSource, SparqlSource, TcpSource
from ptm.errors import ConfigError
from ptm.node import gateway_http, quiet
from ptm.node.gateway import Gateways, usage
from ptm.node.setup import load_node
from tests.node.test_gateway import asking, endpoint, graph, secret
from tests.node.test_gateway_postgres import SASL, lying, message, raw, startup

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(folder: Path, url: str) -> Iterator[Path]:
    gateways = Gateways()
    gateways.serve("run", folder / "gateway", {"graph": SparqlSource(kind="sparql", url=url)})
    try:
        yield folder / "gateway" / "sockets" / "3030.sock"
    finally:
        gateways.close()


def ask(path: Path, raw: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(raw)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_flood_of_requests_that_are_none_does_not_flood_the_nodes_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), endpoint() as (url, _), served(tmp_path, url) as path:
        for _ in range(50):
            ask(path, b"GET /sparql?q=\xff\xfe\x1b]0;owned\x07 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(caplog.records) <= 1


def test_a_flood_of_requests_to_an_endpoint_that_is_down_does_not_flood_the_nodes_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet.forget()
    with caplog.at_level(logging.INFO), served(tmp_path, "http://127.0.0.1:1/sparql") as path:
        for _ in range(50):
            said = ask(path, b"GET /sparql?query=ASK%7B%7D HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 502")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("body", [b"query=ASK{}", bytes(40 * 1024 * 1024)])
def test_a_packed_query_is_refused_before_it_is_unpacked(tmp_path: Path, body: bytes) -> None:
    packed = gzip.compress(body)
    head = b"POST /sparql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    with endpoint() as (url, seen), served(tmp_path, url) as path:
        assert ask(path, head % len(packed) + packed).startswith(b"HTTP/1.1 415")
    assert not seen


REFUSED = {
    "a length beside chunks": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    "two lengths": b"Content-Length: 6\r\nContent-Length: 5\r\n\r\nASK {}",
    "the same length twice": b"Content-Length: 6, 6\r\n\r\nASK {}",
    "a length with a sign": b"Content-Length: +6\r\n\r\nASK {}",
    "an encoding that is none": b"Transfer-Encoding: xchunked\r\n\r\n6\r\nASK {}\r\n0\r\n\r\n",
    "chunks that are none": b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nASK {}\r\n0\r\n\r\n",
    "a folded header": b"Accept: a\r\n b: c\r\nContent-Length: 6\r\n\r\nASK {}",
    "a null in a header": b"Accept: a\x00b\r\nContent-Length: 6\r\n\r\nASK {}",
    "two content types": b"Content-Type: application/sparql-update\r\nContent-Length: 6\r\n\r\nASK {}",
    "a thousand headers": b"X: y\r\n" * 1000 + b"Content-Length: 6\r\n\r\nASK {}",
    "a giant header": b"X: " + b"y" * 100_000 + b"\r\nContent-Length: 6\r\n\r\nASK {}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_two_servers_could_read_in_two_ways_is_refused(tmp_path: Path, name: str) -> None:
    head = b"POST /sparql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/sparql-query\r\n"
    with endpoint() as (url, seen), served(tmp_path, url) as path:
        assert b" 400 " in ask(path, head + REFUSED[name]).split(b"\r\n")[0]
    assert seen == []


@pytest.mark.parametrize(
    "hop", [b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b"Upgrade: websocket\r\nSec-WebSocket-Key: eA=="]
)
def test_a_change_of_protocol_is_not_taken_up_and_what_follows_reaches_nobody(tmp_path: Path, hop: bytes) -> None:
    start = b"GET /sparql?query=ASK%7B%7D HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\n"
    with endpoint() as (url, seen), served(tmp_path, url) as path:
        said = ask(path, start + hop + b"\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200") and b" 101 " not in said
    assert len(seen) == 1 and "upgrade" not in seen[0]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "%c0%ae%c0%ae%c0%afadmin",
            "..%c0%afadmin",
            "%ef%bc%8e%ef%bc%8e%ef%bc%8fadmin",
            "%e2%80%a5/admin",
            "%u002e%u002e/admin",
        ),
        *("%", "%zz", "%1", ".../admin", "..%20/admin", "%20../admin", "..%20", "a%0d%0aX:%20y", "a%0dX", "a%1b", "a%7f", "%ff"),
    ],
)
def test_a_path_that_a_server_could_read_otherwise_is_refused_even_where_all_paths_are_allowed(tmp_path: Path, path: str) -> None:
    with endpoint() as (url, seen):
        with asking(tmp_path, HttpSource(kind="http", url=url.replace("/sparql", "/fhir"))) as put:
            assert put("GET", f"/fhir/{path}")[0] == 404
            assert seen == []
            assert put("GET", "/fhir/Pati%C3%ABnt/a.b%20c/.well-known/...x")[0] == 200


@pytest.mark.parametrize("pattern", [r"/(\w+)*x", "/(a|a)*x", "/a*a*a*a*x"])
def test_a_pattern_of_paths_that_an_image_could_make_take_for_ever_is_refused(tmp_path: Path, pattern: str) -> None:
    """It would hold up the gateways of all runs."""
    table = f"[data.fhir]\nkind = 'http'\nurl = 'http://fhir.example/r4'\npaths = ['/Patient', '{pattern}']\n"
    (tmp_path / "node.toml").write_text(f"worker = 'w1'\ngateway_image = 'python:3'\n{table}")
    with pytest.raises(ConfigError, match=r"data source fhir: .* would take for ever on some path"):
        load_node(Home(tmp_path))


def test_a_path_of_any_length_is_not_tried(tmp_path: Path) -> None:
    with endpoint() as (url, seen), asking(tmp_path, HttpSource(kind="http", url=url)) as put:
        assert put("GET", "/sparql/" + "a" * 3000)[0] == 404
        assert seen == []


def test_a_servers_cookie_is_not_kept_for_the_next_request(tmp_path: Path) -> None:
    with endpoint() as (url, seen), asking(tmp_path, graph(url.replace("127.0.0.1", "localhost"))) as put:
        for _ in range(2):
            assert put("GET", "/sparql?query=ASK%7B%7D")[0] == 200
    assert [request.get("cookie") for request in seen] == [None, None]


def test_many_large_requests_at_once_do_not_fill_the_nodes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is held in memory several times over: 32 of them had the node take gigabytes."""
    at_once, most = 0, 0
    judge = gateway_http.SparqlRules.judge

    async def judged(rules: gateway_http.SparqlRules, request: web.Request) -> gateway_http.Question:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await judge(rules, request)
        finally:
            at_once -= 1

    monkeypatch.setattr(gateway_http.SparqlRules, "judge", judged)
    body = b"ASK {} #" + b"x" * 1_000_000
    head = b"POST /sparql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/sparql-query\r\n"
    with endpoint() as (url, _), served(tmp_path, url) as path, contextlib.ExitStack() as open_ones:
        for number in range(12):
            client = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            length = b"Transfer-Encoding: chunked\r\n\r\nf4240\r\n" if number % 2 else b"Content-Length: %d\r\n\r\n" % len(body)
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.sendall(head + length + body)
        said = ask(path, head + b"Content-Length: 6\r\n\r\nASK {}")
        assert said.startswith(b"HTTP/1.1 200"), "a small one does not wait for the large ones"
    assert 1 < most <= 3


# what one run may have in all


def test_a_run_gets_no_more_of_a_service_than_its_budget_however_it_asks(tmp_path: Path) -> None:
    with endpoint() as (url, seen), asking(tmp_path, graph(url, run_mb=1, answer_mb=1)) as put:
        whole = 0
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            for _ in range(10):
                whole += len(put("GET", "/sparql?query=ASK%7B%7D&format=size-300000")[1])
        assert whole == 900_000
        status, said, _ = put("GET", "/sparql?query=ASK%7B%7D")
        assert (status, len(seen)) == (403, 4)
        assert said == b"more than 1 MB of the data source graph, the site's limit for one run\n"
    with endpoint() as (url, _), asking(tmp_path, graph(url, run_mb=1)) as put:
        assert put("GET", "/sparql?query=ASK%7B%7D")[0] == 403, "a restart of the node gives no new budget"


def test_a_run_gets_no_more_over_tcp_than_its_budget_however_often_it_connects(tmp_path: Path) -> None:
    got = 0
    gateways = Gateways()
    for number in range(4):
        with lying(lambda connection: connection.sendall(b"x" * 400_000)) as (port, told):
            source = TcpSource(kind="tcp", host="127.0.0.1", port=port, run_mb=1)
            gateways.serve("task", tmp_path / "g", {"db": source})
            got += len(raw(tmp_path / "g" / "sockets" / "3030.sock", b"question"))
            gateways.close()
            gateways = Gateways()
        assert bool(told) == (number < 3), "the fourth is not even connected"
    assert 800_000 <= got <= 1024 * 1024
    (used,) = usage(tmp_path / "g", ["db"])
    assert used.requests == 4


def test_a_server_that_wants_endless_rounds_of_scram_does_not_stop_the_gateway(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def act(connection: socket.socket) -> None:
        connection.sendall(SASL)
        nonce = connection.recv(65536).partition(b"r=")[2]
        salt = base64.b64encode(b"s" * 16)
        connection.sendall(message(b"R", struct.pack("!I", 11) + b"r=" + nonce + b"more,s=" + salt + b",i=9000000"))

    with lying(act) as (port, _):
        password = secret(tmp_path / "password", "the-secret-of-the-site")
        source = PostgresSource(
            kind="postgres", host="127.0.0.1", port=port, database="d", user="u", password_file=password, tls="off"
        )
        gateways = Gateways()
        gateways.serve("task", tmp_path / "g", {"db": source})
        begun = time.monotonic()
        assert raw(tmp_path / "g" / "sockets" / "3030.sock", startup(user="x"))[:1] == b"E"
        assert time.monotonic() - begun < 5
        gateways.close()
    assert "rounds of SCRAM" in caplog.text
