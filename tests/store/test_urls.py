"""URLs of a registry: what opens, what is refused, and that no secret and no SDK gets in by the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptm.errors import UsageError
from ptm.store.file import FileStore
from ptm.store.s3 import S3Store
from ptm.store.urls import make_store, open_store


def test_file_url_opens_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space é %41"
    folder.mkdir()
    written = f"file://{tmp_path}/with%20space%20%C3%A9%20%2541"
    store = open_store(written)
    store.put("k", b"x")
    assert (folder / "k").read_bytes() == b"x"
    assert open_store(store.url).get("k", 1) == b"x"
    assert store.url == written


def test_make_store_makes_the_folder(tmp_path: Path) -> None:
    make_store(f"file://{tmp_path}/a/b").put("k", b"x")
    assert (tmp_path / "a/b/k").exists()


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/a/prefix",
        "s3://bucket?endpoint_url=http://127.0.0.1:9000",
        "s3://bucket/p?endpoint_url=https://minio.example.org:9000&region=eu-west-1",
    ],
)
def test_s3_url_is_written_back_as_it_was(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, S3Store)
    assert store.url == url
    assert open_store(store.url + ("" if "?" in url else "/")).url == url


def test_s3_url_with_an_encoded_endpoint_is_the_same_store() -> None:
    store = open_store("s3://bucket/p%20q/?endpoint_url=https%3A%2F%2Fhost%3A9000&region=us-east-1")
    assert store.url == "s3://bucket/p%20q?endpoint_url=https://host:9000&region=us-east-1"
    assert open_store(store.url).url == store.url


def test_path_style_is_used_with_an_endpoint_and_only_then() -> None:
    def style(url: str) -> str | None:
        store = open_store(url)
        assert isinstance(store, S3Store)
        return (store._client.meta.config.s3 or {}).get("addressing_style")

    assert style("s3://bucket?endpoint_url=http://localhost:9000&region=us-east-1") == "path"
    assert style("s3://bucket?region=us-east-1") is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry",
        "/srv/registry",
        "./registry",
        "http://host/bucket",
        "S4://bucket",
        "file:registry",
        "file:./registry",
        "file://registry",
        "file://host/srv",
        "file:///",
        "file:///a/../b",
        "file:///a%00b",
        "file:///a?x=1",
        "file:///a#b",
        "s3:",
        "s3://",
        "s3:///prefix",
        "s3://?endpoint_url=http://h",
        "s3://B_ad",
        "s3://ab",
        "s3://bucket:9000/p",
        "s3://[::1/p",
        "s3://bucket/a/../b",
        "s3://bucket/" + "p" * 121,
        "s3://bucket/p#x",
        "s3://bucket/p\n",
        " s3://bucket",
        "s3://bucket?endpoint_url",
        "s3://bucket?endpoint_url=",
        "s3://bucket?endpoint_url=host:9000",
        "s3://bucket?endpoint_url=ftp://host",
        "s3://bucket?endpoint_url=http://",
        "s3://bucket?endpoint_url=http://h:x",
        "s3://bucket?endpoint_url=http://h&endpoint_url=http://i",
        "s3://bucket?region=no%20region%20at%20all",
        "s3://bucket?endpoint=http://h",
        "s3://bucket?Region=x",
    ],
)
def test_url_that_is_none_is_a_usage_error_with_a_hint(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/p",
        "s3://hunter2@bucket/p",
        "file://user:hunter2@host/p",
        "s3://bucket?endpoint_url=http://user:hunter2@host:9000",
        "s3://bucket?aws_secret_access_key=hunter2",
    ],
)
def test_url_with_a_secret_is_refused_and_the_secret_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_opening_a_folder_does_not_import_boto3(tmp_path: Path) -> None:
    code = (
        "import sys; from ptm.store.urls import open_store; open_store(sys.argv[1]);"
        "print('boto3' in sys.modules, 'botocore' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, f"file://{tmp_path}"], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"


def test_file_store_is_opened_without_touching_a_root_that_is_not_there(tmp_path: Path) -> None:
    assert isinstance(open_store(f"file://{tmp_path}/none"), FileStore)
    assert not (tmp_path / "none").exists()
