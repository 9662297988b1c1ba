"""Logs in to a PostgreSQL server in a container's place, so that no password is ever where an image could read it (PostgreSQL
documentation, chapter 55: Frontend/Backend Protocol, version 3.0).

Towards the container it trusts everybody and takes no TLS, for there is only loopback in between. Of what the container says at
the start, user and database are replaced by the site's, and only harmless settings pass: no `options`, no `replication`. Towards
the server it insists on SCRAM-SHA-256, with the server proving that it knows the password too, or on a server that asks for no
password, or on a password over verified TLS; never MD5. After the login it has no part in what is said.

What this does not do: look into the SQL, cancel requests (`PQcancel`), or hide what SQL tells of the server to the role.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct

import scramp

from ptm.config import PostgresSource
from ptm.node.credentials import read_secret

PROTOCOL = 196608
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
MAX_STARTUP = 10_000
MAX_MESSAGE = 64 * 1024
MAX_STEPS = 16
MAX_GREETINGS = 64
CONNECT_S = 10
MAX_ITERATIONS = 1_000_000
"""Of SCRAM. PostgreSQL's own number is 4096; the server names it, and the node has to do the work."""
SCRAM = "SCRAM-SHA-256"
SETTINGS = frozenset(
    {"application_name", "client_encoding", "datestyle", "extra_float_digits", "intervalstyle", "search_path", "timezone"}
)
"""What a container may choose at the start; all of it could be had with SET afterwards."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class LoginFailed(Exception):
    """Why, for the site's log."""


class Postgres:
    """The login at one source."""

    def __init__(self, source: PostgresSource) -> None:
        self._source = source
        self._password = None if source.password_file is None else read_secret(source.password_file)
        self._trust = ssl.create_default_context(cafile=source.ca_file) if source.tls == "verify" else None

    async def log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Streams | None:
        """Take the container's start, log in, and tell the container so. Returns the connection to the server; None if the
        container wanted something that there is not."""
        settings = await _startup(reader, writer)
        if settings is None:
            return None
        outside: Streams | None = None
        try:
            outside = await self._connect()
            await self._authenticate(outside, settings)
            greeting = await _greeting(outside[0])
        except (LoginFailed, OSError, TimeoutError, asyncio.IncompleteReadError):
            _refuse(writer, "08001", "the site's database does not answer, or refuses the site's own login")
            if outside is not None:
                outside[1].close()
            raise
        writer.write(_message(b"R", struct.pack("!I", 0)) + greeting)
        return outside

    async def _connect(self) -> Streams:
        """TLS begins on the bare socket, so that nothing that came before it can be taken for what came through it."""
        loop = asyncio.get_running_loop()
        outside = await asyncio.to_thread(socket.create_connection, (self._source.host, self._source.port), CONNECT_S)
        try:
            outside.setblocking(False)
            if self._trust is None:
                return await asyncio.open_connection(sock=outside)
            await loop.sock_sendall(outside, struct.pack("!II", 8, SSL_REQUEST))
            if await loop.sock_recv(outside, 1) != b"S":
                raise LoginFailed('the server has no TLS; tls = "off" in node.toml does without')
            return await asyncio.open_connection(sock=outside, ssl=self._trust, server_hostname=self._source.host)
        except BaseException:
            outside.close()
            raise

    async def _authenticate(self, streams: Streams, settings: dict[str, str]) -> None:
        reader, writer = streams
        asked = {**settings, "user": self._source.user, "database": self._source.database}
        pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in asked.items())
        body = struct.pack("!I", PROTOCOL) + pairs + b"\0"
        writer.write(struct.pack("!I", len(body) + 4) + body)
        scram = _Scram(self._source.user, self._password)
        for _ in range(MAX_STEPS):
            kind, body = await _read_message(reader)
            if kind == b"E":
                raise LoginFailed(f"the server refuses the login: {_error_text(body)}")
            if kind == b"v":
                continue
            if kind != b"R" or len(body) < 4:
                raise LoginFailed("the server does not speak PostgreSQL's protocol")
            (step,) = struct.unpack("!I", body[:4])
            if step == 0:
                scram.check_ended()
                return
            answer = self._clear_password() if step == 3 else await asyncio.to_thread(scram.answer, step, body[4:])
            if answer is not None:
                writer.write(_message(b"p", answer))
        raise LoginFailed("the server does not come to an end with the login")

    def _clear_password(self) -> bytes:
        if self._trust is None or self._password is None:
            raise LoginFailed("the server wants the password in clear; it gets that over verified TLS only")
        return self._password.encode() + b"\0"


class _Scram:
    """One login by SASL."""

    def __init__(self, user: str, password: str | None) -> None:
        self._user, self._password = user, password
        self._client: scramp.ScramClient | None = None
        self._proved = False

    def answer(self, step: int, data: bytes) -> bytes | None:
        try:
            return self._answer(step, data)
        except (scramp.ScramException, ValueError) as e:
            raise LoginFailed(f"the login failed: {e}") from e

    def _answer(self, step: int, data: bytes) -> bytes | None:
        if self._password is None:
            raise LoginFailed("the server wants a password, and the source has no password_file")
        if step == 10 and self._client is None and SCRAM.encode() in data.split(b"\0"):
            self._client = scramp.ScramClient([SCRAM], self._user, self._password)
            first = str(self._client.get_client_first()).encode()
            return SCRAM.encode() + b"\0" + struct.pack("!I", len(first)) + first
        if step == 11 and self._client is not None:
            self._client.set_server_first(data.decode())
            if int(self._client.iterations) > MAX_ITERATIONS:
                raise LoginFailed(f"the server wants more than {MAX_ITERATIONS} rounds of SCRAM")
            return str(self._client.get_client_final()).encode()
        if step == 12 and self._client is not None:
            self._client.set_server_final(data.decode())
            self._proved = True
            return None
        raise LoginFailed("the server wants a login other than SCRAM-SHA-256 (password_encryption in postgresql.conf)")

    def check_ended(self) -> None:
        """A server that lets anybody in is fine; one that stops half way could be anybody."""
        if self._client is not None and not self._proved:
            raise LoginFailed("the server did not prove that it knows the password")


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, str] | None:
    """The container's settings, after its requests for encryption were declined."""
    for _ in range(3):
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        if not 8 <= size <= MAX_STARTUP:
            return None
        body = await reader.readexactly(size - 4)
        (code,) = struct.unpack("!I", body[:4])
        if code in (SSL_REQUEST, GSS_REQUEST):
            writer.write(b"N")
            continue
        if code != PROTOCOL or not body.endswith(b"\0"):
            _refuse(writer, "0A000", "the gateway speaks version 3.0 of the protocol, and cancels nothing")
            return None
        words = body[4:].decode(errors="replace").split("\0")
        given = dict(zip(words[::2], words[1::2], strict=False))
        return {name: value for name, value in given.items() if name.lower() in SETTINGS}
    return None


async def _greeting(reader: asyncio.StreamReader) -> bytes:
    """What a server says after the login, up to its being ready; it may still refuse, naming the database."""
    said = b""
    for _ in range(MAX_GREETINGS):
        kind, body = await _read_message(reader)
        if kind == b"E":
            raise LoginFailed(f"the server refuses the login: {_error_text(body)}")
        if kind != b"N":
            said += _message(kind, body)
        if kind == b"Z":
            return said
    raise LoginFailed("the server does not come to an end with the login")


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind, size = struct.unpack("!cI", await reader.readexactly(5))
    if not 4 <= size <= MAX_MESSAGE:
        raise LoginFailed("the server does not speak PostgreSQL's protocol")
    return kind, await reader.readexactly(size - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _refuse(writer: asyncio.StreamWriter, code: str, text: str) -> None:
    fields = (("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", text))
    writer.write(_message(b"E", b"".join(f"{name}{value}\0".encode() for name, value in fields) + b"\0"))


def _error_text(body: bytes) -> str:
    fields = {field[:1]: field[1:] for field in body.split(b"\0")}
    return ascii(fields.get(b"M", b"").decode(errors="replace")[:200])
