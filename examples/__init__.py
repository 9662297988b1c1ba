"""Worked examples, run from a clone of the repository. Nothing in `ptm` imports them."""
