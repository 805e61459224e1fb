"""What one more client costs in memory: processes that hold all pages of an image mapped, counted by the kernel.

PSS divides a page among the processes that map it, so the sum over all of them counts each page once. The pool has to
be in memory (tmpfs), as a service's is unless told otherwise: then its pages are those that the kernel counts as shared
memory, in all and exactly. (Of a single mapping it shows whole kilobytes: of a page of many processes that is none.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PROGRAM = """
import json, resource, sys
from pathlib import Path
import pagepool
from pagepool.image import Kind
from pagepool.vfs import ROOT

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
client = pagepool.Client(sys.argv[1], directory=Path(sys.argv[2]))
views = []
total = 0
for name in sys.argv[3:]:
    root = client.image(name).open()
    todo = [ROOT]
    while todo:
        for entry in root.fs.entries(todo.pop()):
            if entry.kind is Kind.DIRECTORY:
                todo.append(entry.ino)
            elif entry.kind is Kind.REGULAR:
                view = root.fs.read(entry.ino, 0, root.fs.attributes(entry.ino).size)
                total += sum(view[::4096])
                views.append(view)
print(total, flush=True)
sys.stdin.readline()
names = {"Pss:": "pss", "Anonymous:": "anonymous", "Pss_Shmem:": "pool"}
words = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()]
found = {names[one[0]]: int(one[1]) << 10 for one in words if one[0] in names}
print(json.dumps(found), flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of all clients together, bytes.

    Args:
        clients: how many there were.
        pool: pages of the pool, each counted once.
        heap: memory of their own: the interpreter's, the library's, and what a mapping takes.
        rest: other files that are mapped: the interpreter and its libraries.
    """

    clients: int
    pool: int
    heap: int
    rest: int


def measure_clients(url: str, directory: Path, names: Sequence[str], count: int) -> Footprint:
    """Run clients that read everything and keep it mapped.

    Raises:
        UnreachableError: one of them ended.
        CorruptError: they did not all read the same.
    """
    command = [sys.executable, "-c", _PROGRAM, url, str(directory), *names]
    with ExitStack() as stack:
        clients: list[subprocess.Popen[str]] = []
        for _ in range(count):
            one = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(one.kill)
            clients.append(one)
        if len({_line(one) for one in clients}) > 1:
            raise CorruptError("image", ", ".join(names), "clients read different bytes")
        for one in clients:
            _tell(one)
        said = [json.loads(_line(one)) for one in clients]
    pool = sum(one["pool"] for one in said)
    heap = sum(one["anonymous"] for one in said)
    return Footprint(count, pool, heap, sum(one["pss"] for one in said) - pool - heap)


def _line(one: subprocess.Popen[str]) -> str:
    line = one.stdout.readline() if one.stdout else ""
    if not line:
        raise UnreachableError("a client", "it ended")
    return line


def _tell(one: subprocess.Popen[str]) -> None:
    if one.stdin:
        one.stdin.write("\n")
        one.stdin.flush()
