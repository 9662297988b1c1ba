"""Real data sources for tests: a SPARQL endpoint (rdflib-endpoint, in a process of its own) that wants a bearer token and takes
queries and updates at one URL, and a PostgreSQL server (Debian's) with a role that may only read."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pg8000.native
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers import START_SECONDS, Process, ServerMissing, free_port, give_up

NOBODY = 65534

_SPARQL = """
import os, sys
import uvicorn
from rdflib import Graph
from rdflib_endpoint import SparqlEndpoint

data = Graph()
data.update(\"\"\"PREFIX : <http://example.org/> INSERT DATA { :p1 :age 61 . :p2 :age 47 . :p3 :age 70 }\"\"\")
endpoint = SparqlEndpoint(graph=data, path="/sparql", enable_update=True)
wanted = ("Bearer " + os.environ["TOKEN"]).encode()

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/sparql" and dict(scope["headers"]).get(b"authorization") != wanted:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})
        return
    if scope["type"] == "http" and scope["path"] == "/ready":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ready"})
        return
    await endpoint(scope, receive, send)

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@dataclass(frozen=True)
class Sparql:
    url: str
    token: str


@contextlib.contextmanager
def run_sparql() -> Iterator[Sparql]:
    """Three patients with an age each."""
    with tempfile.TemporaryDirectory(prefix="ptm-sparql-") as folder:
        port, token = free_port(), secrets.token_urlsafe(24)
        process = Process(
            [sys.executable, "-c", _SPARQL, str(port)], f"http://127.0.0.1:{port}/ready", Path(folder) / "log", {"TOKEN": token}
        )
        process.start()
        try:
            yield Sparql(f"http://127.0.0.1:{port}/sparql", token)
        finally:
            process.stop()


@dataclass(frozen=True)
class PostgresServer:
    """`reader` may SELECT from the table `cohort(id, age)` in `warehouse`, and has `password`. `ca` signs for 127.0.0.1."""

    port: int
    password: str
    owner_password: str
    ca: Path
    host: str = "127.0.0.1"

    def owner(self, database: str = "warehouse") -> pg8000.native.Connection:
        return pg8000.native.Connection(
            "owner", host=self.host, port=self.port, database=database, password=self.owner_password, timeout=10
        )


def find_postgres() -> Path:
    """The folder of PostgreSQL's programs: on the PATH, else where Debian keeps them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    raise ServerMissing("postgres", "apt install postgresql (nothing of it has to run)")


@contextlib.contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """A server of its own with its data in a temporary folder, as an account that is not root (it refuses to be)."""
    programs = find_postgres()
    folder = Path(tempfile.mkdtemp(prefix="ptm-postgres-"))
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    port, owner, reader = free_port(), secrets.token_urlsafe(18), secrets.token_urlsafe(18)
    try:
        (folder / "password").write_text(owner)
        make_certificate(folder)
        for path in (folder, *folder.iterdir()):
            if user:
                os.chown(path, NOBODY, NOBODY)
        arguments = ["-D", folder / "data", "-U", "owner", "-A", "scram-sha-256", "--pwfile", folder / "password", "--no-sync"]
        subprocess.run([programs / "initdb", *arguments], check=True, capture_output=True, cwd=folder, **user)
        settings = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": str(folder / "server.crt"),
            "ssl_key_file": str(folder / "server.key"),
        }
        command = [programs / "postgres", "-D", folder / "data", *(f"--{name}={value}" for name, value in settings.items())]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **user)
        try:
            running = PostgresServer(port, reader, owner, folder / "server.crt")
            _wait_for(running, server, folder / "log")
            _fill(running)
            yield running
        finally:
            server.terminate()
            server.wait(timeout=20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(running: PostgresServer, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            running.owner("postgres").close()
            return
        except (pg8000.native.Error, OSError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)


def _fill(running: PostgresServer) -> None:
    with contextlib.closing(running.owner("postgres")) as connection:
        connection.run("CREATE DATABASE warehouse")
        connection.run(f"CREATE ROLE reader LOGIN PASSWORD '{running.password}'")
    with contextlib.closing(running.owner()) as connection:
        connection.run("CREATE TABLE cohort (id int, age int)")
        connection.run("INSERT INTO cohort VALUES (1, 61), (2, 47), (3, 70)")
        connection.run("GRANT SELECT ON cohort TO reader")


def make_certificate(folder: Path) -> None:
    """`server.crt` (which is its own authority) and `server.key`, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ptm test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(pem)
    (folder / "server.key").chmod(0o600)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    try:
        find_postgres()
    except ServerMissing as missing:
        give_up(missing)
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def sparql() -> Iterator[Sparql]:
    with run_sparql() as server:
        yield server


def reaches(address: tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True
