"""Collection under load: pushes, deletions, pulls and mounts, with collection running all the time, and being killed.

For PAGEPOOL_COLLECT_MINUTES (a few seconds by default); PAGEPOOL_COLLECT_SEED is another run. Afterwards everything
that is referred to is whole, everything else is gone, and the database takes hardly more of the disk than one into
which the same images were pushed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.mount import kernel
from pagepool.node.client import KernelMountOptions
from pagepool.node.worker import WorkerOptions
from pagepool.oci import Reference
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.store import Store
from tests.fault.pushing import CONFIG, LAYER, MANIFEST, digest_of, make_layer, read_image, real_files
from tests.service.pushes import push_image
from tests.store.collecting import keys
from tests.support.nodeserver import running_node
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.node.client import NodeClient

MINUTES = float(os.environ.get("PAGEPOOL_COLLECT_MINUTES", "0.06"))
SEED = os.environ.get("PAGEPOOL_COLLECT_SEED", "1")
LAYERS, TAGS, LARGE = (30, 8, 0) if MINUTES < 1 else (160, 24, 3 << 20)
PUSHERS = 2
GRACE_S = 1.5 if MINUTES < 1 else 6.0
ALLOWED = 1.05
KEPT = 512 << 10 if MINUTES < 1 else 0  # what is left to LMDB counts beside a store of two megabytes


@dataclass
class Load:
    """What all threads share: the service, what is there, and what went wrong."""

    service: Service
    layers: list[tuple[bytes, str]]
    live: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (repository, tag) -> manifest
    configs: dict[str, bytes] = field(default_factory=dict)
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    longest_hold_s: float = 0.0

    def is_enough(self) -> bool:
        """Whether as much was done as shows anything."""
        return self.done["pushes"] > 5 and self.done["collections by command"] + self.done["collectors killed"] > 0

    def change(self, key: tuple[str, str], manifest: bytes | None) -> None:
        """A tag is about to change, or has changed."""
        with self.lock:
            self.changes[key] += 1
            if manifest is None:
                self.live.pop(key, None)
            else:
                self.live[key] = manifest

    def look(self, key: tuple[str, str]) -> tuple[int, bytes | None]:
        """How often a tag has changed, and what it is."""
        with self.lock:
            return self.changes[key], self.live.get(key)

    def run(self, act: Callable[[Load, random.Random], None], name: str) -> threading.Thread:
        """Do something again and again, in a thread, until the end."""

        def work() -> None:
            randomness = random.Random(f"{SEED} {name}")
            try:
                while not self.ended.is_set() and not self.wrong:
                    act(self, randomness)
            except Exception as error:  # noqa: BLE001  (told by the test)
                self.wrong.append(f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread


def push_blob(http: httpx.Client, repository: str, blob: bytes) -> bool:
    """As clients do: look first, and upload what is not there. Returns whether it was."""
    digest = digest_of(blob)
    if http.head(f"/v2/{repository}/blobs/{digest}").status_code == 200:
        return True
    answer = http.post(f"/v2/{repository}/blobs/uploads/")
    assert answer.status_code == 202, answer.text
    location = answer.headers["location"]
    answer = http.put(f"{location}{'&' if '?' in location else '?'}digest={digest}", content=blob)
    assert answer.status_code == 201, answer.text
    return False


def manifest_of(layers: list[tuple[bytes, str]], note: str) -> tuple[bytes, bytes]:
    """A manifest and its configuration."""
    rootfs = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "of": note, "rootfs": rootfs}).encode()
    entries = [{"mediaType": LAYER, "digest": digest_of(blob), "size": len(blob)} for blob, _ in layers]
    entry = {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)}
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": entries}
    return json.dumps(body).encode(), config


def push(load: Load, http: httpx.Client, repository: str, tag: str, layers: list[tuple[bytes, str]]) -> None:
    """Push an image. A blob that was found may only go if the manifest is late."""
    manifest, config = manifest_of(layers, f"{repository}:{tag} {load.done['pushes']}")
    load.configs[digest_of(config)] = config
    load.change((repository, tag), None)
    for _ in range(5):
        began = time.monotonic()
        for blob in (config, *(blob for blob, _ in layers)):
            load.done["blobs found"] += push_blob(http, repository, blob)
        answer = http.put(f"/v2/{repository}/manifests/{tag}", content=manifest, headers={"Content-Type": MANIFEST})
        if answer.status_code == 201:
            load.change((repository, tag), manifest)
            load.done["pushes"] += 1
            return
        assert time.monotonic() - began > GRACE_S / 2, f"{repository}:{tag}: {answer.text}"
    raise AssertionError(f"{repository}:{tag} could not be pushed")


def pushing(repository: str) -> Callable[[Load, random.Random], None]:
    def act(load: Load, randomness: random.Random) -> None:
        with httpx.Client(base_url=load.service.url, timeout=60) as http:
            tag = f"t{randomness.randrange(TAGS)}"
            if randomness.random() < 0.35:
                delete(load, http, repository, tag)
            else:
                push(load, http, repository, tag, randomness.sample(load.layers, randomness.randrange(1, 4)))

    return act


def delete(load: Load, http: httpx.Client, repository: str, tag: str) -> None:
    _, manifest = load.look((repository, tag))
    if manifest is not None:
        load.change((repository, tag), None)
        answer = http.delete(f"/v2/{repository}/manifests/{digest_of(manifest)}")
        assert answer.status_code == 202, answer.text
        load.done["deletions"] += 1


def pulling(load: Load, randomness: random.Random) -> None:
    with load.lock:
        known = list(load.live)
    if not known:
        time.sleep(0.05)
        return
    key = randomness.choice(known)
    before = load.look(key)
    if before[1] is None:
        return
    try:
        with httpx.Client(base_url=load.service.url, timeout=60) as http:
            assert read_image(http, *key) == before[1]
        load.done["pulls"] += 1
    except (AssertionError, httpx.HTTPError) as error:
        if load.look(key) == before:  # else it was deleted or replaced while it was read
            load.wrong.append(f"pull of {key}: {error}")


def mounting(node: NodeClient, directory: Path) -> Callable[[Load, random.Random], None]:
    """Mount an image by the kernel, delete it, and read it: the node's lease keeps it."""

    def act(load: Load, randomness: random.Random) -> None:
        number = load.done["mounts"]
        files = {f"f{place}": randomness.randbytes(40_000 + place) for place in range(20)}
        name, at = f"mounted/{number}", directory / f"at{number}"
        at.mkdir()
        with httpx.Client(base_url=load.service.url, timeout=60) as http:
            digest = push_image(http, name, "1", files)
            with node.mount(load.service.url, Reference.parse(f"{name}:1"), at, KernelMountOptions(fill=False)):
                _await_lease(load, name)
                assert http.delete(f"/v2/{name}/manifests/{digest}").status_code == 202
                pause = min(2 * GRACE_S, 60 * MINUTES / 3) / len(files)
                for path, content in files.items():
                    assert (at / path).read_bytes() == content, f"{name}: {path}"
                    load.ended.wait(pause)
        load.done["mounts"] += 1

    return act


def _await_lease(load: Load, name: str) -> None:
    """A node asks for its lease behind the mount."""
    deadline = time.monotonic() + 60
    while True:
        with Store.open(load.service.data, readonly=True, shared=True) as store, store.env.read() as txn:
            if any(lease.repository == name for lease, _ in store.leases.roots(txn)):
                return
        assert time.monotonic() < deadline, f"no lease on {name}"
        time.sleep(0.05)


def collecting(load: Load, randomness: random.Random) -> None:
    """The command beside the service; now and then it is killed, or the service's collector is."""
    process = command(load.service.data, "--grace", f"{GRACE_S}s", "--untagged-older-than", f"{GRACE_S}s")
    if randomness.random() < 0.4:
        time.sleep(0.4 + randomness.random())
        # Whoever holds the lock now: the command, or the process of the service, which is started again.
        with contextlib.suppress(ValueError, ProcessLookupError, FileNotFoundError):
            holder = int((load.service.data / "collection.lock").read_text())
            if holder in (process.pid, *load.service.children()):
                os.kill(holder, signal.SIGKILL)
                load.done["collectors killed"] += 1
    out, err = process.communicate(timeout=120)
    if process.returncode == 0:
        told = json.loads(out)
        load.longest_hold_s = max(load.longest_hold_s, told["longest_hold_s"])
        load.done["collections by command"] += 1
        load.done["frames freed by command"] += told["freed"].get("frames", 0) + told["frames_compacted"]
        if told["problems"]:
            load.wrong.append(f"gc: {told['problems']}")
    elif process.returncode != -signal.SIGKILL:
        load.wrong.append(f"gc ended with {process.returncode}: {err.decode()[-2000:]}")


def command(data: Path, *options: str) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAGEPOOL_")}
    argv = [sys.executable, "-m", "pagepool.cli", "gc", "--data", str(data), "--json", *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept)


@pytest.mark.timeout(300 + 120 * MINUTES)
def test_collection_under_load(tmp_path: Path) -> None:
    print(f"PAGEPOOL_COLLECT_SEED={SEED} PAGEPOOL_COLLECT_MINUTES={MINUTES}")
    randomness = random.Random(SEED)
    settings = {
        "PAGEPOOL_GC": "yes",
        "PAGEPOOL_GC_INTERVAL": "0.3",
        "PAGEPOOL_GC_GARBAGE": "0",
        "PAGEPOOL_GC_GRACE": f"{GRACE_S}s",
        "PAGEPOOL_GC_UNTAGGED": f"{GRACE_S}s",
        "PAGEPOOL_CACHE_SIZE": "8MB",
    }
    with running_service(tmp_path / "data", "--workers", "2", **settings) as service, contextlib.ExitStack() as stack:
        load = Load(service, [_make_layer(randomness) for _ in range(LAYERS)])
        threads = [load.run(pushing(f"load/{number}"), f"pusher {number}") for number in range(PUSHERS)]
        threads += [load.run(pulling, f"puller {number}") for number in range(2)]
        threads.append(load.run(collecting, "collector"))
        if _can_mount():
            node = stack.enter_context(running_node(tmp_path, WorkerOptions(timeout_s=20.0, fill=False)))
            threads.append(load.run(mounting(node, tmp_path), "mounter"))
        end = time.monotonic() + 60 * MINUTES
        # Longer on a busy machine, on which next to nothing was done by then.
        while time.monotonic() < end + (0 if load.is_enough() else 60) and not load.wrong:
            time.sleep(0.1)
        _await_end(load, threads)
        if load.wrong:
            print(service.log()[-20000:])
        assert load.wrong == []
        stack.close()
        _await_jobs(service)
        final = _collect_all(service)
        print(dict(load.done), f"longest hold of the command {1000 * load.longest_hold_s:.0f} ms", final)
        with httpx.Client(base_url=service.url, timeout=60) as http:
            for (repository, tag), manifest in load.live.items():
                assert read_image(http, repository, tag) == manifest
        assert service.faults() == ""
    assert load.is_enough()
    assert MINUTES < 1 or load.done["frames freed by command"] > 0
    _check_exact(tmp_path / "data", load)
    report = check_store(tmp_path / "data")
    assert report.problems == []
    assert report.notes == []
    _compare_with_fresh(tmp_path, load)


def test_a_service_collects_by_itself(tmp_path: Path) -> None:
    """Nobody asks for it: what was deleted goes, what has a tag stays, and the disk has its space back."""
    settings = {"PAGEPOOL_GC": "yes", "PAGEPOOL_GC_INTERVAL": "0.2", "PAGEPOOL_GC_GARBAGE": "0"}
    settings |= {"PAGEPOOL_GC_GRACE": "0.5s", "PAGEPOOL_GC_UNTAGGED": "0.5s"}
    with running_service(tmp_path / "data", **settings) as service, httpx.Client(base_url=service.url) as http:
        push_image(http, "kept", "1", {"kept": os.urandom(300_000)})
        gone = push_image(http, "gone", "1", {"gone": os.urandom(8 << 20)})
        _await_jobs(service)
        file = service.data / "store" / "data.mdb"
        before = file.stat().st_blocks * 512
        assert http.delete(f"/v2/gone/manifests/{gone}").status_code == 202
        deadline = time.monotonic() + 60
        while file.stat().st_blocks * 512 > before - (8 << 20):
            assert time.monotonic() < deadline, service.log()
            time.sleep(
                1.0
            )  # longer than what was deleted is kept; a store that nobody writes to is looked at each hour
            push_image(http, "kept", "2", {"kept": os.urandom(1000)})
        assert http.get("/v1/stats").json()["total"]["last_collection"]["ended"]
        assert read_image(http, "kept", "1")
        assert service.faults() == ""


def _make_layer(randomness: random.Random) -> tuple[bytes, str]:
    """A layer that shares files with others; in a long run, with a large one of its own, or of some others'."""
    if not LARGE:
        return make_layer(randomness)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in randomness.sample(real_files(), 40):
            member = tarfile.TarInfo(str(path).lstrip("/"))
            member.size = path.stat().st_size
            archive.addfile(member, io.BytesIO(path.read_bytes()))
        member = tarfile.TarInfo("large")
        content = random.Random(randomness.randrange(2 * LAYERS)).randbytes(randomness.randrange(LARGE))
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    tar = out.getvalue()
    return (gzip.compress(tar, 1, mtime=0) if randomness.random() < 0.5 else tar), digest_of(tar)


def _await_end(load: Load, threads: list[threading.Thread]) -> None:
    load.ended.set()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), thread.name


def _can_mount() -> bool:
    return os.geteuid() == 0 and bool(kernel.probe(Path("/tmp")).kernel)


def _await_jobs(service: Service) -> None:
    deadline = time.monotonic() + 120
    with httpx.Client(base_url=service.url, timeout=60) as http:
        while http.get("/v1/stats").json()["total"]["jobs_waiting"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _collect_all(service: Service) -> dict[str, Any]:
    """Twice: what a job of a layer was about to name, the first cycle leaves alone."""
    for _ in range(2):
        out, err = (process := command(service.data, "--grace", "0", "--untagged-older-than", "0")).communicate()
        assert process.returncode == 0, err.decode()
    told: dict[str, Any] = json.loads(out)
    return told


def _check_exact(data: Path, load: Load) -> None:
    """There is nothing but what the live images need."""
    manifests = {Digest.parse(digest_of(manifest)) for manifest in load.live.values()}
    blobs: set[Digest] = set()
    for manifest in load.live.values():
        document = json.loads(manifest)
        blobs |= {Digest.parse(entry["digest"]) for entry in (document["config"], *document["layers"])}
    with Store.open(data) as store:
        assert keys(store, Table.MANIFESTS) == {digest.key for digest in manifests}
        assert keys(store, Table.BLOBS) == {digest.key for digest in blobs}
        found = [record.diff_id.key for digest in blobs if (record := store.blobs.stat(digest)).diff_id]
        assert keys(store, Table.LAYERS) == set(found)
    assert list((data / "spool").iterdir()) == []


def _compare_with_fresh(tmp_path: Path, load: Load) -> None:
    by_digest = {digest_of(blob): blob for blob, _ in load.layers}
    with running_service(tmp_path / "fresh", "--workers", "1") as service:
        with httpx.Client(base_url=service.url, timeout=60) as http:
            for (repository, tag), manifest in load.live.items():
                document = json.loads(manifest)
                for entry in document["layers"]:
                    push_blob(http, repository, by_digest[entry["digest"]])
                push_blob(http, repository, load.configs[document["config"]["digest"]])
                answer = http.put(
                    f"/v2/{repository}/manifests/{tag}", content=manifest, headers={"Content-Type": MANIFEST}
                )
                assert answer.status_code == 201, answer.text
        _await_jobs(service)
    used, fresh = ((tmp_path / name / "store" / "data.mdb").stat().st_blocks * 512 for name in ("data", "fresh"))
    print(
        f"database: {used} bytes on the disk, {fresh} in a fresh store of {len(load.live)} images: {used / fresh:.4f}"
    )
    assert used <= ALLOWED * fresh + KEPT
