"""The contract of `ptm.store.base` as tests. Each store's test module makes a subclass and supplies the fixture `store`: empty,
and new for each test.

`StoreContract` holds for every store; `UrlContract` adds what needs a store that another process can open, by the fixture
`url`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO

import pytest

from ptm.errors import AlreadyExists, InvalidKey, NotFound, TooLarge
from ptm.store.base import ObjectInfo, Store

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a\x85b",
    "a\\b",
    "..\\x",
    "\ud800",
    "x" * 1024,
    "a/" * 460 + "b",
    "x" * 231,
    ".ptm-tmp/x",
    "a/.ptm-x",
]


class Pieces(io.RawIOBase):
    """A sink that keeps the sizes of what it gets, and the bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.body = b""

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self.sizes.append(len(piece))
        self.body += piece
        return len(piece)


class Stopping(io.BytesIO):
    """A source at which somebody presses Ctrl-C when this many bytes were read."""

    def __init__(self, body: bytes, at: int) -> None:
        super().__init__(body)
        self._at = at

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or self.tell() + size > self._at:
            raise KeyboardInterrupt
        return super().read(size)


class Growing(io.BytesIO):
    """A source that is still being written: `gate` is waited for before anything from this byte on is read."""

    def __init__(self, body: bytes, at: int) -> None:
        super().__init__(body)
        self._at, self.gate = at, threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or self.tell() + size > self._at:
            assert self.gate.wait(60)
        return super().read(size)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


class StoreContract:
    def test_object_comes_back_as_it_was_written(self, store: Store) -> None:
        store.put("a/b.json", b"one")
        store.create("a/c.json", b"two")
        store.upload("a/d e+%é日.age", io.BytesIO(b"three"))

        assert store.get("a/b.json", 3) == b"one"
        assert store.get("a/c.json", 100) == b"two"
        assert store.get("a/d e+%é日.age", 5) == b"three"
        assert store.head("a/d e+%é日.age") == ObjectInfo("a/d e+%é日.age", 5)
        assert list(store.list("")) == [ObjectInfo("a/b.json", 3), ObjectInfo("a/c.json", 3), ObjectInfo("a/d e+%é日.age", 5)]

    def test_empty_object_is_an_object(self, store: Store) -> None:
        sink = Pieces()
        store.put("p", b"")
        store.create("c", b"")
        store.upload("u", io.BytesIO())

        for key in ("p", "c", "u"):
            assert store.get(key, 0) == b""
            assert store.head(key) == ObjectInfo(key, 0)
            assert store.download(key, sink, 0) == 0  # type: ignore[arg-type]
        assert keys(store) == ["c", "p", "u"]

    def test_put_and_upload_overwrite(self, store: Store) -> None:
        store.put("k", b"long first body")
        store.put("k", b"2")
        assert store.get("k", 99) == b"2"

        store.upload("k", io.BytesIO(b"three"))
        assert store.get("k", 99) == b"three"

    def test_missing_key_is_not_found(self, store: Store) -> None:
        store.put("a/b", b"x")
        for key in ("nope", "a", "a/c", "a/b/c"):
            with pytest.raises(NotFound):
                store.get(key, 10)
            with pytest.raises(NotFound):
                store.head(key)
            with pytest.raises(NotFound):
                store.download(key, io.BytesIO(), 10)

    def test_delete_is_final_and_may_be_repeated(self, store: Store) -> None:
        store.put("a/b", b"x")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("never/was")

        assert keys(store) == []
        assert list(store.list_prefixes("")) == []
        with pytest.raises(NotFound):
            store.get("a/b", 10)

    def test_deleting_a_key_that_is_only_a_prefix_removes_nothing(self, store: Store) -> None:
        store.put("a/b", b"x")
        store.delete("a")
        assert store.get("a/b", 1) == b"x"

    def test_a_key_that_was_deleted_can_be_created_again(self, store: Store) -> None:
        store.create("k", b"1")
        store.delete("k")
        store.create("k", b"2")
        assert store.get("k", 1) == b"2"

    def test_create_refuses_a_key_that_holds_anything_else(self, store: Store) -> None:
        store.create("k", b"first")
        for other in (b"second", b"firs", b"first!", b""):
            with pytest.raises(AlreadyExists):
                store.create("k", other)
        assert store.get("k", 99) == b"first"

    def test_create_with_the_same_body_again_succeeds(self, store: Store) -> None:
        store.create("k", b"body with nonce")
        store.create("k", b"body with nonce")
        assert store.get("k", 99) == b"body with nonce"

    def test_create_takes_a_mebibyte_and_no_more(self, store: Store) -> None:
        store.create("k", b"x" * 1024 * 1024)
        assert store.head("k").size == 1024 * 1024
        with pytest.raises(TooLarge):
            store.create("l", b"x" * (1024 * 1024 + 1))
        assert keys(store) == ["k"]

    def test_race_of_eight_for_one_key_has_exactly_one_winner_in_each_of_100_rounds(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            for n in range(100):
                key = f"race/{n}"
                start = threading.Barrier(8)
                bodies = [f"{n} {racer}".encode() for racer in range(8)]

                def run(body: bytes, key: str = key, start: threading.Barrier = start) -> bool:
                    start.wait()
                    try:
                        store.create(key, body)
                    except AlreadyExists:
                        return False
                    return True

                won = list(pool.map(run, bodies))
                assert won.count(True) == 1, (n, won)
                assert store.get(key, 100) == bodies[won.index(True)]

    def test_more_than_a_thousand_keys_are_listed_in_byte_order(self, store: Store) -> None:
        wanted = [f"many/{n:04}" for n in range(1203)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b"x"), reversed(wanted)))

        assert keys(store, "many/") == wanted
        assert keys(store, "many/11") == [f"many/{n}" for n in range(1100, 1200)]

    def test_more_than_a_thousand_prefixes_are_listed_once_each(self, store: Store) -> None:
        wanted = [f"sites/{n:04}/" for n in range(1105)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda prefix: store.put(f"{prefix}runs/x", b"x"), wanted))

        assert list(store.list_prefixes("sites/")) == wanted
        assert list(store.list_prefixes("")) == ["sites/"]

    def test_order_is_that_of_the_bytes_of_whole_keys(self, store: Store) -> None:
        wanted = ["B", "a-b", "a-b2/x", "a.b", "a/b", "a/b.c", "a/b0", "a/c/d", "a0", "aé", "a日", "a😀", "b"]
        for key in reversed(wanted):
            store.put(key, b"")

        assert keys(store) == wanted == sorted(wanted, key=str.encode)
        assert keys(store, "a") == wanted[1:12]
        assert keys(store, "a/") == ["a/b", "a/b.c", "a/b0", "a/c/d"]
        assert keys(store, "a/b") == ["a/b", "a/b.c", "a/b0"]
        assert list(store.list_prefixes("")) == ["a-b2/", "a/"]
        assert list(store.list_prefixes("a/")) == ["a/c/"]

    def test_listing_nothing_is_no_error(self, store: Store) -> None:
        store.put("a/b", b"")
        for prefix in ("x", "x/", "a/b/", "a/b/c", "ab"):
            assert keys(store, prefix) == []
        assert list(store.list_prefixes("x/")) == list(store.list_prefixes("a/b/")) == []

    def test_hostile_keys_are_refused_by_every_verb_before_anything_is_touched(self, store: Store) -> None:
        verbs: list[Callable[[str], object]] = [
            lambda key: store.get(key, 10),
            lambda key: store.create(key, b"x"),
            lambda key: store.put(key, b"x"),
            lambda key: store.head(key),
            lambda key: store.delete(key),
            lambda key: store.upload(key, io.BytesIO(b"x")),
            lambda key: store.upload_resumable(key, io.BytesIO(b"x"), Path("no journal")),
            lambda key: store.abandon(key, Path("no journal")),
            lambda key: store.download(key, io.BytesIO(), 10),
        ]
        for key in HOSTILE_KEYS:
            for n, verb in enumerate(verbs):
                with pytest.raises(InvalidKey):
                    verb(key)
                    pytest.fail(f"verb {n} took {key!r}")
        assert keys(store) == []

    def test_hostile_prefixes_are_refused_before_anything_is_listed(self, store: Store) -> None:
        for prefix in ("..", "../", "/", "a//", "a/../", "a\\", "a\n", ".ptm-tmp/", "x" * 1024):
            for verb in (store.list, store.list_prefixes, store.probe):
                with pytest.raises(InvalidKey):
                    verb(prefix)
                    pytest.fail(f"{verb} took {prefix!r}")

    def test_prefixes_below_half_a_segment_cannot_be_asked_for(self, store: Store) -> None:
        with pytest.raises(InvalidKey):
            store.list_prefixes("a")
        with pytest.raises(InvalidKey):
            store.probe("scratch")

    def test_object_larger_than_the_limit_is_refused(self, store: Store) -> None:
        store.put("k", b"12345")
        sink = Pieces()
        for limit in (4, 0):
            with pytest.raises(TooLarge):
                store.get("k", limit)
            with pytest.raises(TooLarge):
                store.download("k", sink, limit)  # type: ignore[arg-type]
        assert len(sink.body) <= 5
        assert store.get("k", 5) == b"12345"

    def test_large_object_goes_both_ways_in_pieces_with_progress(self, store: Store) -> None:
        body = os.urandom(1024) * 20 * 1024
        up, down = [], []  # type: ignore[var-annotated]
        source: BinaryIO = io.BytesIO(b"skipped" + body)
        source.seek(7)
        sink = Pieces()

        store.upload("big", source, up.append)
        size = store.download("big", sink, len(body), down.append)  # type: ignore[arg-type]

        assert size == len(body) == sum(up) == sum(down) == store.head("big").size
        assert sink.body == body
        assert not source.closed

    def test_download_appends_to_what_the_sink_holds(self, store: Store) -> None:
        store.put("k", b"tail")
        sink = io.BytesIO(b"head ")
        sink.seek(0, io.SEEK_END)
        assert store.download("k", sink, 4) == 4
        assert sink.getvalue() == b"head tail"

    @pytest.mark.parametrize("before", [None, b"old"])
    @pytest.mark.parametrize("error", [OSError("disk of the caller"), ValueError("closed file")])
    def test_upload_whose_source_fails_leaves_what_was_there(self, store: Store, before: bytes | None, error: Exception) -> None:
        class Failing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if size is None or size < 0 or self.tell() + size > 20_000_000:
                    raise error
                return super().read(size)

        if before is not None:
            store.put("k", before)
        with pytest.raises(type(error), match=str(error)):
            store.upload("k", Failing(b"x" * 30_000_000))

        assert keys(store) == ([] if before is None else ["k"])
        if before is not None:
            assert store.get("k", 10) == before

    @pytest.mark.parametrize("size", [0, 5, 30_000_000])
    def test_resumable_upload_is_an_upload(self, store: Store, tmp_path: Path, size: int) -> None:
        body, moved = os.urandom(size), list[int]()
        source = io.BytesIO(b"skipped" + body)
        source.seek(7)
        store.put("k", b"old")

        store.upload_resumable("k", source, tmp_path / "journal", moved.append)

        sink = Pieces()
        assert store.download("k", sink, size) == size == sum(moved)  # type: ignore[arg-type]
        assert sink.body == body
        assert not source.closed
        assert not (tmp_path / "journal").exists()

    def test_resumable_upload_that_was_interrupted_leaves_no_object_and_ends_when_called_again(
        self, store: Store, tmp_path: Path
    ) -> None:
        body, journal = os.urandom(30_000_000), tmp_path / "journal"
        source = Stopping(body, 20_000_000)
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("k", source, journal)
        assert keys(store) == []

        moved = list[int]()
        store.upload_resumable("k", io.BytesIO(body), journal, moved.append)
        assert store.get("k", len(body)) == body
        assert sum(moved) == len(body)
        assert not journal.exists()

    def test_source_that_grows_is_uploaded_to_its_end_and_there_is_no_object_before(self, store: Store, tmp_path: Path) -> None:
        body, moved = os.urandom(30_000_000), list[int]()
        source = Growing(body, 29_000_000)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(store.upload_resumable, "k", source, tmp_path / "journal", moved.append, 31_000_000)
            assert not wait([done], timeout=0.5).done
            assert keys(store) == []
            source.gate.set()
        done.result()
        assert store.get("k", len(body)) == body
        assert sum(moved) == len(body)
        assert not (tmp_path / "journal").exists()

    def test_source_that_stops_growing_leaves_no_object_and_the_whole_is_uploaded_by_the_next_call(
        self, store: Store, tmp_path: Path
    ) -> None:
        body, journal = os.urandom(30_000_000), tmp_path / "journal"
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("k", Stopping(body, 20_000_000), journal, growing_to=31_000_000)
        assert keys(store) == []
        store.upload_resumable("k", io.BytesIO(body), journal)
        assert store.get("k", len(body)) == body
        assert not journal.exists()

    def test_interrupted_upload_of_something_else_is_not_taken_up(self, store: Store, tmp_path: Path) -> None:
        first, second, journal = os.urandom(30_000_000), os.urandom(30_000_000), tmp_path / "journal"
        for size in (30_000_000, 29_000_000):
            with pytest.raises(KeyboardInterrupt):
                store.upload_resumable("k", Stopping(first[:size], 20_000_000), journal)
            store.upload_resumable("k", io.BytesIO(second), journal)
            assert store.get("k", len(second)) == second

    def test_abandoned_upload_leaves_nothing_and_may_be_abandoned_again(self, store: Store, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("k", Stopping(bytes(30_000_000), 20_000_000), journal)
        store.put("other", b"stays")
        for _ in range(2):
            store.abandon("k", journal)
            store.abandon("other", journal)
            assert keys(store) == ["other"]
            assert not journal.exists()

    def test_download_into_a_full_disk_raises_the_callers_own_error(self, store: Store) -> None:
        class Full(io.RawIOBase):
            def write(self, data: object) -> int:
                raise OSError("no space at the caller's")

        store.put("k", b"x")
        with pytest.raises(OSError, match="at the caller's"):
            store.download("k", Full(), 10)  # type: ignore[arg-type]

    def test_reader_during_overwrites_sees_a_whole_object(self, store: Store) -> None:
        bodies = {bytes([n]) * 50_000 for n in range(4)}
        store.put("k", bytes([0]) * 50_000)
        done = threading.Event()

        def write() -> None:
            for _ in range(10):
                for body in bodies:
                    store.put("k", body)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while not done.is_set():
                assert store.get("k", 50_000) in bodies
        finally:
            writer.join()

    def test_probe_finds_an_exclusive_store_and_leaves_nothing_behind(self, store: Store) -> None:
        store.put("mine", b"x")
        found = store.probe("scratch/deep/")

        assert (found.exclusive_create, found.versioned, found.shareable) == (True, False, True)
        assert keys(store) == ["mine"]


BIG_OBJECT = """
import sys
from ptm.store.urls import open_store

class Source:
    def __init__(self): self.at = 0
    def seekable(self): return True
    def tell(self): return self.at
    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, SIZE)[whence]
        return self.at
    def read(self, size=-1):
        size = min(SIZE - self.at, SIZE if size is None or size < 0 else size)
        self.at += size
        return bytes(size)

class Sink:
    def write(self, piece): return len(piece)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

SIZE = 200 * 1024 * 1024
store = open_store(sys.argv[1])
store.put("warm", b"x"); store.get("warm", 1)
store.upload("small", __import__("io").BytesIO(b"x"))
before = peak()
store.upload("big", Source())
assert store.download("big", Sink(), SIZE) == SIZE
print(peak() - before)
"""


class UrlContract(StoreContract):
    @pytest.mark.slow
    def test_200_mebibytes_go_both_ways_in_constant_memory(self, store: Store, url: str) -> None:
        run = subprocess.run([sys.executable, "-c", BIG_OBJECT, url], capture_output=True, text=True, timeout=300, check=False)
        assert run.returncode == 0, run.stderr
        assert int(run.stdout) < 96 * 1024  # KiB
