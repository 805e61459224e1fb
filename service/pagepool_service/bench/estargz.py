"""Images as eStargz, made by its own programs: plain, or with what a command reads put first and fetched ahead.

The counterparts of a first start in pagepool, and of one that was recorded before. An image takes up to a minute each.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool_service.bench.containerd import CLIENT, Containerd
from pagepool_service.bench.stargz import LAZY_CLIENT
from pagepool_service.bench.subjects import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SOURCE: Final = "localhost/image:source"
_TARGET: Final = "localhost/image:estargz"
_LATEST: Final = "latest"
_TIMEOUT_S: Final = 1800.0


def convert_image(
    layout: Path, target: Path, work: Path, environment: Mapping[str, str], command: Sequence[str] = ()
) -> None:
    """Convert an image, as `ctr-remote images convert` does; with a command, as `ctr-remote images optimize` does.

    Args:
        layout: an OCI layout of one image.
        target: a directory to be made: an OCI layout of the image, `latest`.
        work: where to put everything meanwhile.
        environment: of all processes.
        command: is run once in a container; the files that it opens are put first.

    Raises:
        BenchError: a step failed.
        UnreachableError: containerd did not start.
    """
    with tempfile.TemporaryDirectory(prefix="ppb-", dir=work) as name:
        archive = Path(name, "archive")
        engine = Containerd(Path(name, "c"), environment)
        try:
            engine.start()
            run(["skopeo", "copy", "--quiet", f"oci:{layout}", f"oci-archive:{archive}:{_SOURCE}"], environment)
            run(engine.command(CLIENT, "images", "import", "--no-unpack", archive), environment)
            archive.unlink()
            words = ["convert", "--oci", "--estargz"]
            if command:
                words = ["optimize", "--oci", "--args", json.dumps(command)]
            run(engine.command(LAZY_CLIENT, "images", *words, _SOURCE, _TARGET), environment, _TIMEOUT_S)
            run(engine.command(CLIENT, "images", "export", archive, _TARGET), environment)
        finally:
            engine.stop()
        target.mkdir()
        run(["tar", "--extract", "--file", archive, "--directory", target])
    index = json.loads((target / "index.json").read_text())
    for entry in index["manifests"]:
        entry["annotations"] = {"org.opencontainers.image.ref.name": _LATEST}
    (target / "index.json").write_text(json.dumps(index))
