"""Both formats from a sender to the party, through a folder and a real MinIO; and Crypt4GH files that were cut off or reordered
at their segments, which the format itself does not notice."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from ptm.c4gh import SEGMENT
from ptm.store.base import Store
from ptm.store.file import FileStore
from ptm.store.urls import make_store
from ptm.transfer import SUFFIX, Format
from ptm.trustedparty import send as sending
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import Source
from ptm.trustedparty.sent import wait_for_answer
from tests.commandline import CommandLine
from tests.federation import Federation
from tests.servers import Minio
from tests.store.test_s3_minio import use
from tests.trustedparty import parties
from tests.trustedparty.parties import World, refused

FORMATS = get_args(Format)
SIZES = (0, 1, 65_536, 65_537, 9 * 1024 * 1024)
"""The last one goes in parts."""


def elsewhere(world: World, store: Store) -> World:
    """The same federation on another store."""
    for info in world.store.list(""):
        store.put(info.key, world.store.get(info.key, info.size))
    return World(Federation(store, world.federation.folder, world.federation.fingerprint), parties.config(max_mb=64, quota_mb=64))


def goes_through(world: World, folder: Path, format: Format) -> None:
    files = {f"{size}.csv": os.urandom(size) for size in SIZES}
    for name, body in files.items():
        (folder / name).write_bytes(body)
    clinic = world.registry("clinic")
    outbox = Outbox(clinic.home.outbox)

    sent = sending.send(
        clinic, outbox, [Source(name, folder / name) for name in files], to="ttp", collection="link", format=format
    )
    keys = [key for key in world.inbox() if not key.endswith("manifest.json")]
    assert {key.rsplit(".", 1)[1] for key in keys} == {SUFFIX[format]}
    world.poll()

    receipt = wait_for_answer(clinic, outbox, sent.id, 1)
    assert receipt is not None and receipt.state == "accepted", receipt
    assert world.published() == {f"link/clinic/{name}": body for name, body in files.items()}
    assert (world.inbox(), world.quarantine()) == ([], [])


@pytest.mark.parametrize("format", FORMATS)
def test_both_formats_arrive_whole_through_a_folder(world: World, tmp_path: Path, format: Format) -> None:
    (tmp_path / "bucket").mkdir()
    goes_through(elsewhere(world, FileStore(tmp_path / "bucket")), tmp_path, format)


@pytest.mark.parametrize("format", FORMATS)
def test_both_formats_arrive_whole_through_minio(
    world: World, tmp_path: Path, format: Format, minio: Minio, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, minio.access_key, minio.secret_key)
    store = make_store(f"s3://test-{secrets.token_hex(8)}?endpoint_url={minio.endpoint_url}&region=us-east-1")
    goes_through(elsewhere(world, store), tmp_path, format)


# segments

BODY = os.urandom(4 * 65_536)


def cut(cipher: bytes) -> bytes:
    return cipher[:-SEGMENT]


def reordered(cipher: bytes) -> bytes:
    return cipher[: -2 * SEGMENT] + cipher[-SEGMENT:] + cipher[-2 * SEGMENT : -SEGMENT]


def doubled(cipher: bytes) -> bytes:
    return cipher + cipher[-SEGMENT:]


IN_THE_BUCKET = pytest.mark.parametrize(
    ("bent", "why"), [(cut, "is not what was signed"), (reordered, "is not what was signed"), (doubled, "is longer than")]
)
BY_THE_SENDER = pytest.mark.parametrize(
    ("bent", "why"),
    [(cut, "would be longer in clear"), (reordered, "is not the file that was sealed"), (doubled, "has more than")],
)
SEALED = pytest.mark.parametrize("sealed", [False, True], ids=["to-compute-on", "to-pass-on"])


@SEALED
@IN_THE_BUCKET
def test_segments_that_somebody_changed_in_the_bucket_are_refused(
    world: World, bent: Callable[[bytes], bytes], why: str, sealed: bool
) -> None:
    world.reconfigure(researchers=[] if sealed else ["jane"], sealed=sealed)
    parcel = world.parcel({"a.csv": BODY}, format="crypt4gh")
    parcel.objects["a.csv"] = bent(parcel.objects["a.csv"])
    refused(world, parcel.put(world.store), why)


@SEALED
@BY_THE_SENDER
def test_segments_that_fit_the_signed_manifest_but_not_its_sealed_list_are_refused(
    world: World, bent: Callable[[bytes], bytes], why: str, sealed: bool
) -> None:
    """Crypt4GH alone opens each of these without a word."""

    def bend(objects: dict[str, bytes]) -> None:
        objects["a.csv"] = bent(objects["a.csv"])

    world.reconfigure(researchers=[] if sealed else ["jane"], sealed=sealed)
    refused(world, world.send({"a.csv": BODY}, format="crypt4gh", bend=bend), why)


# the key


def test_exported_key_is_private_and_said_to_be_so(world: World) -> None:
    line = CommandLine(world.federation.folder)
    exported = line.run("--home", "ttp", "inbox", "export-key", "party.sec")

    assert exported.code == 0, exported.err
    assert "WITHOUT a passphrase" in exported.err
    assert exported.out == ""
    assert (line.folder / "party.sec").stat().st_mode & 0o777 == 0o600
    assert "PUBLIC" in (line.folder / "party.sec.pub").read_text()
    again = line.run("--home", "ttp", "inbox", "export-key", "party.sec")
    assert (again.code, len(again.err.splitlines())) == (12, 2)
    nowhere = line.run("--home", "ttp", "inbox", "export-key", "no/such/party.sec")
    assert (nowhere.code, len(nowhere.err.splitlines())) == (2, 2)
