"""The node's end of the gateway for TCP: each connection goes to exactly one host and port, is bounded and counted. A PostgreSQL
source is logged in to by the node first (`ptm.node.gateway_postgres`).

What this does not do: look into what passes. What a database's role may do decides what a container can do with it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from ptm.config import PostgresSource, TcpSource
from ptm.node.budget import OverBudget, check_budget
from ptm.node.gateway_postgres import CONNECT_S, LoginFailed, Postgres
from ptm.node.meter import Meter
from ptm.node.quiet import warn

CHUNK = 64 * 1024
MIB = 1024 * 1024
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TcpSite:
    """One TCP source on its socket, for one run."""

    def __init__(self, name: str, source: TcpSource | PostgresSource, meter: Meter) -> None:
        self._name, self._source, self._meter = name, source, meter
        self._postgres = Postgres(source) if isinstance(source, PostgresSource) else None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._closed = False

    async def listen(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._connected, sock=listener)

    async def close(self) -> None:
        self._closed = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._closed or task is None:
            writer.transport.abort()
            return
        self._connections.add(task)
        self._meter.add(self._name, requests=1)
        try:
            check_budget(self._meter, self._name, self._source)
            await self._serve((reader, writer))
        except asyncio.CancelledError:
            writer.transport.abort()
        except (LoginFailed, OverBudget) as e:
            warn("data source %s: %s", self._name, e)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
            warn("the data source %s does not answer: %s", self._name, e or type(e).__name__)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, inside: Streams) -> None:
        if self._postgres is not None:
            async with asyncio.timeout(3 * CONNECT_S):
                outside = await self._postgres.log_in(*inside)
            if outside is None:
                return
        else:
            async with asyncio.timeout(CONNECT_S):
                outside = await asyncio.open_connection(self._source.host, self._source.port)
        try:
            await self._splice(inside, outside)
        finally:
            outside[1].close()

    async def _splice(self, inside: Streams, outside: Streams) -> None:
        """Carry bytes both ways until both have ended, or a limit is reached."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(inside[0], outside[1], self._source.request_mb, "bytes_in"))
                group.create_task(self._copy(outside[0], inside[1], self._source.answer_mb, "bytes_out"))
        except* (OSError, TimeoutError, OverBudget) as e:
            warn("data source %s: the connection was broken off: %s", self._name, e.exceptions[0])
            inside[1].transport.abort()
            outside[1].transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, most_mb: int, counted: str) -> None:
        room = most_mb * MIB
        while chunk := await source.read(CHUNK):
            room -= len(chunk)
            if room < 0:
                raise ConnectionAbortedError(f"more than {most_mb} MB")
            self._meter.add(self._name, **{counted: len(chunk)})
            check_budget(self._meter, self._name, self._source)
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            with suppress(OSError):
                sink.write_eof()
        else:
            sink.close()


async def serve_tcp(listener: socket.socket, name: str, source: TcpSource | PostgresSource, meter: Meter) -> TcpSite:
    """Serve a source on a listening socket until it is closed."""
    site = TcpSite(name, source, meter)
    await site.listen(listener)
    return site
