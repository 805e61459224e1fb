"""What pushes and reads notice of a collection, beside the same pushes and reads without one, in the same run.

A service with some images; all but one are deleted. Then, for a while without a collection, and as long as one takes:
a client pushes small images, one after the other; one reads pages of the image that stays; and a third writes 4 KiB
into a file on the same disk and syncs it, which has nothing to do with the service: what the disk does to everybody.
The collection says itself for how long it held the lock that pushes wait for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.digest import Digest
from pagepool.errors import UnreachableError
from pagepool.library import Client
from pagepool_service.bench.figures import Figure
from pagepool_service.bench.servers import PAGEPOOL
from pagepool_service.bench.transfer import TAG, push_all
from pagepool_service.bench.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool_service.bench.images import SourceImage
    from pagepool_service.bench.servers import Launcher, Server

BOUND_S = 0.05
"""For how long a collection may keep anybody waiting."""
_GRACE_S = 10.0  # of the collection: a push that is under way when it begins keeps what it has brought so far
_PUSHED = 64 << 10  # bytes of a layer that is pushed meanwhile
_PAUSE_S = 0.005  # between two requests of a client
_PROBE_PAUSE_S = 0.05
_PAGE = 4096
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What to measure.

    Args:
        images: the first one stays.
        launcher: starts the service.
        environment: of the collection.
        directory: where to put everything meanwhile.
        quiet_s: for how long to look at pushes and reads without a collection.
        say: told what was done.
    """

    images: Sequence[SourceImage]
    launcher: Launcher
    environment: Mapping[str, str]
    directory: Path
    quiet_s: float
    say: Callable[[str], object]


@dataclass(slots=True)
class _Seen:
    """How long each request took, in seconds."""

    pushes: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    syncs: list[float] = field(default_factory=list)


def measure_collection(plan: CollectPlan) -> tuple[list[Figure], dict[str, Any]]:
    """Measure. Returns figures, and what the collection says of itself. Blocks for a minute or two."""
    with tempfile.TemporaryDirectory(prefix="pagepool-bench-", dir=plan.directory) as name:
        work = Path(name)
        with plan.launcher.run(PAGEPOOL, work / "pagepool") as server:
            push_all(server, plan.images)
            pushed = time.monotonic()
            plan.say(f"{len(plan.images)} images are there")
            pages = _pages(server, plan.images[0], work / "client")
            _delete(server, plan.images[1:])
            quiet, _ = _watch(server, pages, work, lambda: time.sleep(plan.quiet_s))
            plan.say(f"without a collection: {len(quiet.pushes)} images pushed")
            time.sleep(max(0.0, pushed + _GRACE_S - time.monotonic()))  # what is deleted must be older
            loaded, said = _watch(server, pages, work, lambda: _collect(server, plan.environment))
            plan.say(f"with one: {len(loaded.pushes)} images pushed in {said['seconds']:.1f} s")
    return list(_figures(quiet, loaded, said)), said


def _delete(server: Server, images: Sequence[SourceImage]) -> None:
    with Wire(server.host, server.port) as wire:
        for image in images:
            wire.request("DELETE", f"/v2/{image.name}/manifests/{Digest.of(image.manifest.raw)}").expect(202)


def _pages(server: Server, image: SourceImage, directory: Path) -> list[tuple[str, Mapping[str, str]]]:
    """Requests of pages, of files all over the image."""
    with Client(f"http://{server.host}:{server.port}", directory=directory, shared=False) as client:
        tree, release = client.image(f"{image.name}:{TAG}").open_tree()
        prefix = f"/v1/{image.name}/trees/blake3:{tree.tree.digest.hex()}/objects/"
        infos = [tree.tree.object(number) for number in range(tree.tree.object_count)]
        tree.close()
        release()
    header = {"Range": f"bytes=0-{_PAGE - 1}"}
    return [(prefix + info.digest.hex(), header) for info in infos if info.size >= _PAGE]


def _watch(
    server: Server, pages: list[tuple[str, Mapping[str, str]]], work: Path, act: Callable[[], Any]
) -> tuple[_Seen, Any]:
    """Do something while the three clients go on; what they saw, and what came of it."""
    seen, over = _Seen(), threading.Event()
    clients = (
        lambda: _push_on(server, seen.pushes, over),
        lambda: _read_on(server, pages, seen.reads, over),
        lambda: _sync_on(work / "probe", seen.syncs, over),
    )
    with ThreadPoolExecutor(len(clients)) as threads:
        running = [threads.submit(one) for one in clients]
        try:
            result = act()
        finally:
            over.set()
        for one in running:
            one.result()
    return seen, result


def _push_on(server: Server, took: list[float], over: threading.Event) -> None:
    """Push images of a config and a layer that nobody has, each request counted."""
    with Wire(server.host, server.port) as wire:

        def send(method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> str:
            begun = time.monotonic()
            answer = wire.request(method, url, headers, body).expect(201, 202)
            took.append(time.monotonic() - begun)
            return answer.headers.get("location", "")

        number = 0
        while not over.wait(_PAUSE_S):
            number += 1
            layer, config = os.urandom(_PUSHED), json.dumps({"number": os.urandom(8).hex()}).encode()
            for blob in (layer, config):
                location = send("POST", "/v2/meanwhile/blobs/uploads/")
                joint = "&" if "?" in location else "?"
                send("PUT", f"{location}{joint}digest=sha256:{hashlib.sha256(blob).hexdigest()}", blob)
            manifest = {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "config": _described(config, _CONFIG_TYPE),
                "layers": [_described(layer, _LAYER_TYPE)],
            }
            url = f"/v2/meanwhile/manifests/{number % 16}"
            send("PUT", url, json.dumps(manifest).encode(), {"Content-Type": _MANIFEST_TYPE})


def _described(blob: bytes, media_type: str) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(blob)}


def _read_on(
    server: Server, pages: list[tuple[str, Mapping[str, str]]], took: list[float], over: threading.Event
) -> None:
    with Wire(server.host, server.port) as wire:
        number = 0
        while not over.wait(_PAUSE_S):
            begun = time.monotonic()
            wire.request("GET", *pages[number % len(pages)]).expect(206)
            took.append(time.monotonic() - begun)
            number += 1


def _sync_on(path: Path, took: list[float], over: threading.Event) -> None:
    with path.open("wb", buffering=0) as file:
        while not over.wait(_PROBE_PAUSE_S):
            begun = time.monotonic()
            file.write(bytes(_PAGE))
            os.fdatasync(file.fileno())
            took.append(time.monotonic() - begun)


def _collect(server: Server, environment: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "pagepool.cli", "gc", "--data", str(server.data), "--json"]
    command += ["--grace", f"{_GRACE_S}s", "--untagged-older-than", "0"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnreachableError("pagepool gc", done.stderr[-1000:])
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _figures(quiet: _Seen, loaded: _Seen, said: Mapping[str, Any]) -> Iterator[Figure]:
    yield Figure("writer's lock held at most, ms", 1000 * said["longest_hold_s"], aim=1000 * BOUND_S, at_least=False)
    yield Figure("of that, at most, not its commit, ms", 1000 * said["longest_work_s"])
    for name, during, before in (
        ("a request of a push", loaded.pushes, quiet.pushes),
        ("a page read", loaded.reads, quiet.reads),
        ("4 KiB written and synced beside it", loaded.syncs, quiet.syncs),
    ):
        for share, word in ((0.5, "median"), (0.99, "99 %"), (1.0, "longest")):
            against = "without a collection"
            yield Figure(f"{name}, {word}, ms", 1000 * _at(during, share), 1000 * _at(before, share), against)
    yield Figure("given back, MB", said["punched_bytes"] / 1e6)


def _at(took: Sequence[float], share: float) -> float:
    """A quantile."""
    ordered = sorted(took)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
