"""Names of container images: `[registry[:port]/]path[:tag][@sha256:digest]`, taken apart and put together.

Follows the reference grammar of the OCI distribution specification, except that capitals are allowed in the path:
consortia use them in names such as `myConsortium/count:1` (an engine needs a mirror for those, `[mirrors]` in
node.toml). No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
_PATH = r"[A-Za-z0-9]+(?:(?:\.|_|__|-+)[A-Za-z0-9]+)*"
IMAGE_PATTERN = rf"{_HOST}{_PATH}(?:/{_PATH})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
_PARTS = re.compile(
    rf"(?P<name>{_HOST}{_PATH}(?:/{_PATH})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)


@dataclass(frozen=True)
class ImageRef:
    """`name` without tag and digest; `tag` is `latest` if neither tag nor digest was given."""

    name: str
    tag: str | None
    digest: str | None

    @property
    def label(self) -> str:
        """How the image is called before people: `name:tag`, or `name@sha256:…` where there is no tag."""
        return f"{self.name}:{self.tag}" if self.tag else f"{self.name}@{self.digest}"

    @property
    def policy_names(self) -> tuple[str, ...]:
        """What a site's policy has to allow, all of it: `name:tag`, and `name@sha256:…` if a digest is given. The digest is
        what runs, so a tag beside it vouches for nothing."""
        tagged = (f"{self.name}:{self.tag}",) if self.tag else ()
        return tagged + ((f"{self.name}@{self.digest}",) if self.digest else ())

    @property
    def pull_name(self) -> str:
        """What to ask an image registry for: by digest if one is given, for then the tag means nothing."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse_image(text: str) -> ImageRef:
    """Take an image's name apart. `ValueError` if it does not have the shape."""
    match = _PARTS.fullmatch(text)
    if match is None or len(text) > 400:
        raise ValueError(f"{text!r} is not an image name like registry/path:tag or registry/path@sha256:…")
    tag, digest = match["tag"], match["digest"]
    return ImageRef(match["name"], tag or (None if digest else "latest"), digest)
