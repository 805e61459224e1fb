"""A small fast client that pushes images made of real files, from several threads, and notes what was acknowledged.

Its layers are tars of files of this Python's own library, so that they overlap as real layers do. What it notes is
what a client may rely on: a blob after 201, a manifest and its tag after 201, a deletion after 202.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import sysconfig
import tarfile
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import zstandard

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@cache
def real_files() -> tuple[Path, ...]:
    """Files of a few bytes to a megabyte, in a fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [path for path in library.rglob("*") if path.suffix in (".py", ".so", ".txt", ".h") and path.is_file()]
    return tuple(sorted(path for path in found if path.stat().st_size <= 1 << 20))


def make_layer(randomness: random.Random) -> tuple[bytes, str]:
    """A layer of 1 to 60 files, plain, gzip or zstd; and its diff_id."""
    files = real_files()
    first = randomness.randrange(len(files))
    # Neighbours, mostly: two layers that begin close to each other share files.
    chosen = {files[(first + step) % len(files)] for step in range(randomness.randrange(1, 40))}
    chosen |= set(randomness.sample(files, randomness.randrange(0, 20)))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(chosen):
            member = tarfile.TarInfo(str(path).lstrip("/"))
            content = path.read_bytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    tar = out.getvalue()
    return _pack(tar, randomness.choice(("plain", "gzip", "zstd"))), digest_of(tar)


def _pack(tar: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    return zstandard.ZstdCompressor(1).compress(tar) if how == "zstd" else tar


def digest_of(data: bytes) -> str:
    """The digest by an implementation that is not the service's."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(slots=True)
class Acknowledged:
    """What the service has said it keeps. Thread-safe.

    Args:
        blobs: (repository, digest) -> size.
        tags: (repository, tag) -> manifest bytes.
        deleted: (repository, digest) of blobs whose deletion was acknowledged.
        answers: how many requests have been answered.
    """

    blobs: dict[tuple[str, str], int] = field(default_factory=dict)
    tags: dict[tuple[str, str], bytes] = field(default_factory=dict)
    deleted: set[tuple[str, str]] = field(default_factory=set)
    answers: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, note: Any = None) -> None:
        """A request was answered; `note` writes down what that means."""
        with self._changed:
            if note is not None:
                note()
            self.answers += 1
            self._changed.notify_all()

    def wait_for(self, answers: int, timeout_s: float = 60.0) -> bool:
        """Wait until so many more requests have been answered."""
        with self._changed:
            wanted = self.answers + answers
            return self._changed.wait_for(lambda: self.answers >= wanted, timeout_s)


class Pusher(threading.Thread):
    """Pushes images into repositories of its own until the service goes away or it is told to stop.

    Args:
        seed: of everything it does.
    """

    def __init__(self, url: str, name: str, acknowledged: Acknowledged, seed: object) -> None:
        super().__init__(name=name, daemon=True)
        self._url = url
        self._noted = acknowledged
        self._random = random.Random(f"pusher {seed}")
        self._stopping = threading.Event()
        self.refused: list[httpx.Response] = []

    def stop(self) -> None:
        """End after the request at hand."""
        self._stopping.set()

    def run(self) -> None:
        """Push until the connection breaks."""
        with httpx.Client(base_url=self._url, timeout=30) as http:
            number = 0
            while not self._stopping.is_set():
                number += 1
                try:
                    self._push_image(http, f"{self.name}/image-{number}")
                except (httpx.HTTPError, _RefusedError):
                    return

    def _push_image(self, http: httpx.Client, repository: str) -> None:
        made = [make_layer(self._random) for _ in range(self._random.randrange(1, 4))]
        layers = [layer for layer, _ in made]
        rootfs = {"type": "layers", "diff_ids": [diff_id for _, diff_id in made]}
        config = json.dumps({"architecture": "amd64", "os": "linux", "of": repository, "rootfs": rootfs}).encode()
        for blob in (config, *layers):
            self._push_blob(http, repository, blob)
        entries = [{"mediaType": LAYER, "digest": digest_of(layer), "size": len(layer)} for layer in layers]
        entry = {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)}
        body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": entries}
        manifest = json.dumps(body).encode()
        tag = f"t{self._random.randrange(3)}"
        url = f"/v2/{repository}/manifests/{tag}"
        self._expect(201, http.put(url, content=manifest, headers={"Content-Type": MANIFEST}))
        self._noted.answer(lambda: self._noted.tags.__setitem__((repository, tag), manifest))
        if self._random.random() < 0.2:
            self._push_and_delete(http, repository)

    def _push_and_delete(self, http: httpx.Client, repository: str) -> None:
        blob, _ = make_layer(self._random)
        key = (repository, digest_of(blob))
        if key in self._noted.blobs:
            return
        self._push_blob(http, repository, blob)
        # From here on until the answer it may be there or not.
        self._noted.answer(lambda: self._noted.blobs.pop(key))
        self._expect(202, http.delete(f"/v2/{repository}/blobs/{key[1]}"))
        self._noted.answer(lambda: self._noted.deleted.add(key))

    def _push_blob(self, http: httpx.Client, repository: str, blob: bytes) -> None:
        answer = http.post(f"/v2/{repository}/blobs/uploads/")
        self._expect(202, answer)
        location = answer.headers["location"]
        if self._random.random() < 0.5:
            answer = http.patch(location, content=blob)
            self._expect(202, answer)
            location, rest = answer.headers["location"], b""
        else:
            rest = blob
        digest = digest_of(blob)
        joint = "&" if "?" in location else "?"
        self._expect(201, http.put(f"{location}{joint}digest={digest}", content=rest))
        self._noted.answer(lambda: self._noted.blobs.__setitem__((repository, digest), len(blob)))

    def _expect(self, status: int, answer: httpx.Response) -> None:
        if answer.status_code != status:
            self.refused.append(answer)
            raise _RefusedError


class _RefusedError(Exception):
    """An answer that is not the one that was asked for; it is in `Pusher.refused`."""


def read_back(http: httpx.Client, repository: str, digest: str) -> int:
    """Read a blob and compare its digest, by an implementation that is not the service's. Returns its size."""
    sha = hashlib.sha256()
    size = 0
    with http.stream("GET", f"/v2/{repository}/blobs/{digest}") as answer:
        assert answer.status_code == 200, f"{repository} {digest}: {answer.status_code} {answer.read()!r}"
        for piece in answer.iter_raw():
            sha.update(piece)
            size += len(piece)
    assert f"sha256:{sha.hexdigest()}" == digest, f"wrong bytes of {digest}"
    return size


def read_image(http: httpx.Client, repository: str, tag: str) -> bytes:
    """Read a manifest and everything it names. Returns the manifest."""
    answer = http.get(f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFEST})
    assert answer.status_code == 200, f"{repository}:{tag}: {answer.status_code} {answer.text}"
    manifest = json.loads(answer.content)
    for entry in (manifest["config"], *manifest["layers"]):
        assert read_back(http, repository, entry["digest"]) == entry["size"]
    return answer.content
