"""What a container may send to its gateway: nothing of it floods the node's log or reaches the endpoint changed."""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm.config import SparqlSource
from ptm.node import quiet
from ptm.node.gateway import Gateways
from tests.node.test_gateway import endpoint


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
