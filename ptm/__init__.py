"""ptm: federated analysis on nothing but a bucket.

A researcher puts a signed task into an S3-compatible bucket or a folder; a node at each site polls its own prefix,
checks who signed it and what the site allows, runs the container next to the data, and puts a signed, sealed result
back. No server, no database, no open port.

Public names: `Client`, `TaskHandle`, `RunResult`, and the errors in `ptm.errors`. Where to start reading: `ptm.model`
(what travels), `ptm.envelope` (signatures), `ptm.store.base` (what storage must do), `ptm.node.run` (one task's way
through a node), `ptm.results` (what a researcher believes), `ptm.trustedparty` (files of several members, brought together)."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes half as long to load as Python itself, and `ptm --help` is to be quick
if TYPE_CHECKING:
    from ptm.client import Client, RunResult, TaskHandle

__all__ = ["Client", "RunResult", "TaskHandle"]


def __getattr__(name: str) -> object:
    """Public names are imported when they are used, so that `ptm --help` is quick (PEP 562)."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("ptm.client"), name)
    raise AttributeError(f"module 'ptm' has no attribute {name!r}")
