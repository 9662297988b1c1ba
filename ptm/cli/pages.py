"""How a command's `--help` page looks: exit codes at the end of each, and whole sentences where commands are listed."""

from __future__ import annotations

import click

EXIT_CODES = """\
0 success, 1 failure, 2 usage, 10 store unreachable or denied,
11 verification refused, 12 already exists, 13 a site's run did not complete,
14 timed out waiting, 130 interrupted."""


class _Placed(click.Command):
    """A command that says of every usage error that it is its own, so that the hint can name its page."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as e:
            e.ctx = e.ctx or ctx
            raise


class Command(_Placed):
    """A command whose page ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_exit_codes(formatter)


class Group(_Placed, click.Group):
    """A group of such commands."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(command)) for name, command in found if command is not None])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_exit_codes(formatter)


def _first_sentence(command: click.Command) -> str:
    paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".") + "."


def _write_exit_codes(formatter: click.HelpFormatter) -> None:
    with formatter.section("Exit codes"):
        for line in EXIT_CODES.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
