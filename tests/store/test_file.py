"""The file store keeps the contract, also for a second account, a planted link, a killed writer and a full or missing disk."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptm.errors import NotFound, StoreError, Unreachable
from ptm.store.file import FileStore
from tests.store.contract import UrlContract, keys

NOBODY = 65534


class TestFileStore(UrlContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}"

    @pytest.fixture
    def store(self, tmp_path: Path) -> FileStore:
        return FileStore(tmp_path)


def python(script: str, *args: str, nobody: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a script in another process, as another account if asked (and if we may become one)."""
    become = f"import os\nif os.getuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n" if nobody else ""
    code = "import sys\nfrom pathlib import Path\nfrom ptm.store.file import FileStore\nfrom ptm.errors import *\n"
    code += become + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A registry folder which another account may reach (pytest's own folders are closed to others)."""
    with tempfile.TemporaryDirectory(prefix="ptm-shared-") as base:
        Path(base).chmod(0o755)
        root = Path(base) / "registry"
        FileStore(root).make_root()
        yield root


DENIED = """
store = FileStore(Path(sys.argv[1]))
import io
verbs = {
    "get": lambda: store.get("locked/k", 9), "get missing": lambda: store.get("locked/none", 9),
    "head": lambda: store.head("locked/k"),
    "download": lambda: store.download("locked/k", io.BytesIO(), 9), "list": lambda: list(store.list("locked/")),
    "list all": lambda: list(store.list("")), "prefixes": lambda: list(store.list_prefixes("")),
    "create": lambda: store.create("locked/new", b"x"), "put": lambda: store.put("locked/k", b"x"),
    "upload": lambda: store.upload("locked/k", io.BytesIO(b"x")), "delete": lambda: store.delete("locked/k"),
    "file": lambda: store.get("open/unreadable", 9), "probe": lambda: store.probe("locked/"),
}
for name, verb in verbs.items():
    try:
        print(name, "returned", verb())
    except StoreError as e:
        if type(e) is not AccessDenied or not e.hint: print(name, type(e).__name__, e)
print("done")
"""


def test_denied_by_the_mode_of_folder_or_file_is_access_denied_for_every_verb(shared: Path) -> None:
    store = FileStore(shared)
    store.put("locked/k", b"x")
    store.put("open/unreadable", b"x")
    (shared / ".ptm-tmp").chmod(0o777)
    (shared / "open/unreadable").chmod(0)
    (shared / "locked").chmod(0)

    run = python(DENIED, str(shared), nobody=True)

    (shared / "locked").chmod(0o755)
    assert (run.stdout, run.stderr) == ("done\n", "")


def test_reader_who_may_not_write_can_open_read_and_list(shared: Path) -> None:
    FileStore(shared).put("a/b", b"x")
    for folder in (shared, shared / "a", shared / ".ptm-tmp"):
        folder.chmod(0o555)
    script = """
        store = FileStore(Path(sys.argv[1]))
        print(store.get("a/b", 1), [i.key for i in store.list("")])
        try: store.put("a/c", b"")
        except AccessDenied: print("denied")
    """
    run = python(script, str(shared), nobody=True)
    for folder in (shared, shared / "a", shared / ".ptm-tmp"):
        folder.chmod(0o755)
    assert run.stdout == "b'x' ['a/b']\ndenied\n", run.stderr


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_new_files_and_folders_have_the_mode_the_umask_leaves(
    tmp_path: Path, umask: int, file_mode: int, folder_mode: int
) -> None:
    script = """
        import io, os
        os.umask(int(sys.argv[2]))
        store = FileStore(Path(sys.argv[1]))
        store.create("d/c", b"x"); store.put("d/p", b"x"); store.upload("d/u", io.BytesIO(b"x"))
    """
    run = python(script, str(tmp_path), str(umask))
    assert run.returncode == 0, run.stderr
    assert {(tmp_path / "d" / name).stat().st_mode & 0o777 for name in "cpu"} == {file_mode}
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("d", ".ptm-tmp")} == {folder_mode}


def test_link_planted_as_an_object_is_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    root = tmp_path / "root"
    store = FileStore(root)
    store.make_root()
    store.put("a/b", b"x")
    (root / "a/link").symlink_to(outside)

    for call in (lambda: store.get("a/link", 99), lambda: store.head("a/link"), lambda: store.create("a/link", b"secret")):
        with pytest.raises(StoreError):
            call()
    assert keys(store) == ["a/b"]
    store.put("a/link", b"replaced")
    assert outside.read_bytes() == b"secret"
    assert store.get("a/link", 99) == b"replaced"


def test_link_planted_as_a_folder_is_never_entered(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "k").write_bytes(b"secret")
    store = FileStore(root)
    store.make_root()
    store.put("real/k", b"x")
    (root / "evil").symlink_to(outside)
    (root / "inner").symlink_to(root / "real")

    for name in ("evil", "inner"):
        calls = [
            lambda n=name: store.get(f"{n}/k", 9),
            lambda n=name: store.put(f"{n}/k", b"y"),
            lambda n=name: store.create(f"{n}/new", b"y"),
        ]
        calls += [lambda n=name: store.delete(f"{n}/k"), lambda n=name: list(store.list(f"{n}/"))]
        for call in calls:
            with pytest.raises(StoreError, match="symbolic link"):
                call()
    assert keys(store) == ["real/k"]
    assert list(store.list_prefixes("")) == ["real/"]
    assert sorted(path.name for path in outside.iterdir()) == ["k"]


def test_temporary_folder_replaced_by_a_link_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / ".ptm-tmp").symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link"):
        FileStore(root).put("k", b"x")
    assert list(outside.iterdir()) == []


def test_root_that_is_a_link_is_a_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    FileStore(tmp_path / "link").put("k", b"x")
    assert (tmp_path / "real/k").read_bytes() == b"x"


def test_planted_pipe_neither_blocks_nor_is_listed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for call in (lambda: store.get("pipe", 9), lambda: store.head("pipe"), lambda: store.create("pipe", b"")):
        with pytest.raises(StoreError, match="not a regular file"):
            call()
    assert keys(store) == []


def test_names_that_are_not_keys_are_passed_over(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put("good/k", b"x")
    for name in (b"back\\slash", b"new\nline", b"latin-\xe9", b".ptm-other"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
        (tmp_path / "good" / os.fsdecode(name)).mkdir()
    assert keys(store) == ["good/k"]


def test_folder_in_the_way_of_an_object_is_said_so(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put("a/b", b"x")
    for call in (lambda: store.put("a", b"y"), lambda: store.put("a/b/c", b"y"), lambda: store.create("a/b/c", b"y")):
        with pytest.raises(StoreError, match="in the way"):
            call()
    assert keys(store) == ["a/b"]


def insist(write: Callable[[str, bytes], None], key: str, body: bytes) -> None:
    """Call again after `Unreachable`, which the contract says is safe: on a slow disk the remover wins several times in a row."""
    for _ in range(200):
        try:
            write(key, body)
        except Unreachable:
            continue
        return
    pytest.fail("never got through")


def test_empty_parents_deleted_all_the_time_do_not_lose_an_object(tmp_path: Path) -> None:
    script = """
        import os, contextlib, time
        while True:
            time.sleep(0.0005)
            for folder in ("a/b", "a"):
                with contextlib.suppress(OSError): os.rmdir(Path(sys.argv[1]) / folder)
    """
    code = "import sys\nfrom pathlib import Path\n" + textwrap.dedent(script)
    remover = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        store = FileStore(tmp_path)
        for n in range(50):
            for write in (store.create, store.put):
                insist(write, "a/b/k", b"%d" % n)
                assert store.get("a/b/k", 9) == b"%d" % n
                store.delete("a/b/k")
    finally:
        remover.kill()
        remover.wait()


def test_missing_root_is_unreachable_with_a_hint_until_it_is_made(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "not" / "yet")
    for call in (lambda: store.get("k", 1), lambda: store.put("k", b""), lambda: list(store.list("")), lambda: store.head("k")):
        with pytest.raises(Unreachable, match="does not exist") as caught:
            call()
        assert "registry create" in str(caught.value.hint)
    assert not (tmp_path / "not").exists()

    store.make_root()
    store.make_root()
    store.put("k", b"x")


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StoreError, match="is a file"):
        FileStore(tmp_path / "f").make_root()


@pytest.mark.parametrize("call", ["create", "put"])
def test_write_that_the_system_cuts_short_is_said_with_a_hint_and_leaves_nothing(tmp_path: Path, call: str) -> None:
    script = """
        import errno, os, resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = FileStore(Path(sys.argv[1]))
        store.put("small", b"x")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try: getattr(store, sys.argv[2])("big", bytes(5000))
        except StoreError as e: print(type(e).__name__, bool(e.hint), [i.key for i in store.list("")])
    """
    run = python(script, str(tmp_path), call)
    assert run.stdout == "Unreachable True ['small']\n", run.stderr
    assert list((tmp_path / ".ptm-tmp").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_enospc_of_the_system_becomes_a_plain_error_with_a_hint() -> None:
    from ptm.store.folder import as_store_errors

    with (
        pytest.raises(StoreError, match="No space left") as caught,
        as_store_errors("k"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert type(caught.value) is StoreError
    assert "free space" in str(caught.value.hint)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC


def test_stale_unfinished_writes_are_swept_at_open_and_young_ones_kept(tmp_path: Path) -> None:
    FileStore(tmp_path).put("k", b"x")
    temp = tmp_path / ".ptm-tmp"
    for name, age in (("old", 25 * 3600), ("young", 23 * 3600)):
        (temp / name).write_bytes(b"half")
        os.utime(temp / name, (time.time() - age, time.time() - age))

    store = FileStore(tmp_path)

    assert [path.name for path in temp.iterdir()] == ["young"]
    assert keys(store) == ["k"]
    with pytest.raises(NotFound):
        store.get("young", 9)


WRITER = """
import io, os
store = FileStore(Path(sys.argv[1]))
print("up", flush=True)
n = 0
while True:
    body = (b"%08d" % n) * 40_000
    store.create(f"create/{os.getpid()}-{n}", body)
    store.put("put/k", body)
    store.upload("upload/k", io.BytesIO(body * 4))
    n += 1
"""


@pytest.mark.slow
def test_writer_killed_at_30_random_points_leaves_nothing_or_whole_objects(tmp_path: Path) -> None:
    code = "import sys\nfrom pathlib import Path\nfrom ptm.store.file import FileStore\n" + WRITER
    chance = random.Random(20)
    store = FileStore(tmp_path)
    torn = 0
    for _ in range(30):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout:
            child.stdout.readline()
            time.sleep(chance.uniform(0, 0.08))
            child.send_signal(signal.SIGKILL)
            child.wait()
        torn += any((tmp_path / ".ptm-tmp").iterdir())
        for info in store.list(""):
            body = store.get(info.key, 10_000_000)
            assert len(body) == (1_280_000 if info.key.startswith("upload/") else 320_000)
            assert body == body[:8] * (len(body) // 8)
            if info.key.startswith("create/"):
                store.delete(info.key)
    assert torn > 0, "no writer was killed in the middle of a write: this run showed nothing"


def test_folders_of_objects_that_went_do_not_stay_but_members_own_do(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for key in ("inbox/ttp/clinic/1/files/a", "inbox/ttp/clinic/1/manifest", "inbox/ttp/clinic/2/manifest"):
        store.put(key, b"x")
    store.delete("inbox/ttp/clinic/1/files/a")
    store.delete("inbox/ttp/clinic/1/manifest")
    store.delete("inbox/ttp/clinic/missing/x")
    assert sorted(path.name for path in (tmp_path / "inbox/ttp/clinic").iterdir()) == ["2"]
    store.delete("inbox/ttp/clinic/2/manifest")
    assert list((tmp_path / "inbox/ttp/clinic").iterdir()) == []
