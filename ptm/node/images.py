"""Image names between a task and an engine: mirrors, and what an engine says about digests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ptm.errors import RunnerError
from ptm.image import ImageRef


def engine_name(image: ImageRef, mirrors: Mapping[str, str]) -> str:
    """The name (without tag and digest) by which an engine is asked for an image: the longest matching prefix in `mirrors` is
    replaced.

    A prefix ends where a part of the name ends: `lab` stands for `lab/count`, never for `laboratory/count`; an empty one stands
    for all. Engines take lower case only, so a name that still has capitals is a `RunnerError`.
    """
    name = image.name
    fitting = [prefix for prefix in mirrors if _covers(prefix.rstrip("/"), name)]
    if fitting:
        prefix = max(fitting, key=len)
        rest = name[len(prefix.rstrip("/")) :].lstrip("/")
        name = f"{mirrors[prefix].rstrip('/')}/{rest}".rstrip("/")
    if name != name.lower():
        first = image.name.split("/")[0]
        raise RunnerError(
            f"a container engine cannot pull {image.label}, for the name has capitals",
            hint=f'the site can say where it is to be found, in node.toml: [mirrors] "{first}" = "registry/{first.lower()}"',
        )
    return name


def _covers(prefix: str, name: str) -> bool:
    return prefix in ("", name) or name.startswith(prefix + "/")


def repo_digest(listed: Iterable[str], name: str, wanted: str | None) -> str | None:
    """The registry's digest (`sha256:…`) among an engine's `name@digest` entries: the wanted one if it is there, else one of
    this name, else any."""
    entries = [entry.rpartition("@") for entry in listed if "@sha256:" in entry]
    if wanted is not None and any(digest == wanted for _, _, digest in entries):
        return wanted
    ours = [digest for repository, _, digest in entries if repository == name or repository.endswith(f"/{name}")]
    return next(iter(ours or [digest for _, _, digest in entries]), None)


def pull_trouble(label: str, said: str) -> RunnerError:
    """What an engine said about a failed pull, as an error for people. The engine's own words may name hosts of the site, so
    they are not in it."""
    text = said.lower()
    if any(
        word in text
        for word in ("dial tcp", "no such host", "connection refused", "timeout", "server misbehaving", "unreachable")
    ):
        return RunnerError(
            f"the image registry of {label} does not answer",
            hint="the site should check its network, proxy and [mirrors]",
        )
    if any(word in text for word in ("denied", "unauthorized", "authentication required", "forbidden")):
        return RunnerError(
            f"the image {label} does not exist, or the site may not pull it",
            hint="check the name; for a private registry the account of the node needs a `docker login`",
        )
    if any(word in text for word in ("not found", "unknown", "no such image")):
        return RunnerError(f"there is no image {label}", hint="check its name and tag, and that it was pushed")
    return RunnerError(f"the image {label} could not be pulled", hint="the site's log says why")
