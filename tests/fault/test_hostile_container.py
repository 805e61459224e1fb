"""Root in a container tries to write into the node's pool: the bytes stay as they are, whatever it does.

`attacks.py` runs in the container; here is what it may know, how the container is started, and what is compared. What
would suffice is tried, too, so that docs/security.md does not claim too much.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.node.client import KernelMountOptions
from pagepool.node.worker import WorkerOptions
from tests.fault.test_node import contents, point, push
from tests.support.cli import environment
from tests.support.nodeserver import running_node
from tests.support.podman import own_storage
from tests.support.pythonroot import python_root
from tests.support.server import Service, running_service
from tests.support.tools import require, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.node.client import NodeClient
    from pagepool.oci import Reference

_ATTACKS = Path(__file__).with_name("attacks.py")
_FILES = contents(31, 3, 40_000)
_HARMLESS = {"descriptor_reopened", "memory_file", "flags"}
"""What a container may do to a copy of its own, or to its own memory."""
_MOST_HANDLE = 128


@dataclass(frozen=True, slots=True)
class Place:
    """A node with an image that has Python, the attacks, and files that are in the pool."""

    service: Service
    node: NodeClient
    reference: Reference

    @property
    def objects(self) -> dict[str, str]:
        """SHA-256 of every object of the pool, by name."""
        found = (path for path in self.node.places.objects.rglob("*") if path.is_file())
        return {str(path.relative_to(self.node.places.objects)): _hash(path) for path in found}

    @property
    def target(self) -> Path:
        """The object that is attacked: that of /data/g."""
        wanted = hashlib.sha256(_FILES["d1/f1"]).hexdigest()
        (name,) = [name for name, digest in self.objects.items() if digest == wanted]
        return self.node.places.objects / name

    def known(self) -> str:
        """What the attacker knows."""
        places = self.node.places
        return json.dumps(
            {
                "handle": handle_of(self.target).hex(),
                "object": str(self.target.relative_to(places.objects)),
                "device": str(self.target.stat().st_dev),
                "paths": f"{places.state}:{places.run}:{places.objects}:{self.service.data}",
            }
        )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def handle_of(path: Path) -> bytes:
    """A file's handle: type, and bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(struct.pack("Ii", _MOST_HANDLE, 0), 8 + _MOST_HANDLE)
    mount = ctypes.c_int()
    assert libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    size, kind = struct.unpack_from("Ii", buffer)
    return struct.pack("<i", kind) + buffer.raw[8 : 8 + size]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all: what one container did wrong would be seen by the next."""
    require("runc")
    directory = tmp_path_factory.mktemp("hostile")
    files = python_root() | {"attacks.py": _ATTACKS.read_bytes(), "volume/none": b"", "tmp/none": b""}
    files |= {"data/f": _FILES["d0/f0"], "data/g": _FILES["d1/f1"], "data/h": _FILES["d2/f2"]}
    with (
        running_service(directory / "data") as service,
        running_node(directory, WorkerOptions(fill=False, profiles=False)) as node,
    ):
        reference = push(service, "hostile", files)
        at = point(directory)
        with node.mount(service.url, reference, at):
            assert all((at / path).read_bytes() == data for path, data in files.items())
            yield Place(service, node, reference)


def start(place: Place, *options: str, descriptors: tuple[int, ...] = ()) -> dict[str, str]:
    """What came of the attacks in a container that `pagepool run` starts, without the filter of system calls: what
    else there is has to do."""
    places = place.node.places
    given = environment() | {
        "PAGEPOOL_NODE_RUN": str(places.run),
        "PAGEPOOL_NODE_STATE": str(places.state),
        "PAGEPOOL_SERVER": place.service.url,
        "PAGEPOOL_BACKEND": "kernel",
    }
    command = [sys.executable, "-m", "pagepool.cli", "run", "--security-opt", "seccomp=unconfined"]
    command += [*options, str(place.reference), "--"]
    command += ["/usr/bin/python3", "/attacks.py", place.known()]
    done = subprocess.run(
        command, env=os.environ | given, pass_fds=descriptors, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def succeeded(outcome: dict[str, str]) -> dict[str, str]:
    """The attacks that were not refused."""
    print(json.dumps(outcome, indent=1))
    return {name: what for name, what in outcome.items() if not what.startswith("refused")}


@pytest.mark.parametrize("runtime", ["runc", "own"])
def test_root_in_a_container(place: Place, runtime: str) -> None:
    """With what `pagepool run` gives to root, and with descriptors of the pool open in whoever started it."""
    before = place.objects
    reading, directory = os.open(place.target, os.O_RDONLY), os.open(place.node.places.objects, os.O_RDONLY)
    try:
        found = succeeded(start(place, "--runtime", runtime, descriptors=(reading, directory)))
    finally:
        os.close(reading)
        os.close(directory)
    assert found.pop("descriptors_inherited") == "inherited []"
    assert set(found) <= _HARMLESS
    assert place.objects == before


def test_the_pool_is_no_volume_to_write_to(place: Place) -> None:
    """`pagepool run` does not take it; read-only it may be seen, and stays so."""
    before = place.objects
    objects = place.node.places.objects
    found = succeeded(start(place, "-v", f"{objects}:/volume:ro"))
    assert found.pop("descriptors_inherited") == "inherited []"
    assert set(found) <= _HARMLESS
    with pytest.raises(AssertionError, match="is a pool's: give it with :ro"):
        start(place, "-v", f"{objects}:/volume")
    assert place.objects == before


def test_podman_on_a_mount(place: Place, tmp_path: Path) -> None:
    """Another engine, whose containers have the mount as their root."""
    before = place.objects
    at = point(tmp_path)
    with (
        own_storage() as storage,
        place.node.mount(place.service.url, place.reference, at, KernelMountOptions(temporary=True)),
    ):
        said = storage.podman(
            *("run", "--rm", "--network", "none", "--rootfs", str(at)), "/usr/bin/python3", "/attacks.py", place.known()
        )
    found = succeeded(json.loads(said))
    assert found.pop("descriptors_inherited", "inherited []") == "inherited []"
    assert set(found) <= _HARMLESS
    assert place.objects == before


def bundle(place: Place, root: Path, directory: Path, capabilities: list[str], volume: str = "") -> list[str]:
    """A bundle for runc, with docker's capabilities and these; how to run it."""
    run(["runc", "spec", "-b", directory])
    path = directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["root"] = {"path": str(root), "readonly": False}
    config["process"] |= {"terminal": False, "args": ["/usr/bin/python3", "/attacks.py", place.known()]}
    given = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETFCAP", "CAP_SYS_CHROOT", *capabilities]
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), given)
    config["process"].pop("rlimits", None)
    if volume:
        source, _, mode = volume.partition(":")
        options = ["rbind", "ro"] if mode == "ro" else ["rbind", "rw"]
        config["mounts"].append({"destination": "/volume", "type": "bind", "source": source, "options": options})
    path.write_text(json.dumps(config))
    return ["runc", "--root", str(directory / "state"), "run", "-b", str(directory), f"hostile-{os.getpid()}"]


@pytest.fixture
def root(place: Place, tmp_path: Path) -> Iterator[Path]:
    """A mount for a container of runc."""
    at = point(tmp_path)
    with place.node.mount(place.service.url, place.reference, at, KernelMountOptions(temporary=True)):
        yield at


@pytest.mark.parametrize(
    "capabilities", [["CAP_SYS_ADMIN"], ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]]
)
def test_more_capabilities_without_a_volume(place: Place, root: Path, tmp_path: Path, capabilities: list[str]) -> None:
    """Mounts of its own do not lead below the overlay: no mount of the pool's file system is in sight."""
    before = place.objects
    directory = tmp_path / "bundle"
    directory.mkdir()
    found = succeeded(json.loads(run(bundle(place, root, directory, capabilities))))
    assert not {"handle", "paths", "device", "volume", "other_processes"} & set(found)
    assert place.objects == before


def test_what_suffices(place: Place, root: Path, tmp_path: Path) -> None:
    """CAP_DAC_READ_SEARCH and any volume of the pool's file system that can be written to: docs/security.md says so."""
    victim = place.target
    kept = victim.read_bytes()
    with tempfile.TemporaryDirectory(dir=place.node.places.state) as beside:
        directory = tmp_path / "bundle"
        directory.mkdir()
        command = bundle(place, root, directory, ["CAP_DAC_READ_SEARCH"], f"{beside}:rw")
        try:
            found = succeeded(json.loads(run(command)))
            assert found["handle"] == "opened over /volume"
            assert victim.read_bytes()[:4] == b"evil"
        finally:
            victim.chmod(0o644)
            victim.write_bytes(kept)
            victim.chmod(0o444)


def test_a_read_only_volume_of_the_pool(place: Place, root: Path, tmp_path: Path) -> None:
    """Holds against docker's capabilities; with CAP_SYS_ADMIN it is made writable."""
    before = place.objects
    directory = tmp_path / "bundle"
    directory.mkdir()
    found = succeeded(json.loads(run(bundle(place, root, directory, [], f"{place.node.places.objects}:ro"))))
    assert not {"handle", "volume", "volume_flags", "remount"} & set(found)
    assert place.objects == before
