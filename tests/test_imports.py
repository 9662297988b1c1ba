"""Imports point one way, boto3 and docker have one door each, and `ptm --help` loads nothing heavy (design, section 8)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ptm"
LAYERS = [
    ["errors", "image", "files", "complaint"],
    ["model", "store"],
    ["transfer"],
    ["config", "layout", "envelope", "notes", "workers"],
    ["keys", "seal"],
    ["c4gh"],
    ["trust"],
    ["algorithms"],
    ["registry", "admission", "publisher", "reviewing", "bucketpolicy"],
    ["audit", "stop", "pauses"],
    ["coordinator", "enrolment", "tasks", "results"],
    ["trustedparty"],
    ["client", "node"],
    ["demo"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) not in ("__init__", "__main__")], ids=str)
def test_a_module_imports_only_from_its_own_layer_or_below(path: Path) -> None:
    own = RANK[part_of(path)]
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "ptm" and len(parts) > 1 and parts[1] in RANK:
            assert RANK[parts[1]] <= own, f"{path.name} imports {module}"


@pytest.mark.parametrize(
    ("library", "door"),
    [
        ("boto3", "store/s3"),
        ("botocore", "store/s3"),
        ("docker", "node/docker"),
        ("minio", "store/changes_s3"),
        ("sqlite3", ("node/state", "trustedparty/ledger")),
        ("tuf", ""),
        ("watchdog", "store/changes_file"),
    ],
)
def test_a_library_has_one_door(library: str, door: str) -> None:
    users = {str(path.relative_to(ROOT)) for path in FILES if any(m.split(".")[0] == library for m in imported(path))}
    assert users, f"nobody imports {library} any more: drop it from this test"
    allowed = {"trust.py", "publisher.py", "coordinator.py", "algorithms.py", "reviewing.py"} if library == "tuf" else None
    assert all(user in allowed if allowed else user.startswith(door) for user in users), users


def test_no_file_is_longer_than_400_lines() -> None:
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > 400] == []


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from ptm.cli.main import run; run(['--help']); "
        "heavy = ('click', 'boto3', 'tuf', 'docker', 'pydantic', 'rich', 'cryptography', 'aiohttp', 'numpy'); "
        "heavy += ('minio', 'watchdog'); "
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == "[]"
