"""A poll loop is woken by what is put where it looks, on a real folder and a real MinIO; and by nothing else."""

from __future__ import annotations

import io
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ptm.store.base import Store
from ptm.store.changes import GAP_S, Alarm, announces, watch_changes
from ptm.store.file import FileStore
from ptm.store.memory import MemoryStore
from ptm.store.urls import make_store, open_store
from tests.federation import wait_for
from tests.servers import Minio, Moto
from tests.store.proxy import run_proxy
from tests.store.test_s3_minio import add_user, use

pytestmark = pytest.mark.slow

PREFIX = "queue/maastro/"


class Wakes:
    """Counts wake-ups."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(time.monotonic())

    def settle(self) -> int:
        """How many there were, once no more come."""
        time.sleep(0.3)
        return len(self.times)

    def soon(self, act: Callable[[], None], seconds: float = 1.0) -> bool:
        """Whether a wake-up follows upon an act."""
        before = self.settle()
        act()
        deadline = time.monotonic() + seconds
        while len(self.times) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(self.times) > before


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name == "wake-ups"}


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    (tmp_path / "registry").mkdir()
    return FileStore(tmp_path / "registry")


# the alarm


def test_a_ring_ends_the_wait_and_one_that_came_before_ends_the_next() -> None:
    alarm, stop = Alarm(), threading.Event()
    threading.Timer(0.1, alarm.ring).start()
    begun = time.monotonic()
    assert alarm.wait(30, stop)
    assert time.monotonic() - begun < 1
    alarm.ring()
    assert alarm.wait(30, stop)
    assert not alarm.wait(0.05, stop)


def test_a_stop_ends_the_wait() -> None:
    alarm, stop = Alarm(), threading.Event()
    threading.Timer(0.1, stop.set).start()
    begun = time.monotonic()
    assert not alarm.wait(30, stop)
    assert time.monotonic() - begun < 1


def test_who_rings_without_end_wakes_the_loop_twice_a_second_at_most() -> None:
    alarm, stop = Alarm(), threading.Event()
    end = time.monotonic() + 2
    woken = 0
    while time.monotonic() < end:
        alarm.ring()
        woken += alarm.wait(30, stop)
    assert woken <= 2 / GAP_S + 1


def test_a_short_poll_is_not_made_longer_by_a_ring() -> None:
    alarm, stop = Alarm(), threading.Event()
    alarm.ring()
    alarm.wait(30, stop)
    alarm.ring()
    begun = time.monotonic()
    alarm.wait(0.05, stop)
    assert time.monotonic() - begun < 0.2


# a folder


def test_an_object_put_into_a_folder_wakes_within_a_second(store: FileStore, wakes: Wakes) -> None:
    store.put(f"{PREFIX}alice/0.json", b"x")
    with watch_changes(store, PREFIX, wakes):
        assert wakes.soon(lambda: store.create(f"{PREFIX}alice/1.json", b"x"))
        assert wakes.soon(lambda: store.put(f"{PREFIX}alice/2.json", b"x"))
        assert wakes.soon(lambda: store.upload(f"{PREFIX}alice/3.json", io.BytesIO(b"x")))


def test_reading_listing_and_deleting_wake_nobody(store: FileStore, wakes: Wakes) -> None:
    """A loop that lists its folder and clears it must not wake itself."""
    store.put(f"{PREFIX}alice/0.json", b"x")
    with watch_changes(store, PREFIX, wakes):
        assert not wakes.soon(lambda: [*store.list(PREFIX)].clear())
        assert not wakes.soon(lambda: store.get(f"{PREFIX}alice/0.json", 9) and None)
        assert not wakes.soon(lambda: store.delete(f"{PREFIX}alice/0.json"))


def test_what_is_put_elsewhere_wakes_nobody(store: FileStore, wakes: Wakes) -> None:
    store.put(f"{PREFIX}alice/0.json", b"x")
    with watch_changes(store, PREFIX, wakes):
        assert not wakes.soon(lambda: store.put("queue/other/alice/0.json", b"x"))


def test_a_folder_that_is_not_there_is_not_made_and_watched_once_it_is(store: FileStore, tmp_path: Path, wakes: Wakes) -> None:
    with watch_changes(store, PREFIX, wakes):
        wakes.settle()
        assert [path.name for path in (tmp_path / "registry").iterdir()] == []
        assert wakes.soon(lambda: store.create(f"{PREFIX}alice/0.json", b"x"))
        assert wakes.soon(lambda: store.create(f"{PREFIX}alice/1.json", b"x"))
        assert wakes.soon(lambda: store.create(f"{PREFIX}bob/1.json", b"x"))


def test_a_folder_that_is_removed_and_made_anew_is_watched_again(
    store: FileStore, tmp_path: Path, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptm.store.changes_file.LOOK_AGAIN_S", 0.2)
    store.put(f"{PREFIX}a", b"x")
    with watch_changes(store, PREFIX, wakes):
        store.delete(f"{PREFIX}a")
        (tmp_path / "registry" / PREFIX).rmdir()
        time.sleep(0.5)
        assert wakes.soon(lambda: store.put(f"{PREFIX}a", b"x"))
        assert wakes.soon(lambda: store.put(f"{PREFIX}b", b"x"))


def test_a_link_in_place_of_the_folder_is_not_followed(store: FileStore, tmp_path: Path, wakes: Wakes) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "registry" / "queue").mkdir()
    (tmp_path / "registry" / "queue" / "maastro").symlink_to(tmp_path / "elsewhere")
    with watch_changes(store, PREFIX, wakes):
        assert not wakes.soon((tmp_path / "elsewhere" / "file").touch)


def test_a_registry_that_is_not_mounted_yet_wakes_once_it_is(
    tmp_path: Path, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptm.store.changes_file.LOOK_AGAIN_S", 0.2)
    store = FileStore(tmp_path / "registry")
    with watch_changes(store, PREFIX, wakes):
        assert wakes.settle() == 0
        assert wakes.soon((tmp_path / "registry").mkdir)
        assert wakes.soon(lambda: store.put(f"{PREFIX}a", b"x"))


def test_where_inotify_gives_out_only_the_poll_counts_and_that_is_said_once(
    store: FileStore, wakes: Wakes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_more(*_: object) -> None:
        raise OSError(24, "Too many open files")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("ptm.store.changes_file.LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr("watchdog.observers.inotify_c.InotifyFD._create_inotify_fd", no_more)
    with watch_changes(store, PREFIX, wakes):
        assert not wakes.soon(lambda: store.put(f"{PREFIX}a", b"x"))
    assert len([record for record in caplog.records if "only the poll counts" in record.message]) == 1


def test_the_thread_ends_with_the_watch(store: FileStore, wakes: Wakes) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    with watch_changes(store, PREFIX, wakes):
        assert threads() == {"wake-ups"}
    assert {thread.ident for thread in threading.enumerate()} <= before


def test_a_store_without_changes_wakes_nobody_and_is_no_error(wakes: Wakes) -> None:
    with watch_changes(MemoryStore(), PREFIX, wakes):
        assert wakes.settle() == 0


# a bucket


@pytest.fixture
def bucket(minio_events: Minio, monkeypatch: pytest.MonkeyPatch) -> Store:
    use(monkeypatch, minio_events.access_key, minio_events.secret_key)
    return make_store(f"s3://test-{secrets.token_hex(8)}/some/prefix?endpoint_url={minio_events.endpoint_url}&region=us-east-1")


@contextmanager
def listening(store: Store, wakes: Wakes) -> Iterator[None]:
    """`watch_changes`, from when the connection is there: that wakes, too."""
    with watch_changes(store, PREFIX, wakes):
        wait_for(lambda: bool(wakes.times), 10)
        yield


class TestOnMinio:
    def test_an_object_put_into_the_bucket_wakes_within_a_second(self, bucket: Store, wakes: Wakes) -> None:
        with listening(bucket, wakes):
            assert wakes.soon(lambda: bucket.create(f"{PREFIX}alice/1.json", b"x"))
            assert wakes.soon(lambda: bucket.upload(f"{PREFIX}alice/2.json", io.BytesIO(bytes(9 * 1024 * 1024))), 5)
            assert not wakes.soon(lambda: bucket.put("queue/other/alice/1.json", b"x"))
            assert not wakes.soon(lambda: bucket.delete(f"{PREFIX}alice/1.json"))
            assert not wakes.soon(lambda: [*bucket.list(PREFIX)].clear())

    def test_a_server_that_goes_and_comes_back_is_listened_to_again(
        self, minio_events: Minio, bucket: Store, wakes: Wakes
    ) -> None:
        with listening(bucket, wakes):
            minio_events.stop()
            time.sleep(0.5)
            before = len(wakes.times)
            minio_events.start()
            wait_for(lambda: len(wakes.times) > before, 20)
            assert wakes.soon(lambda: bucket.put(f"{PREFIX}a", b"x"))

    def test_closing_a_stream_that_hangs_ends_its_thread_at_once(self, bucket: Store, wakes: Wakes) -> None:
        with ExitStack() as stack:
            stack.enter_context(listening(bucket, wakes))
            begun = time.monotonic()
        assert time.monotonic() - begun < 0.9
        assert threads() == set()

    def test_a_member_without_the_permission_polls_only_and_is_told_once(
        self,
        minio_events: Minio,
        bucket: Store,
        wakes: Wakes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr("ptm.store.changes_s3.MAX_PAUSE_S", 0.1)
        name = bucket.url.removeprefix("s3://").partition("/")[0]
        arn = f"arn:aws:s3:::{name}"
        verbs = ["s3:GetObject", "s3:PutObject", "s3:ListBucket"]
        allow = {"Effect": "Allow", "Action": verbs, "Resource": [arn, f"{arn}/*"]}
        use(monkeypatch, *add_user(minio_events, tmp_path, [allow]))
        member = open_store(bucket.url)
        with watch_changes(member, PREFIX, wakes):
            assert not wakes.soon(lambda: member.put(f"{PREFIX}a", b"x"), 2)
        said = [record for record in caplog.records if "s3:ListenBucketNotification" in record.message]
        assert [record.levelname for record in said] == ["INFO"]

    def test_a_member_with_the_permission_is_woken(
        self, minio_events: Minio, bucket: Store, wakes: Wakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = bucket.url.removeprefix("s3://").partition("/")[0]
        arn = f"arn:aws:s3:::{name}"
        verbs = ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:ListenBucketNotification"]
        allow = {"Effect": "Allow", "Action": verbs, "Resource": [arn, f"{arn}/*"]}
        use(monkeypatch, *add_user(minio_events, tmp_path, [allow]))
        member = open_store(bucket.url)
        with listening(member, wakes):
            assert wakes.soon(lambda: member.put(f"{PREFIX}a", b"x"))

    def test_the_way_through_an_http_proxy_is_taken_as_boto3_takes_it(
        self, minio_events: Minio, bucket: Store, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The proxy of this test forwards bytes to the server, which takes a proxy's form of a request too."""
        with run_proxy(minio_events.endpoint_url) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.endpoint_url)
            monkeypatch.setenv("http_proxy", proxy.endpoint_url)
            monkeypatch.setenv("NO_PROXY", "")
            monkeypatch.setenv("no_proxy", "")
            with listening(open_store(bucket.url), wakes):
                monkeypatch.undo()
                assert wakes.soon(lambda: bucket.put(f"{PREFIX}a", b"x"))
                proxy.close()


def test_a_server_that_lists_instead_of_announcing_is_asked_once(
    moto_server: Moto, wakes: Wakes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """AWS, too, answers with a listing; asking again and again would be a busy loop."""
    caplog.set_level(logging.INFO)
    use(monkeypatch, "any", "any")
    store = make_store(f"s3://test-{secrets.token_hex(8)}?endpoint_url={moto_server.endpoint_url}&region=us-east-1")
    with watch_changes(store, PREFIX, wakes):
        wait_for(lambda: threads() == set())
    assert wakes.times == []
    assert len([record for record in caplog.records if "does not announce" in record.message]) == 1


@contextmanager
def server_that_says(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives every request the same answer, and then says nothing more; its URL, and the requests."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []
    ended = threading.Event()

    def talk(client: socket.socket) -> None:
        with client:
            asked.append(client.recv(65536))
            try:
                client.sendall(answer)
            except OSError:
                return
            ended.wait(20)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"s3://bucket?endpoint_url=http://127.0.0.1:{listener.getsockname()[1]}&region=us-east-1", asked
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        STREAM + b"not json\n",
        STREAM + b"[" * 50000 + b"\n",
        STREAM + b'{"Records": 7}\n[]\n{"no": 1}\n',
        STREAM + b"x" * 1000000,
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
    ids=["no JSON", "nested for ever", "other JSON", "a line without end", "503", "redirect", "no HTTP", "silence"],
)
def test_whatever_a_server_says_the_loop_goes_on_and_the_server_is_not_flooded(
    wakes: Wakes, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    use(monkeypatch, "any", "any")
    monkeypatch.setattr("ptm.store.changes_s3.SILENCE_S", 0.5)
    with server_that_says(answer) as (url, asked):
        with watch_changes(open_store(url), PREFIX, wakes):
            time.sleep(2)
            assert 1 <= len(asked) <= 3
        assert len(wakes.times) <= 10
    wait_for(lambda: threads() == set(), 3)


def test_a_server_that_is_down_is_told_in_words_for_people(
    wakes: Wakes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    use(monkeypatch, "any", "any")
    store = open_store("s3://test-bucket?endpoint_url=http://127.0.0.1:1&region=us-east-1")
    with watch_changes(store, PREFIX, wakes):
        wait_for(lambda: "no wake-ups" in caplog.text)
    (said,) = [record.message for record in caplog.records if "no wake-ups" in record.message]
    assert said.endswith(" for now, only the poll counts: the connection cannot be made, or broke off")
    assert not any(word in caplog.text for word in ("Pool", "urllib3", "Errno", "object at 0x"))


def test_no_credentials_are_no_error(wakes: Wakes) -> None:
    with server_that_says(b"") as (url, asked):
        with watch_changes(open_store(url), PREFIX, wakes):
            wait_for(lambda: threads() == set())
        assert asked == []


def test_a_folder_that_may_not_be_read_is_no_error(store: FileStore, wakes: Wakes, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    caplog.set_level(logging.INFO)
    store.put(f"{PREFIX}a", b"x")
    (store.root / PREFIX).chmod(0o300)
    with watch_changes(store, PREFIX, wakes):
        assert not wakes.soon(lambda: store.put(f"{PREFIX}b", b"x"))
    assert "only the poll counts" in caplog.text


def test_a_probe_tells_which_stores_announce(store: FileStore, bucket: Store, moto_server: Moto) -> None:
    assert announces(store, "queue/")
    assert announces(bucket, "queue/")
    assert not announces(MemoryStore(), "queue/", 0.2)
    url = f"s3://test-{secrets.token_hex(8)}?endpoint_url={moto_server.endpoint_url}&region=us-east-1"
    assert not announces(make_store(url), "queue/", 1)
