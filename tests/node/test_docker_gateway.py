"""A container that was granted a SPARQL source, on a real container engine."""

from __future__ import annotations

import time
from pathlib import Path

import docker
import pytest

from ptm.config import SparqlSource
from ptm.errors import RunnerError
from ptm.node import containers
from tests import servers
from tests.node.bench import Bench, bench, no_container_left
from tests.node.test_gateway import endpoint

pytestmark = pytest.mark.slow
__all__ = ["bench", "no_container_left"]


def test_a_container_with_a_sparql_source_reaches_that_endpoint_and_nothing_else(bench: Bench) -> None:
    code = """
        import os, socket, urllib.error, urllib.parse, urllib.request
        url = os.environ["SPARQL_ENDPOINT"]
        assert url == os.environ["PTM_DATA_GRAPH"] == "http://127.0.0.1:3030/sparql", url
        assert urllib.request.urlopen(url + "?query=ASK").read() == b"GET query=ASK "
        assert urllib.request.urlopen(url, b"query=SELECT").read() == b"POST  query=SELECT"
        try:
            urllib.request.urlopen("http://127.0.0.1:3030/update", b"DROP ALL")
        except urllib.error.HTTPError as e:
            assert e.code == 404
        for host, port, errno in ("127.0.0.1", 80, 111), ("127.0.0.1", 3031, 111), ("8.8.8.8", 53, 101), ("172.17.0.1", 80, 101):
            try:
                socket.create_connection((host, port), timeout=5)
            except OSError as e:
                assert e.errno == errno, (host, port, e)
            else:
                raise SystemExit(f"reached {host}:{port}")
        try:
            socket.getaddrinfo("example.org", 80)
        except OSError:
            print("locked up")
    """
    with endpoint() as (url, _):
        ran = bench.run(bench.spec(code, data={"graph": SparqlSource(kind="sparql", url=url)}))
    assert (ran.end.exit_code, ran.log.strip()) == (0, "locked up"), ran.log
    assert not list(bench.home.spool.rglob("*.sock"))


def test_after_a_restart_the_gateway_answers_again(tmp_path: Path, base_image: str) -> None:
    code = """
        import os, time, urllib.error, urllib.request
        print("up", flush=True)
        while not os.path.exists("/tmp/went-down"):
            try:
                urllib.request.urlopen(os.environ["SPARQL_ENDPOINT"], timeout=2).read()
            except OSError:
                open("/tmp/went-down", "w")
            time.sleep(0.1)
        for _ in range(100):
            try:
                print(urllib.request.urlopen(os.environ["SPARQL_ENDPOINT"] + "?query=again", timeout=2).read().decode())
                break
            except OSError:
                time.sleep(0.1)
    """
    with endpoint() as (url, _):
        bench = Bench(tmp_path, base_image, gateway_image=base_image, data={"graph": {"kind": "sparql", "url": url}})
        spec = bench.spec(code, data=dict(bench.config.data))
        handle = bench.start(spec)
        bench.runner.close()
        time.sleep(1.5)
        bench.runner = bench.new_runner()
        assert bench.runner.find(spec.task) == handle
        ran = bench.collect(handle, spec, bench.runner.wait(handle, spec.limits, lambda: None))
        bench.runner.remove(handle)
        bench.runner.close()
    assert ran.log == "up\nGET query=again \n"


def test_a_gateway_image_without_python_is_an_error_and_leaves_nothing(
    tmp_path: Path, base_image: str, docker_engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "GATEWAY_START_S", 5)
    name = "ptm-test/broken-python:1"
    servers.build_image(docker_engine, base_image, name, {"/usr/bin/python3": "#!/bin/false\n"}, ["true"])
    bench = Bench(tmp_path, base_image, gateway_image=name)
    spec = bench.spec("1", data={"graph": SparqlSource(kind="sparql", url="http://127.0.0.1:1/sparql")})
    with pytest.raises(RunnerError, match="gateway did not start"):
        bench.start(spec)
    assert list((bench.home.spool / spec.task).iterdir()) == []
    bench.runner.close()
