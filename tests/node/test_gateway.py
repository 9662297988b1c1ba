"""The node's end of the gateway, asked over its unix socket as a hostile container would; and the sidecar's forwarder."""

from __future__ import annotations

import contextlib
import http.client
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ptm.node import gateway
from ptm.node.gateway import FORWARDER, Gateways, inside_url, make_folder, ports


@contextlib.contextmanager
def endpoint() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A SPARQL endpoint that answers with what it was asked; and the headers of each request."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path, _, query = self.path.partition("?")
            seen.append({**{k.lower(): v for k, v in self.headers.items()}, ":path": path})
            body = (
                b"".join(self.chunks())
                if "Transfer-Encoding" in self.headers
                else self.rfile.read(int(self.headers.get("Content-Length", 0)))
            )
            if "redirect" in query:
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = int(query.removeprefix("size=")) if query.startswith("size=") else None
            said = f"{self.command} {query} ".encode() + body if size is None else b"x" * size
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Set-Cookie", "session=1")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if "stall" in query:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(said)

        def chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/sparql", seen
    finally:
        server.shutdown()
        server.server_close()


class Asker(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("127.0.0.1")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


Ask = Any


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    gateways = Gateways()
    inner = make_folder(tmp_path / "g")
    with endpoint() as (url, seen):
        gateways.serve("task", inner, {3030: url})

        def put(
            method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
        ) -> tuple[int, bytes, dict[str, str]]:
            asker = Asker(inner / "3030.sock")
            asker.request(method, target, body, headers or {})
            reply = asker.getresponse()
            return reply.status, reply.read(), {k.lower(): v for k, v in reply.getheaders()}

        put.seen = seen  # type: ignore[attr-defined]
        yield put
    gateways.close()


def test_get_and_post_reach_the_endpoint(ask: Ask) -> None:
    assert ask("GET", "/sparql?query=ASK%20%7B%7D&a=%2F")[:2] == (200, b"GET query=ASK%20%7B%7D&a=%2F ")
    assert ask("POST", "/sparql", b"query=SELECT")[:2] == (200, b"POST  query=SELECT")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/update",
        "/sparql/",
        "/sparql/../update",
        "/sparql%2f..%2fupdate",
        "//sparql",
        "/SPARQL",
        "http://127.0.0.1:1/x",
        "/%73parql",
    ],
)
def test_any_other_path_is_refused_without_asking(ask: Ask, target: str) -> None:
    assert ask("GET", target)[0] == 404
    assert ask.seen == []


def test_a_full_url_as_target_does_not_change_where_it_goes(ask: Ask) -> None:
    status, body, _ = ask("GET", "http://127.0.0.1:1/sparql?query=ASK", headers={"Host": "evil.example"})
    assert (status, body) == (200, b"GET query=ASK ")
    assert ask.seen[0]["host"].startswith("127.0.0.1:") and "evil" not in str(ask.seen)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
def test_other_methods_are_refused_without_asking(ask: Ask, method: str) -> None:
    assert ask(method, "/sparql")[0] == 405
    assert ask.seen == []


def test_only_harmless_headers_pass_in_either_direction(ask: Ask) -> None:
    given = {
        "Accept": "text/csv",
        "Authorization": "Bearer x",
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
        "Connection": "keep-alive, X-Odd",
        "X-Odd": "1",
        "Upgrade": "h2c",
        "TE": "trailers",
        "Proxy-Authorization": "x",
    }
    _, _, headers = ask("GET", "/sparql?q=1", headers=given)
    seen = ask.seen[0]
    assert seen["accept"] == "text/csv"
    assert not {"authorization", "cookie", "x-forwarded-for", "x-odd", "upgrade", "te", "proxy-authorization"} & seen.keys()
    assert headers["content-type"] == "text/plain" and "set-cookie" not in headers


def test_a_redirect_is_not_followed_and_not_passed_on(ask: Ask) -> None:
    status, body, headers = ask("GET", "/sparql?redirect")
    assert status == 502 and b"redirects" in body and "location" not in headers
    assert len(ask.seen) == 1


def test_a_query_that_is_too_long_is_refused_with_and_without_a_declared_length(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MAX_QUERY_BYTES", 1000)
    assert ask("POST", "/sparql", b"x" * 1001)[0] == 413
    assert ask("POST", "/sparql", iter([b"x" * 600, b"y" * 600]))[0] == 413
    assert ask("POST", "/sparql", iter([b"x" * 600, b"y" * 300]))[:2] == (200, b"POST  " + b"x" * 600 + b"y" * 300)


def test_a_large_answer_streams_and_one_too_large_is_broken_off(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("GET", "/sparql?size=5000000")[1] == b"x" * 5_000_000
    monkeypatch.setattr(gateway, "MAX_ANSWER_BYTES", 1_000_000)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask("GET", "/sparql?size=5000000")


def test_an_answer_that_breaks_off_does_not_look_whole(ask: Ask) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask("GET", "/sparql?stall")


def test_an_endpoint_that_is_down_is_a_502_without_its_address(tmp_path: Path) -> None:
    gateways = Gateways()
    inner = make_folder(tmp_path / "g")
    gateways.serve("task", inner, {3030: "http://127.0.0.1:1/sparql"})
    asker = Asker(inner / "3030.sock")
    asker.request("GET", "/sparql")
    reply = asker.getresponse()
    assert reply.status == 502 and b"127.0.0.1" not in reply.read()
    gateways.close()


def test_sockets_are_private_survive_long_paths_and_go_with_the_run(tmp_path: Path) -> None:
    gateways = Gateways()
    outer = tmp_path / ("long-" * 30) / "gateway"
    inner = make_folder(outer)
    gateways.serve("task", inner, {3030: "http://127.0.0.1:1/sparql", 3031: "http://127.0.0.1:1/other"})
    assert sorted(p.name for p in inner.iterdir()) == ["3030.sock", "3031.sock"]
    assert stat.S_IMODE(outer.stat().st_mode) == 0o700
    gateways.serve("task", inner, {3030: "http://127.0.0.1:1/sparql"})
    gateways.stop("task", outer)
    gateways.stop("task", outer)
    assert not outer.exists()
    gateways.serve("task", make_folder(outer), {3030: "http://127.0.0.1:1/sparql"})
    gateways.close()


def test_ports_depend_only_on_the_names() -> None:
    assert ports(["b", "a"]) == ports({"a": 1, "b": 2}) == {"a": 3030, "b": 3031}
    assert inside_url(3030, "https://graph.example/ds/sparql?default-graph-uri=x") == "http://127.0.0.1:3030/ds/sparql"
    assert inside_url(3031, "http://graph.example") == "http://127.0.0.1:3031/"


def test_the_forwarder_carries_bytes_and_half_closed_connections_both_ways(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as node, socket.create_server(("127.0.0.1", 0)) as probe:
        node.bind(str(tmp_path / "s"))
        node.listen()
        port = probe.getsockname()[1]
        probe.close()
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", FORWARDER, f"{port}={tmp_path}/s"], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            inside = socket.create_connection(("127.0.0.1", port), timeout=10)
            inside.sendall(b"q" * 1_000_000)
            inside.shutdown(socket.SHUT_WR)
            outside, _ = node.accept()
            outside.settimeout(10)
            assert read_all(outside) == b"q" * 1_000_000
            outside.sendall(b"answer")
            outside.close()
            assert read_all(inside) == b"answer"
            inside.close()
        finally:
            child.kill()
            child.wait()


def read_all(connection: socket.socket) -> bytes:
    parts, deadline = [], time.monotonic() + 10
    while time.monotonic() < deadline and (part := connection.recv(65536)):
        parts.append(part)
    return b"".join(parts)
