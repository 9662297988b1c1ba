"""A site whose rule says `reviewed = true`, the whole way: what too few reviewers signed does not run there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ptm import coordinator, layout, reviewing
from ptm.errors import NotFound, PtmError
from ptm.node.process import folder_digest
from ptm.registry import now_utc
from ptm.store.memory import MemoryStore
from tests.federation import Federation, image_folder


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Alice asks maastro; bob and carol review, and both have to sign."""
    made = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", bob="researcher", carol="site", maastro="site")
    home = made.home("coord")
    coordinator.set_reviewers(made.store, home, add=["bob", "carol"], remove=[], threshold=2, now=now_utc())
    return made


def state(federation: Federation, folder: Path, image: str) -> tuple[str, str]:
    """How maastro's run of an image ends, and why."""
    task = federation.client().put(image, ["maastro"], expires="1d")
    node = federation.node("maastro", images={"lab/count:1": folder}, rule={"reviewed": True})
    node.watch(threading.Event(), once=True)
    (result,) = federation.client().task(task.id).results()
    return result.state, result.reason or ""


def approve(federation: Federation, name: str, image: str) -> None:
    reviewing.approve(federation.store, federation.home(name), [image], now_utc())
    coordinator.publish_reviewed(federation.store, federation.home("coord"), now_utc())


def test_an_image_runs_from_the_second_reviewers_signature_on_and_not_after_its_withdrawal(
    federation: Federation, tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "count")
    image = f"lab/count:1@{folder_digest(folder, 'lab/count')}"
    assert state(federation, folder, image)[0] == "rejected"
    approve(federation, "bob", image)
    assert state(federation, folder, image)[0] == "rejected"
    approve(federation, "carol", image)
    assert state(federation, folder, image) == ("completed", "")
    for name in ("bob", "carol"):
        reviewing.withdraw(federation.store, federation.home(name), [image], now_utc())
    coordinator.publish_reviewed(federation.store, federation.home("coord"), now_utc())
    found, reason = state(federation, folder, image)
    assert (found, "reviewed" in reason) == ("rejected", True)


def test_a_list_that_somebody_hides_uses_up_no_run(federation: Federation, tmp_path: Path) -> None:
    """The task waits until the list is there again; it is not rejected for what the bucket's owner did."""
    folder = image_folder(tmp_path / "count")
    image = f"lab/count:1@{folder_digest(folder, 'lab/count')}"
    for name in ("bob", "carol"):
        approve(federation, name, image)
    key = layout.trust_metadata("1.algorithms.json")
    hidden = federation.store.get(key, 2**20)
    federation.store.delete(key)
    task = federation.client().put(image, ["maastro"], expires="1d")
    node = federation.node("maastro", images={"lab/count:1": folder}, rule={"reviewed": True})
    with pytest.raises(PtmError, match="could not be finished for now"):
        node.watch(threading.Event(), once=True)
    with pytest.raises(NotFound):
        federation.store.head(layout.result("maastro", task.id))
    federation.store.create(key, hidden)
    node = federation.node("maastro", images={"lab/count:1": folder}, rule={"reviewed": True})
    node.watch(threading.Event(), once=True)
    (result,) = federation.client().task(task.id).results()
    assert result.state == "completed"
