"""Image names: taken apart in one way only, so that what a policy matches is what an engine is asked for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptm.image import IMAGE_PATTERN, ImageRef, parse_image

pytestmark = pytest.mark.slow

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "text, name, tag, digest",
    [
        ("count", "count", "latest", None),
        ("count:1", "count", "1", None),
        ("myConsortium/count:1", "myConsortium/count", "1", None),
        ("localhost:5000/count", "localhost:5000/count", "latest", None),
        ("registry.example:443/a/b/c_d:v1.0-rc_2", "registry.example:443/a/b/c_d", "v1.0-rc_2", None),
        (f"count@{DIGEST}", "count", None, DIGEST),
        (f"host:5000/count:1@{DIGEST}", "host:5000/count", "1", DIGEST),
    ],
)
def test_an_image_name_is_taken_apart(text: str, name: str, tag: str | None, digest: str | None) -> None:
    assert parse_image(text) == ImageRef(name, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "count ",
        "count\n",
        "count:1\n",
        "-count",
        "--privileged",
        "count:",
        "count:-1",
        "count:" + "a" * 129,
        "count;id",
        "count:$(id)",
        "count:1 --privileged",
        "a//b",
        "/a",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        "a..b",
        "a___b",
        "http://host/a",
        "user@host/a:1",
        "count@sha256:" + "a" * 63,
        "count@sha256:" + "A" * 64,
        "count@sha512:" + "a" * 64,
        f"count@{DIGEST}:1",
        f"@{DIGEST}",
        "cöunt",
        "cоunt",
        "a" * 401,
    ],
)
def test_what_is_no_image_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an image name"):
        parse_image(text)


def test_a_policy_sees_the_tag_where_there_is_one_and_else_the_digest() -> None:
    assert parse_image("count").label == "count:latest"
    assert parse_image(f"count:1@{DIGEST}").label == "count:1"
    assert parse_image(f"count:1@{DIGEST}").policy_names == ("count:1", f"count@{DIGEST}")
    assert parse_image(f"count@{DIGEST}").label == f"count@{DIGEST}"


def test_an_engine_is_asked_for_the_digest_where_there_is_one_for_then_the_tag_means_nothing() -> None:
    assert parse_image(f"count:1@{DIGEST}").pull_name == f"count@{DIGEST}"
    assert parse_image("count").pull_name == "count:latest"


@given(st.from_regex(IMAGE_PATTERN, fullmatch=True).filter(lambda text: len(text) <= 300))
def test_property_a_name_put_together_again_is_the_same_image(text: str) -> None:
    image = parse_image(text)
    whole = image.name + (f":{image.tag}" if image.tag else "") + (f"@{image.digest}" if image.digest else "")
    assert parse_image(whole) == image
    assert whole == text or whole == f"{text}:latest"


@given(st.text(max_size=60) | st.text("ab:/.@-_5", max_size=40))
def test_property_whatever_parses_has_no_character_that_a_shell_or_an_option_parser_would_mind(text: str) -> None:
    try:
        image = parse_image(text)
    except ValueError:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", image.pull_name)


@pytest.mark.parametrize("text", ["a" + "-" * 399, "a" + ".a" * 199 + "!", "a/" * 199 + "!", "a" * 399 + "!"])
def test_a_long_name_does_not_keep_the_parser_busy(text: str) -> None:
    with pytest.raises(ValueError, match="is not an image name"):
        parse_image(text)
