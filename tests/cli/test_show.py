"""How sizes are printed for people."""

from __future__ import annotations

import pytest

from ptm.cli.show import in_bytes


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (600_100_000, "600.1 MB"),
        (10**12, "1.0 TB"),
    ],
)
def test_a_size_is_told_in_the_unit_that_fits_it(size: int, said: str) -> None:
    assert in_bytes(size) == said
