"""A whole task (put, run at a node that looks five times a second, fetch) on a folder registry beside a bare `docker run` of the
same image. So a tenth of a second of the difference is waiting for the next look."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from bench.timing import command, medians
from ptm.config import NodeConfig
from ptm.node.runners import make_runner
from ptm.store.file import FileStore
from tests.federation import Federation
from tests.servers import ServerMissing, build_image, connect_engine, ensure_base_image

POLL_S = 0.2
IMAGE = "ptm-bench/echo:1"
RUN = "#!/usr/bin/python3\nimport os, pathlib\npathlib.Path(os.environ['PTM_OUTPUT_DIR'], 'out.txt').write_text('ok')\n"


def measure() -> Iterator[tuple[str, str]]:
    try:
        engine = connect_engine()
        base = ensure_base_image(engine)
    except ServerMissing as missing:
        yield f"not measured: {missing}", ""
        return
    build_image(engine, base, IMAGE, {"/run.py": RUN}, ["/run.py"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "registry").mkdir()
        federation = Federation(FileStore(folder / "registry"), folder).create().admit(alice="researcher", maastro="site")
        config = NodeConfig(worker="maastro-1", pull="never")
        runner = make_runner(config, federation.registry("maastro").id, "maastro", federation.home("maastro"))
        node = federation.node("maastro", runner=runner, poll_s=POLL_S)
        stop = threading.Event()
        thread = threading.Thread(target=node.watch, args=(stop,))
        thread.start()
        numbers = count()

        def task() -> None:
            handle = federation.client().put(IMAGE, ["maastro"])
            (result,) = handle.results(timeout=60, folder=folder / f"out{next(numbers)}")
            assert result.ok, result.reason

        try:
            bare = command("docker", "run", "--rm", "--network", "none", "-e", "PTM_OUTPUT_DIR=/tmp", IMAGE)
            plain, whole = medians(7, bare, task)
        finally:
            stop.set()
            thread.join()
    yield "docker run --rm of the image", f"{plain:.2f} s"
    yield "a whole task, put to fetched", f"{whole:.2f} s"
    yield "a whole task, put to fetched ÷ docker run", f"{whole / plain:.2f}"
