"""`policy.toml`: every mistake has its line and a hint, and a running node keeps its last good policy."""

from __future__ import annotations

import hashlib
import logging
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptm.config import MAX_TOML_BYTES, Home
from ptm.errors import ConfigError
from ptm.node.policyfile import SETTLE_S, PolicyFile, read_policy
from ptm.node.rules import AllowRule, OutputTerms
from ptm.node.setup import write_node_files
from ptm.node.tomllines import line_of, lines_of

GOOD = """\
# a site's policy
[[allow]]
images = ['myConsortium/count:1']

[[allow]]
images = [
    'myConsortium/glm:2\\..*',
    'myConsortium/km:.*',
]
researchers = ["alice"]
data = ["cohort"]
approval = "first-use"
approval_timeout = "3d"
max_time = "2h"
  [allow.outputs]
  names = ['.*\\.csv']
  min_cell = 10
"""


def mistake(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_policy(text.encode(), "policy.toml")
    return caught.value


def test_a_policy_has_the_digest_of_its_bytes_and_the_lines_of_its_rules() -> None:
    loaded = read_policy(GOOD.encode(), "policy.toml")
    assert loaded.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert loaded.lines == (2, 5)
    assert loaded.name_of(1) == "rule 2, line 5 of policy.toml"
    second = loaded.policy.allow[1]
    assert (second.approval_timeout, second.max_time, second.outputs.min_cell) == (3 * 86400, 7200, 10)


def test_a_file_with_images_only_is_still_a_policy() -> None:
    assert len(read_policy(b"[[allow]]\nimages = ['a/.*:.*']\n", "policy.toml").policy.allow) == 1
    assert read_policy(b"# nothing\n", "policy.toml").policy.allow == ()


@pytest.mark.parametrize(
    ("text", "line", "says", "hint"),
    [
        ("[[allow]]\nimages = ['a:1'\n", 2, "Unclosed", "TOML"),
        ("[[allow]]\nimages = ['a:1']\nimages = ['b:1']\n", 3, "overwrite", "TOML"),
        ("[[allow]]\nimages = ['a:1']\nresearcher = ['alice']\n", 3, "unknown key researcher", "researchers"),
        ("[[allow]]\nimages = ['a:1']\n\n[[alow]]\nimages = ['a:1']\n", 4, "unknown key alow", "allow"),
        ("[[allow]]\nimages = ['a:1']\ngpu = true\n", 3, "unknown key gpu", "max_gpus = 1"),
        ("[[allow]]\nimages = ['a:1']\nmax_gpu = 1\n", 3, "unknown key max_gpu", "max_gpus = 1"),
        ("[[allow]]\nimages = ['a:1']\ndata = 'cohort'\n", 3, "is not a list: put it in brackets", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmax_gpus = true\n", 3, "max_gpus", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmax_gpus = 65\n", 3, "max_gpus", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nenv = ['LD_*']\n", 3, "neither the name of a variable nor '*'", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmin_cell = 5\n", 3, "unknown key min_cell", "outputs"),
        ("[[allow]]\nimages = ['a:1']\n[allow.outputs]\nmincell = 5\n", 4, "unknown key mincell", "min_cell"),
        ("[[allow]]\nimages = [\n  'a:1',\n  'b(:1',\n]\n", 4, "not a regular expression", "single quotes"),
        ("[[allow]]\nimages = ['a:1']\ncommands = ['ok', '*']\n", 3, "not a regular expression", "single quotes"),
        ("[[allow]]\nimages = ['a:1']\nlogs = 'no'\n", 3, "logs", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nlogs = 0\n", 3, "logs", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nruns_per_day = '3'\n", 3, "runs_per_day", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmax_time = 3600\n", 3, "'90m'", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmax_time = '3 hours'\n", 3, "3 hours", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmax_ram_gb = nan\n", 3, "max_ram_gb", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nmax_time = 2026-11-22\n", 3, "max_time", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\napproval = 'automatic'\n", 3, "approval", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\napproval_timeout = '3d'\n", 1, "approval_timeout means nothing", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\nrelease_timeout = '3d'\n", 1, "release_timeout means nothing", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\ndigests = ['sha256:abc']\n", 3, "digests", "docs/policy.md"),
        ("[[allow]]\nimages = ['a:1']\ndata = ['Cohort']\n", 3, "'Cohort'", "docs/policy.md"),
        ("[[allow]]\nimages = []\n", 2, "images", "docs/policy.md"),
        ("\n\n[[allow]]\nresearchers = ['alice']\n", 3, "which images", "docs/policy.md"),
        ("[allow]\nimages = ['a:1']\n", 1, "", "docs/policy.md"),
        ("[[allow]]\nimages = [\n'a:1',\n'myConsortium/count']\n", 4, "can match no image", "count:.*"),
        ("[[allow]]\nimages = ['a:1']\n[[allow]]\nimages = ['a:1']\n", 3, "rule 2 can never decide: rule 1 (line 1)", "first"),
    ],
)
def test_a_mistake_has_its_line_and_a_hint(text: str, line: int, says: str, hint: str) -> None:
    error = mistake(text)
    assert str(error).startswith(f"policy.toml: line {line}: ")
    assert says in str(error)
    assert hint in (error.hint or "")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("images = ['.*']", "images = ['a:1']"),
        ("images = ['.*:.*']", "digests = ['sha256:" + "a" * 64 + "']"),
        ("images = ['a/.*:.*']", "images = ['a/b:1']\nresearchers = ['alice']"),
        ("images = ['a:1']\nresearchers = ['alice', 'bob']", "images = ['a:1']\nresearchers = ['bob']"),
        ("images = ['a:1']\ndata = ['*']", "images = ['a:1']\ndata = ['cohort']"),
        ("images = ['a:1']\nmax_time = '2h'", "images = ['a:1']\nmax_time = '1h'"),
        ("images = ['a:1']\nrequire_digest = true", "images = ['a:1']\nreviewed = true"),
        ("images = ['a:1']\nenv = ['*']", "images = ['a:1']\nenv = ['LANG']"),
        ("images = ['a:1']", "images = ['a:1']\nenv = []"),
        ("images = ['a:1']\nmax_gpus = 2", "images = ['a:1']\nmax_gpus = 1"),
        ("images = ['a:1']\nruns_per_day = 1", "images = ['a:1']"),
        ("images = ['a:1']\napproval = 'manual'", "images = ['a:1']"),
    ],
)
def test_a_rule_that_can_never_decide_is_a_mistake(upper: str, lower: str) -> None:
    assert "rule 2 can never decide" in str(mistake(f"[[allow]]\n{upper}\n\n[[allow]]\n{lower}\n"))


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("images = ['a:1']", "images = ['.*']"),
        ("images = ['a:1']", "images = ['a.1']"),
        ("images = ['a:1']", "images = ['a:1']\ndata = ['cohort']"),
        ("images = ['a:1']\nresearchers = ['alice']", "images = ['a:1']"),
        ("images = ['a:1']\ncommands = ['x']", "images = ['a:1']\ncommands = ['x', 'y']"),
        ("images = ['a:1']\nmax_ram_gb = 1", "images = ['a:1']"),
        ("images = ['a:1']\nreviewed = true", "images = ['a:1']\nrequire_digest = true"),
        ("images = ['a:1']\nenv = ['LANG']", "images = ['a:1']\nenv = ['*']"),
        ("images = ['a:1']", "images = ['a:1']\nenv = ['LANG']"),
        ("images = ['a:1']", "images = ['a:1']\nmax_gpus = 1"),
        ("images = ['a:1']", "images = ['a:1']\nrecipients = ['ttp']"),
    ],
)
def test_a_rule_that_takes_more_than_the_one_above_is_none(upper: str, lower: str) -> None:
    assert len(read_policy(f"[[allow]]\n{upper}\n\n[[allow]]\n{lower}\n".encode(), "p").policy.allow) == 2


def test_a_file_that_is_not_utf_8_has_the_line_too() -> None:
    with pytest.raises(ConfigError, match="line 3: not UTF-8"):
        read_policy(b"# a\n# b\n# \xff\n", "p")


def test_a_file_that_is_too_long_is_refused_and_not_cut() -> None:
    """Cut at the limit, `researchers` would be gone and the rule would allow everybody."""
    rule = "\n[[allow]]\nimages = ['a:1']\nresearchers = ['alice']\n"
    text = "#" * (MAX_TOML_BYTES - 28) + rule
    with pytest.raises(ConfigError, match="more than"):
        read_policy(text.encode(), "p")


def test_a_file_that_is_away_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        PolicyFile(tmp_path / "policy.toml").load()


# lines

NOISE = [
    "# [[allow]] in a comment",
    "",
    "   \t",
    'text = """\n[[allow]]\nimages = "x"\n"""',
    "text = '''\n[[allow]]\n# '' \"\"\" \n'''",
    'text = """quotes at the end\\""""""',
    'text = "a # no comment [[allow]] \\" = \'"',
    "text = 'a # \" no comment ['",
    "list = [ # [[\n  1, [2,\n 3],\n  '''\n]\n''', # ]\n]",
    'inline = { a = 1, "b\\n]" = [1,\n2] }',
    "'quoted.key'.sub = 1",
    "[other]\nimages = 1",
]
HEADERS = ["[[allow]]", "[[ allow ]]  # [[allow]]", "[['allow']]", '[["\\u0061llow"]]']


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from(NOISE), st.sampled_from(NOISE)), min_size=1, max_size=6))
def test_lines_are_found_among_strings_and_comments_that_look_like_rules(parts: list[tuple[str, str, str]]) -> None:
    text, starts, elements = "", [], []
    for number, (header, first, second) in enumerate(parts):
        starts.append(text.count("\n") + 1)
        text += f"{header}\n{first}\n" if "[other]" not in first else f"{header}\n"
        text += "images = [\n"
        elements.append(text.count("\n") + 1)
        text += f"  'i{number}',\n]\n"
        if second.startswith("#") or (second.startswith("[other]") and "[other]" not in text):
            text += f"{second}\n"
    table = tomllib.loads(text)
    assert [rule["images"] for rule in table["allow"]] == [[f"i{number}"] for number in range(len(parts))]
    lines = lines_of(text)
    assert [line_of(("allow", index), lines) for index in range(len(parts))] == starts
    assert [line_of(("allow", index, "images", 0), lines) for index in range(len(parts))] == elements
    assert ("allow", len(parts)) not in lines


def test_lines_of_rules_written_as_an_inline_array_and_with_crlf() -> None:
    text = "allow = [\r\n  { images = ['a:1'] },\r\n  { images = ['b:1'],\r\n  }\r\n]\r\n".replace(",\r\n  }", " }")
    assert read_policy(text.encode(), "p").lines == (2, 3)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_make_it_fail_in_another_way(raw: bytes) -> None:
    try:
        read_policy(raw, "p")
    except ConfigError as e:
        assert str(e).startswith("p: line ")


# while the node runs


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> PolicyFile:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    return PolicyFile(path, clock)


def count(file: PolicyFile) -> int:
    return len(file.current().policy.allow)


def settle(file: PolicyFile, clock: Clock) -> None:
    """The node looks, and looks again when nothing has changed for a while."""
    file.current()
    clock.now += SETTLE_S


def test_a_changed_file_is_taken_up_without_a_restart(file: PolicyFile, clock: Clock) -> None:
    assert count(file) == 2
    file.path.write_text("")
    settle(file, clock)
    assert count(file) == 0


def test_a_file_that_an_editor_is_still_writing_is_not_taken_up(file: PolicyFile, clock: Clock) -> None:
    """An empty file is a good policy: taken up half-written, it would refuse for good every task that comes by."""
    assert count(file) == 2
    file.path.write_text("")
    clock.now += 100
    assert count(file) == 2
    clock.now += SETTLE_S / 2
    file.path.write_text(GOOD + "\n")
    assert count(file) == 2
    clock.now += SETTLE_S / 2
    assert count(file) == 2
    clock.now += SETTLE_S
    assert file.current().sha256 == hashlib.sha256(GOOD.encode() + b"\n").hexdigest()


def test_a_mistake_keeps_the_last_good_policy_and_is_logged_once(
    file: PolicyFile, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    good = file.current()
    file.path.write_text("[[allow]]\nimages = ['(']\n")
    settle(file, clock)
    with caplog.at_level(logging.INFO, "ptm.node"):
        for _ in range(5):
            assert file.current() is good
            clock.now += SETTLE_S
    (record,) = caplog.records
    assert "line 2" in record.message
    assert "stays in force" in record.message
    file.path.write_text("[[allow]]\nimages = ['b:1']\n")
    settle(file, clock)
    assert file.current().policy.allow[0].images == ("b:1",)


def test_a_file_that_goes_away_keeps_the_last_good_policy(file: PolicyFile, clock: Clock) -> None:
    good = file.current()
    file.path.unlink()
    settle(file, clock)
    assert file.current() is good


def test_a_reload_reads_the_file_at_once(file: PolicyFile) -> None:
    file.current()
    file.path.write_text("")
    file.reload()
    assert count(file) == 0


def test_a_replaced_file_of_the_same_size_is_noticed(file: PolicyFile, clock: Clock) -> None:
    file.current()
    other = file.path.with_name("new")
    other.write_text(GOOD.replace("alice", "carol"))
    other.rename(file.path)
    settle(file, clock)
    assert file.current().policy.allow[1].researchers == ("carol",)


def test_the_first_look_raises_for_there_is_no_good_policy_yet(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[[allow]]\nimages = ['(']\n")
    with pytest.raises(ConfigError, match="line 2"):
        PolicyFile(path).current()


# what people read


def test_the_documented_policy_is_one_and_every_key_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    (example,) = re.findall(r"^```toml\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(read_policy(example.encode(), "docs/policy.md").policy.allow) == 4
    keys = {*AllowRule.model_fields, *(f"outputs.{name}" for name in OutputTerms.model_fields)} - {"outputs"}
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_the_example_in_a_new_policy_file_is_one_when_its_comment_signs_are_taken_away(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_node_files(
        home,
        worker="w",
        runner="docker",
        unsafe_no_sandbox=False,
        parallel=1,
        pull="always",
        gateway_image=None,
        images=[],
        data={},
        mirrors={},
        process_images={},
    )
    text = home.policy.read_text()
    assert PolicyFile(home.policy).load().policy.allow == ()
    example = text[text.index("# [[allow]]") :].replace("# ", "", 1).replace("\n# ", "\n")
    assert len(read_policy(example.encode(), "example").policy.allow) == 1
