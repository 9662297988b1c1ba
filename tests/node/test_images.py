"""Mirrors, digests and what engines say about pulls."""

from __future__ import annotations

import pytest

from ptm.errors import RunnerError
from ptm.image import parse_image
from ptm.node.images import engine_name, pull_trouble, repo_digest

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("image", "mirrors", "name"),
    [
        ("lab/count:1", {}, "lab/count"),
        ("lab/count:1", {"lab": "registry.example/l"}, "registry.example/l/count"),
        ("lab/count:1", {"lab/": "registry.example/l/"}, "registry.example/l/count"),
        ("laboratory/count:1", {"lab": "registry.example/l"}, "laboratory/count"),
        ("lab/count:1", {"lab": "a.example", "lab/count": "b.example/other"}, "b.example/other"),
        ("lab/count:1", {"": "proxy.example"}, "proxy.example/lab/count"),
        ("myConsortium/count:1", {"myConsortium": "r.example/my"}, "r.example/my/count"),
    ],
)
def test_the_longest_prefix_that_ends_with_a_part_of_the_name_is_replaced(image: str, mirrors: dict[str, str], name: str) -> None:
    assert engine_name(parse_image(image), mirrors) == name


def test_a_name_with_capitals_needs_a_mirror_and_the_hint_says_so() -> None:
    with pytest.raises(RunnerError, match="capitals") as caught:
        engine_name(parse_image("myConsortium/count:1"), {})
    assert '[mirrors] "myConsortium"' in (caught.value.hint or "")


def test_of_several_digests_the_wanted_one_counts_then_that_of_the_name() -> None:
    listed = [f"other/x@{A}", f"docker.io/lab/count@{B}"]
    assert repo_digest(listed, "lab/count", None) == B
    assert repo_digest(listed, "lab/count", A) == A
    assert repo_digest([f"other/x@{A}"], "lab/count", None) == A
    assert repo_digest([], "lab/count", None) is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Get http://10.0.0.7:5000/v2/: dial tcp 10.0.0.7:5000: connect: connection refused", "does not answer"),
        ("lookup registry.internal: no such host", "does not answer"),
        ("pull access denied for x, repository does not exist or may require 'docker login'", "may not pull"),
        ("manifest for 10.0.0.7:5000/x:9 not found: manifest unknown", "there is no image"),
        ("failed to register layer: no space left on device at /var/lib/docker", "could not be pulled"),
    ],
)
def test_what_an_engine_says_is_told_without_naming_the_site(said: str, told: str) -> None:
    error = pull_trouble("lab/count:1", said)
    assert told in str(error) and error.hint
    assert not any(word in f"{error} {error.hint}" for word in ("10.0.0.7", "internal", "/var/lib"))
