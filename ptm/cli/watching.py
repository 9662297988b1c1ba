"""What the commands that go on until they are stopped share: a log on stderr, and the end on SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from ptm.cli.show import clean


def log_to_stderr(verbose: bool) -> None:
    """Warnings of all, and ptm's own information."""
    handler = logging.StreamHandler()
    handler.setFormatter(plain_formatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("ptm").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # its errors are about wake-ups at the stop, and no person's affair


def plain_formatter() -> logging.Formatter:
    """One line for a message, whoever's words are in it, and no control character in any line."""

    class Plain(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:
            return clean(super().formatMessage(record))

        def formatException(self, ei: Any) -> str:
            return "\n".join(clean(line) for line in super().formatException(ei).split("\n"))

    return Plain("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")


def stop_on_signals() -> threading.Event:
    """What is set when somebody asks the command to end."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
