"""What the documents say is so: generated parts are current, examples hold, links lead somewhere, the README's session runs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import jsonschema
import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ptm.cli.commands import cli
from tests import servers

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
README = (ROOT / "README.md").read_text()
PARTY = (ROOT / "docs" / "trusted-party.md").read_text()
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in ("", "docs/**/", "infra/**/", "ptm/**/", "examples/**/")
    for path in ROOT.glob(f"{folder}*.md")
)
SIGNED = {
    "task": "alice",
    "cancel": "alice",
    "result": "maastro",
    "refusal": "maastro",
    "claim": "maastro",
    "worker": "maastro",
    "note": "maastro",
    "image-approval": "maastro",
    "request": "maastro",
    "task-deliver": "alice",
    "result-delivered": "maastro",
    "transfer": "maastro",
    "receipt": "ttp",
    "purge": "ttp",
    "note-waiting-data": "ttp",
}


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_bytes())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# generated pages


def test_generated_pages_and_golden_files_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/format_docs.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def command_paths(command: click.Command, path: str) -> Iterator[str]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from command_paths(below, f"{path} {name}")


def test_every_command_is_documented_with_what_it_does() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    paths = list(command_paths(cli, "ptm"))
    assert len(paths) > 20
    assert [path for path in paths if f"## `{path}`\n" not in page] == []


def test_every_commands_own_page_gives_an_example() -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)[1:]
    leaves = [text for text in sections if "\nCommands:\n" not in text]
    assert [text.splitlines()[0] for text in leaves if not re.search(r"^  Examples?:", text, re.MULTILINE)] == []


def test_every_page_of_help_says_what_the_exit_codes_are() -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)[2:]
    assert [text.splitlines()[0] for text in sections if "\nExit codes:\n" not in text] == []


# examples


def examples_and_schemas() -> list[tuple[str, str, str]]:
    """(title, example, schema) of every document in docs/format.md; one more example of a type has that type's schema."""
    sections = re.split(r"^### ", (ROOT / "docs" / "format.md").read_text(), flags=re.MULTILINE)[1:]
    found: list[tuple[str, str, str]] = []
    for section in sections:
        example, *schema = re.findall(r"^```json\n(.+?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        title = section.splitlines()[0]
        kind = title.split(" ")[0]
        same = [known for other, _, known in found if other.startswith(f"{kind}:")]
        found.append((title, example, (schema or same)[0]))
    return found


@pytest.mark.parametrize("title, example, schema", [pytest.param(*found, id=found[0]) for found in examples_and_schemas()])
def test_every_example_fits_its_schema_and_nothing_else_does(title: str, example: str, schema: str) -> None:
    document = json.loads(example)
    document = document.get("signed", document)
    validator = jsonschema.Draft202012Validator(json.loads(schema))
    validator.validate(document)
    assert not validator.is_valid({**document, "unknown": 1}), title
    assert not validator.is_valid({}), title


def test_there_is_an_example_of_every_document() -> None:
    from ptm import model, notes, transfer, workers

    wires = {
        kind.model_fields["type"].default
        for kind in [*vars(model).values(), *vars(notes).values(), *vars(transfer).values(), *vars(workers).values()]
        if isinstance(kind, type)
        and issubclass(kind, model.Frozen)
        and "type" in kind.model_fields
        and kind is not model.Document
    }
    shown = {match[1] for title, _, _ in examples_and_schemas() if (match := re.search("`(.+?)`", title))}
    assert shown == wires


# golden vectors, checked without any code of ptm's


def canonical(document: object) -> bytes:
    """RFC 8785 of what the examples hold: ASCII keys, no number that needs an exponent."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("name, signer", SIGNED.items())
def test_golden_signature_is_made_of_the_bytes_that_the_format_describes(name: str, signer: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"ptm example key: {signer}".encode()).digest())
    envelope = golden(name)
    assert envelope["signatures"] == [
        {"keyid": sha256(key.public_key().public_bytes_raw()), "sig": key.sign(canonical(envelope["signed"])).hex()}
    ]


def test_golden_task_id_is_bound_to_its_author_as_the_format_describes() -> None:
    task = golden("task")["signed"]
    bound = hashlib.sha256(f"ptm/task-id@1\n{task['registry']}\n{task['user']}\n{task['nonce']}".encode()).digest()[:10]
    value = 0
    for character in task["id"]:
        value = value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    assert value.to_bytes(16, "big")[6:] == bound
    assert int.from_bytes(value.to_bytes(16, "big")[:6], "big") == 1795343400000  # 2026-11-22T10:30:00Z


def test_golden_result_is_of_the_golden_task() -> None:
    assert golden("result")["signed"]["task_sha256"] == sha256(canonical(golden("task")["signed"]))


def test_golden_transfer_receipt_and_results_name_each_other() -> None:
    transfer, receipt = golden("transfer")["signed"], golden("receipt")["signed"]
    bound = f"ptm/transfer-id@1\n{transfer['registry']}\n{transfer['sender']}\n{transfer['nonce']}"
    value = 0
    for character in transfer["id"]:
        value = value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    assert value.to_bytes(16, "big")[6:] == hashlib.sha256(bound.encode()).digest()[:10]
    assert transfer["run"]["task_sha256"] == sha256(canonical(golden("task-deliver")["signed"]))
    assert receipt["seen_sha256"] == sha256((GOLDEN / "transfer.json").read_bytes())
    delivered = golden("result-delivered")["signed"]["delivered"]
    assert (delivered["transfer"], delivered["files"]) == (transfer["id"], transfer["files"])
    identity = pyrage.x25519.Identity.from_str(golden("made-once")["identities"]["ttp"])
    manifest = json.loads(pyrage.decrypt(base64.b64decode(transfer["manifest"]), [identity]))
    assert (manifest["task"], manifest["sealed_by"]) == (transfer["id"], "maastro")
    cipher = base64.b64decode(golden("made-once")["sealed"]["diagnoses.csv"])
    (file,), (listed,) = transfer["files"], manifest["files"]
    assert (file["size"], file["sha256"]) == (len(cipher), sha256(cipher))
    assert listed["sha256"] == sha256(pyrage.decrypt(cipher, [identity]))


@pytest.mark.parametrize(
    "name, reader, files", [("task", "maastro", "inputs"), ("task", "alice", "inputs"), ("result", "alice", "outputs")]
)
def test_golden_files_open_and_are_what_their_manifest_lists(name: str, reader: str, files: str) -> None:
    document = golden(name)["signed"]
    identity = pyrage.x25519.Identity.from_str(golden("made-once")["identities"][reader])
    manifest = json.loads(pyrage.decrypt(base64.b64decode(document["manifest"]), [identity]))
    owner = document["user"] if name == "task" else document["site"]
    assert (manifest["registry"], manifest["sealed_by"]) == (document["registry"], owner)
    assert manifest["task"] == golden("task")["signed"]["id"]
    sealed = document[files] + ([document["log"]] if "log" in document else [])
    for file, listed in zip(sealed, manifest["files"], strict=True):
        cipher = base64.b64decode(file["content"])
        clear = pyrage.decrypt(cipher, [identity])
        assert (file["name"], file["size"], file["sha256"]) == (listed["name"], len(cipher), sha256(cipher))
        assert (listed["size"], listed["sha256"]) == (len(clear), sha256(clear))


# links


def targets(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    local = [target.partition("#")[0] for target in targets(page) if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (ROOT / page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_and_tests_that_a_document_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:ptm|tests|tools|infra|docs)/[\w./-]+\.(?:py|md|yml|csv))(?:::(\w+))?`", (ROOT / page).read_text())
    missing = [file for file, _ in named if not (ROOT / file).exists()]
    assert missing == []
    assert [f"{file}::{test}" for file, test in named if test and f"def {test}(" not in (ROOT / file).read_text()] == []


# the README's session


def block(name: str, page: str = README) -> str:
    """The fenced block after `<!-- tested: NAME -->`."""
    found = re.search(rf"<!-- tested: {name} -->\n```\w*\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def answer(after: str, page: str = README) -> str:
    """The block that follows a tested one: what it prints."""
    found = re.search(r"```\n\n```\n(.+?)^```", page[page.index(after) :], re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def shell(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which `ptm` is this very code and nothing of the caller's matters."""
    command = tmp_path / "bin" / "ptm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ptm "$@"\n')
    command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PTM_", "AWS_"))}
    return {
        **kept,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(tmp_path),
    }


def run(script: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_answer(printed: str, folder: Path) -> None:
    """The session's last words and its files, as the README shows them; only time and digest are another's."""

    def shape(text: str) -> list[list[str]]:
        lines = text.strip().splitlines()[-3:]
        return [re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", re.sub(r"\d+ s\b", "N s", line)).split() for line in (lines[0], lines[2])]

    assert shape(printed) == shape(answer(block("session")))
    assert {path.name for path in (folder / "out" / "maastro").iterdir()} == {"count.txt", "log.txt", "result.json", "task.json"}
    assert (folder / "out" / "maastro" / "count.txt").read_text().strip() == "3"


def test_the_session_is_eight_lines() -> None:
    assert len(block("session").splitlines()) == 8


@pytest.mark.slow
def test_the_readmes_session_runs_as_it_stands(tmp_path: Path, shell: Mapping[str, str]) -> None:
    check_answer(run(block("prepare") + block("session"), tmp_path, shell), tmp_path)
    verified = run("ptm --home alice results verify out", tmp_path, shell)
    assert "completed" in verified


@pytest.mark.slow
def test_the_readmes_session_runs_on_minio_with_another_first_line(
    tmp_path: Path, shell: Mapping[str, str], minio: servers.Minio
) -> None:
    registry = f"export REGISTRY='s3://{minio.make_bucket()}/study?endpoint_url={minio.endpoint_url}'\n"
    printed = run(block("prepare") + registry + block("session"), tmp_path, {**shell, **minio.env()})
    check_answer(printed, tmp_path)


@pytest.mark.slow
def test_the_trusted_partys_session_runs_as_it_stands(tmp_path: Path, shell: Mapping[str, str]) -> None:
    first = block("prepare", PARTY) + block("first", PARTY)
    printed = run(first + "echo MARK\n" + block("second", PARTY), tmp_path, shell)
    before, after = printed.split("MARK\n")
    shown = [line.rstrip() for line in before.splitlines()[-3:]]
    assert [shown[0], shown[2]] == answer(block("first", PARTY), PARTY).splitlines()[::2]
    assert (tmp_path / "out" / "ttp" / "lines.txt").read_text().strip() == "6"
    assert not list((tmp_path / "ttp" / "collections").rglob("*.csv"))
    assert re.search("ttp/link-2026 +diagnoses.csv", after) and re.search("ttp +completed", after)


@pytest.mark.slow
def test_the_readmes_python_runs_against_a_watching_node(tmp_path: Path, shell: Mapping[str, str]) -> None:
    run(block("prepare") + block("session"), tmp_path, shell)
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(["ptm", "--home", "maastro", "node", "watch"], cwd=tmp_path, env=shell, stderr=log)
        try:
            done = subprocess.run(
                [sys.executable, "-c", block("python")], cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=60
            )
        finally:
            node.terminate()
            code = node.wait(timeout=60)
    assert done.stdout == answer(block("python")), done.stderr + (tmp_path / "node.log").read_text()
    assert code == 0


def test_make_knows_the_readmes_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\w+) +#", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    assert [name for name in commands if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
