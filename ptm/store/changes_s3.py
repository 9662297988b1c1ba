"""Wake-ups from a MinIO bucket: one request (ListenBucketNotification) whose answer goes on for ever, a line for each new object.

Rules: it goes to the server, and with the credentials, region, certificates and proxy, that boto3 uses for the store. A server
that has no such request (AWS answers it with a listing) is asked once. A connection that breaks, or over which nothing comes
(MinIO sends a blank twice a second), is opened again after pauses that grow. What arrives is counted, not believed: that a
line came wakes the loop, whatever it says. It needs the permission s3:ListenBucketNotification.

What this does not do: raise, or hold up whoever closes it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import Provider

from ptm.store.s3 import S3Store
from ptm.store.s3_access import access_keys, ca_file, proxy_for

log = logging.getLogger("ptm.store")
CREATED = ("s3:ObjectCreated:*",)
SILENCE_S = 5.0
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 120.0
LASTED_S = 60.0
"""A connection that lasted so long was a good one: the next pause is short again."""
CLOSE_S = 1.0
CHUNK_BYTES = 16 * 1024
MAX_LINE_BYTES = 64 * 1024


class _NoEventsError(Exception):
    """This server has no such request."""


class _BrokenError(Exception):
    """The connection is of no use any more."""


class BucketWatch:
    """Calls `wake` soon after an object was put below the prefix. Never raises."""

    def __init__(self, store: S3Store, prefix: str, wake: Callable[[], None]) -> None:
        self._store, self._prefix, self._wake = store, prefix, wake
        self._closed = threading.Event()
        self._stream: _Stream | None = None
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._keep_listening, name="wake-ups", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; a connection that is just being opened ends by itself within seconds."""
        self._closed.set()
        if self._stream is not None:
            self._stream.shutdown()
        self._thread.join(CLOSE_S)

    def _keep_listening(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._closed.is_set():
            begun = time.monotonic()
            try:
                self._listen()
            except _NoEventsError as e:
                self._say(f"{e}: no wake-ups, only the poll counts")
                return
            except _BrokenError as e:
                self._say_broken(str(e))
            except Exception as e:  # whatever a server sends, and the libraries make of it: the poll goes on regardless
                self._say_broken("the connection cannot be made, or broke off")
                log.debug("%s: %s: %s", self._store.url, type(e).__name__, _one_line(e))
            if time.monotonic() - begun >= LASTED_S:
                pause = FIRST_PAUSE_S
            self._closed.wait(pause)
            pause = min(2 * pause, MAX_PAUSE_S)

    def _listen(self) -> None:
        """Wake for every line that comes; ends with an error, when the connection does."""
        parts = urlsplit(self._store.endpoint_url)
        if parts.path.strip("/") or access_keys(self._store.core) is None:
            raise _NoEventsError(f"{self._store.url}: needs credentials, and a server that is not below a path")
        pool = _make_pool(self._store, self._opened)
        client = Minio(
            parts.netloc,
            secure=parts.scheme == "https",
            region=self._store.region,
            credentials=_Found(self._store),
            http_client=pool,
        )
        try:
            events = client.listen_bucket_notification(self._store.bucket, self._store.full_prefix(self._prefix), events=CREATED)
        except ValueError as e:  # AWS, or what cannot be a bucket there
            raise _NoEventsError(f"{self._store.url}: {_one_line(e)}") from e
        with contextlib.closing(pool), events:
            for _ in events:
                self._wake()

    def _opened(self, stream: _Stream) -> None:
        self._stream = stream
        if self._closed.is_set():
            raise _BrokenError("closed")
        self._said.clear()
        self._wake()

    def _say_broken(self, why: str) -> None:
        if not self._closed.is_set():
            self._say(f"no wake-ups from {self._store.url} for now, only the poll counts: {why}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.info("%s", text)


class _Found(Provider):
    """The credentials that boto3 finds, renewed as it renews them."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    def retrieve(self) -> Credentials:
        keys = access_keys(self._store.core)
        if keys is None:
            raise _BrokenError("there are no credentials any more")
        return Credentials(keys.id, keys.secret, keys.token)


class _Stream:
    """The never-ending answer, as `minio` reads it: line by line, of bounded length; an error where it ends."""

    closed = False

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._held = b""
        self.status, self.headers = response.status, response.headers

    def readline(self) -> bytes:
        while b"\n" not in self._held:
            chunk = self._response.read1(CHUNK_BYTES, decode_content=False)
            self._held = (self._held + chunk).lstrip()
            if not chunk or len(self._held) > MAX_LINE_BYTES:
                raise _BrokenError("the server ended it" if not chunk else "the server sends a line without end")
        line, _, self._held = self._held.partition(b"\n")
        return line

    def shutdown(self) -> None:
        """From another thread: have `readline` end at once."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # it has ended by itself
            self._response.shutdown()

    def close(self) -> None:
        self._response.close()

    def release_conn(self) -> None:
        self._response.release_conn()


def _make_pool(store: S3Store, opened: Callable[[_Stream], None]) -> _Pool:
    ca, proxy = ca_file(store.core), proxy_for(store.endpoint_url)
    return _ProxyPool(proxy, ca, opened) if proxy else _Pool(ca, opened)


class _Pool(urllib3.PoolManager):
    """The connections that `minio` asks through: no retries, no redirects, short time-outs, no answer but a stream."""

    def __init__(self, ca: str | None, opened: Callable[[_Stream], None], **more: Any) -> None:
        super().__init__(
            timeout=urllib3.Timeout(connect=SILENCE_S, read=SILENCE_S), cert_reqs="CERT_REQUIRED", ca_certs=ca, **more
        )
        self._opened = opened
        self._asked = False

    def urlopen(self, method: str, url: str, redirect: bool = True, **more: Any) -> Any:  # type: ignore[override]
        """Raises unless the answer is a stream of events, for `minio` would read any other into memory."""
        if self._asked:  # `minio` asks again at once whenever it cannot read a line; our pauses come first
            raise _BrokenError("the server sends something else than events")
        self._asked = True
        response = super().urlopen(method, url, redirect=False, **more | {"retries": False})
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if response.status == 200 and kind == "text/event-stream":
            stream = _Stream(response)
            self._opened(stream)
            return stream
        response.close()
        if response.status == 403:
            raise _BrokenError("access denied; it takes the permission s3:ListenBucketNotification")
        if response.status in (200, 400, 404, 405, 501):
            raise _NoEventsError(f"{urlsplit(url).netloc} does not announce what is put into a bucket (HTTP {response.status})")
        raise _BrokenError(f"the server said {response.status}")

    def close(self) -> None:
        self.clear()


class _ProxyPool(_Pool, urllib3.ProxyManager):
    def __init__(self, proxy: str, ca: str | None, opened: Callable[[_Stream], None]) -> None:
        who = urllib3.util.parse_url(proxy).auth
        super().__init__(
            ca, opened, proxy_url=proxy, proxy_headers=urllib3.util.make_headers(proxy_basic_auth=who) if who else None
        )


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
