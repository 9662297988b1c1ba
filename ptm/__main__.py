"""`python -m ptm` is the `ptm` command."""

from ptm.cli.main import main

main()
