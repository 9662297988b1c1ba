"""An S3 server that lies or is none: a real HTTP server with the answers of an attacker. Nothing it says is believed, nothing
of the SDK leaks."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Callable, Iterator

import pytest

from ptm.errors import NotFound, StoreError, TooLarge, Unreachable
from ptm.store.s3 import S3Store

pytestmark = pytest.mark.slow

Answer = tuple[int, dict[str, str], bytes]

LISTING = (
    '<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><Prefix>reg/a/</Prefix><EncodingType>url</EncodingType>'
    "<IsTruncated>false</IsTruncated>{}</ListBucketResult>"
)
ENTRY = "<Contents><Key>{}</Key><Size>1</Size></Contents>"


class Liar:
    """Answers each request with what `answer` makes of its method and path, and then closes the connection."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Answer] = lambda method, path: (500, {}, b"")
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, body = liar.answer(self.command, self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")
                self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def liar() -> Iterator[Liar]:
    liar = Liar()
    threading.Thread(target=liar.server.serve_forever, args=(0.02,), daemon=True).start()
    yield liar
    liar.server.shutdown()
    liar.server.server_close()


@pytest.fixture
def store(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    url = f"http://127.0.0.1:{liar.server.server_port}"
    return S3Store("bucket", "reg", endpoint_url=url, region="us-east-1", timeout_seconds=2, sleep=lambda seconds: None)


def listing(*names: str) -> Answer:
    return 200, {"Content-Type": "application/xml"}, LISTING.format("".join(ENTRY.format(name) for name in names)).encode()


def test_listed_keys_outside_the_prefix_or_of_a_hostile_shape_are_passed_over(liar: Liar, store: S3Store) -> None:
    bad = ["other/a/x", "reg", "reg/", "reg/b", "reg//etc", "reg/a/../../x", "reg/a/", "reg/a/b\\c", "reg/a/x%00", "reg/a/.ptm-x"]
    liar.answer = lambda method, path: listing(*bad, "reg/a/good", "regx/a/y", "reg/a/" + "x" * 231)
    assert [info.key for info in store.list("a/")] == ["a/good"]


def test_listing_that_goes_round_in_circles_is_an_error_and_not_endless(liar: Liar, store: S3Store) -> None:
    more = "<NextContinuationToken>t{}</NextContinuationToken>"
    count = 0

    def again(method: str, path: str) -> Answer:
        nonlocal count
        count += 1
        text = LISTING.replace("false", "true").format(ENTRY.format("reg/a/k") + more.format(count))
        return 200, {}, text.encode()

    liar.answer = again
    with pytest.raises(StoreError, match="out of order"):
        list(store.list("a/"))
    assert count == 2


def test_object_larger_than_announced_is_cut_at_what_was_announced_and_never_beyond_the_limit(liar: Liar, store: S3Store) -> None:
    liar.answer = lambda method, path: (200, {"Content-Length": "3"}, b"x" * 1_000_000)
    assert len(store.get("k", 5)) == 3
    with pytest.raises(TooLarge):
        store.get("k", 2)


def test_object_shorter_than_announced_is_unreachable_and_not_a_short_object(liar: Liar, store: S3Store) -> None:
    liar.answer = lambda method, path: (200, {"Content-Length": "100"}, b"short")
    with pytest.raises(Unreachable):
        store.get("k", 100)
    with pytest.raises(Unreachable):
        store.download("k", io.BytesIO(), 100)


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>not S3</html>"),
        (200, {}, b"<<<"),
        (200, {}, LISTING.format("<Contents><Key>reg/k</Key><Size>many</Size></Contents>").encode()),
        (200, {}, LISTING.format("<Contents><Key>reg/k</Key></Contents>").encode()),
        (404, {}, b"<html>no such page</html>"),
        (302, {"Location": "https://example.org/"}, b""),
        (418, {}, b"tea"),
        (500, {}, b""),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2][:20]!r}",
)
def test_listing_by_a_server_that_is_not_s3_is_a_store_error_or_empty_but_never_a_leak(
    liar: Liar, store: S3Store, answer: Answer
) -> None:
    liar.answer = lambda method, path: answer
    try:
        assert list(store.list("")) == []
    except StoreError as e:
        assert not isinstance(e, NotFound)
        assert e.hint
        assert "\n" not in str(e)


def test_server_that_ignores_the_condition_is_found_not_exclusive(liar: Liar, store: S3Store) -> None:
    liar.answer = lambda method, path: (200, {}, b"") if method != "GET" else (200, {}, b"<VersioningConfiguration/>")
    assert not store.probe("scratch/").exclusive_create


def test_server_that_does_not_know_the_condition_is_found_not_exclusive_and_create_says_so(liar: Liar, store: S3Store) -> None:
    def answer(method: str, path: str) -> Answer:
        if method == "PUT":
            return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"
        return (204, {}, b"") if method == "DELETE" else (200, {}, b"<VersioningConfiguration/>")

    liar.answer = answer
    assert not store.probe("scratch/").exclusive_create
    with pytest.raises(StoreError, match="only if it is absent") as caught:
        store.create("k", b"x")
    assert caught.value.hint


def test_throttling_and_conflicts_for_ever_end_in_unreachable(liar: Liar, store: S3Store) -> None:
    for status, code in (
        (409, "ConditionalRequestConflict"),
        (503, "SlowDown"),
        (500, "InternalError"),
        (412, "PreconditionFailed"),
    ):
        calls: list[str] = []

        def answer(method: str, path: str, status: int = status, code: str = code, calls: list[str] = calls) -> Answer:
            calls.append(method)
            if method == "GET":
                return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
            return status, {}, f"<Error><Code>{code}</Code></Error>".encode()

        liar.answer = answer
        with pytest.raises(Unreachable):
            store.create("k", b"x")
        assert calls == ["PUT", "GET"] * 5
