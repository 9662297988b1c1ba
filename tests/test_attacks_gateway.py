"""What a container may send to its gateway: nothing of it floods the node's log or reaches the endpoint changed."""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm.node import gateway
from ptm.node.gateway import Gateways, make_folder
from tests.node.test_gateway import endpoint


@contextlib.contextmanager
def served(folder: Path, url: str) -> Iterator[Path]:
    gateways, sockets = Gateways(), make_folder(folder / "gateway")
    gateways.serve("run", sockets, {3030: url})
    try:
        yield sockets / "3030.sock"
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
    gateway._warned.clear()
    with caplog.at_level(logging.INFO), served(tmp_path, "http://127.0.0.1:1/sparql") as path:
        for _ in range(50):
            said = ask(path, b"GET /sparql HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 502")
    assert len(caplog.records) == 1


def test_a_compressed_query_reaches_the_endpoint_as_what_it_says_it_is(tmp_path: Path) -> None:
    """It is unpacked on the way, so that its size can be bounded; it must not go on under the old name."""
    body = gzip.compress(b"SELECT 1")
    head = b"POST /sparql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with endpoint() as (url, seen), served(tmp_path, url) as path:
        said = ask(path, head + body)
    assert said.startswith(b"HTTP/1.1 200") and b"SELECT 1" in said
    assert "content-encoding" not in seen[0]


def test_a_query_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    body = gzip.compress(bytes(40 * 1024 * 1024))
    head = b"POST /sparql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with endpoint() as (url, _), served(tmp_path, url) as path:
        assert ask(path, head + body).startswith(b"HTTP/1.1 413")
