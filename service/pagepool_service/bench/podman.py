"""podman on overlayfs, as `bench mount` measures it: a storage of its own, images from docker-registry over the link.

`run` is one `podman run`, which pulls first. `mount` makes the mount that podman makes: an overlayfs of the layers in
its storage, over an upper of its own; by mount(2), so that it can be timed and looked into from outside.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.linux import call
from pagepool_service.bench.origins import HOST
from pagepool_service.bench.subjects import BenchError, first_output_s, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pagepool_service.bench.link import Link

_CONFIGURATION: Final = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
"""
# podman notes things below /var/lib/containers whatever its --root is: in a mount namespace of its own it leaves none.
_HIDE: Final = 'mkdir -p "$0" && mount -t tmpfs tmpfs "$0" && exec "$@"'
_PRIVATELY: Final = (
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", _HIDE, "/var/lib/containers"),
)


class Podman:
    """Implements `Subject`.

    Args:
        link: at whose client's end it runs.
        directory: for its storage; made and removed here. podman wants a short path.
        environment: of its processes.
    """

    name = "podman, overlayfs"

    def __init__(self, link: Link, directory: Path, environment: Mapping[str, str]) -> None:
        self._link, self._directory = link, directory
        self._environment = {
            **environment,
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "TMPDIR": str(directory),
        }

    def start(self) -> None:
        """See `Subject`."""
        self.stop()
        self._directory.mkdir()
        (self._directory / "containers.conf").write_text(_CONFIGURATION)

    def run(self, image: str, command: Sequence[str]) -> float:
        """See `Subject`."""
        words = self._podman("run", "--quiet", "--rm", "--tls-verify=false", "--network=none", _reference(image))
        return first_output_s([*words, *command], self._environment)

    def fill(self, image: str) -> None:
        """See `Subject`."""
        run(self._podman("pull", "--quiet", "--tls-verify=false", _reference(image)), self._environment)

    def mount(self, image: str, path: Path) -> None:
        """See `Subject`."""
        own = self._own(path)
        upper, work = own / "upper", own / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        mount_overlay(self._layers(image), upper, work, path)

    def unmount(self, path: Path) -> None:
        """See `Subject`."""
        run(["umount", path])
        shutil.rmtree(self._own(path))

    def stored(self) -> Path:
        """See `Subject`."""
        return self._directory

    def stop(self) -> None:
        """See `Subject`."""
        if (self._directory / "storage").exists():
            run(self._podman("system", "reset", "--force"), self._environment)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _podman(self, *words: str) -> list[str]:
        options = ("--root", str(self._directory / "storage"), "--runroot", str(self._directory / "run"))
        more = ("--tmpdir", str(self._directory / "tmp"), "--storage-driver", "overlay")
        return [*self._link.client, *_PRIVATELY, "podman", *options, *more, *words]

    def _own(self, path: Path) -> Path:
        return self._directory / "own" / os.fsencode(path.absolute()).hex()[-120:]

    def _layers(self, image: str) -> list[Path]:
        """The directories of an image's layers, uppermost first."""
        storage = self._directory / "storage"
        images = json.loads((storage / "overlay-images/images.json").read_text())
        layers = {one["id"]: one for one in json.loads((storage / "overlay-layers/layers.json").read_text())}
        names = {f"{HOST}/{image}:latest"}
        found = next((one for one in images if names & set(one.get("names", ()))), None)
        if found is None:
            raise BenchError(f"podman has no {image}")
        chain = []
        layer = found["layer"]
        while layer:
            chain.append(storage / "overlay" / layer / "diff")
            layer = layers[layer].get("parent", "")
        return chain


def mount_overlay(layers: Sequence[Path], upper: Path, work: Path, path: Path) -> None:
    """Mount plain overlayfs, as container engines do.

    Args:
        layers: uppermost first.
        upper: what is written.
        work: beside it.
        path: where.
    """
    lower = ":".join(str(layer) for layer in layers)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        call("mount", b"overlay", os.fsencode(path), b"overlay", ctypes.c_ulong(0), options.encode())
    except OSError as error:
        raise BenchError(f"overlayfs at {path}: {error.strerror}") from error


def _reference(image: str) -> str:
    return f"{HOST}/{image}:latest"
