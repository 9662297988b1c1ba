"""`ptm inbox export-key`: this home's own key for tools that speak Crypt4GH."""

from __future__ import annotations

from pathlib import Path

import click

from ptm.cli.pages import Command


@click.command("export-key", cls=Command)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.pass_obj
def export_key(home: str | None, file: Path) -> None:
    """Write this home's decryption key to FILE as `crypt4gh` reads it, and its public half to FILE.pub.

    For other tools at this party: ptm itself reads Crypt4GH with the key that it has. Whoever has FILE can open everything that
    is sealed to this home, in either format, and no passphrase protects it: delete it when it was used.

    \b
    Example:
      ptm inbox export-key party.sec
      crypt4gh decrypt --sk party.sec < cohort.vcf.c4gh > cohort.vcf
    """
    from ptm.c4gh import write_key_files
    from ptm.cli.show import note
    from ptm.config import find_home
    from ptm.errors import UsageError
    from ptm.keys import load_keys

    if not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", hint="make it, readable by you alone, or name another one")
    public = file.with_name(f"{file.name}.pub")
    write_key_files(load_keys(find_home(home).keys).identity, file, public)
    note(f"wrote {public}, to give away")
    note(f"wrote {file}, WITHOUT a passphrase: it opens all that is sealed to this home; delete it when it was used")
