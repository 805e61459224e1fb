"""Reading: pages in this process and over HTTP, whole images out of a server, and clients' memory; one run of all.

Each figure has its counterpart from the same run: a plain file, an application that does nothing, docker-registry, a
plain directory. Everything is local and temporary.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pagepool.errors import UnsupportedError
from pagepool.library import Client
from pagepool.linux.processes import process_tree
from pagepool_service.bench import clients, localreads, streams
from pagepool_service.bench.figures import Figure
from pagepool_service.bench.fusereads import measure_mount
from pagepool_service.bench.pagereads import bare_server, measure_reads, page_request, warm
from pagepool_service.bench.servers import PAGEPOOL, PEER, Launcher, Server
from pagepool_service.bench.transfer import push_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pagepool.image.treefile import TreeFile
    from pagepool_service.bench.images import SourceImage

MB = 1e6
MIB = float(1 << 20)
TAG = "bench"
_SECONDS = 1.0
_PAGE_ROUNDS = 5
_STREAM_ROUNDS = 7
_COLD_ROUNDS = 3
_MOST_PATHS = 512


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What to measure.

    Args:
        images: two that overlap; the first one is read alone.
        count: clients for the figure of their memory.
        peer: whether docker-registry is there.
        launcher: starts the servers.
        directory: where to put everything meanwhile.
        say: told what was done.
    """

    images: tuple[SourceImage, SourceImage]
    count: int
    peer: bool
    launcher: Launcher
    directory: Path
    say: Callable[[str], object]


def measure(plan: ReadPlan) -> list[Figure]:
    """Measure everything. Blocks for a minute or two."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="pagepool-bench-", dir=plan.directory) as name:
        work = Path(name)
        with plan.launcher.run(PAGEPOOL, work / "pagepool") as server:
            push_all(server, plan.images)
            url = f"http://{server.host}:{server.port}"
            with Client(url, directory=work / "client", shared=False) as client:
                tree, release = client.image(f"{plan.images[0].name}:{TAG}").open_tree()
                for part in (_local, _over_http, _streams, _cold, _fuse, _memory):
                    figures += part(plan, server, client, tree.tree, work)
                    plan.say(f"{part.__name__.strip('_').replace('_', ' ')}: done")
                tree.close()
                release()
    return figures


def _local(plan: ReadPlan, _server: Server, client: Client, _tree: TreeFile, work: Path) -> Iterator[Figure]:
    image = client.image(f"{plan.images[0].name}:{TAG}")
    image.fill()
    with image.open() as root:
        times = localreads.measure_pages(root, work / "plain")
    plain = "os.pread of a plain file"
    yield Figure("hot 4 KiB read in process, pread, ns", times.pread, times.plain, plain, 1.0, at_least=False)
    yield Figure("hot 4 KiB read in process, view, ns", times.view, times.plain, plain, 1.0, at_least=False)
    yield Figure("of the plain file's own mapping, ns", times.plain_mapped, times.plain, plain)


def _over_http(plan: ReadPlan, server: Server, _client: Client, tree: TreeFile, _work: Path) -> Iterator[Figure]:
    """Pages of many objects, on one worker, and the other application in turns with it: machines change their speed."""
    worker = _worker(server.pid)
    prefix = f"/v1/{plan.images[0].name}/trees/blake3:{tree.digest.hex()}/objects/"
    infos = [tree.object(index) for index in range(tree.object_count)]
    # All answers have to be equally long, and the object's size is in a header.
    small = [info for info in infos if 10_000 <= info.size < 100_000][:_MOST_PATHS]
    requests = [page_request(f"{prefix}{info.digest.hex()}", 0) for info in small]
    warm(server.host, server.port, requests)
    with bare_server() as (host, port, pid):
        turns = [
            (
                measure_reads(server.host, server.port, worker, requests, _SECONDS),
                measure_reads(host, port, pid, [page_request("/")], _SECONDS),
            )
            for _ in range(_PAGE_ROUNDS)
        ]
    pages, against = sorted(turns, key=lambda turn: turn[0].per_core / turn[1].per_core)[len(turns) // 2]
    name = "4 KiB object reads over HTTP, a second of processor time"
    yield Figure(name, pages.per_core, against.per_core, "bare uvicorn application", 0.7)
    yield Figure("the same, a second on the clock", pages.per_second, against.per_second, "bare uvicorn application")


def _streams(plan: ReadPlan, server: Server, _client: Client, tree: TreeFile, work: Path) -> Iterator[Figure]:
    image = plan.images[0]
    if not plan.peer:
        alone = streams.median_of([streams.stream_extents(server, image.name, tree) for _ in range(_STREAM_ROUNDS)])
        yield Figure("extents stream, plain MB/s", alone.plain_rate / MB)
        return
    with plan.launcher.run(PEER, work / "peer") as peer:
        push_all(peer, [image])
        plain = _plain_size(image)
        turns = [
            (streams.stream_extents(server, image.name, tree), streams.fetch_layers(peer, image, plain))
            for _ in range(_STREAM_ROUNDS)
        ]
    best, theirs = (streams.median_of(found) for found in zip(*turns, strict=True))
    yield Figure("extents stream, plain MB/s", best.plain_rate / MB, theirs.wire_rate / MB, f"{PEER}, blob MB/s", 1.0)
    yield Figure("the same", best.plain_rate / MB, theirs.plain_rate / MB, f"{PEER}, plain MB/s of its blobs")
    yield Figure("bytes on the wire, MB", best.wire / MB, theirs.wire / MB, f"{PEER}'s blobs")


def _cold(plan: ReadPlan, server: Server, _client: Client, tree: TreeFile, work: Path) -> Iterator[Figure]:
    """All of an image by a client that has nothing: verified and in its pool; beside `tar` unpacking plain layers."""
    times = []
    for number in range(_COLD_ROUNDS):
        url = f"http://{server.host}:{server.port}"
        with Client(url, directory=work / f"cold-{number}", shared=False) as client:
            begun = time.monotonic()
            client.image(f"{plan.images[0].name}:{TAG}").fill()
            times.append(time.monotonic() - begun)
    ours = tree.object_bytes / median(times) / MB
    unpacked = tree.object_bytes / _unpack_s(plan.images[0], work / "unpacked") / MB
    against = "tar xzf of its layers, no network"
    yield Figure("cold read of a whole image over HTTP, plain MB/s", ours, unpacked, against)


def _fuse(plan: ReadPlan, _server: Server, _client: Client, _tree: TreeFile, work: Path) -> Iterator[Figure]:
    directory = work / "fuse"
    directory.mkdir()
    try:
        found = measure_mount(directory)
    except (UnsupportedError, OSError) as error:
        plan.say(f"no figures of a FUSE mount: {error}")
        return
    for pair in found.pairs:
        hot = pair.name.startswith("hot")
        against = "a plain directory"
        # As a rate: within 1.2 of the time is at least 1 / 1.2 of the speed.
        yield Figure(f"FUSE, {pair.name}", pair.mount, pair.plain, against, round(1 / 1.2, 3) if hot else None)
        if pair.peer is not None:
            yield Figure("the same", pair.mount, pair.peer, "squashfuse, a FUSE file system in C")


def _memory(plan: ReadPlan, server: Server, _client: Client, _tree: TreeFile, work: Path) -> Iterator[Figure]:
    names = [f"{image.name}:{TAG}" for image in plan.images]
    url = f"http://{server.host}:{server.port}"
    found = clients.measure_clients(url, work / "client", names, plan.count)
    unique = _unique(url, work / "client", names)
    yield Figure(
        f"pages of two images, {found.clients} clients, MiB", found.pool / MIB, unique / MIB, "unique bytes", 1.1, False
    )
    rest = found.rest / found.clients / MIB
    yield Figure("a client beyond its heap and those pages, MiB", rest, aim=2.0, at_least=False)
    yield Figure("a client's heap, MiB", found.heap / found.clients / MIB)


def _unique(url: str, directory: Path, names: Sequence[str]) -> int:
    sizes: dict[bytes, int] = {}
    with Client(url, directory=directory) as client:
        for name in names:
            fs, release = client.image(name).open_tree()
            sizes |= {info.digest: info.size for info in map(fs.tree.object, range(fs.tree.object_count))}
            fs.close()
            release()
    return sum(sizes.values())


def _unpack_s(image: SourceImage, target: Path) -> float:
    begun = time.monotonic()
    target.mkdir()
    for layer in image.layers:
        subprocess.run(["tar", "-xzf", str(layer.path), "-C", str(target)], check=True)
    return time.monotonic() - begun


def _plain_size(image: SourceImage) -> int:
    """Bytes of an image's plain layers: gzip's own count, modulo 4 GiB."""
    total = 0
    for layer in image.layers:
        with layer.path.open("rb") as file:
            file.seek(-4, 2)
            total += int.from_bytes(file.read(4), "little")
    return total


def _worker(pid: int) -> int:
    """The only worker of a supervisor, which forks it first."""
    return min(child for child in process_tree(pid) if child != pid)
