"""The example's two images: the files that each is made of, in a folder (to build from, or for the process runner), and built."""

from __future__ import annotations

from pathlib import Path

import docker
import docker.errors

import ptm.demo
from ptm.errors import RunnerError

HERE = Path(__file__).parent / "images"
DEMO = Path(ptm.demo.__file__).parent / "image" / "run"
PSEUDONYMISE, LINK_AND_FIT = "example/pseudonymise:1", "example/link-and-fit:1"
PARTS: dict[str, dict[str, Path]] = {
    PSEUDONYMISE: {
        "Dockerfile": HERE / "pseudonymise" / "Dockerfile",
        "run": HERE / "pseudonymise" / "run",
        "table.py": HERE / "table.py",
    },
    LINK_AND_FIT: {
        "Dockerfile": HERE / "link-and-fit" / "Dockerfile",
        "run": HERE / "link-and-fit" / "run",
        "fit.py": HERE / "link-and-fit" / "fit.py",
        "table.py": HERE / "table.py",
        "logistic.py": DEMO,
    },
}
"""The logistic likelihood is the federated demo's: one implementation, in both images."""


def folder_of(image: str, where: Path) -> Path:
    return where / image.partition("/")[2].partition(":")[0]


def write_images(where: Path) -> dict[str, Path]:
    """Put each image's files into a folder of its own below `where`; image to folder."""
    written = {}
    for image, parts in PARTS.items():
        folder = written[image] = folder_of(image, where)
        folder.mkdir(parents=True)
        for name, source in parts.items():
            (folder / name).write_bytes(source.read_bytes())
        (folder / "run").chmod(0o755)
    return written


def build_images(folders: dict[str, Path], base: str) -> None:
    """Build them on `base`, any image with python3. `RunnerError` if there is no engine, or it cannot."""
    try:
        engine = docker.from_env()
        try:
            for image, folder in folders.items():
                engine.images.build(path=str(folder), tag=image, buildargs={"BASE": base}, rm=True, forcerm=True)
        finally:
            engine.close()
    except (docker.errors.DockerException, docker.errors.BuildError) as e:
        said = " ".join(str(e).split())[:200]
        raise RunnerError(
            f"the images cannot be built on {base}: {said}",
            hint="start an engine, name another --base-image, or --runner process",
        ) from e
