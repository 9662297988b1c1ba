"""`make soak-party`: a sender and a trusted party on MinIO, killed with `kill -9` at random moments, a hundred times unless told
otherwise; the long version of `tests/trustedparty/test_kill.py`.

    python -m bench.kills [--kills N] [--seed N]

In the end every transfer has to be accepted once, or refused; and nobody may have seen a file there that was not whole.
The seed brings the same dice back, though not the same moments."""

from __future__ import annotations

import argparse
import os
import random
import secrets
import tempfile
import time
from pathlib import Path

from ptm.store.urls import open_store
from tests import servers
from tests.commandline import CommandLine
from tests.federation import Federation
from tests.trustedparty.killing import Killing


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak-party", description="Kill a sender and a trusted party at random moments.")
    parser.add_argument("--kills", type=int, default=100, help="how often [default: 100]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the dice [default: another each time]")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ptm-kills-") as scratch, servers.run_minio() as minio:
        os.environ.update(minio.env())
        url = f"s3://{minio.make_bucket()}/x?endpoint_url={minio.endpoint_url}&region={servers.REGION}"
        federation = Federation(open_store(url), Path(scratch)).create().admit(clinic="site", ttp="party")
        killing = Killing(federation, CommandLine(Path(scratch), minio.env()), random.Random(given.seed))
        killing.run(given.kills)
    killed = ", ".join(f"{who} {times} times" for who, times in sorted(killing.kills.items()))
    ended = ", ".join(f"{times} {state}" for state, times in sorted(killing.states.items()))
    print(f"killed: {killed}; transfers: {ended}; all whole, none twice, in {time.monotonic() - since:.0f} s")


if __name__ == "__main__":
    main()
