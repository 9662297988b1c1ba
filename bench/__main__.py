"""`python -m bench [NAME…]`: run the benchmarks and print a line for each ratio."""

from __future__ import annotations

import importlib
import sys

NAMES = ("startup", "overhead", "polling", "transfer")


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        for label, value in importlib.import_module(f"bench.{name}").measure():
            print(f"{name:10} {label:72} {value}", flush=True)


if __name__ == "__main__":
    main()
