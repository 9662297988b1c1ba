"""Inputs, from the registry to a private folder in clear: size and digest first, then decryption, then the sealed
manifest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

from ptm import layout
from ptm.config import Limits
from ptm.errors import NotAllowed
from ptm.model import PlainFile, SealedFile, Task
from ptm.node.spool import RunFolder
from ptm.registry import Registry
from ptm.seal import check_plain, open_manifest, unseal


def stage_inputs(registry: Registry, task: Task, limits: Limits) -> Path:
    """Decrypt a task's inputs into a fresh private folder, one file each, and return the folder.

    `DigestMismatch` or `SealError` if an input is not what the researcher signed, or was sealed for another task;
    `NotAllowed` if they are larger than the site takes; `NotFound` if an input is not in the registry (any more)."""
    inputs = RunFolder(registry.home, task.id).fresh("inputs")
    if sum(file.size for file in task.inputs) > limits.input_mb * 1024 * 1024:
        raise NotAllowed(f"the inputs have more than {limits.input_mb} MB", hint="ask the site to raise input_mb in node.toml")
    open_inputs(registry, task, inputs)
    return inputs


def open_inputs(registry: Registry, task: Task, inputs: Path) -> None:
    """Decrypt a task's inputs into a folder that holds none of these names yet. The errors of `stage_inputs`."""
    if not task.inputs or task.manifest is None:
        return
    listed = open_manifest(task.manifest, registry.keys.identity, registry=registry.id, task=task.id, sealed_by=task.user)
    for file in task.inputs:
        with tempfile.TemporaryFile(dir=inputs) as cipher:
            registry.fetch_sealed(file, layout.task_input(task.user, task.id, file.name), cipher, f"input {file.name}")
            _open(registry, cipher, inputs / file.name, file, listed.get(file.name))


def _open(registry: Registry, cipher: BinaryIO, target: Path, file: SealedFile, expected: PlainFile | None) -> None:
    with target.open("xb") as clear:
        measured = unseal(cipher, clear, registry.keys.identity)
    check_plain(measured, expected, f"input {file.name}")
