"""`ptm inbox` as a person gives it: what it prints, its exit codes, and going on after an interruption, on real servers too."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptm import layout
from ptm.registry import now_utc
from ptm.store.base import Store
from ptm.store.s3_parts import PART_BYTES
from ptm.store.urls import make_store
from ptm.transfer import Receipt, Transfer
from tests.commandline import CommandLine
from tests.federation import Federation
from tests.servers import Minio, s3_client
from tests.store.proxy import Proxy, run_proxy

pytestmark = pytest.mark.slow

BIG = 100_000_000


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    store = make_store(f"file://{tmp_path}/registry")
    return Federation(store, tmp_path).create().admit(clinic="site", ttp="party", alice="researcher")


@pytest.fixture
def clinic(federation: Federation, tmp_path: Path) -> CommandLine:
    (tmp_path / "incomes.csv").write_text("id,income\n1,100\n")
    return CommandLine(tmp_path, {"PTM_HOME": str(federation.home("clinic").path)})


def answer(federation: Federation, transfer_id: str, **other: object) -> None:
    """The party's signed receipt of what lies in its inbox."""
    party = federation.registry("ttp")
    body = party.read_raw(layout.transfer_manifest("ttp", "clinic", transfer_id))
    transfer = party.read(layout.transfer_manifest("ttp", "clinic", transfer_id), Transfer, "clinic")
    seen = hashlib.sha256(body).hexdigest()
    said: dict[str, object] = {
        "registry": party.id,
        "transfer": transfer_id,
        "sender": "clinic",
        "party": "ttp",
        "collection": transfer.collection,
        "seen_sha256": seen,
        "state": "accepted",
        "files": transfer.files,
        "created": now_utc(),
    }
    party.store.put(layout.receipt("ttp", "clinic", transfer_id, seen), party.sign(Receipt.model_validate(said | other)))


def to_ttp(*files: object) -> list[str]:
    return ["inbox", "send", *map(str, files), "--to", "ttp", "--collection", "link-2026"]


def test_send_prints_the_id_alone_and_list_shows_what_became_of_it(federation: Federation, clinic: CommandLine) -> None:
    sent = clinic.run(*to_ttp("incomes.csv", "second.csv=incomes.csv"))
    assert (sent.code, len(sent.out.split())) == (0, 1)
    assert "sent 2 file(s)" in sent.err
    transfer = sent.out.strip()

    (shown,) = json.loads(clinic.ok("inbox", "list", "--json"))
    assert (shown["id"], shown["to"], shown["collection"], shown["state"]) == (transfer, "ttp", "link-2026", "sent")
    assert shown["files"] == ["incomes.csv", "second.csv"]

    answer(federation, transfer, state="refused", reason="no such collection", hint="ask the party", files=())
    (shown,) = json.loads(clinic.ok("inbox", "list", "--json"))
    assert (shown["state"], shown["reason"], shown["hint"]) == ("refused", "no such collection", "ask the party")
    assert "no such collection; ask the party" in clinic.ok("inbox", "list")
    assert clinic.run("inbox", "resume").err == "nothing was interrupted\n"


@pytest.mark.parametrize(
    ("said", "code", "error"),
    [
        ({}, 0, "ttp accepted it"),
        ({"state": "refused", "reason": "too big", "files": ()}, 1, "ttp refused it: too big"),
        (None, 14, "has not answered yet"),
    ],
)
def test_send_that_waits_exits_with_what_the_party_answered(
    federation: Federation, clinic: CommandLine, said: dict[str, object] | None, code: int, error: str
) -> None:
    words = [sys.executable, "-m", "ptm", *to_ttp("incomes.csv"), "--wait", "3s" if said is None else "60s", "--json"]
    running = subprocess.Popen(
        words, cwd=clinic.folder, env=clinic.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if said is not None:
        wait_for(lambda: list(federation.store.list("inbox/")) and manifests(federation.store))
        answer(federation, manifests(federation.store)[0], **said)
    out, err = running.communicate(timeout=90)
    assert (running.returncode, json.loads(out)["state"]) == (code, "sent" if said is None else said.get("state", "accepted"))
    assert error in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (to_ttp("missing.csv"), 2, "is not there"),
        (to_ttp("."), 2, "is a folder"),
        (to_ttp("incomes.csv", "incomes.csv"), 2, "NAME=FILE"),
        (["inbox", "send", "incomes.csv", "--to", "alice", "--collection", "c"], 2, "not a trusted party"),
        (["inbox", "send", "incomes.csv", "--to", "nobody", "--collection", "c"], 2, "not a member"),
        (["inbox", "send", "incomes.csv", "--to", "tpp", "--collection", "c"], 2, "did you mean ttp?"),
        (["inbox", "send", "incomes.csv", "--to", "ttp", "--collection", "Link"], 2, "is not a name"),
        ([*to_ttp("incomes.csv"), "--wait", "soon"], 2, "not a duration"),
        (["inbox", "cancel", "../.."], 2, "not a transfer's id"),
        (["inbox", "cancel", "0" + "1" * 25], 10, "sent no transfer"),
    ],
)
def test_mistake_is_one_line_with_a_hint(clinic: CommandLine, words: list[str], code: int, said: str) -> None:
    answered = clinic.run(*words)
    assert (answered.code, answered.out) == (code, "")
    assert said in answered.err
    assert answered.err.startswith("ptm: error: ")
    assert len(answered.err.splitlines()) == 2
    assert list(clinic.folder.glob("clinic/outbox/0*")) == []


def manifests(store: Store) -> list[str]:
    """The ids of the transfers that were announced."""
    found = [layout.parse_transfer(info.key) for info in store.list("inbox/")]
    return [key.transfer for key in found if key]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


class Bucket:
    """A federation on MinIO, and a sender whose requests go through a proxy that counts its PUTs."""

    def __init__(self, minio: Minio, proxy: Proxy, folder: Path) -> None:
        self.name = f"test-{secrets.token_hex(8)}"
        self.client: Any = s3_client(minio.endpoint_url, minio.access_key, minio.secret_key)
        store = make_store(f"s3://{self.name}?endpoint_url={minio.endpoint_url}&region=us-east-1")
        self.federation = Federation(store, folder).create().admit(clinic="site", ttp="party")
        self.proxy = proxy
        through = f"s3://{self.name}?endpoint_url={proxy.endpoint_url}&region=us-east-1"
        home = str(self.federation.home("clinic").path)
        self.clinic = CommandLine(folder, {**minio.env(), "PTM_HOME": home, "PTM_REGISTRY": through})

    def parts(self) -> int:
        """How many parts of unfinished uploads the server holds. (MinIO lists uploads by the whole key only.)"""
        found = 0
        for journal in self.federation.home("clinic").outbox.glob("*/parts/*.json"):
            upload = json.loads(journal.read_bytes().splitlines()[0])
            try:
                listed = self.client.list_parts(Bucket=self.name, Key=upload["full"], UploadId=upload["id"])
            except self.client.exceptions.NoSuchUpload:
                continue
            found += len(listed.get("Parts", []))
        return found

    def opened(self, transfer: str, name: str, path: Path) -> str:
        """The SHA-256 of a file as the party decrypts it."""
        from ptm.seal import unseal

        party = self.federation.registry("ttp")
        with (path / "cipher").open("w+b") as cipher, Path(os.devnull).open("wb") as nowhere:
            party.store.download(layout.transfer_file("ttp", "clinic", transfer, name, "age"), cipher, 2 * BIG)
            cipher.seek(0)
            return unseal(cipher, nowhere, party.keys.identity).sha256


@pytest.fixture
def bucket(minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    with run_proxy(minio.endpoint_url) as proxy:
        yield Bucket(minio, proxy, tmp_path)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_big_file_interrupted_on_the_way_is_gone_on_with_and_only_the_missing_parts_are_sent(
    bucket: Bucket, tmp_path: Path, blow: signal.Signals
) -> None:
    # given: 100 MB, of which some parts have arrived when the sender is interrupted
    body = os.urandom(1_000_000) * (BIG // 1_000_000)
    (tmp_path / "big.bin").write_bytes(body)
    words = [sys.executable, "-m", "ptm", *to_ttp("big.bin")]
    with (tmp_path / "err").open("w") as err:
        running = subprocess.Popen(words, cwd=tmp_path, env=bucket.clinic.environment, stdout=subprocess.DEVNULL, stderr=err)
        wait_for(lambda: running.poll() is not None or bucket.parts() >= 3)
        running.send_signal(blow)
        code = running.wait(30)
    (sealed,) = bucket.federation.home("clinic").outbox.glob("*/files/big.bin.age")
    parts = -(-sealed.stat().st_size // PART_BYTES)
    held = bucket.parts()
    assert 3 <= held < parts
    assert code == (130 if blow is signal.SIGINT else -9)
    if blow is signal.SIGINT:
        assert "`ptm inbox resume`, goes on" in (tmp_path / "err").read_text()
    (begun,) = json.loads(bucket.clinic.ok("inbox", "list", "--json"))
    assert (begun["state"], begun["reason"]) == ("sending", "interrupted")

    # when: the same command is given again
    bucket.proxy.puts = 0
    transfer = bucket.clinic.ok(*to_ttp("big.bin"))

    # then: it is the same transfer, and the rest was all that was sent, and the manifest
    assert (transfer, bucket.proxy.puts) == (begun["id"], parts - held + 1)
    assert manifests(bucket.federation.store) == [transfer]
    assert bucket.opened(transfer, "big.bin", tmp_path) == hashlib.sha256(body).hexdigest()
    assert bucket.parts() == 0


def test_cancelled_big_file_leaves_no_parts_in_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(BIG))
    running = subprocess.Popen(
        [sys.executable, "-m", "ptm", *to_ttp("big.bin")], cwd=tmp_path, env=bucket.clinic.environment, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: running.poll() is not None or bucket.parts() >= 1)
    running.kill()
    running.wait()
    (begun,) = json.loads(bucket.clinic.ok("inbox", "list", "--json"))
    (journal,) = bucket.federation.home("clinic").outbox.glob("*/parts/*.json")
    upload = json.loads(journal.read_bytes().splitlines()[0])

    bucket.clinic.ok("inbox", "cancel", begun["id"])
    with pytest.raises(bucket.client.exceptions.NoSuchUpload):
        bucket.client.list_parts(Bucket=bucket.name, Key=upload["full"], UploadId=upload["id"])
    assert json.loads(bucket.clinic.ok("inbox", "list", "--json")) == []
    assert list(bucket.federation.store.list("inbox/")) == []


GROWTH = """
import resource, sys
from pathlib import Path
from ptm.cli.commands import run

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

words = ["--to", "ttp", "--collection", "c"]
assert run(["inbox", "send", "small.bin", *words]) == 0
before = peak()
assert run(["inbox", "send", "large.bin", *words]) == 0
print(peak() - before, file=sys.stderr)
"""


def test_256_mb_are_sent_within_64_mb_of_memory(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "small.bin").write_bytes(b"x")
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(256 * 1024 * 1024)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        cwd=tmp_path,
        env=bucket.clinic.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 64 * 1024  # KiB
    assert len(manifests(bucket.federation.store)) == 2
