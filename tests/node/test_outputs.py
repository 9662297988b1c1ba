"""Hostile outputs, as tar streams made by hand and as folders; inputs; logs."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm.config import Limits
from ptm.errors import RunnerError
from ptm.node.outputs import BoundedLog, input_tar, take_folder, take_tar, write_log

LIMITS = Limits(output_mb=1, output_files=4, log_kb=1)


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def archive(*entries: tuple[tarfile.TarInfo, bytes], root: bool = True) -> bytes:
    """A tar like an engine's: the folder, then what is in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if root:
            tar.addfile(entry("output/", tarfile.DIRTYPE))
        for info, body in entries:
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def take(body: bytes, target: Path, chunk: int = 700) -> str | None:
    return take_tar((body[at : at + chunk] for at in range(0, len(body), chunk)), "output", target, LIMITS)


def test_plain_files_come_out_as_they_are(tmp_path: Path) -> None:
    body = archive((entry("output/a.json"), b"{}"), (entry("output/ünï code.txt"), b"x" * 5000), (entry("output/empty"), b""))
    assert take(body, tmp_path) is None
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.json": b"{}", "ünï code.txt": b"x" * 5000, "empty": b""}


def test_no_outputs_are_fine(tmp_path: Path) -> None:
    assert take(archive(), tmp_path) is None


@pytest.mark.parametrize(
    ("kind", "link", "word"),
    [
        (tarfile.SYMTYPE, "/etc/shadow", "symbolic link"),
        (tarfile.SYMTYPE, "a", "symbolic link"),
        (tarfile.LNKTYPE, "output/a", "hard link"),
        (tarfile.DIRTYPE, "", "folder"),
        (tarfile.FIFOTYPE, "", "named pipe"),
        (tarfile.CHRTYPE, "", "device"),
        (tarfile.BLKTYPE, "", "device"),
        (tarfile.CONTTYPE, "", "no regular file"),
        (b"Z", "", "no regular file"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_named(tmp_path: Path, kind: bytes, link: str, word: str) -> None:
    broken = take(archive((entry("output/a"), b"fine"), (entry("output/trick", kind, link), b"")), tmp_path)
    assert broken is not None and word in broken and "'trick'" in broken
    assert {p.name for p in tmp_path.iterdir()} <= {"a"}


@pytest.mark.parametrize(
    "name",
    ["output/../escaped", "output/sub/file", "/etc/cron.d/x", "../x", "elsewhere/x", "output/..", "outputx", "output//x", "x"],
)
def test_a_path_trick_writes_nothing_anywhere(tmp_path: Path, name: str) -> None:
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    assert take(archive((entry(name), b"evil")), target) is not None
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    "name", ["log.txt", "RESULT.json", "task.json", ".ptm-x", "a\nb", "a\\b", "a\x1b[2J", "x" * 201, "\udcff\udcfe"]
)
def test_names_that_ptm_keeps_or_that_fool_a_terminal_are_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        tar.addfile(entry("output/", tarfile.DIRTYPE))
        tar.addfile(entry(f"output/{name}"))
    broken = take(buffer.getvalue(), tmp_path)
    assert broken is not None and "may not be named so" in broken
    assert broken.isprintable() and broken.isascii()


def test_names_that_differ_only_in_capitals_are_refused(tmp_path: Path) -> None:
    broken = take(archive((entry("output/A.csv"), b"1"), (entry("output/a.csv"), b"2")), tmp_path)
    assert broken is not None and "two outputs" in broken


@pytest.mark.parametrize(("one", "two"), [("\u00e9.csv", "e\u0301.csv"), ("\u212bngstrom", "\u00e5NGSTROM"), ("\uff41", "a")])
def test_names_that_a_person_cannot_tell_apart_are_refused(tmp_path: Path, one: str, two: str) -> None:
    broken = take(archive((entry(f"output/{one}"), b"1"), (entry(f"output/{two}"), b"2")), tmp_path)
    assert broken is not None and "two outputs" in broken


def test_the_same_name_twice_does_not_overwrite(tmp_path: Path) -> None:
    assert take(archive((entry("output/a"), b"1"), (entry("output/a"), b"2")), tmp_path) is not None
    assert (tmp_path / "a").read_bytes() == b"1"


def test_an_output_folder_that_was_replaced_by_a_link_is_refused(tmp_path: Path) -> None:
    broken = take(archive((entry("output", tarfile.SYMTYPE, "/etc"), b""), root=False), tmp_path)
    assert broken is not None and "replaced" in broken


def test_too_many_files(tmp_path: Path) -> None:
    assert take(archive(*((entry(f"output/{n}"), b"") for n in range(4))), tmp_path) is None
    other = tmp_path / "other"
    other.mkdir()
    broken = take(archive(*((entry(f"output/{n}"), b"") for n in range(5))), other)
    assert broken is not None and "more than 4 output files" in broken


def test_too_large_together(tmp_path: Path) -> None:
    half = b"x" * (512 * 1024)
    assert take(archive((entry("output/a"), half), (entry("output/b"), half)), tmp_path, 65536) is None
    other = tmp_path / "other"
    other.mkdir()
    broken = take(archive((entry("output/a"), half), (entry("output/b"), half + b"x")), other, 65536)
    assert broken is not None and "more than 1 MB" in broken


def test_a_petabyte_in_the_header_is_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    info = entry("output/huge")
    info.size = 2**50
    start = archive()[:512] + info.tobuf(tarfile.GNU_FORMAT)

    def stream() -> Iterator[bytes]:
        yield start.ljust(tarfile.RECORDSIZE, b"\0")
        pytest.fail("read on")

    broken = take_tar(stream(), "output", tmp_path, LIMITS)
    assert broken is not None and "more than 1 MB" in broken


@pytest.mark.parametrize("cut", [0, 100, 512, 1000, 1024, 1536, 2048])
def test_a_stream_that_ends_early_is_an_error_and_never_taken_for_the_whole(tmp_path: Path, cut: int) -> None:
    body = archive((entry("output/a"), b"x" * 600), (entry("output/b"), b"y"))
    with pytest.raises(RunnerError, match="cut off"):
        take(body[:cut], tmp_path)


def test_a_damaged_header_in_the_middle_is_an_error(tmp_path: Path) -> None:
    body = bytearray(archive((entry("output/a"), b"x" * 512), (entry("output/b"), b"y")))
    body[1536 + 10] ^= 0xFF
    with pytest.raises(RunnerError, match="damaged"):
        take(bytes(body), tmp_path)


def test_a_full_disk_is_not_taken_for_a_damaged_stream() -> None:
    with pytest.raises(OSError, match="No such file"):
        take(archive((entry("output/a"), b"x")), Path("/nonexistent"))


# --- a folder ---


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    return tmp_path / "source", tmp_path / "target"


def test_a_folders_files_come_out(folders: tuple[Path, Path]) -> None:
    source, target = folders
    (source / "a").write_bytes(b"1" * 100)
    assert take_folder(source, target, LIMITS) is None
    assert (target / "a").read_bytes() == b"1" * 100


def test_links_pipes_sockets_and_folders_in_a_folder_are_refused(folders: tuple[Path, Path]) -> None:
    source, target = folders
    secret = source.parent / "secret"
    secret.write_text("patients")
    made = source / "x"
    for make, word in (
        (lambda: made.symlink_to(secret), "symbolic link"),
        (lambda: made.hardlink_to(secret), "hard link"),
        (lambda: os.mkfifo(made), "named pipe"),
        (lambda: socket.socket(socket.AF_UNIX).bind(str(made)), "socket"),
        (made.mkdir, "folder"),
    ):
        make()
        broken = take_folder(source, target, LIMITS)
        assert broken is not None and word in broken
        assert list(target.iterdir()) == []
        if word != "folder":
            made.unlink()


def test_an_output_folder_that_is_a_link_is_not_followed(folders: tuple[Path, Path]) -> None:
    source, target = folders
    (source / "a").write_text("x")
    link = source.parent / "link"
    link.symlink_to(source)
    assert take_folder(link, target, LIMITS) is not None
    assert list(target.iterdir()) == []


def test_a_folder_with_too_much_in_it(folders: tuple[Path, Path]) -> None:
    source, target = folders
    with (source / "sparse").open("wb") as file:
        file.truncate(2**40)
    broken = take_folder(source, target, LIMITS)
    assert broken is not None and "more than 1 MB" in broken


# --- inputs and logs ---


def test_inputs_as_a_tar_belong_to_the_run_and_are_read_only(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / ("ü" * 90)).write_bytes(b"x" * 3_000_000)
    (tmp_path / "even").write_bytes(b"y" * 512)
    chunks = list(input_tar(tmp_path, 1234, 5678))
    assert all(chunks), "an empty chunk would end a chunked upload"
    assert max(map(len, chunks)) <= 1024 * 1024
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        shown = {e.name: (e.type, oct(e.mode), e.uid, e.gid) for e in tar}
        large = tar.extractfile(f"ptm/input/{'ü' * 90}")
        assert large is not None and large.read() == b"x" * 3_000_000
    assert shown == {
        "ptm": (tarfile.DIRTYPE, "0o755", 0, 0),
        "ptm/input": (tarfile.DIRTYPE, "0o755", 1234, 5678),
        "ptm/output": (tarfile.DIRTYPE, "0o700", 1234, 5678),
        "ptm/input/a.json": (tarfile.REGTYPE, "0o444", 1234, 5678),
        "ptm/input/even": (tarfile.REGTYPE, "0o444", 1234, 5678),
        f"ptm/input/{'ü' * 90}": (tarfile.REGTYPE, "0o444", 1234, 5678),
    }


def test_a_log_that_fits_is_whole(tmp_path: Path) -> None:
    write_log([b"a" * 1000, b"b" * 24], tmp_path / "log", 1)
    assert (tmp_path / "log").read_bytes() == b"a" * 1000 + b"b" * 24


def test_a_log_that_does_not_fit_is_cut_says_so_and_is_not_read_further(tmp_path: Path) -> None:
    def flood() -> Iterator[bytes]:
        yield b"a" * 1000
        yield b"b" * 1000
        pytest.fail("read on")

    write_log(flood(), tmp_path / "log", 1)
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert lines[0] == b"a" * 1000 + b"b" * 24
    assert lines[-1] == b"[ptm: the log was cut here, at the site's limit of 1 KB]"


def test_a_log_says_only_once_that_it_was_cut() -> None:
    sink = io.BytesIO()
    log = BoundedLog(sink, 1)
    assert [log.write(b"x" * 2000) for _ in range(3)] == [False] * 3
    assert sink.getvalue().count(b"cut here") == 1
