"""The node's end of the gateway for HTTP: SPARQL endpoints, and services (FHIR, REST) with listed methods and paths.

A request is taken apart, judged, and asked anew: nothing but the method, the judged path and query, few headers and a bounded
body gets through, with the site's credentials added; so a server cannot read it another way than the gateway did. For SPARQL
that means one query by the protocol's three ways (https://www.w3.org/TR/sparql11-protocol/, section 2.1), never an update.
Redirects are not followed. An answer that holds the site's own secret is broken off.

What this does not do: rewrite an answer (links in it still name the server), or judge what an answer tells.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import unicodedata
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlencode

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from yarl import URL

from ptm.config import MAX_PATH, HttpSource, SparqlSource
from ptm.node.budget import OverBudget, check_budget
from ptm.node.credentials import authorization
from ptm.node.meter import Meter
from ptm.node.quiet import http_log, warn
from ptm.node.sparql import objection

CHUNK = 64 * 1024
MIB = 1024 * 1024
CONNECT_S = 10
LARGE = 256 * 1024
MAX_LARGE = 2
"""So many requests with a body above `LARGE`, at once and from one source: a body is held in memory, several times over."""
LEAST_SECRET = 8
"""A shorter secret is not looked for in answers: it would be found by chance."""
FORM = "application/x-www-form-urlencoded"
QUERY = "application/sparql-query"
PARAMETERS = frozenset(
    {"query", "default-graph-uri", "named-graph-uri", "format", "output", "results", "timeout", "infer", "queryLn"}
)
"""What a SPARQL request may have beside the query: the protocol's own, and harmless ones that clients send."""
_ASK_HEADERS = (
    *("Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Content-Type", "User-Agent"),
    *("Prefer", "If-None-Match", "If-Modified-Since", "If-Match"),
)
_ANSWER_HEADERS = (
    *("Content-Type", "Content-Encoding", "Content-Language", "Content-Length", "ETag", "Last-Modified", "Retry-After"),
)
_TRICKS = re.compile(r"%(?:[01].|2e|2f|5c|25|3b|7f|(?![0-9a-f]{2}))|[\\;]|//|[^\x21-\x7e]", re.IGNORECASE)
_SEPARATORS = frozenset("/\\.;%?#")


class Refusal(Exception):
    """The gateway says no, before anything was asked."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


@dataclass(frozen=True)
class Question:
    """What the server is asked in the container's place."""

    method: str
    url: URL
    content_type: str | None = None
    body: bytes | None = None


class Rules(Protocol):
    async def judge(self, request: web.Request) -> Question:
        """What to ask for this request, or `Refusal`."""


class SparqlRules:
    """Queries only, at one path."""

    def __init__(self, source: SparqlSource) -> None:
        self._source, self._url = source, URL(source.url)
        self._path = self._url.raw_path or "/"

    async def judge(self, request: web.Request) -> Question:
        if request.rel_url.raw_path != self._path:
            raise Refusal(404, f"this gateway leads to {self._path} only")
        if request.method not in ("GET", "POST"):
            raise Refusal(405, "this gateway takes GET and POST only", Allow="GET, POST")
        body = await request.read()
        asked = _pairs(request.rel_url.raw_query_string)
        kind = request.content_type.lower() if request.method == "POST" else ""
        if request.method == "GET" and body:
            raise Refusal(400, "a GET has no body")
        if kind == FORM:
            form = _pairs(_text(body))
            await self._judge(asked + form, None)
            return Question("POST", self._target(asked), FORM, urlencode(form).encode())
        if kind == QUERY:
            query = _text(body)
            await self._judge(asked, query)
            return Question("POST", self._target(asked), f"{QUERY}; charset=utf-8", query.encode())
        if kind:
            raise Refusal(415, f"a query is posted as {FORM} or {QUERY}")
        await self._judge(asked, None)
        return Question("GET", self._target(asked))

    async def _judge(self, pairs: list[tuple[str, str]], posted: str | None) -> None:
        for name, value in pairs:
            if name not in PARAMETERS:
                raise Refusal(403, f"the parameter {name[:40]!a} is not allowed: this source takes queries only")
            if name.endswith("-graph-uri") and value not in self._source.graphs:
                raise Refusal(403, f"{name}: the site lists no such graph")
        queries = [value for name, value in pairs if name == "query"] + ([posted] if posted is not None else [])
        if len(queries) != 1:
            raise Refusal(400, "a request holds one query")
        problem = await asyncio.to_thread(objection, queries[0], self._source.graphs, self._source.federation)
        if problem is not None:
            raise Refusal(403, problem)

    def _target(self, pairs: list[tuple[str, str]]) -> URL:
        """The endpoint with the site's own parameters first, if its URL has some."""
        query = "&".join(part for part in (self._url.raw_query_string, urlencode(pairs)) if part)
        return URL.build(
            scheme=self._url.scheme, authority=self._url.raw_authority, path=self._path, query_string=query, encoded=True
        )


class HttpRules:
    """Listed methods and paths below one URL."""

    def __init__(self, source: HttpSource) -> None:
        self._source, self._url = source, URL(source.url)
        self._base = self._url.raw_path.rstrip("/")
        self._paths = [re.compile(pattern) for pattern in source.paths]

    async def judge(self, request: web.Request) -> Question:
        path = request.rel_url.raw_path
        rest = path.removeprefix(self._base)
        inside = path.startswith(self._base) and (not rest or rest.startswith("/")) and len(path) <= MAX_PATH
        if not inside or _TRICKS.search(path) or {".", ".."} & set(path.split("/")) or not self._listed(rest):
            raise Refusal(404, "this gateway does not lead there")
        if request.method not in self._source.methods:
            allowed = ", ".join(self._source.methods)
            raise Refusal(405, f"this gateway takes {allowed} only", Allow=allowed)
        body = await request.read()
        if body and request.method in ("GET", "HEAD"):
            raise Refusal(400, f"a {request.method} has no body")
        target = URL.build(
            scheme=self._url.scheme,
            authority=self._url.raw_authority,
            path=path or "/",
            query_string=request.rel_url.raw_query_string,
            encoded=True,
        )
        return Question(request.method, target, request.headers.get("Content-Type"), body or None)

    def _listed(self, rest: str) -> bool:
        """By what the path means, read in the one way that no server can read otherwise."""
        try:
            decoded = unquote(rest, errors="strict")
        except UnicodeDecodeError:
            return False
        climbs = any(part and not part.strip(". ") for part in decoded.split("/"))
        turns = any(not c.isascii() and _SEPARATORS & set(unicodedata.normalize("NFKC", c)) for c in decoded)
        return decoded.isprintable() and not climbs and not turns and any(p.fullmatch(decoded) for p in self._paths)


class Site:
    """One HTTP source on its socket, for one run."""

    def __init__(self, name: str, source: SparqlSource | HttpSource, meter: Meter) -> None:
        self._name, self._source, self._meter = name, source, meter
        self._rules: Rules = SparqlRules(source) if isinstance(source, SparqlSource) else HttpRules(source)
        self._authorization, secrets = authorization(source)
        self._secrets = tuple(secret.encode() for secret in secrets if len(secret) >= LEAST_SECRET)
        self._session: ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._large = asyncio.Semaphore(MAX_LARGE)

    async def listen(self, listener: socket.socket) -> None:
        trust = ssl.create_default_context(cafile=self._source.ca_file)
        self._session = ClientSession(
            connector=TCPConnector(limit=16, ssl=trust),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            trust_env=False,
        )
        app = web.Application(client_max_size=self._source.request_mb * MIB)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, logger=http_log, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._meter.add(self._name, requests=1)
        try:
            if "Content-Encoding" in request.headers:
                raise Refusal(415, "this gateway takes no packed requests")
            check_budget(self._meter, self._name, self._source)
            async with self._large if _is_large(request) else nullcontext():
                return await self._ask(request, await self._rules.judge(request))
        except Refusal as e:
            return web.Response(status=e.status, text=f"{e}\n", headers=e.headers)
        except OverBudget as e:
            return web.Response(status=403, text=f"{e}\n")
        except web.HTTPRequestEntityTooLarge:
            return web.Response(status=413, text=f"a request may have {self._source.request_mb} MB\n")
        except (ClientError, TimeoutError, OSError) as e:
            warn("the data source %s does not answer: %s", self._name, e or type(e).__name__)
            return web.Response(status=502, text="the site's endpoint does not answer\n")

    async def _ask(self, request: web.Request, question: Question) -> web.StreamResponse:
        """Put the question to the server, and stream its answer back."""
        assert self._session is not None
        self._meter.add(self._name, bytes_in=len(question.url.raw_query_string) + len(question.body or b""))
        async with self._session.request(
            question.method, question.url, headers=self._headers(request, question), data=question.body, allow_redirects=False
        ) as reply:
            if 300 <= reply.status < 400 and reply.status != 304:
                raise Refusal(502, "the site's endpoint redirects to elsewhere, which this gateway does not follow")
            if reply.status == 401 and self._authorization:
                warn("the data source %s refuses the site's own credentials", self._name)
                raise Refusal(502, "the site's endpoint refuses the site's own credentials")
            if self._secrets and reply.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
                raise Refusal(502, "the site's endpoint packs its answers, which this gateway cannot look into")
            headers = {name: reply.headers[name] for name in _ANSWER_HEADERS if name in reply.headers}
            if any(secret in value.encode() for secret in self._secrets for value in headers.values()):
                raise Refusal(502, "the site's endpoint answered with what may not leave it")
            answer = web.StreamResponse(status=reply.status, headers=headers)
            await answer.prepare(request)
            await self._copy(reply, answer, request)
            return answer

    def _headers(self, request: web.Request, question: Question) -> dict[str, str]:
        headers = {name: request.headers[name] for name in _ASK_HEADERS if name in request.headers}
        headers.pop("Content-Type", None)
        if question.content_type is not None:
            headers["Content-Type"] = question.content_type
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
            headers["Accept-Encoding"] = "identity"
        return headers

    async def _copy(self, reply: ClientResponse, answer: web.StreamResponse, request: web.Request) -> None:
        room = self._source.answer_mb * MIB
        try:
            async for chunk in self._without_secrets(reply):
                room -= len(chunk)
                if room < 0:
                    raise Refusal(502, f"an answer of more than {self._source.answer_mb} MB")
                self._meter.add(self._name, bytes_out=len(chunk))
                check_budget(self._meter, self._name, self._source)
                await answer.write(chunk)
        except (Refusal, OverBudget, ClientError, TimeoutError, OSError) as e:
            warn("data source %s: the answer was broken off: %s", self._name, e or type(e).__name__)
            if request.transport is not None:  # the container must see that this was not the whole answer
                request.transport.abort()

    async def _without_secrets(self, reply: ClientResponse) -> AsyncIterator[bytes]:
        """The answer's bytes, as far back as no secret can begin in what is still to come."""
        tail = max((len(secret) for secret in self._secrets), default=1) - 1
        held = b""
        async for chunk in reply.content.iter_chunked(CHUNK):
            held += chunk
            if any(secret in held for secret in self._secrets):
                raise Refusal(502, "it holds the site's own secret")
            if len(held) > tail:
                yield held[: len(held) - tail]
                held = held[len(held) - tail :]
        if held:
            yield held


async def serve_http(listener: socket.socket, name: str, source: SparqlSource | HttpSource, meter: Meter) -> Site:
    """Serve a source on a listening socket until it is closed."""
    site = Site(name, source, meter)
    await site.listen(listener)
    return site


def _is_large(request: web.Request) -> bool:
    size = request.content_length
    return request.body_exists and (size is None or size > LARGE)


def _pairs(text: str) -> list[tuple[str, str]]:
    """The parameters of a query string or a form, as they will be written anew."""
    try:
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=64)
    except (ValueError, UnicodeDecodeError) as e:
        raise Refusal(400, "the parameters are not well formed") from e


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as e:
        raise Refusal(400, "the query is not UTF-8") from e
