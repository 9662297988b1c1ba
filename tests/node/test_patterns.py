"""A regular expression on which `re` takes for ever is found when the policy is read, not when a researcher sends the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptm.errors import ConfigError
from ptm.node import patterns
from ptm.node.patterns import first_slow, hostile_texts
from ptm.node.policyfile import read_policy

pytestmark = pytest.mark.slow

SLOW = [
    r"(a+)+",
    r"([a-z]+)*:1",
    r"myConsortium/(\w+-?)+:.*",
    r"count --(min|max) ([a-z]+,?)+",
    r"(.*,?)*\.csv",
    r"(x|xx)*y",
    r"(?:\S+\s?)+!",
    r"([^:]+:?)+=",
    r"x?(?=(a+)+b).*",
    r".*-.*-.*-.*-.*:.*",
]
IMAGES = [
    r".*",
    r"myConsortium/.*:.*",
    r"myConsortium/glm:2\..*",
    r".*\.(csv|json)",
    r".*/.*/.*:.*",
    r"b@sha256:.*",
    r"(a/x|b/y):\d+",
    r"[A-Za-z0-9_-]+\.[a-z]+",
    r"(?>a+)+b",
    r"(a++)+b",
    r"(?i:count)\b.{0,20}",
    r"(?P<name>[a-z]+)(?P=name)?.*",
]
COMMANDS = [r"count( --[a-z-]+(=[0-9]+)?)*", r".*--x.*--y.*", r"(count|sum) [a-z]+ [0-9]+", r"python3 '.*' --seed [0-9]+"]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_takes_for_ever_is_found(pattern: str) -> None:
    assert first_slow([(".*", 400), (pattern, 400), (".+:.+", 400)]) == 1


def test_patterns_as_people_write_them_are_fine_for_the_longest_texts() -> None:
    assert first_slow([(pattern, length) for pattern in IMAGES for length in (200, 400)]) is None
    assert first_slow([(pattern, 4096) for pattern in COMMANDS]) is None


def test_what_is_fine_for_a_name_may_be_too_slow_for_a_command() -> None:
    pattern = r".*/.*/.*:.*"
    assert first_slow([(pattern, 400)]) is None
    assert first_slow([(pattern, 4096)]) == 0


def test_what_was_tried_once_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [(r"once-[a-z]+-[0-9]+", 400)]
    assert first_slow(asked) is None
    monkeypatch.setattr(patterns, "_run", lambda given: pytest.fail("tried again"))
    assert first_slow(asked) is None


@pytest.mark.parametrize(
    ("key", "line"), [("commands = ['ok', {}]", 3), ("images = [\n 'a:1',\n {}]", 4), ("[allow.outputs]\nnames = [{}]", 4)]
)
def test_the_policy_says_on_which_line_it_is(key: str, line: int) -> None:
    images = "" if key.startswith("images") else "images = ['a:1']\n"
    text = f"[[allow]]\n{images}{key.format(repr('(a+)+b'))}\n"
    with pytest.raises(ConfigError, match=f"line {line}: .*would take for ever") as caught:
        read_policy(text.encode(), "policy.toml")
    assert "repetition inside a repetition" in str(caught.value.hint)


def test_a_machine_on_which_nothing_can_be_tried_is_no_reason_to_believe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns.sys, "executable", "/nowhere/python")
    with pytest.raises(ConfigError, match="cannot be tried"):
        read_policy(b"[[allow]]\nimages = ['never-seen/.*:.*']\n", "policy.toml")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(max_examples=300, deadline=None)
@given(st.from_regex(r"[a-c.\\dw(|)\[\]*+?{}0-9^$=!:<>P-]{1,30}", fullmatch=True))
def test_every_pattern_that_re_takes_is_taken_apart(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return
    texts = hostile_texts(pattern, 50)
    assert all(len(text) <= 50 for text in texts)
    assert len(texts) <= 2 * (patterns.MAX_TEXTS + patterns.MAX_VARIANTS)
