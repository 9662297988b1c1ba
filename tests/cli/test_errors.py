"""A walk through bad values with the real command line: each gives one line of error, a hint where one helps, the exit code of
design section 9, and leaves every file as it was (issue 2, point 5). Those that need a server are in `test_errors_servers.py`."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ptm import coordinator
from ptm.store.urls import make_store
from tests.cli.walk import MISSING_TASK, PUT, WATCH, WHOLE_PUT, Walk, copied, make_federation, split, tree, without_powers
from tests.registries import DAY, NOW

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    make_federation(folder)
    return folder


@pytest.fixture
def walk(made: Path, tmp_path: Path) -> Walk:
    return copied(made, tmp_path / "w")


BAD_COMMANDS = {
    "unknown command": (("frobnicate",), 2, "frobnicate", "--help"),
    "unknown option": ((*WHOLE_PUT, "--bogus"), 2, "--bogus", "ptm task put --help"),
    "option without its value": ((*WHOLE_PUT, "--purpose"), 2, "--purpose", "ptm task put --help"),
    "argument missing": (("--home", "alice", "task", "show"), 2, "TASK", "ptm task show --help"),
}
BAD_TASKS = {
    "unknown site": ((*PUT, "--site", "nowhere", "--expires", "7d"), 2, "nowhere: not a member", "ptm member list"),
    "a mistyped site": ((*PUT, "--site", "mastro", "--expires", "7d"), 2, "mastro: not a member", "did you mean maastro?"),
    "a mistyped party": ((*WHOLE_PUT, "--deliver", "maastr/c"), 2, "maastr: not a member", "did you mean maastro?"),
    "revoked site": ((*PUT, "--site", "gone", "--expires", "7d"), 11, "gone was revoked", "coordinator"),
    "a member that is no site": ((*PUT, "--site", "alice", "--expires", "7d"), 2, "alice is not a site", "ptm member list"),
    "a site twice": ((*WHOLE_PUT, "--site", "maastro"), 2, "named twice", "ptm task put --help"),
    "a name that is none": (
        (*PUT, "--site", "../x", "--expires", "7d"),
        2,
        "'../x' is not a name: lower-case",
        "ptm task put --help",
    ),
    "no site": ((*PUT, "--expires", "7d"), 2, "--site", "example"),
    "no expiry": ((*PUT, "--site", "maastro"), 2, "--expires", "example"),
    "no image": (("--home", "alice", "task", "put", "--site", "maastro", "--expires", "7d"), 2, "--image", "example"),
    "bad image": ((*WHOLE_PUT, "--image", "demo/count 1"), 2, "demo/count 1", "NAME:TAG"),
    "bad duration": ((*PUT, "--site", "maastro", "--expires", "soon"), 2, "'soon' is not a duration", "7d"),
    "too long a duration": ((*PUT, "--site", "maastro", "--expires", "99w"), 2, "duration", "7d"),
    "bad time limit": ((*WHOLE_PUT, "--time-limit", "-1"), 2, "duration", "90m"),
    "missing input": ((*WHOLE_PUT, "--input", "nothing.json"), 2, "nothing.json", "--input"),
    "an input that is a folder": ((*WHOLE_PUT, "--input", "count"), 2, "count", "--input"),
    "an input that breaks off": ((*WHOLE_PUT, "--input", "mem=/proc/self/mem"), 1, "Input/output error", "path"),
    "two inputs of one name": ((*WHOLE_PUT, "--input", "cohort.csv", "--input", "./cohort.csv"), 2, "cohort.csv", "OTHERNAME"),
    "an input's name is none": ((*WHOLE_PUT, "--input", "a/b=cohort.csv"), 2, "a/b", "--input"),
    "bad variable": ((*WHOLE_PUT, "--env", "NOVALUE"), 2, "--env takes NAME=VALUE", None),
    "a variable that is reserved": ((*WHOLE_PUT, "--env", "PTM_SITE=other"), 2, "PTM_", "ptm task put --help"),
    "unbalanced quotes": ((*WHOLE_PUT, "--command", "'a"), 2, "--command", "shell"),
    "no task file": (("--home", "alice", "task", "put", "nothing.json"), 2, "nothing.json", "docs/format.md"),
    "a task file that is none": (("--home", "alice", "task", "put", "cohort.csv"), 2, "cohort.csv", "docs/format.md"),
    "not a researcher": (("--home", "maastro", *WHOLE_PUT[2:]), 2, "maastro is a site", "--home"),
    "home not joined": (("--home", "new", *WHOLE_PUT[2:]), 2, "has not joined", "ptm join"),
    "resume an unknown task": (("--home", "alice", "task", "put", "--task", MISSING_TASK), 10, MISSING_TASK, "ptm task list"),
    "show an unknown task": (("--home", "alice", "task", "show", MISSING_TASK), 10, MISSING_TASK, "ptm task list"),
    "cancel an unknown task": (("--home", "alice", "task", "cancel", MISSING_TASK), 10, MISSING_TASK, "ptm task list"),
    "a task id that is none": (("--home", "alice", "task", "show", "../../x"), 2, "not a task's id", "ptm task list"),
}
BAD_RESULTS = {
    "fetch an unknown task": (
        ("--home", "alice", "results", "fetch", MISSING_TASK, "-o", "o"),
        10,
        MISSING_TASK,
        "ptm task list",
    ),
    "fetch what is no id": (("--home", "alice", "results", "fetch", "x", "-o", "o"), 2, "not a task's id", "ptm task list"),
    "a time-out that is none": (("--home", "alice", "results", "fetch", "x", "--timeout", "-3"), 2, "--timeout", "results fetch"),
    "verify no folder": (("--home", "alice", "results", "verify", "nothing"), 2, "nothing is not a folder", "results fetch"),
    "verify a folder of other things": (("--home", "alice", "results", "verify", "count"), 2, "holds no results", "result.json"),
}
BAD_REGISTRIES = {
    "scheme": ("ftp://x/y", 2, "ftp://", "file:///"),
    "relative": ("registry", 2, "not a URL", "file:///"),
    "relative file": ("file:registry", 2, "absolute", "file:///"),
    "two slashes": ("file://registry", 2, "absolute", "file:///"),
    "unknown parameter": ("s3://bucket?endpont_url=http://x", 2, "endpont_url", "known are"),
    "bucket name": ("s3://B_ucket", 2, "B_ucket", "lower-case"),
    "credentials in it": ("s3://key:secret@bucket", 2, "password", "boto3"),
    "endpoint that is none": ("s3://bucket?endpoint_url=minio", 2, "minio", "https://host:9000"),
    "unknown profile": ("s3://bucket?profile=nobody", 2, "nobody", "profile"),
    "folder not there": ("file:///nonexistent/registry", 10, "does not exist", "registry create"),
    "a file": ("file:///dev/null", 10, "/dev/null is not a folder", "path"),
}
BAD_MEMBERS = {
    "revoke nobody": (("--home", "coord", "member", "revoke", "nobody"), 2, "nobody", "ptm member list"),
    "revoke without the keys": (("--home", "alice", "member", "revoke", "maastro"), 1, "coordinator", "--home"),
    "admit what is no request": (("--home", "coord", "member", "admit", "cohort.csv"), 11, "cohort.csv", "ptm member request"),
    "registry there already": (("--home", "c2", "registry", "create", "{url}"), 12, "there is a registry", "another"),
    "wrong fingerprint": (("--home", "alice", "join", "{url}", "--root", "0" * 64), 11, "fingerprint", "coordinator"),
    "a fingerprint that is none": (
        ("--home", "alice", "join", "{url}", "--root", "abc"),
        2,
        "64 hex digits",
        "ptm registry show",
    ),
    "join without keys": (("--home", "new", "join", "{url}", "--root", "0" * 64), 1, "no key", "ptm member request"),
    "join where no registry is": (
        ("--home", "alice", "join", "file://{folder}/count", "--root", "0" * 64),
        10,
        "no registry",
        "URL",
    ),
}
BAD_NODES = {
    "init at a researcher's": (("--home", "alice", "node", "init"), 2, "alice is a researcher", "--home"),
    "init twice": (("--home", "maastro", "node", "init"), 12, "node.toml", "edit"),
    "watch without init": (("--home", "alice", "node", "watch", "--once"), 2, "node.toml", "ptm node init"),
    "check without init": (("--home", "alice", "node", "check"), 2, "node.toml", "ptm node init"),
}
BAD_INITS = {
    "process runner unconfirmed": (("--runner", "process"), 2, "no sandbox", "--unsafe-no-sandbox"),
    "pattern that is none": (("--image", "demo/(.*"), 2, "regular expression", "single quotes"),
    "data that is not there": (("--data", "cohort=nothing.csv"), 2, "nothing.csv", "path"),
    "data without a name": (("--data", "cohort.csv"), 2, "--data takes NAME=", None),
    "data with a bad name": (("--data", "Co_hort=cohort.csv"), 2, "Co_hort", "lower-case"),
    "SPARQL without a gateway image": (("--data", "x=http://127.0.0.1:1/sparql"), 2, "gateway_image", "--gateway-image"),
    "a folder without run": (("--runner", "process", "--unsafe-no-sandbox", "--process-image", "a:1=coord"), 2, "run", "folder"),
    "a worker's name that is none": (("--worker", "A b"), 2, "worker: 'A b' is not a name: lower-case", "node.toml"),
    "too many at once": (("--parallel", "0"), 2, "--parallel", "node init"),
}


def filled(walk: Walk, words: tuple[str, ...]) -> list[str]:
    return [word.replace("{url}", walk.url).replace("{folder}", str(walk.folder)) for word in words]


@pytest.mark.parametrize("name", [*BAD_COMMANDS, *BAD_TASKS, *BAD_RESULTS, *BAD_MEMBERS, *BAD_NODES])
def test_a_bad_value_is_one_line_a_hint_and_a_code(walk: Walk, name: str) -> None:
    words, code, says, hint = (BAD_COMMANDS | BAD_TASKS | BAD_RESULTS | BAD_MEMBERS | BAD_NODES)[name]
    walk.refused(*filled(walk, words), code=code, says=says, hint=hint)


@pytest.mark.parametrize("name", BAD_REGISTRIES)
def test_a_bad_registry_is_one_line_a_hint_and_a_code(walk: Walk, name: str) -> None:
    url, code, says, hint = BAD_REGISTRIES[name]
    walk.refused("--home", "alice", "join", url, "--root", "0" * 64, code=code, says=says, hint=hint)
    walk.refused(*WHOLE_PUT, code=code, says=says, hint=hint, variables={"PTM_REGISTRY": url})


@pytest.mark.parametrize("name", BAD_INITS)
def test_a_bad_node_init_writes_neither_file(walk: Walk, name: str) -> None:
    for file in ("node.toml", "policy.toml"):
        (walk.folder / "maastro" / file).unlink()
    words, code, says, hint = BAD_INITS[name]
    walk.refused("--home", "maastro", "node", "init", *words, code=code, says=says, hint=hint)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("node.toml", "parallel = ", "paralel = ", "paralel"),
        ("node.toml", "parallel = 2", 'parallel = "two"', "parallel"),
        ("node.toml", "parallel = 2", "parallel = 0", "parallel"),
        ("node.toml", "parallel = 2", "parallel =", "line"),
        ("node.toml", "time_s = 3600", "time_s = -1", "limits.time_s"),
        ("node.toml", 'kind = "file"', 'kind = "files"', "data.cohort"),
        ("node.toml", "unsafe_no_sandbox = true", "unsafe_no_sandbox = false", "sandbox"),
        ("policy.toml", "[[allow]]", "[[alow]]", "alow"),
        ("policy.toml", "images = ", "image = ", "image"),
        ("policy.toml", "demo/.*", "demo/(.*", "regular expression"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(walk: Walk, file: str, old: str, new: str, says: str) -> None:
    path = walk.folder / "maastro" / file
    text = path.read_text()
    assert old in text
    path.write_text(new.join(text.rsplit(old, 1)))  # the last one: the first may be in a comment
    hint = "single quotes" if says == "regular expression" else ""
    for command in (WATCH, ("--home", "maastro", "node", "check")):
        walk.refused(*command, code=2, says=says, hint=hint)
        walk.refused(*command, code=2, says=file, hint=hint)


def test_a_mistake_in_the_profile_says_who_writes_it(walk: Walk) -> None:
    path = walk.folder / "alice" / "profile.toml"
    path.write_text(path.read_text().replace("member = ", "menber = "))
    walk.refused(*WHOLE_PUT, code=2, says="profile.toml: member: is missing", hint="ptm join")


@pytest.mark.parametrize("file", ["sign.pem", "age.txt"])
def test_a_bad_key_file_is_named_and_nothing_is_put(walk: Walk, file: str) -> None:
    key = walk.folder / "alice" / "keys" / file
    good = key.read_bytes()
    key.chmod(0o644)
    walk.refused(*WHOLE_PUT, code=1, says="can be read by other accounts", hint="chmod 600")
    key.chmod(0o600)
    key.write_bytes(b"garbage")
    walk.refused(*WHOLE_PUT, code=1, says=file, hint="")
    key.write_bytes(good[: len(good) // 2])
    walk.refused(*WHOLE_PUT, code=1, says=file, hint="")
    key.unlink()
    walk.refused(*WHOLE_PUT, code=1, says="there is no key at", hint="ptm member request")
    key.mkdir()
    walk.refused(*WHOLE_PUT, code=1, says="cannot be read", hint="account")


def test_a_wrong_passphrase_file_is_one_line(walk: Walk) -> None:
    from cryptography.hazmat.primitives import serialization

    key = walk.folder / "alice" / "keys" / "sign.pem"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"right")
        )
    )
    walk.refused(*WHOLE_PUT, code=1, says="sign.pem", hint="PTM_PASSPHRASE_FILE")
    secret = walk.folder / "secret"
    secret.write_text("wrong")
    secret.chmod(0o600)
    walk.refused(*WHOLE_PUT, code=1, says="sign.pem", hint="PTM_PASSPHRASE_FILE", variables={"PTM_PASSPHRASE_FILE": "secret"})


def test_what_may_not_be_read_is_one_line(walk: Walk) -> None:
    (walk.folder / "secret.csv").write_text("1")
    (walk.folder / "secret.csv").chmod(0)
    bound = Walk(without_powers(walk.line))
    before = tree(walk.folder)
    answer = bound.line.run(*WHOLE_PUT, "--input", "secret.csv")
    assert split(answer.err)[0] == ["ptm: error: input secret.csv cannot be read: Permission denied"], answer.err
    assert (answer.code, tree(walk.folder)) == (2, before)
    key = walk.folder / "alice" / "keys" / "sign.pem"
    key.chmod(0)
    answer = bound.line.run(*WHOLE_PUT)
    assert split(answer.err)[0] == [f"ptm: error: {key} cannot be read: Permission denied"], answer.err
    assert (answer.code, tree(walk.folder)) == (1, before)


def test_an_engine_that_this_account_may_not_use_is_one_line(walk: Walk) -> None:
    toml = walk.folder / "maastro" / "node.toml"
    toml.write_text(toml.read_text().replace('runner = "process"', 'runner = "docker"'))
    with tempfile.TemporaryDirectory(dir="/tmp") as place, socket.socket(socket.AF_UNIX) as engine:
        engine.bind(f"{place}/docker.sock")
        engine.listen()
        Path(place, "docker.sock").chmod(0)
        line = replace(without_powers(walk.line), variables={"DOCKER_HOST": f"unix://{place}/docker.sock"})
        answer = line.run(*WATCH)
    errors, hints, rest = split(answer.err)
    assert (answer.code, len(errors), len(hints), rest) == (1, 1, 1, []), answer.err
    assert "the container engine" in errors[0]
    assert "ermission denied" in errors[0]
    assert "docker" in hints[0].lower()


def test_a_store_behind_a_closed_port_is_unreachable(walk: Walk) -> None:
    with socket.socket() as held:  # bound and not listening: every connection is refused
        held.bind(("127.0.0.1", 0))
        url = f"s3://bucket?endpoint_url=http://127.0.0.1:{held.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        for command in (WHOLE_PUT, ("--home", "alice", "member", "list"), ("--home", "coord", "registry", "renew")):
            walk.refused(*command, code=10, says="127.0.0.1", hint="network", variables={"PTM_REGISTRY": url} | keys)
        walk.refused(*WATCH, code=10, says="127.0.0.1", hint="network", variables={"PTM_REGISTRY": url} | keys, changes=True)


def test_no_credentials_at_all_is_denied_with_where_they_are_looked_for(walk: Walk) -> None:
    nothing = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    variables = {"PTM_REGISTRY": "s3://bucket?endpoint_url=http://127.0.0.1:9", **nothing}
    walk.refused(*WHOLE_PUT, code=10, says="credentials", hint="AWS_ACCESS_KEY_ID", variables=variables)


def test_a_missing_engine_is_one_line(walk: Walk) -> None:
    toml = walk.folder / "maastro" / "node.toml"
    toml.write_text(toml.read_text().replace('runner = "process"', 'runner = "docker"'))
    for host in (f"unix://{walk.folder}/no.sock", "tcp://127.0.0.1:9"):
        for command in (WATCH, ("--home", "maastro", "node", "check")):
            answer = replace(walk.line, variables={"DOCKER_HOST": host}).run(*command)
            assert answer.code == 1
            assert re.search(r"^ptm: error: the container engine .*\nptm: hint: .*DOCKER_HOST", answer.err, re.MULTILINE), (
                answer.err
            )
            assert answer.err.count("ptm: error:") == 1
            assert "Traceback" not in answer.err


def test_a_revoked_member_is_told_so_whatever_it_does(walk: Walk) -> None:
    (walk.folder / "maastro" / "node.toml").rename(walk.folder / "gone" / "node.toml")
    (walk.folder / "maastro" / "policy.toml").rename(walk.folder / "gone" / "policy.toml")
    walk.refused("--home", "gone", "node", "watch", "--once", code=11, says="gone was revoked", hint="coordinator", changes=True)
    walk.line.ok("--home", "coord", "member", "revoke", "alice")
    walk.refused(*WHOLE_PUT, code=11, says="alice was revoked", hint="coordinator")


def test_an_expired_roster_stops_everybody(tmp_path: Path, made: Path) -> None:
    walk = copied(made, tmp_path / "w")
    old = make_store(f"file://{tmp_path}/old")
    home = walk.folder / "oldcoord"
    from ptm.config import Home

    coordinator.create_registry(old, Home(home).make(), name="", organisation="", root_keys=[], threshold=1, now=NOW - 40 * DAY)
    for command in (("member", "list"), ("registry", "show")):
        walk.refused("--home", "oldcoord", *command, code=11, says="timestamp expired", hint="ptm registry renew")


def test_a_folder_that_holds_something_else_is_never_overwritten(walk: Walk) -> None:
    task = walk.line.ok(*WHOLE_PUT, "--data", "cohort")
    walk.line.ok(*WATCH)
    fetch = ("--home", "alice", "results", "fetch", task, "-o", "out")
    (walk.folder / "out" / "maastro").mkdir(parents=True)
    (walk.folder / "out" / "maastro" / "mine.txt").write_text("mine")
    walk.refused(*fetch, code=12, says="out/maastro is there already", hint="-o")
    (walk.folder / "file").write_text("mine")
    walk.refused(*fetch[:-1], "file", code=2, says="file", hint="results fetch")
    walk.refused(*fetch[:-1], "file/below", code=1, says="file", hint="path")


def test_verify_names_what_was_changed(walk: Walk) -> None:
    task = walk.line.ok(*WHOLE_PUT, "--data", "cohort")
    walk.line.ok(*WATCH)
    walk.line.ok("--home", "alice", "results", "fetch", task, "-o", "out")
    place = walk.folder / "out" / "maastro"
    for name, what in (("count.json", "count.json"), ("log.txt", "log.txt"), ("result.json", ""), ("task.json", "")):
        good = (place / name).read_bytes()
        (place / name).write_bytes(good.replace(b"3", b"4").replace(b"o", b"0"))
        verify_fails(walk, what)
        (place / name).unlink()
        verify_fails(walk, what)
        (place / name).write_bytes(good)
    (place / "more.txt").write_text("added")
    verify_fails(walk, "more.txt")
    (place / "more.txt").unlink()
    assert "verified 1 result(s)" in walk.line.run("--home", "alice", "results", "verify", "out").err


def verify_fails(walk: Walk, says: str) -> None:
    answer = walk.line.run("--home", "alice", "results", "verify", "out")
    assert answer.code in (2, 11), answer.err  # 2: no result.json, so no result at all
    assert re.search(rf"^ptm: error: .*{re.escape(says)}.*\nptm: hint: ", answer.err), answer.err
    assert "Traceback" not in answer.err


def test_a_group_or_ptm_alone_prints_its_help_and_fails(walk: Walk) -> None:
    for words in ((), ("node",), ("task",)):
        answer = walk.line.run(*words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith("Usage: ptm")
        assert "\n  -h, --help " in answer.err
        assert answer.err.rstrip().endswith("14 timed out waiting, 130 interrupted.")


def test_most_refusals_here_have_a_hint() -> None:
    every = [*BAD_COMMANDS.values(), *BAD_TASKS.values(), *BAD_RESULTS.values(), *BAD_MEMBERS.values(), *BAD_NODES.values()]
    assert sum(hint is not None for *_, hint in every) > 0.9 * len(every)
