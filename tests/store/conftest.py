"""Failures inside the shared suites show their values, as those of test modules do."""

import pytest

pytest.register_assert_rewrite("tests.store.contract", "tests.store.s3_contract")
