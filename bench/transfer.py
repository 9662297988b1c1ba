"""A file from a sender through MinIO to a trusted party, beside plain `age` and `mc cp`: the same file, disk and server, taken in
turns; and how much memory each side takes at most, beyond a ptm process that has opened the registry and does nothing.

The tools sync nothing to disk and verify no digest; ptm does both. Needs MinIO, its client `mc`, and age."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.timing import seconds
from ptm.store.urls import open_store
from tests import servers
from tests.federation import Federation

MEGABYTES = 2048
REPEATS = 3
_PTM = """
import atexit, pathlib, re, sys
from ptm.cli.main import run
peak = lambda: re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
atexit.register(lambda: print(peak(), file=sys.stderr))
sys.exit(run(sys.argv[1:]))
"""
"""Runs `ptm` and says at its end how many KiB it had in memory at most. (What a parent is told counts the parent, too.)"""
_PARTY = """
min_free_mb = 0
[[collection]]
name = "bench"
max_mb = 1048576
quota_mb = 1073741824
[collection.senders]
clinic = ['.*']
"""


@dataclass(frozen=True)
class Times:
    """The best seconds of each, and the most memory that ptm took beyond an idle one, in MB."""

    ptm_send: float
    tool_send: float
    ptm_receive: float
    tool_receive: float
    send_mb: float
    receive_mb: float


@dataclass(frozen=True)
class Place:
    """A federation on a MinIO of its own, with a sender `clinic` and a party `ttp`."""

    folder: Path
    federation: Federation
    bucket: str
    env: Mapping[str, str]

    def ptm(self, *words: str) -> float:
        """Run it; the megabytes that it had in memory at most."""
        done = self.run(sys.executable, "-c", _PTM, *words)
        return int(done.stderr.splitlines()[-1]) / 1024

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(words, cwd=self.folder, env=dict(self.env), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
        return done


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """`ServerMissing` where there is no MinIO."""
    root = str(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory(prefix="ptm-bench-", dir="/var/tmp") as scratch, servers.run_minio() as minio:
        folder, bucket = Path(scratch), minio.make_bucket()
        host, login = minio.endpoint_url.removeprefix("http://"), f"{minio.access_key}:{minio.secret_key}"
        own = {"HOME": scratch, "MC_HOST_bench": f"http://{login}@{host}", "PYTHONPATH": root}
        env = {"PATH": os.environ["PATH"], **minio.env(), **own}
        os.environ.update(minio.env())
        url = f"s3://{bucket}/x?endpoint_url={minio.endpoint_url}&region={servers.REGION}"
        federation = Federation(open_store(url), folder).create().admit(clinic="site", ttp="party")
        federation.home("ttp").party.write_text(_PARTY)
        yield Place(folder, federation, bucket, env)


def transfer(place: Place, megabytes: int, repeats: int, *, tools: bool = True) -> Times:
    """Send and receive a file of so many megabytes, with ptm and with the tools in turns."""
    clear = place.folder / "clear.bin"
    with clear.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1024 * 1024))
    key = place.federation.registry("clinic").roster().active("ttp").age_key
    identity = place.federation.home("ttp").keys / "age.txt"
    idle_send = place.ptm("--home", "clinic", "inbox", "list")
    idle_receive = place.ptm("--home", "ttp", "trustedparty", "watch", "--once")
    send_mb, receive_mb, rows = 0.0, 0.0, []
    for n in range(repeats):
        memory: list[float] = []
        to_party = ("--to", "ttp", "--collection", "bench")
        send = seconds(lambda: memory.append(place.ptm("--home", "clinic", "inbox", "send", f"{n}.bin=clear.bin", *to_party)))  # noqa: B023
        receive = seconds(lambda: memory.append(place.ptm("--home", "ttp", "trustedparty", "watch", "--once")))  # noqa: B023
        published = place.federation.home("ttp").collections / "bench" / "clinic" / f"{n}.bin"
        assert published.stat().st_size == clear.stat().st_size
        published.write_bytes(b"")  # the disk is not to fill up
        send_mb, receive_mb = max(send_mb, memory[0] - idle_send), max(receive_mb, memory[1] - idle_receive)
        theirs = _tools(place, key, identity) if tools else (0.0, 0.0)
        rows.append((send, theirs[0], receive, theirs[1]))
    best = [min(column) for column in zip(*rows, strict=True)]
    return Times(*best, send_mb, receive_mb)


def _tools(place: Place, key: str, identity: Path) -> tuple[float, float]:
    age, mc, remote = str(servers.find_age()), str(servers.find_mc()), f"bench/{place.bucket}/tools/clear.age"

    def send() -> None:
        place.run(age, "-r", key, "-o", "sealed.age", "clear.bin")
        place.run(mc, "cp", "--quiet", "sealed.age", remote)

    def receive() -> None:
        place.run(mc, "cp", "--quiet", remote, "fetched.age")
        place.run(age, "-d", "-i", str(identity), "-o", "fetched.bin", "fetched.age")

    found = seconds(send), seconds(receive)
    place.run(mc, "rm", "--quiet", remote)
    for name in ("sealed.age", "fetched.age", "fetched.bin"):
        (place.folder / name).unlink()
    return found


def measure() -> Iterator[tuple[str, str]]:
    megabytes, repeats = int(os.environ.get("PTM_BENCH_MB", MEGABYTES)), int(os.environ.get("PTM_BENCH_REPEATS", REPEATS))
    try:
        servers.find_age(), servers.find_mc()
        with place() as there:
            found = transfer(there, megabytes, repeats)
    except servers.ServerMissing as missing:
        yield f"not measured: {missing}", ""
        return
    yield f"age, then mc cp, of {megabytes} MB", f"{found.tool_send:.1f} s"
    yield f"ptm inbox send of {megabytes} MB", f"{found.ptm_send:.1f} s"
    yield "age, then mc cp ÷ ptm inbox send (bound: 0.8)", f"{found.tool_send / found.ptm_send:.2f}"
    yield f"mc cp, then age -d, of {megabytes} MB", f"{found.tool_receive:.1f} s"
    yield f"ptm trustedparty watch --once of {megabytes} MB", f"{found.ptm_receive:.1f} s"
    yield "mc cp, then age -d ÷ ptm trustedparty watch (bound: 0.8)", f"{found.tool_receive / found.ptm_receive:.2f}"
    yield "memory of the sender beyond an idle ptm (bound: 64 MB)", f"{found.send_mb:.0f} MB"
    yield "memory of the party beyond an idle ptm (bound: 64 MB)", f"{found.receive_mb:.0f} MB"
