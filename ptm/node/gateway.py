"""The gateway: how a container without any network reaches the one SPARQL endpoint it was granted, and nothing else.

The container shares the network namespace of a tiny sidecar container, in which there is only loopback: no bridge, no DNS, no
host. In the sidecar `FORWARDER` listens on 127.0.0.1 and passes each connection on to a unix socket that is mounted from the
node. At the other end of that socket the node (`Gateways`) answers GET and POST for exactly one path, asks the configured
endpoint, and streams the answer back. Redirects are not followed, few headers pass in either direction, sizes are bounded.

What this does not do (yet): other sources than SPARQL, credentials, a look into the query. The node and the engine must share a
file system, for the socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

from ptm.errors import RunnerError

log = logging.getLogger("ptm.node")
_http_log = logging.getLogger("ptm.gateway")
"""Of aiohttp's server: a traceback for each request that is none, which would let a container write the node's log full."""
_http_log.setLevel(logging.CRITICAL)
Answer = TypeVar("Answer")

MOUNT = "/ptm-gateway"
"""Where the sidecar finds the sockets."""
FIRST_PORT = 3030
READY = b"ready"
MAX_QUERY_BYTES = 16 * 1024 * 1024
MAX_ANSWER_BYTES = 1024**3
CHUNK = 64 * 1024
CONNECT_S = 10
CALL_S = 30
QUIET_S = 30.0
"""Warnings that a container can bring about are not repeated for this long."""
_ASK_HEADERS = (
    "Accept",
    "Accept-Charset",
    "Accept-Encoding",
    "Accept-Language",
    "Content-Type",
    "User-Agent",
)
_ANSWER_HEADERS = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Length")

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
    async def connected(reader, writer):
        try:
            node_reader, node_writer = await asyncio.open_unix_connection(path)
            await asyncio.gather(copy(reader, node_writer), copy(node_reader, writer))
            node_writer.close()
        except OSError:
            pass
        writer.close()
    return connected

async def main():
    for argument in sys.argv[1:]:
        port, path = argument.split("=", 1)
        await asyncio.start_server(forward(path), "127.0.0.1", int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""Runs in the sidecar as `python3 -c FORWARDER PORT=SOCKET …`; needs the standard library of any python3 from 3.8 on."""


def ports(names: Iterable[str]) -> dict[str, int]:
    """Which port in the container stands for which source. The same names always get the same ports."""
    return {name: FIRST_PORT + number for number, name in enumerate(sorted(names))}


def inside_url(port: int, endpoint: str) -> str:
    """The URL at which the container finds the endpoint."""
    return f"http://127.0.0.1:{port}{_path(endpoint)}"


def forwarder_arguments(open_ports: Iterable[int]) -> list[str]:
    """What the sidecar's python3 is started with."""
    return ["-c", FORWARDER, *(f"{port}={MOUNT}/{port}.sock" for port in open_ports)]


def make_folder(folder: Path) -> Path:
    """A folder that only the node can enter, and in it the one that is shown to the sidecar, whatever user that runs as;
    returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    inner = folder / "sockets"
    inner.mkdir(exist_ok=True)
    inner.chmod(0o711)
    return inner


class Gateways:
    """The node's end of all gateways: one thread with one event loop, started with the first. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[str, list[web.AppRunner]] = {}

    def serve(self, run: str, folder: Path, endpoints: Mapping[int, str]) -> None:
        """Answer for the endpoints (port → URL) of a run on sockets in the inner `folder`. No effect if it is served already."""
        with self._lock:
            if run in self._running:
                return
            runners: list[web.AppRunner] = []
            try:
                for port, endpoint in endpoints.items():
                    runners.append(self._call(_serve(_listen(folder, f"{port}.sock"), endpoint)))
            except OSError as e:
                self._stop(runners)
                raise RunnerError(f"the gateway could not be started: {e.strerror}") from e
            self._running[run] = runners

    def stop(self, run: str, folder: Path) -> None:
        """End a run's gateway and remove its (outer) folder. No error if there is none."""
        with self._lock:
            self._stop(self._running.pop(run, []))
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End all, leaving the folders for the next start of this node."""
        with self._lock:
            for runners in self._running.values():
                self._stop(runners)
            self._running.clear()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _stop(self, runners: list[web.AppRunner]) -> None:
        for runner in runners:
            self._call(runner.cleanup())

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


async def _serve(listener: socket.socket, endpoint: str) -> web.AppRunner:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _forwarder(endpoint))
    app.cleanup_ctx.append(_session)
    runner = web.AppRunner(app, access_log=None, logger=_http_log, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


_SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)


async def _session(app: web.Application) -> AsyncIterator[None]:
    timeout = ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with ClientSession(
        connector=TCPConnector(limit=16), timeout=timeout, auto_decompress=False, trust_env=False
    ) as session:
        app[_SESSION] = session
        yield


def _forwarder(endpoint: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    path = _path(endpoint)

    async def forward(request: web.Request) -> web.StreamResponse:
        if request.rel_url.raw_path != path:
            return web.Response(status=404, text=f"this gateway leads to {path} only\n")
        if request.method not in ("GET", "POST"):
            return web.Response(status=405, text="this gateway takes GET and POST only\n", headers={"Allow": "GET, POST"})
        if (request.content_length or 0) > MAX_QUERY_BYTES:
            return _too_long()
        body = _Body(request)
        try:
            return await _ask(request, endpoint, body)
        except (ClientError, TimeoutError, OSError) as e:
            if body.too_long:
                return _too_long()
            _warn("the SPARQL endpoint %s does not answer: %s", endpoint, e or type(e).__name__)
            return web.Response(status=502, text="the site's endpoint does not answer\n")

    return forward


async def _ask(request: web.Request, endpoint: str, body: _Body) -> web.StreamResponse:
    """Put the request to the endpoint, and stream its answer back."""
    headers = {name: request.headers[name] for name in _ASK_HEADERS if name in request.headers}
    data = body.chunks() if request.method == "POST" else None
    target = _target(endpoint, request.rel_url.raw_query_string)
    async with request.app[_SESSION].request(request.method, target, headers=headers, data=data, allow_redirects=False) as reply:
        if 300 <= reply.status < 400:
            return web.Response(
                status=502, text="the site's endpoint redirects to elsewhere, which this gateway does not follow\n"
            )
        answer = web.StreamResponse(status=reply.status)
        answer.headers.update({name: reply.headers[name] for name in _ANSWER_HEADERS if name in reply.headers})
        await answer.prepare(request)
        await _copy(reply, answer, request)
        return answer


async def _copy(reply: ClientResponse, answer: web.StreamResponse, request: web.Request) -> None:
    sent = 0
    try:
        async for chunk in reply.content.iter_chunked(CHUNK):
            sent += len(chunk)
            if sent > MAX_ANSWER_BYTES:
                _warn("an answer of more than %d bytes was broken off", MAX_ANSWER_BYTES)
                _break_off(request)
                return
            await answer.write(chunk)
    except (ClientError, TimeoutError, OSError) as e:
        _warn("an answer was broken off: %s", e or type(e).__name__)
        _break_off(request)


_warned: dict[str, float] = {}


def _warn(text: str, *values: object) -> None:
    """Called in the gateways' one thread only."""
    now = time.monotonic()
    if now - _warned.get(text, -QUIET_S) >= QUIET_S:
        _warned[text] = now
        log.warning(text, *values)


def _break_off(request: web.Request) -> None:
    """End the connection in the middle: the container must see that this was not the whole answer."""
    if request.transport is not None:
        request.transport.abort()


class _Body:
    """What the container sends, counted on its way."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.too_long = False

    async def chunks(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._request.content.iter_chunked(CHUNK):
            size += len(chunk)
            if size > MAX_QUERY_BYTES:
                self.too_long = True
                raise ConnectionAbortedError("the query is too long")
            yield chunk


def _too_long() -> web.Response:
    return web.Response(status=413, text=f"a query may have {MAX_QUERY_BYTES} bytes\n")


def _path(endpoint: str) -> str:
    return URL(endpoint).raw_path or "/"


def _target(endpoint: str, query: str) -> URL:
    """The endpoint with the container's query string, after the site's own if it has one."""
    parts = urlsplit(str(URL(endpoint)))
    together = "&".join(part for part in (parts.query, query) if part)
    return URL(parts._replace(query=together, fragment="").geturl(), encoded=True)
