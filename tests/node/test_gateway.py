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

from ptm.config import HttpSource, SparqlSource, TcpSource
from ptm.errors import ConfigError
from ptm.node.gateway import FORWARDER, Gateways, inside_url, ports, usage


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
            if "format=redirect" in query:
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            how, _, size = query.rpartition("format=")[2].partition("-")
            said = b"x" * int(size) if how == "size" else f"{self.command} {query} ".encode() + body
            if "echo" in query:
                said = b"y" * 70_000 + self.headers["Authorization"].encode() + b"z" * 70_000
            self.send_response(401 if how == "refuse" else 200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Set-Cookie", "session=1")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if query.endswith("slow-echo"):
                for at in range(0, len(said), 70_010):
                    self.wfile.write(said[at : at + 70_010])
                    self.wfile.flush()
                    time.sleep(0.2)
                return
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
ASK = "query=ASK%20%7B%7D"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
QUERY = {"Content-Type": "application/sparql-query"}


def graph(url: str, **settings: Any) -> SparqlSource:
    return SparqlSource(kind="sparql", url=url, **settings)


@contextlib.contextmanager
def asking(folder: Path, source: Any) -> Iterator[Any]:
    """Ask a source through its gateway: `(method, target, body, headers) -> (status, body, headers)`."""
    gateways = Gateways()
    gateways.serve("task", folder, {"graph": source})

    def put(
        method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        asker = Asker(folder / "sockets" / "3030.sock")
        asker.request(method, target, body, headers or {})
        reply = asker.getresponse()
        return reply.status, reply.read(), {k.lower(): v for k, v in reply.getheaders()}

    try:
        yield put
    finally:
        gateways.close()


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    with endpoint() as (url, seen), asking(tmp_path / "g", graph(url, request_mb=1, answer_mb=5)) as put:
        put.seen = seen
        yield put


def test_get_and_both_kinds_of_post_reach_the_endpoint(ask: Ask) -> None:
    assert ask("GET", "/sparql?query=ASK%20%7B%7D&format=json")[:2] == (200, b"GET query=ASK+%7B%7D&format=json ")
    assert ask("POST", "/sparql", b"query=ASK{}", FORM)[:2] == (200, b"POST  query=ASK%7B%7D")
    assert ask("POST", "/sparql?format=json", b"ASK {}", QUERY)[:2] == (200, b"POST format=json ASK {}")


@pytest.mark.parametrize(
    ("target", "body", "kind"),
    [
        ("/sparql?update=DROP%20ALL", None, None),
        ("/sparql?query=ASK%7B%7D&update=DROP%20ALL", None, None),
        ("/sparql?Update=DROP%20ALL", None, None),
        ("/sparql?query=DROP%20ALL", None, None),
        ("/sparql?query=ASK%7B%7D&query=DROP%20ALL", None, None),
        ("/sparql?query=ASK%7B%7D&%71uery=DROP%20ALL", None, None),
        ("/sparql?query=ASK%7B%7D;update=DROP%20ALL", None, None),
        ("/sparql", b"update=DROP ALL", "application/x-www-form-urlencoded"),
        ("/sparql?query=ASK%7B%7D", b"update=DROP ALL", "application/x-www-form-urlencoded"),
        ("/sparql?update=DROP%20ALL", b"query=ASK{}", "application/x-www-form-urlencoded"),
        ("/sparql?update=DROP%20ALL", b"ASK{}", "application/sparql-query"),
        ("/sparql", b"DROP ALL", "application/sparql-update"),
        ("/sparql", b"DROP ALL", "application/sparql-query"),
        ("/sparql", b"DROP ALL", "application/sparql-query, application/sparql-update"),
        ("/sparql", b"DROP ALL", "APPLICATION/SPARQL-UPDATE; charset=utf-8"),
        ("/sparql", b"DROP ALL", "text/plain"),
        ("/sparql", b"DROP ALL", None),
        (
            "/sparql",
            b"--x\r\nContent-Disposition: form-data; name=update\r\n\r\nDROP ALL\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
        ("/sparql", b"q\xff", "application/sparql-query"),
        ("/sparql?query=ASK%7B%7D&default-graph-uri=http://evil.example/", None, None),
        ("/sparql?query=ASK%7B%7D&should-sponge=grab-all", None, None),
    ],
)
def test_an_update_by_any_trick_is_refused_without_asking(ask: Ask, target: str, body: bytes | None, kind: str | None) -> None:
    status, _, _ = ask("POST" if body is not None else "GET", target, body, {"Content-Type": kind} if kind else {})
    assert 400 <= status < 500
    assert ask.seen == []


def test_a_packed_request_and_a_get_with_a_body_are_refused(ask: Ask) -> None:
    assert ask("POST", "/sparql", b"x", {**QUERY, "Content-Encoding": "gzip"})[0] == 415
    assert ask("GET", f"/sparql?{ASK}", b"update=DROP ALL")[0] == 400
    assert ask.seen == []


def test_graphs_that_the_site_lists_may_be_named(tmp_path: Path) -> None:
    with endpoint() as (url, _), asking(tmp_path, graph(url, graphs=("http://g.example/1",))) as ask:
        assert ask("GET", f"/sparql?{ASK}&default-graph-uri=http://g.example/1")[0] == 200
        assert ask("POST", "/sparql", b"ASK FROM <http://g.example/1> {}", QUERY)[0] == 200
        assert ask("POST", "/sparql", b"ASK FROM <http://g.example/2> {}", QUERY)[0] == 403


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/update", "/sparql/", "/sparql/../update", "/sparql%2f..%2fupdate", "//sparql", "/SPARQL", "/%73parql"),
        "http://127.0.0.1:1/x",
    ],
)
def test_any_other_path_is_refused_without_asking(ask: Ask, target: str) -> None:
    assert ask("GET", target)[0] == 404
    assert ask.seen == []


def test_a_full_url_as_target_does_not_change_where_it_goes(ask: Ask) -> None:
    status, body, _ = ask("GET", f"http://127.0.0.1:1/sparql?{ASK}", headers={"Host": "evil.example"})
    assert (status, body) == (200, b"GET query=ASK+%7B%7D ")
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
    _, _, headers = ask("GET", f"/sparql?{ASK}", headers=given)
    seen = ask.seen[0]
    assert seen["accept"] == "text/csv"
    assert not {"authorization", "cookie", "x-forwarded-for", "x-odd", "upgrade", "te", "proxy-authorization"} & seen.keys()
    assert headers["content-type"] == "text/plain" and "set-cookie" not in headers


def test_a_redirect_is_not_followed_and_not_passed_on(ask: Ask) -> None:
    status, body, headers = ask("GET", f"/sparql?{ASK}&format=redirect")
    assert status == 502 and b"redirects" in body and "location" not in headers
    assert len(ask.seen) == 1


def test_a_query_that_is_too_long_is_refused_with_and_without_a_declared_length(ask: Ask) -> None:
    long = b"#" * 600_000
    assert ask("POST", "/sparql", long + long, QUERY)[0] == 413
    assert ask("POST", "/sparql", iter([long, long]), QUERY)[0] == 413
    assert ask.seen == []
    assert ask("POST", "/sparql", iter([b"ASK {}", long]), QUERY)[:2] == (200, b"POST  ASK {}" + long)


def test_a_large_answer_streams_and_one_too_large_is_broken_off(ask: Ask) -> None:
    assert ask("GET", f"/sparql?{ASK}&format=size-5000000")[1] == b"x" * 5_000_000
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask("GET", f"/sparql?{ASK}&format=size-6000000")


def test_an_answer_that_breaks_off_does_not_look_whole(ask: Ask) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask("GET", f"/sparql?{ASK}&format=stall")


def test_an_endpoint_that_is_down_is_a_502_without_its_address(tmp_path: Path) -> None:
    with asking(tmp_path, graph("http://127.0.0.1:1/sparql")) as ask:
        status, body, _ = ask("GET", f"/sparql?{ASK}")
    assert status == 502 and b"127.0.0.1" not in body


# credentials


def secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("kind", ["token", "password"])
def test_the_sites_credentials_are_added_and_an_answer_that_holds_them_is_broken_off(tmp_path: Path, kind: str) -> None:
    path = secret(tmp_path / "secret", "s3cret-t0ken-of-the-site\n")
    settings: dict[str, Any] = {"token_file": path} if kind == "token" else {"user": "ptm", "password_file": path}
    with endpoint() as (url, seen), asking(tmp_path / "g", graph(url, **settings)) as ask:
        assert ask("GET", f"/sparql?{ASK}", headers={"Authorization": "Bearer mine", "Accept-Encoding": "gzip"})[0] == 200
        expected = "Bearer s3cret-t0ken-of-the-site" if kind == "token" else "Basic cHRtOnMzY3JldC10MGtlbi1vZi10aGUtc2l0ZQ=="
        assert (seen[0]["authorization"], seen[0]["accept-encoding"]) == (expected, "identity")
        for how in ("echo", "slow-echo"):
            with pytest.raises((http.client.IncompleteRead, ConnectionError)) as caught:
                ask("GET", f"/sparql?{ASK}&format={how}")
            got = getattr(caught.value, "partial", b"")
            assert b"t0ken" not in got and b"cHRtOnMz" not in got
        status, body, _ = ask("GET", f"/sparql?{ASK}&format=refuse")
        assert status == 502 and b"credentials" in body


def test_a_secret_that_other_accounts_could_read_or_that_is_no_line_is_refused(tmp_path: Path) -> None:
    path = secret(tmp_path / "secret", "s3cret")
    gateways = Gateways()
    source = graph("http://127.0.0.1:1/sparql", token_file=path)
    path.chmod(0o640)
    for spoilt, word in (
        (lambda: None, "other accounts"),
        (lambda: secret(path, "a\nb"), "one line"),
        (path.unlink, "cannot be read"),
    ):
        spoilt()
        with pytest.raises(ConfigError, match=word) as caught:
            gateways.serve("task", tmp_path / "g", {"graph": source})
        assert "s3cret" not in str(caught.value)
    gateways.close()


# services with listed methods and paths


def fhir(url: str, **settings: Any) -> HttpSource:
    base = url.removesuffix("/sparql") + "/fhir"
    return HttpSource(kind="http", url=base, paths=("/Patient", "/Patient/[a-z0-9]+", r"/Patient/\$count"), **settings)


def test_listed_methods_and_paths_reach_a_service(tmp_path: Path) -> None:
    with endpoint() as (url, seen), asking(tmp_path, fhir(url, methods=("GET", "POST"))) as ask:
        assert ask("GET", "/fhir/Patient?birthdate=ge1990&_count=5")[:2] == (200, b"GET birthdate=ge1990&_count=5 ")
        assert ask("GET", "/fhir/Patient/7?x=%2F..%2F")[:2] == (200, b"GET x=%2F..%2F ")
        assert ask("POST", "/fhir/Patient/%24count", b"{}", {"Content-Type": "application/fhir+json"})[1] == b"POST  {}"
        assert seen[-1]["content-type"] == "application/fhir+json"
        assert [request[":path"] for request in seen] == ["/fhir/Patient", "/fhir/Patient/7", "/fhir/Patient/%24count"]


@pytest.mark.parametrize(
    "target",
    [
        *("/fhir/Observation", "/fhir/Patient/7/x", "/fhir/Patients", "/fhirx/Patient", "/Patient", "/fhir", "/fhir/"),
        *("/fhir/Patient/", "/fhir//Patient", "/fhir/Patient/../Observation", "/fhir/Patient/%2e%2e/Observation"),
        *("/fhir/Patient%2f7", "/fhir/Patient;x=1", "/fhir/Patient%3bx", "/fhir/Patient%00", "/fhir/Patient/%257"),
        *("/fhir/./Patient", "/fhir/Patient/a%0a", "/fhir\\Patient", "/fhir/Patient/%C3%28"),
    ],
)
def test_a_path_that_is_not_listed_or_is_a_trick_is_refused_without_asking(tmp_path: Path, target: str) -> None:
    with endpoint() as (url, seen), asking(tmp_path, fhir(url)) as ask:
        assert ask("GET", target)[0] == 404
        assert seen == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "HEAD", "BREW"])
def test_a_method_that_is_not_listed_is_refused_without_asking(tmp_path: Path, method: str) -> None:
    with endpoint() as (url, seen), asking(tmp_path, fhir(url)) as ask:
        assert ask(method, "/fhir/Patient", headers={"X-HTTP-Method-Override": "GET"})[0] in (400, 404, 405)
        assert seen == []


def test_a_service_at_the_root_of_its_host_has_paths_too(tmp_path: Path) -> None:
    with endpoint() as (url, seen):
        source = HttpSource(kind="http", url=url.removesuffix("/sparql"), paths=("/a",))
        with asking(tmp_path, source) as ask:
            assert [ask("GET", target)[0] for target in ("/a", "/", "/b", "//a")] == [200, 404, 404, 404]
        assert len(seen) == 1


# counts


def test_requests_and_bytes_of_each_source_are_counted_and_survive_the_node(tmp_path: Path) -> None:
    with endpoint() as (url, _):
        for _ in range(2):
            with asking(tmp_path, graph(url)) as ask:
                assert ask("POST", "/sparql?format=size-70000", b"ASK {}", QUERY)[0] == 200
                assert ask("GET", "/elsewhere")[0] == 404
    (used,) = usage(tmp_path, ["graph"])
    assert (used.name, used.requests, used.bytes_in, used.bytes_out) == ("graph", 4, 2 * len("format=size-70000ASK {}"), 140_000)
    assert usage(tmp_path / "nowhere", ["b", "a"])[0].name == "a"


# sockets


def test_sockets_are_private_survive_long_paths_and_go_with_the_run(tmp_path: Path) -> None:
    gateways = Gateways()
    outer = tmp_path / ("long-" * 30) / "gateway"
    sources = {"a": graph("http://127.0.0.1:1/sparql"), "b": graph("http://127.0.0.1:1/other")}
    gateways.serve("task", outer, sources)
    assert sorted(p.name for p in (outer / "sockets").iterdir()) == ["3030.sock", "3031.sock"]
    assert stat.S_IMODE(outer.stat().st_mode) == 0o700 and stat.S_IMODE((outer / "use").stat().st_mode) == 0o600
    gateways.serve("task", outer, sources)
    gateways.stop("task", outer)
    gateways.stop("task", outer)
    assert not outer.exists()
    gateways.serve("task", outer, {"b": sources["b"]}, granted=["a", "b"])
    assert sorted(p.name for p in (outer / "sockets").iterdir()) == ["3031.sock"], "a source keeps its port when another is gone"
    gateways.close()


def test_ports_depend_only_on_the_names_and_urls_tell_no_host() -> None:
    assert ports(["b", "a"]) == ports({"a": 1, "b": 2}) == {"a": 3030, "b": 3031}
    url = "https://graph.example/ds/sparql?default-graph-uri=x"
    assert inside_url(3030, graph(url)) == "http://127.0.0.1:3030/ds/sparql"
    assert inside_url(3031, graph("http://graph.example")) == "http://127.0.0.1:3031/"
    assert inside_url(3032, TcpSource(kind="tcp", host="db.example", port=1)) == "tcp://127.0.0.1:3032"


def test_the_forwarder_carries_bytes_and_half_closed_connections_both_ways(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as node, socket.create_server(("127.0.0.1", 0)) as probe:
        node.bind(str(tmp_path / "s"))
        node.listen()
        port = probe.getsockname()[1]
        probe.close()
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FORWARDER, "1", f"{port}={tmp_path}/s"], stdout=subprocess.PIPE
        )
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            inside = socket.create_connection(("127.0.0.1", port), timeout=10)
            inside.sendall(b"q" * 1_000_000)
            inside.shutdown(socket.SHUT_WR)
            outside, _ = node.accept()
            outside.settimeout(10)
            second = socket.create_connection(("127.0.0.1", port), timeout=10)
            assert read_end(second), "a connection above the limit has to be closed"
            assert read_all(outside) == b"q" * 1_000_000
            outside.sendall(b"answer")
            outside.close()
            assert read_all(inside) == b"answer"
            inside.close()
        finally:
            child.kill()
            child.wait()


def read_end(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


def read_all(connection: socket.socket) -> bytes:
    parts, deadline = [], time.monotonic() + 10
    while time.monotonic() < deadline and (part := connection.recv(65536)):
        parts.append(part)
    return b"".join(parts)
