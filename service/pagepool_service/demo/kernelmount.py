"""The demo's kernel mount: a node with everything it needs in namespaces of its own, and an image mounted by it.

    python -m pagepool_service.demo.kernelmount PARENT URL IMAGE STATE PROGRAM

A program of its own, started by `mount_by_kernel`. It leaves the mount namespace and becomes the first process of a new
process namespace. The node, which is made to outlive whoever started it, is below that: when the first process ends,
whatever it ends of, the kernel kills all others, and with the last one every mount, loop device and socket is gone.
What the node keeps on the disk is below STATE, which the demo removes.

Prints one JSON object: what was found, or ``{"error": why not}``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.container import linux
from pagepool.digest import Digest, blake3_raw
from pagepool.errors import DigestMismatchError, PagepoolError, UnsupportedError
from pagepool.image import Kind
from pagepool.image.treefile import ROOT, TreeFile
from pagepool.linux import mounts
from pagepool.linux.processes import die_with_parent
from pagepool.mount import kernel
from pagepool.node.client import NodeClient
from pagepool.node.places import NodePlaces
from pagepool.oci import Reference
from pagepool.samples.material import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACES: Final = ("/mnt", "/media", "/srv", "/opt")
_PLAIN: Final = mounts.MS_NOSUID | mounts.MS_NODEV
_TIMEOUT_S: Final = 60.0
_PROGRAM_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class KernelMounted:
    """What a kernel mount has shown.

    Args:
        backend: what it was made of, for people.
        files: read through it, each compared with its digest.
        bytes: of all of them.
        mount_s: seconds that mounting took, with a node that runs.
        program: path of a program of the image that was run from the mount; "" if there was none to run.
        said: its first line.
    """

    backend: str
    files: int
    bytes: int
    mount_s: float
    program: str
    said: str


def why_not(state: Path) -> str:
    """Why this user or kernel cannot do it; "" if it seems that they can."""
    if os.geteuid():
        return "it needs root"
    support = kernel.probe(state.parent)
    return "" if support.kernel else support.reason


def mount_by_kernel(url: str, reference: Reference, state: Path, *, run: bool) -> KernelMounted:
    """Mount an image by a node of its own, and read all of it. Blocks; nothing is mounted when it returns.

    Args:
        url: of the service.
        reference: of the image.
        state: directory for the node; made, and left to be removed.
        run: whether a program of the image may be run: on this machine as it is, so only if the image is of this
            machine's own files.

    Raises:
        UnsupportedError: this user or kernel cannot do it; the text says why.
        DigestMismatchError: a file is not what its image says.
    """
    words = [str(os.getpid()), url, str(reference), str(state), "run" if run else ""]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAGEPOOL_")}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pagepool_service.demo.kernelmount", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"it took more than {_TIMEOUT_S:.0f} s") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()
        raise UnsupportedError(said[-1] if said else f"it ended with {done.returncode}") from None
    if "mismatch" in found:
        expected, got, size = found["mismatch"]
        raise DigestMismatchError(Digest.parse(expected), Digest.parse(got), size)
    if "error" in found:
        raise UnsupportedError(str(found["error"]))
    return KernelMounted(**found)


def main(words: list[str]) -> int:
    """The program: see above."""
    die_with_parent(int(words[0]))
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    parent = os.getpid()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if not Path(f"/proc/{parent}").exists():  # still the /proc of outside
        return 1
    url, image, state, run = words[1:]
    try:
        found = asdict(_go(url, Reference.parse(image), Path(state), run=bool(run)))
    except DigestMismatchError as error:
        found = {"mismatch": [str(error.expected), str(error.got), error.size]}
    except (PagepoolError, OSError, subprocess.SubprocessError) as error:
        found = {"error": " ".join(str(error).split())}
    print(json.dumps(found), flush=True)
    return 0


def _go(url: str, reference: Reference, state: Path, *, run: bool) -> KernelMounted:
    top = _private_place()
    node = NodeClient(NodePlaces(state, top / "run"))
    point = top / "image"
    point.mkdir()
    node.ensure()
    begin = time.perf_counter()
    with node.mount(url, reference, point) as mounted:
        mount_s = time.perf_counter() - begin
        node.fill(str(point))
        tree = TreeFile.open(node.places.tree_files / mounted.fields["tree"])
        files = size = 0
        programs: dict[str, Path] = {}
        for path, number in _files(tree):
            size += _compare(tree, number, point / os.fsdecode(path))
            files += 1
            if path.rpartition(b"/")[0].endswith(b"bin"):
                programs.setdefault(os.fsdecode(path.rpartition(b"/")[2]), point / os.fsdecode(path))
        tree.close()
        program, said = _run(programs) if run else ("", "")
    return KernelMounted(
        kernel.probe(state).reason, files, size, mount_s, program and f"/{Path(program).relative_to(point)}", said
    )


def _private_place() -> Path:
    """A file system in memory that only these namespaces have. Its path is short: a socket will be in it."""
    mounts.make_private()
    mounts.mount("proc", "/proc", "proc", _PLAIN)
    if Path("/sys/fs/cgroup").is_dir():
        mounts.mount("none", "/sys/fs/cgroup", "tmpfs", _PLAIN)  # or the node's control group would stay
    used = [*sys.path, sys.executable, sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(Path.cwd())]
    for place in _PLACES:
        if Path(place).is_dir() and not any(entry == place or entry.startswith(f"{place}/") for entry in used):
            mounts.mount("none", place, "tmpfs", _PLAIN)
            return Path(place)
    raise UnsupportedError(f"none of {', '.join(_PLACES)} is there and free")


def _files(tree: TreeFile) -> Iterator[tuple[bytes, int]]:
    """Path and node of every regular file with content."""
    todo = [(b"", ROOT)]
    while todo:
        above, directory = todo.pop()
        for name, number in tree.entries(directory):
            path = above + b"/" + name if above else name
            if tree.kind(number) is Kind.DIRECTORY:
                todo.append((path, number))
            elif tree.kind(number) is Kind.REGULAR:
                yield path, number


def _compare(tree: TreeFile, number: int, path: Path) -> int:
    data = path.read_bytes()
    node = tree.node(number)
    if node.object < 0:
        return 0
    expected, got = tree.object(node.object).digest, blake3_raw(data)
    if expected != got:
        raise DigestMismatchError(Digest("blake3", expected), Digest("blake3", got), len(data))
    return len(data)


def _run(programs: dict[str, Path]) -> tuple[str, str]:
    """Run one of the image's programs from where it is mounted, with this machine's libraries."""
    for name in PROGRAMS:
        program = programs.get(name)
        if program is None or not os.access(program, os.X_OK):
            continue
        done = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROGRAM_TIMEOUT_S,
            check=False,
        )
        if done.returncode == 0:
            return str(program), next((line for line in done.stdout.splitlines() if line.strip()), "")
    return "", ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
