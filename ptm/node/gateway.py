"""The gateway: how a container without any network reaches the data sources it was granted, and nothing else.

The container shares the network namespace of a tiny sidecar container, in which there is only loopback: no bridge, no DNS, no
host. In the sidecar `FORWARDER` listens on one port of 127.0.0.1 for each source, and passes every connection on to a unix socket
that is mounted from the node. At the other end of that socket the node (`Gateways`) serves exactly one source: SPARQL and HTTP by
`ptm.node.gateway_http`, PostgreSQL and plain TCP by `ptm.node.gateway_tcp`. It adds the site's credentials, bounds what passes
and counts it (`ptm.node.meter`).

The node and the engine must share the folder that holds the sockets, under one path (`gateway_folder` in node.toml if the node
is itself in a container).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from yarl import URL

from ptm.config import GatewaySource, HttpSource, PostgresSource, SparqlSource
from ptm.errors import RunnerError
from ptm.model import DataUse
from ptm.node.gateway_http import serve_http
from ptm.node.gateway_tcp import serve_tcp
from ptm.node.meter import Meter, read_use

Answer = TypeVar("Answer")

MOUNT = "/ptm-gateway"
"""Where the sidecar finds the sockets."""
FIRST_PORT = 3030
READY = b"ready"
CALL_S = 30
MAX_CONNECTIONS = 32
"""At once, to one source. The sidecar closes what is above, so that a run cannot use up the node's file descriptors."""

FORWARDER = """
import asyncio, sys

async def copy(source, sink):
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.write_eof()
    except OSError:
        sink.close()

def forward(path):
    free = int(sys.argv[1])
    async def connected(reader, writer):
        nonlocal free
        if free < 1:
            writer.transport.abort()
            return
        free -= 1
        try:
            node_reader, node_writer = await asyncio.open_unix_connection(path)
            await asyncio.gather(copy(reader, node_writer), copy(node_reader, writer))
            node_writer.close()
        except OSError:
            pass
        finally:
            free += 1
        writer.close()
    return connected

async def main():
    for argument in sys.argv[2:]:
        port, path = argument.split("=", 1)
        await asyncio.start_server(forward(path), "127.0.0.1", int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""Runs in the sidecar as `python3 -c FORWARDER CONNECTIONS PORT=SOCKET …`; needs the standard library of any python3 from 3.8
on."""


def ports(names: Iterable[str]) -> dict[str, int]:
    """Which port in the container stands for which source. The same names always get the same ports."""
    return {name: FIRST_PORT + number for number, name in enumerate(sorted(names))}


def inside_url(port: int, source: GatewaySource) -> str:
    """The URL at which the container finds a source. It tells nothing of where that is, but for an HTTP URL's path."""
    if isinstance(source, SparqlSource | HttpSource):
        return f"http://127.0.0.1:{port}{URL(source.url).raw_path or '/'}"
    if isinstance(source, PostgresSource):
        return f"postgresql://ptm@127.0.0.1:{port}/ptm"
    return f"tcp://127.0.0.1:{port}"


def forwarder_arguments(open_ports: Iterable[int]) -> list[str]:
    """What the sidecar's python3 is started with."""
    return ["-c", FORWARDER, str(MAX_CONNECTIONS), *(f"{port}={MOUNT}/{port}.sock" for port in open_ports)]


def make_folder(folder: Path) -> Path:
    """A folder that only the node can enter, and in it the one that is shown to the sidecar, whatever user that runs as;
    returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    inner = folder / "sockets"
    inner.mkdir(exist_ok=True)
    inner.chmod(0o711)
    return inner


def usage(folder: Path, names: Iterable[str]) -> tuple[DataUse, ...]:
    """What a run has had so far from its sources, by the (outer) folder of its gateway."""
    return read_use(folder / "use", sorted(names))


class Served(Protocol):
    """One source on its socket."""

    async def close(self) -> None: ...


class _Run:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.served: list[Served] = []


class Gateways:
    """The node's end of all gateways: one thread with one event loop, started with the first. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[str, _Run] = {}

    def serve(self, run: str, folder: Path, sources: Mapping[str, GatewaySource], granted: Iterable[str] | None = None) -> None:
        """Serve the sources of a run on sockets in the inner folder of `folder`. No effect if it is served already.

        `granted`: all names that the run was started with, if some of them are no more in `sources`; they keep their ports.
        """
        names = sorted(sources if granted is None else granted)
        with self._lock:
            if run in self._running:
                return
            try:
                inner = make_folder(folder)
                new = _Run(Meter(folder / "use", names))
            except OSError as e:
                raise RunnerError(f"the gateway could not be started: {e.strerror}") from e
            try:
                for name, port in ports(names).items():
                    if name in sources:
                        served = _serve(_listen(inner, f"{port}.sock"), name, sources[name], new.meter)
                        new.served.append(self._call(served))
            except BaseException as e:
                self._stop(new)
                if isinstance(e, OSError):
                    raise RunnerError(f"the gateway could not be started: {e.strerror}") from e
                raise
            self._running[run] = new

    def stop(self, run: str, folder: Path) -> None:
        """End a run's gateway and remove its (outer) folder. No error if there is none."""
        with self._lock:
            if run in self._running:
                self._stop(self._running.pop(run))
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End all, leaving the folders for the next start of this node."""
        with self._lock:
            for run in self._running.values():
                self._stop(run)
            self._running.clear()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _stop(self, run: _Run) -> None:
        for served in run.served:
            self._call(served.close())
        run.meter.close()

    def _call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), name="ptm-gateway", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _listen(folder: Path, name: str) -> socket.socket:
    """A listening unix socket. Bound by way of /proc, for a socket's path may have 107 bytes only and a home's may be longer."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (folder / name).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"/proc/self/fd/{descriptor}/{name}")
        (folder / name).chmod(0o666)
        listener.listen(32)
        listener.setblocking(False)
        return listener
    finally:
        os.close(descriptor)


async def _serve(listener: socket.socket, name: str, source: GatewaySource, meter: Meter) -> Served:
    if isinstance(source, SparqlSource | HttpSource):
        return await serve_http(listener, name, source, meter)
    return await serve_tcp(listener, name, source, meter)
