"""Data sources on the command line become tables of node.toml that read back as what was meant."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from ptm.config import HttpSource, NodeConfig, PostgresSource, SparqlSource, TcpSource
from ptm.errors import ConfigError, UsageError
from ptm.node.credentials import check_source
from ptm.node.datatext import source_table


def read(text: str, secret: Path | None = None) -> Any:
    table = tomllib.loads(source_table("x", text, secret))
    return NodeConfig.model_validate({"worker": "w", "gateway_image": "python:3", **table}, strict=False).data["x"]


def test_every_kind_of_word_is_the_source_it_says() -> None:
    secret = Path("/etc/ptm/secret")
    assert read("https://g.example/sparql") == SparqlSource(kind="sparql", url="https://g.example/sparql")
    assert read("sparql+http://g.example:7200/r/x", secret) == SparqlSource(
        kind="sparql", url="http://g.example:7200/r/x", token_file=secret
    )
    assert read("rest+https://ptm@fhir.example/r4", secret) == HttpSource(
        kind="http", url="https://fhir.example/r4", user="ptm", password_file=secret
    )
    assert read("postgresql://reader@db.example/warehouse", secret) == PostgresSource(
        kind="postgres", host="db.example", database="warehouse", user="reader", password_file=secret
    )
    assert read("tcp://db.example:1433") == TcpSource(kind="tcp", host="db.example", port=1433)
    assert read("cohort.csv").path == Path("cohort.csv").absolute()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "https://user:hunter2@g.example/sparql",
            "postgresql://reader:hunter2@db/x",
            "postgresql://db/x",
            "postgresql://reader@db",
        ),
        *("tcp://db", "ftp://x/y", "https://", "http://[::1/x", "tcp://db:99999"),
    ],
)
def test_what_is_no_source_or_holds_a_password_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        source_table("x", text)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "sparql", "url": "http://user:pw@g.example/"},
        {"kind": "sparql", "url": "file:///etc/passwd"},
        {"kind": "sparql", "url": "http://g.example/", "user": "x"},
        {"kind": "sparql", "url": "http://g.example/", "token": "secret itself"},
        {"kind": "sparql", "url": "http://g.example/", "token_file": "/a", "user": "x", "password_file": "/b"},
        {"kind": "http", "url": "http://g.example/?a=b"},
        {"kind": "http", "url": "http://g.example/", "methods": ["TRACE"]},
        {"kind": "http", "url": "http://g.example/", "paths": ["("]},
        {"kind": "postgres", "host": "db", "database": "x", "user": "u", "password": "secret itself"},
        {"kind": "postgres", "host": "db", "database": "x", "user": "u", "tls": "prefer"},
    ],
)
def test_a_source_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        NodeConfig.model_validate({"worker": "w", "gateway_image": "python:3", "data": {"x": settings}}, strict=False)


def test_a_source_without_a_gateway_image_is_refused() -> None:
    with pytest.raises(ValueError, match="data source x needs gateway_image"):
        NodeConfig.model_validate({"worker": "w", "data": {"x": {"kind": "tcp", "host": "h", "port": 1}}}, strict=False)


def test_check_names_the_source_whose_path_or_secret_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"data source x: .*other accounts"):
        check_source("x", read("postgresql://u@h/d", path))
    path.chmod(0o600)
    check_source("x", read("postgresql://u@h/d", path))
    check_source("x", read("rest+http://h/", path))
    with pytest.raises(ConfigError, match=r"data source x: .*not there"):
        check_source("x", read(str(tmp_path / "gone.csv")))
