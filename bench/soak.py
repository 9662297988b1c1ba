"""`make soak`: a site's node killed, stopped and cut off from its bucket at random moments, for as long as asked, a line for each
round; the long version of `tests/e2e/test_crash.py` and `test_outage.py`.

    python -m bench.soak [--minutes N] [--seed N]

Every round puts tasks, does harm some times, and then wants exactly one result for each task, of one run, and nothing left. Ends
at the first round that has not; the seed in its line brings the same dice back. Needs Docker and MinIO, as the tests do."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptm.store.urls import open_store
from tests import servers
from tests.commandline import CommandLine
from tests.e2e.crashes import GATED, Site, check_once, make_site, only, wait_for
from tests.federation import Federation

IMAGE = "ptm-soak/gated:1"
HARMS = ("kill", "kill", "kill", "stop", "outage")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description="Kill, stop and cut off a node at random moments.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long [default: 10]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the dice [default: another each time]")
    given = parser.parse_args()
    until = time.monotonic() + given.minutes * 60
    try:
        engine = servers.connect_engine()
        base = servers.ensure_base_image(engine)
        servers.find_minio()
    except servers.ServerMissing as missing:
        raise SystemExit(str(missing)) from missing
    servers.build_image(engine, base, IMAGE, {"/run.py": GATED}, ["/run.py"])
    try:
        with servers.run_minio() as minio:
            os.environ.update(minio.env())
            number = 0
            while time.monotonic() < until:
                print(one_round(number, given.seed + number, minio, engine), flush=True)
                number += 1
    finally:
        servers.remove_built_images(engine)


def one_round(number: int, seed: int, minio: servers.Minio, engine: Any) -> str:
    """A registry, a site and some tasks of their own; returns the line."""
    dice, clock = random.Random(seed), time.monotonic()
    tasks, harms = [], []
    print(f"round {number} seed {seed}: ", end="", flush=True)
    with tempfile.TemporaryDirectory(prefix="ptm-soak-") as folder, a_site(Path(folder), minio, engine) as site:
        (site.gate / "open").touch()
        for _ in range(dice.randint(2, 8)):
            if len(tasks) < 3:
                inputs = {"input.bin": dice.randbytes(dice.choice((100, 200_000)))}
                tasks.append(site.federation.client().put(IMAGE, ["maastro"], inputs=inputs, data=["gate"]))
            harms.append(dice.choice(HARMS))
            harm(site, minio, harms[-1], dice)
        ensure_node(site)
        for task in tasks:
            only(task, site.federation.folder, timeout=120)
        wait_for("nothing left", lambda: not site.leftovers(), 30)
        for task in tasks:
            check_once(site, task)
        assert site.stop() == 0
    return f"{len(tasks)} task(s), {', '.join(harms)}: whole, in {time.monotonic() - clock:.0f} s"


@contextlib.contextmanager
def a_site(folder: Path, minio: servers.Minio, engine: Any) -> Iterator[Site]:
    url = f"s3://{minio.make_bucket()}/x?region={servers.REGION}&endpoint_url={minio.endpoint_url}"
    federation = Federation(open_store(url), folder).create().admit(alice="researcher", maastro="site")
    site = make_site(federation, CommandLine(folder, minio.env()), engine=engine, parallel=2)
    try:
        yield site
    except BaseException:
        print("\n" + site.log.read_text()[-4000:], flush=True)
        raise
    finally:
        site.end()
        for container in site.containers():
            container.remove(force=True)


def ensure_node(site: Site) -> None:
    if site.node is None or site.node.poll() is not None:
        site.start()


def harm(site: Site, minio: servers.Minio, what: str, dice: random.Random) -> None:
    ensure_node(site)
    time.sleep(dice.uniform(0.3, 2.5))
    if what == "kill":
        site.kill()
    elif what == "stop":
        assert site.stop() == 0
    else:
        minio.stop()
        time.sleep(dice.uniform(0.0, 2.0))
        minio.start()


if __name__ == "__main__":
    main()
