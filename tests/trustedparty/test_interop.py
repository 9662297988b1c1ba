"""What `ptm inbox send` puts into the bucket, the real `age` and `crypt4gh` open with the party's key, byte for byte; and what
they seal to the key that `ptm member list` shows, the party's own path opens."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptm import c4gh
from ptm.errors import SealError
from ptm.transfer import SUFFIX, Format
from ptm.trustedparty import send as sending
from ptm.trustedparty.formats import open_stream
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import Source
from tests.trustedparty.parties import World

SIZES = pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1_000_000])
FORMATS = pytest.mark.parametrize("format", ["age", "crypt4gh"])


class Tools:
    """The real tools, with the party's key in each one's own form."""

    def __init__(self, world: World, age: str, folder: Path) -> None:
        keys = world.federation.home("ttp").keys
        party = world.registry("ttp")
        c4gh.write_key_files(party.keys.identity, folder / "party.sec", folder / "party.pub")
        recipient = world.registry("clinic").roster().active("ttp").age_key
        tool = (sys.executable, "-m", "crypt4gh")
        self.open: dict[str, tuple[str, ...]] = {
            "age": (age, "--decrypt", "--identity", str(keys / "age.txt")),
            "crypt4gh": (*tool, "decrypt", "--sk", str(folder / "party.sec")),
        }
        self.seal: dict[str, tuple[str, ...]] = {
            "age": (age, "--recipient", recipient),
            "armored": (age, "--armor", "--recipient", recipient),
            "crypt4gh": (*tool, "encrypt", "--recipient_pk", str(folder / "party.pub")),
        }


@pytest.fixture
def tools(world: World, age: str, tmp_path: Path) -> Tools:
    return Tools(world, age, tmp_path)


def run(command: tuple[str, ...], given: bytes) -> bytes:
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=60).stdout


def opened(world: World, format: Format, cipher: bytes, limit: int) -> bytes:
    sink = io.BytesIO()
    open_stream(format, io.BytesIO(cipher), sink, world.registry("ttp").keys, limit)
    return sink.getvalue()


@FORMATS
def test_the_real_tool_opens_what_ptm_put_into_the_bucket(world: World, tools: Tools, tmp_path: Path, format: Format) -> None:
    sizes = (0, 1, 65_535, 65_536, 65_537, 1_000_000)
    bodies = {f"{size}.csv": os.urandom(size) for size in sizes}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    clinic = world.registry("clinic")
    sources = [Source(name, tmp_path / name) for name in bodies]
    sending.send(clinic, Outbox(clinic.home.outbox), sources, to="ttp", collection="link", format=format)

    for name, body in bodies.items():
        (key,) = [key for key in world.inbox() if key.endswith(f"/{name}.{SUFFIX[format]}")]
        assert run(tools.open[format], world.store.get(key, 2**21)) == body


@FORMATS
@SIZES
def test_ptm_opens_what_the_real_tool_sealed(world: World, tools: Tools, format: Format, size: int) -> None:
    body = os.urandom(size)
    assert opened(world, format, run(tools.seal[format], body), size) == body


def test_armored_age_is_refused_with_a_hint(world: World, tools: Tools) -> None:
    with pytest.raises(SealError, match="armored") as caught:
        opened(world, "age", run(tools.seal["armored"], b"x"), 1)
    assert "without --armor" in (caught.value.hint or "")


@pytest.mark.parametrize(("told", "real"), [("age", "crypt4gh"), ("crypt4gh", "age")])
def test_the_other_format_is_refused(world: World, tools: Tools, told: Format, real: str) -> None:
    with pytest.raises(SealError):
        opened(world, told, run(tools.seal[real], b"x"), 1)
