"""Constant memory on both sides, in processes of their own: the short version of `python -m bench transfer`, whose times say
nothing on a busy machine and are not looked at."""

from __future__ import annotations

import pytest

from bench import transfer
from tests.servers import Minio

MEGABYTES = 192
BOUND_MB = 64


@pytest.mark.slow
def test_big_file_takes_no_more_memory_than_a_small_part_of_it(minio: Minio) -> None:
    with transfer.place() as place:
        found = transfer.transfer(place, MEGABYTES, 1, tools=False)
    assert 0 <= found.send_mb <= BOUND_MB
    assert found.receive_mb <= BOUND_MB
