"""Serves the stewards' page on 127.0.0.1 to the one browser that was given its address.

What stands between this page and everybody else, in this order: the Host header has to be this very address (DNS rebinding), a
request that a browser marks as another site's is refused, a form has to come from this origin, the session's cookie, the
session's token in each form. Cookies know no ports: so every path begins with a random segment, and the cookie is sent to no
other path, whoever else listens on this machine.

No script, no foreign asset, nothing kept by the browser. Errors of ptm become pages; what nobody expected is logged, and the
browser learns only that it happened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from ptm.errors import PtmError, StoreError
from ptm.node.console.health import Beats
from ptm.node.console.pages import HERE, Pages
from ptm.node.console.session import IDLE_S, Door, Session, same
from ptm.registry import Registry

ADDRESS = "127.0.0.1"
MAX_FORM = 256 * 1024
MAX_STRANGERS, STRANGER_S = 32, 15.0
"""So many connections may be open that no request of the session has come over, and for so long."""
LOOK_S = 5.0
"""The workers' heartbeats are looked at this often."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "ptm",
}
IMAGE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
SESSION = web.RequestKey("session", Session)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger("ptm.node")


class Console:
    """One page server with one token."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic, idle_s: float = IDLE_S) -> None:
        self._door = Door(clock, idle_s)
        self._beats = Beats(registry, clock)
        self._pages = Pages(registry, self._beats)
        self._base = f"/{secrets.token_urlsafe(16)}"
        self._port = 0
        self._guests: set[object] = set()
        self._strangers: dict[object, float] = {}
        self._style = (HERE / "style.css").read_text()

    def run(self, port: int, announce: Callable[[str], None]) -> None:
        """Serve until the session is over, or SIGTERM or Ctrl-C. `PtmError` if the port is taken."""

        async def until_told() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            await self.serve(port, announce, stop)

        asyncio.run(until_told())

    async def serve(self, port: int, announce: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until `stop`, or until the session is over. `announce` gets the address, token and all, once it answers."""
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=2)
        await runner.setup()
        try:
            site = web.TCPSite(runner, ADDRESS, port)
            try:
                await site.start()
            except OSError as e:
                raise PtmError(f"port {port} of {ADDRESS} cannot be used: {e.strerror}", hint="give another --port") from e
            self._port = int(runner.addresses[0][1])
            announce(f"{self._origin}{self._base}/start?token={self._door.token}")
            while not stop.is_set() and not self._door.over:
                self._close_idle_strangers(runner)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.5)
        finally:
            await runner.cleanup()

    def _close_idle_strangers(self, runner: web.AppRunner) -> None:
        """Whoever on this machine opens connections and says nothing, or nothing right, uses up no more than a few."""
        assert runner.server is not None
        now = time.monotonic()
        self._guests &= set(runner.server.connections)
        strangers = [one for one in runner.server.connections if one not in self._guests]
        self._strangers = {one: self._strangers.get(one, now) for one in strangers}
        for place, one in enumerate(sorted(strangers, key=lambda one: -self._strangers[one])):
            if place >= MAX_STRANGERS or now - self._strangers[one] > STRANGER_S:
                one.force_close()

    @property
    def _origin(self) -> str:
        return f"http://{ADDRESS}:{self._port}"

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_FORM)
        base = self._base
        app.add_routes(
            [
                web.get(f"{base}/start", self._start),
                web.get(f"{base}/", self._overview),
                web.get(f"{base}/health", self._health),
                web.get(f"{base}/audit", self._audit),
                web.get(f"{base}/audit/check", self._check_audit),
                web.get(base + "/run/{task:[0-9A-Z]{26}}", self._run),
                web.post(base + "/run/{task:[0-9A-Z]{26}}", self._decide),
                web.get(base + "/image/{name:[0-9a-f]{64}}", self._image),
                web.get(f"{base}/style.css", self._css),
                web.post(f"{base}/end", self._end),
            ]
        )
        app.on_response_prepare.append(_add_headers)
        app.cleanup_ctx.append(self._look)
        return app

    # who may come in

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check_origin(request)
            if request.path == f"{self._base}/start":
                return await handler(request)
            session = self._door.find(request.cookies.get(self._cookie, ""))
            if session is None:
                raise _forbidden("no session: the address that `ptm node console` prints opens one, once")
            request[SESSION] = session
            self._guests.add(request.protocol)
            if request.method == "POST":
                await _check_form(request, session)
            return await handler(request)
        except PtmError as e:
            return self._message(request, 502 if isinstance(e, StoreError) else 409, str(e), e.hint or "")
        except web.HTTPRedirection:
            raise
        except web.HTTPException as e:
            return self._message(request, e.status, e.text or e.reason, "")
        except Exception:
            log.exception("the page %s failed", request.path.removeprefix(self._base))
            return self._message(request, 500, "this page failed", "the terminal in which it was started says why")

    def _check_origin(self, request: web.Request) -> None:
        if request.headers.getall("Host", []) != [f"{ADDRESS}:{self._port}"]:
            raise _forbidden("this page has another address")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _forbidden("asked for by another site")
        if request.method not in ("GET", "HEAD") and request.headers.getall("Origin", []) != [self._origin]:
            raise _forbidden("asked for by another site")

    @property
    def _cookie(self) -> str:
        return f"ptm-{self._port}"

    async def _start(self, request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            raise _forbidden("the address is opened, and not asked about")
        session = self._door.enter(request.query.get("token", ""))
        if session is None:
            raise _forbidden("this address was used already, or is not right: start `ptm node console` again")
        answer = web.Response(status=303, headers={"Location": f"{self._base}/"})
        answer.set_cookie(self._cookie, session.cookie, path=f"{self._base}/", httponly=True, samesite="Strict")
        return answer

    async def _look(self, _: web.Application) -> AsyncIterator[None]:
        """Watch the heartbeats, so that the pages know which ones change."""

        async def look() -> None:
            while True:
                try:
                    await asyncio.to_thread(self._beats.look)
                except PtmError as e:
                    log.debug("heartbeats: %s", e)
                await asyncio.sleep(LOOK_S)

        task = asyncio.create_task(look())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    # pages

    def _frame(self, request: web.Request) -> dict[str, Any]:
        return {"base": self._base, "session": request.get(SESSION), "path": request.path.removeprefix(self._base)}

    def _message(self, request: web.Request, status: int, text: str, hint: str) -> web.Response:
        page = self._pages.render("message.html", status=status, text=text, hint=hint, **self._frame(request))
        return _html(page, status)

    async def _page(self, request: web.Request, make: Callable[..., str], *arguments: Any) -> web.Response:
        return _html(await asyncio.to_thread(make, *arguments, **self._frame(request)))

    async def _overview(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, self._pages.overview)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, self._pages.health)

    async def _audit(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, self._pages.audit, request.query.get("task") or None)

    async def _check_audit(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, self._pages.check_audit)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, self._pages.run, request.match_info["task"])

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        form, session, task = await request.post(), request[SESSION], request.match_info["task"]
        said = {name: str(form.get(name, "")) for name in ("what", "by", "reason", "expect")}
        session.by = said["by"] or session.by
        files = [str(name) for name in form.getall("file", [])]
        decision = await asyncio.to_thread(self._pages.decide, task, said.pop("what"), files=files, **said)
        count = f" {decision.files} file(s) of" if decision.files else ""
        session.said = f"{decision.what}{count} {task}, by {decision.by}. The node acts on it at its next look."
        raise web.HTTPSeeOther(f"{self._base}/run/{task}" if decision.files else f"{self._base}/")

    async def _image(self, request: web.Request) -> web.StreamResponse:
        found = self._pages.images.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="this picture is on no page shown lately")
        return web.Response(body=found[1], content_type=found[0], headers={"Content-Security-Policy": IMAGE_POLICY})

    async def _css(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._style, content_type="text/css")

    async def _end(self, request: web.Request) -> web.StreamResponse:
        del request[SESSION]
        self._door.end()
        return self._message(request, 200, "The page is closed.", "`ptm node console` opens another")


async def _check_form(request: web.Request, session: Session) -> None:
    if request.content_type != "application/x-www-form-urlencoded":
        raise web.HTTPUnsupportedMediaType(text="not a form of this page")
    if not same(str((await request.post()).get("csrf", "")), session.csrf):
        raise _forbidden("the form is not of this session: open the page again")


def _forbidden(why: str) -> web.HTTPForbidden:
    return web.HTTPForbidden(text=why)


def _html(page: str, status: int = 200) -> web.Response:
    return web.Response(text=page, status=status, content_type="text/html", charset="utf-8")


async def _add_headers(request: web.Request, answer: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
