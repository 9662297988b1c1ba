"""All commands: finds a command's module, runs it, and turns every error into one line, a hint and an exit code.

Rules for messages: results go to stdout, everything else to stderr. `ptm: error: …`, and where one helps `ptm: hint:
…`. No traceback reaches a person, unless PTM_DEBUG is set. Modules of commands are imported only when their command
is called."""

from __future__ import annotations

import importlib
import os
import sys

import click

from ptm.cli.pages import Group
from ptm.cli.show import clean
from ptm.errors import PtmError

_COMMANDS = {
    "demo": ("ptm.cli.demo:demo", "A whole federation on this machine, on real data."),
    "registry": ("ptm.cli.registry:registry", "Make, show, probe and renew a registry."),
    "member": ("ptm.cli.member:member", "Ask for membership; admit, revoke and list members."),
    "join": ("ptm.cli.member:join", "Join a registry, pinning its root by fingerprint."),
    "algorithm": ("ptm.cli.algorithm:algorithm", "Approve, withdraw, list and publish reviewed images."),
    "task": ("ptm.cli.task:task", "Put, list, show and cancel tasks."),
    "results": ("ptm.cli.results:results", "Fetch, list and verify results."),
    "inbox": ("ptm.cli.inbox:inbox", "Send encrypted files, pass them on, and fetch them."),
    "trustedparty": ("ptm.cli.trustedparty:trustedparty", "Receive encrypted files into collections, and purge them."),
    "node": ("ptm.cli.node:node", "Set up, check and run a site's node."),
}


class LazyGroup(Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--home", metavar="DIR", help="Folder with your keys and settings.  [default: $PTM_HOME, else your data folder]")
@click.version_option(package_name="ptm", message="ptm %(version)s", help="Show the version and exit.")
@click.pass_context
def cli(ctx: click.Context, home: str | None) -> None:
    """Federated analysis on nothing but a bucket.

    \b
    A first look:     ptm demo
    A researcher:     ptm task put …, then ptm results fetch TASK --wait -o out
    A site:           ptm node init …, then ptm node watch
    A trusted party:  ptm trustedparty init …, then ptm trustedparty watch
    Who sends to it:  ptm inbox send FILE… --to PARTY --collection NAME
    A coordinator:    ptm registry create URL, then ptm member admit FILE…
    To become one:    ptm member request …, then ptm join URL --root FINGERPRINT

    `ptm COMMAND --help` explains a command, with an example.
    """
    ctx.obj = home


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        cli.main(arguments, prog_name="ptm", standalone_mode=False)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        return e.exit_code
    except click.ClickException as e:
        where = f"try `{e.ctx.command_path} --help`" if isinstance(e, click.UsageError) and e.ctx else None
        return _fail(e.format_message(), where, e.exit_code)
    except PtmError as e:
        return _fail(str(e), e.hint, e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", None, 130)
    except BrokenPipeError:
        close_stdout()
    except OSError as e:
        place = f": {e.filename}" if e.filename else ""
        return _fail(f"{e.strerror or e}{place}", "check the path, its permissions and the free space", 1)
    except Exception as e:
        return _unexpected(e)
    return 0


def close_stdout() -> None:
    """Whoever read stdout has gone (`ptm … | head`): what is still to be flushed goes nowhere, without a complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, hint: str | None, code: int) -> int:
    click.echo("ptm: error: " + clean(" ".join(message.split())), err=True)
    if hint:
        click.echo("ptm: hint: " + clean(" ".join(hint.split())), err=True)
    return code


def _unexpected(error: Exception) -> int:
    if os.environ.get("PTM_DEBUG"):
        raise error
    return _fail(f"unexpected {type(error).__name__}: {error}", "this is a fault in ptm; PTM_DEBUG=1 shows where", 1)
