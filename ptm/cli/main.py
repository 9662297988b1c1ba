"""The entry of the `ptm` command. `ptm --help` is answered from a stored page, for click, which draws such pages, takes three
times as long to load as Python itself. Everything else goes to `ptm.cli.commands`.

The page, `help.txt`, is what click makes of `ptm.cli.commands` for 80 columns; `tools/format_docs.py` writes it, and a test
compares them.
"""

import sys


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if arguments in (["--help"], ["-h"]):
        with open(__file__.removesuffix("main.py") + "help.txt", encoding="utf-8") as page:
            return _say(page.read())
    from ptm.cli.commands import run as run_command

    return run_command(arguments)


def _say(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        from ptm.cli.commands import close_stdout

        close_stdout()
    return 0
