"""Ends the demo's nodes if the demo itself is killed; `ptm.demo.federation` starts it as `python -m ptm.demo.guard`.

The demo holds the other end of this process's stdin and never writes. The kernel closes it when the demo is gone, however
that happened. The nodes are in this process's group, so no process id is remembered, and none can be mistaken.

It does nothing in a demo that ends by itself: that one stops its nodes, and then this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 5.0
"""How long the nodes have between SIGTERM and SIGKILL."""


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
