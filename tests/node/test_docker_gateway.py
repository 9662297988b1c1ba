"""Containers that were granted data sources, on a real container engine: what they reach and what not, with real servers behind
the gateway (`tests.datasources`)."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import asn1crypto
import dateutil
import docker
import pg8000
import pytest
import scramp
import six

from ptm.config import HttpSource, SparqlSource, TcpSource
from ptm.errors import RunnerError
from ptm.node import sidecar
from ptm.store.memory import MemoryStore
from tests import servers
from tests.datasources import PostgresServer, Sparql, postgres, sparql
from tests.federation import Federation
from tests.node.bench import REGISTRY, Bench, bench, no_container_left, run_once
from tests.node.test_gateway import endpoint, secret

pytestmark = pytest.mark.slow
__all__ = ["bench", "no_container_left", "postgres", "sparql"]


def graph(url: str) -> SparqlSource:
    return SparqlSource(kind="sparql", url=url)


def test_a_container_reaches_the_sources_it_was_granted_and_nothing_else(bench: Bench) -> None:
    code = """
        import os, socket, urllib.error, urllib.parse, urllib.request
        url = os.environ["SPARQL_ENDPOINT"]
        assert url == os.environ["PTM_DATA_GRAPH"] == "http://127.0.0.1:3031/sparql", url
        assert os.environ["PTM_DATA_FHIR"] == "http://127.0.0.1:3030/fhir" and "DATABASE_URI" not in os.environ
        assert urllib.request.urlopen(url + "?query=ASK%20%7B%7D").read() == b"GET query=ASK+%7B%7D "
        assert urllib.request.urlopen(os.environ["PTM_DATA_FHIR"] + "/Patient?_count=1").read() == b"GET _count=1 "
        for target in (url + "?update=DROP%20ALL", "http://127.0.0.1:3031/update", "http://127.0.0.1:3030/other"):
            try:
                urllib.request.urlopen(target)
            except urllib.error.HTTPError as e:
                assert e.code in (403, 404), (target, e)
            else:
                raise SystemExit(f"was given {target}")
        for host, port, errno in ("127.0.0.1", 80, 111), ("127.0.0.1", 3032, 111), ("8.8.8.8", 53, 101), ("172.17.0.1", 80, 101):
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
        fhir = HttpSource(kind="http", url=url.replace("/sparql", "/fhir"))
        spec = bench.spec(code, data={"graph": graph(url), "fhir": fhir})
        handle = bench.start(spec)
        ran = bench.collect(handle, spec, bench.runner.wait(handle, spec.limits, lambda: None))
        used = {use.name: (use.requests, use.bytes_in, use.bytes_out) for use in bench.runner.usage(handle)}
        bench.runner.remove(handle)
    assert (ran.end.exit_code, ran.log.strip()) == (0, "locked up"), ran.log
    assert used == {"graph": (3, 16, 21), "fhir": (2, 8, 13)}
    assert bench.runner.usage(handle) == () and not list(bench.home.spool.rglob("*.sock"))


def test_a_flood_of_connections_does_not_reach_the_node(bench: Bench) -> None:
    code = """
        import socket
        held, refused = [], 0
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", 3030))
            connection.settimeout(0.05)
            try:
                refused += connection.recv(1) == b""
            except ConnectionError:
                refused += 1
            except TimeoutError:
                held.append(connection)
        print(len(held), refused)
    """
    with endpoint() as (url, _):
        before = len(list(Path("/proc/self/fd").iterdir()))
        spec = bench.spec(code, data={"tcp": TcpSource(kind="tcp", host="127.0.0.1", port=int(url.split(":")[2].split("/")[0]))})
        most, done = 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.02):
                most = max(most, len(list(Path("/proc/self/fd").iterdir())))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            ran = bench.run(spec)
        finally:
            done.set()
            watcher.join()
    held, refused = map(int, ran.log.split())
    assert held <= 32 and held + refused == 200
    assert most - before < 200, "two descriptors for each connection that is held, and some for the engine"


def test_after_a_restart_the_gateway_answers_again_and_goes_on_counting(tmp_path: Path, base_image: str) -> None:
    code = """
        import os, time, urllib.error, urllib.request
        query = os.environ["SPARQL_ENDPOINT"] + "?query=ASK%20%7B%7D"
        urllib.request.urlopen(query).read()
        print("up", flush=True)
        while not os.path.exists("/tmp/went-down"):
            try:
                urllib.request.urlopen(os.environ["SPARQL_ENDPOINT"], timeout=2).read()
            except urllib.error.HTTPError:
                pass
            except OSError:
                open("/tmp/went-down", "w")
            time.sleep(0.1)
        for _ in range(100):
            try:
                print(urllib.request.urlopen(query, timeout=2).read().decode())
                break
            except OSError:
                time.sleep(0.1)
    """
    with endpoint() as (url, _):
        bench = Bench(tmp_path, base_image, gateway_image=base_image, data={"graph": {"kind": "sparql", "url": url}})
        spec = bench.spec(code, data=dict(bench.config.data))
        handle = bench.start(spec)
        while "up" not in bench.runner._engine.log(handle, lambda chunks: b"".join(chunks).decode()):
            time.sleep(0.1)
        bench.runner.close()
        time.sleep(1.5)
        bench.runner = bench.new_runner()
        assert bench.runner.find(spec.task) == handle
        ran = bench.collect(handle, spec, bench.runner.wait(handle, spec.limits, lambda: None))
        (used,) = bench.runner.usage(handle)
        bench.runner.remove(handle)
        bench.runner.close()
    assert ran.log == "up\nGET query=ASK+%7B%7D \n"
    assert used.bytes_out == 2 * len("GET query=ASK+%7B%7D ")


@pytest.mark.parametrize("then", ["while True: time.sleep(1)", "raise SystemExit(0)"])
def test_a_run_that_takes_too_much_of_a_source_ends_with_a_reason_whatever_it_makes_of_it(
    tmp_path: Path, base_image: str, then: str
) -> None:
    code = f"""if True:
        import os, time, urllib.request
        for _ in range(5):
            try:
                urllib.request.urlopen(os.environ["SPARQL_ENDPOINT"] + "?query=ASK%20%7B%7D&format=size-400000").read()
            except OSError:
                pass
        open("/ptm/output/half.csv", "w").write("half of it")
        {then}
    """
    with endpoint() as (url, seen):
        data = {"graph": {"kind": "sparql", "url": url, "run_mb": 1}}
        bench = Bench(tmp_path, base_image, gateway_image=base_image, data=data)
        ran = bench.run(bench.spec(code, data=dict(bench.config.data)))
        bench.runner.close()
    assert ran.end.reason == "more than 1 MB of the data source graph, the site's limit for one run"
    assert len(seen) == 3


def test_a_gateway_image_without_python_is_an_error_and_leaves_nothing(
    tmp_path: Path, base_image: str, docker_engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar, "GATEWAY_START_S", 5)
    name = "ptm-test/broken-python:1"
    servers.build_image(docker_engine, base_image, name, {"/usr/bin/python3": "#!/bin/false\n"}, ["true"])
    bench = Bench(tmp_path, base_image, gateway_image=name)
    spec = bench.spec("1", data={"graph": graph("http://127.0.0.1:1/sparql")})
    with pytest.raises(RunnerError, match="gateway did not start"):
        bench.start(spec)
    assert list((bench.home.spool / spec.task).iterdir()) == []
    bench.runner.close()


def test_a_secret_that_cannot_be_read_fails_the_run_without_its_path(bench: Bench, tmp_path: Path) -> None:
    source = SparqlSource(kind="sparql", url="http://127.0.0.1:1/sparql", token_file=tmp_path / "gone-token")
    with pytest.raises(RunnerError, match="cannot read its own credentials") as caught:
        bench.start(bench.spec("1", data={"graph": source}))
    assert "gone-token" not in f"{caught.value} {caught.value.hint}"


# real servers, through a whole node


ANALYSIS = """#!/usr/bin/python3
import json, os, pathlib, re, sys, urllib.error, urllib.parse, urllib.request
sys.path.insert(0, "/opt/lib")
import pg8000.native

out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"])

def ask(query, **more):
    data = urllib.parse.urlencode({"query": query, **more}).encode()
    headers = {"Accept": "application/sparql-results+json"}
    return json.load(urllib.request.urlopen(urllib.request.Request(os.environ["SPARQL_ENDPOINT"], data, headers)))

ages = ask("PREFIX : <http://example.org/> SELECT ?age WHERE { ?p :age ?age } ORDER BY ?age")
graph = [int(row["age"]["value"]) for row in ages["results"]["bindings"]]
refused = []
for more in ({"update": "CLEAR ALL"}, {"query": "CLEAR ALL"}, {"query": "SELECT * { SERVICE <http://127.0.0.1:1/> {} }"}):
    try:
        ask(**{"query": "ASK {}", **more})
    except urllib.error.HTTPError as e:
        refused.append(e.code)

place = urllib.parse.urlsplit(os.environ["DATABASE_URI"])
database = pg8000.native.Connection(place.username, host=place.hostname, port=place.port, database=place.path[1:])
table = sorted(row[0] for row in database.run("SELECT age FROM cohort"))

def everything_readable():
    for root in ("/proc/self", "/proc/1", "/ptm", "/tmp", "/etc", "/run", "/proc/net/", "/proc/sys"):
        for folder, _, names in os.walk(root):
            if re.search("/(task|map_files|fd)(/|$)", folder):
                continue
            for name in names:
                try:
                    with open(os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                        yield file.read(1_000_000)
                except (OSError, ValueError):
                    pass
    for number in os.listdir("/proc"):
        for what in ("environ", "cmdline"):
            try:
                yield open(f"/proc/{number}/{what}", "rb").read()
            except OSError:
                pass

seen = b"".join(everything_readable())
(out / "seen.bin").write_bytes(seen)
(out / "answer.json").write_text(json.dumps({"graph": graph, "table": table, "refused": refused}))
print(dict(os.environ))
print("mounts", open("/proc/self/mountinfo").read())
"""


@pytest.fixture(scope="module")
def analysis(docker_engine: docker.DockerClient, base_image: str) -> Iterator[str]:
    """An image with a client of PostgreSQL that is all Python."""
    files: dict[str, str | bytes] = {"/run.py": ANALYSIS, "/opt/lib/six.py": Path(six.__file__).read_bytes()}
    for package in (pg8000, scramp, asn1crypto, dateutil):
        folder = Path(package.__file__).parent
        files |= {f"/opt/lib/{p.relative_to(folder.parent)}": p.read_bytes() for p in folder.rglob("*.py") if p.stat().st_size}
        files |= {f"/opt/lib/{p.relative_to(folder.parent)}": b"\n" for p in folder.rglob("*.py") if not p.stat().st_size}
    for name in ("pg8000", "scramp"):
        found = metadata.distribution(name)
        files[f"/opt/lib/{name}-{found.version}.dist-info/METADATA"] = found.read_text("METADATA") or ""
    servers.build_image(docker_engine, base_image, "ptm-test/analysis:1", files, ["/run.py"])
    yield "ptm-test/analysis:1"


def test_an_image_queries_a_real_sparql_endpoint_and_a_real_database_and_never_sees_a_secret(
    tmp_path: Path, analysis: str, base_image: str, sparql: Sparql, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    data = {
        "graph": {"kind": "sparql", "url": sparql.url, "token_file": secret(secrets / "token", sparql.token + "\n")},
        "warehouse": {
            "kind": "postgres",
            "host": postgres.host,
            "port": postgres.port,
            "database": "warehouse",
            "user": "reader",
            "password_file": secret(secrets / "password", postgres.password + "\n"),
            "ca_file": postgres.ca,
        },
    }
    federation = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    task = federation.client().put(analysis, ["maastro"], data=["graph", "warehouse"])
    run_once(federation, "maastro", gateway_image=base_image, data=data)
    (result,) = task.results(timeout=0, folder=tmp_path / "out")
    assert result.state == "completed", (result.reason, result.log)
    assert result.json("answer.json") == {"graph": [47, 61, 70], "table": [47, 61, 70], "refused": [403, 403, 403]}
    used = {use.name: use for use in result.saved.result.data_use}
    assert used["graph"].requests == 4 and used["graph"].bytes_in > 50 and used["graph"].bytes_out > 100
    assert used["warehouse"].requests == 1 and used["warehouse"].bytes_out > 50

    seen = (tmp_path / "out" / "maastro" / "seen.bin").read_bytes()
    assert b"SPARQL_ENDPOINT" in seen and b"127.0.0.1:3030" in seen, "the image did look"
    everything = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.parent != secrets
    ) + b"".join(federation.store.get(info.key, 2**30) for info in federation.store.list(""))
    for word in (sparql.token, postgres.password):
        assert word.encode() not in everything, "in an output, a log, a result, the node's home or the registry"
        assert word not in caplog.text + result.log
    assert str(postgres.port) not in result.log and "reader" not in result.log and sparql.url not in result.log


# a node that is itself in a container


NODE = """
import json, pathlib, sys
from ptm.config import Home, Limits, NodeConfig
from ptm.image import parse_image
from ptm.node.containers import DockerRunner
from ptm.node.runner import RunSpec

given = json.loads(sys.argv[1])
config = NodeConfig.model_validate(given["config"], strict=False)
home = Home(pathlib.Path("/node"))
home.spool.mkdir(parents=True)
(home.path / "inputs").mkdir()
runner = DockerRunner(config, given["registry"], "maastro", home)
spec = RunSpec(
    registry=given["registry"], site="maastro", worker="w1", user="alice", task=given["task"], attempt="a",
    image=parse_image(given["image"]), command=("python3", "-c", given["code"]), env={}, workdir=None,
    inputs=home.path / "inputs", data=dict(config.data), limits=Limits(ram_gb=0.125, time_s=60),
)
handle = runner.start(spec, runner.resolve(spec.image))
end = runner.wait(handle, spec.limits, lambda: None)
(home.path / "outputs").mkdir()
runner.collect(handle, spec.limits, home.path / "outputs", home.path / "log")
print(end.exit_code, (home.path / "log").read_text(), [use.model_dump() for use in runner.usage(handle)])
runner.remove(handle)
runner.close()
"""


def test_the_gateway_works_with_the_node_itself_in_a_container(
    tmp_path: Path, base_image: str, docker_engine: docker.DockerClient
) -> None:
    inside = docker_engine.containers.run(base_image, ["python3", "-c", "import sys; print(sys.version_info[:2])"], remove=True)
    if inside.decode().strip() != str(sys.version_info[:2]):
        pytest.skip("the tests' Python is not the base image's, so its packages do not run there")
    root = Path(__file__).parents[2]
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o711)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    socket_path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    code = """if True:
        import os, urllib.request
        print(urllib.request.urlopen(os.environ["SPARQL_ENDPOINT"] + "?query=ASK%20%7B%7D").read())
    """
    with endpoint() as (url, _):
        config = {
            "worker": "w1",
            "pull": "never",
            "gateway_image": base_image,
            "gateway_folder": str(shared),
            "run_as": "65534:65534",
            "data": {"graph": {"kind": "sparql", "url": url}},
        }
        given = {"config": config, "registry": REGISTRY, "task": "01JD0000000000000000000000", "image": base_image, "code": code}
        mounts = {
            str(shared): (str(shared), "rw"),
            socket_path: ("/var/run/docker.sock", "rw"),
            str(root / "ptm"): ("/repo/ptm", "ro"),
        }
        mounts |= {path: (f"/packages/{number}", "ro") for number, path in enumerate(paths)}
        search = ":".join(["/repo", *(f"/packages/{number}" for number in range(len(paths)))])
        said = docker_engine.containers.run(
            base_image,
            ["python3", "-c", NODE, json.dumps(given)],
            volumes={source: {"bind": target, "mode": mode} for source, (target, mode) in mounts.items()},
            environment={"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
            network_mode="host",
            remove=True,
            stderr=True,
        ).decode()
    assert said.startswith("0 b'GET query=ASK+%7B%7D '"), said
    assert "'requests': 1" in said
    assert list(shared.iterdir()) == []
