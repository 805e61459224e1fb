"""Comparing what was pulled with what was pushed, independently of the code that moved it.

Every blob and manifest is read again from the files it was pulled into, and hashed here; every layer is
decompressed here, and its plain tar hashed too. Nothing that the service says is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pagepool.digest import Digest, new_hasher
from pagepool.errors import LayerInvalidError
from pagepool.layout import Plan
from pagepool.layout.inflate import inflate
from pagepool.layout.source import blob_name
from pagepool.oci import Descriptor, Manifest, mediatypes, parse_config

_PIECE = 1 << 20
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison.

    Args:
        kind: ``manifest``, ``config``, ``layer``, ``blob`` or ``diff_id``.
        name: the blob or manifest that was pulled.
        expected: the digest that was pushed.
        got: the digest of what came back, or why there is none.
    """

    kind: str
    name: str
    expected: str
    got: str

    @property
    def equal(self) -> bool:
        """Whether it is as it should be."""
        return self.expected == self.got


def compare(plan: Plan, layout: Path, absent: Iterable[Digest], progress: Callable[[int], None]) -> list[Check]:
    """Check everything of one image, or index of images, that was pulled into a layout.

    Args:
        plan: what was pushed.
        layout: what was pulled.
        absent: digests of blobs that the source itself does not have (layers that may not be distributed).
        progress: told of bytes as they are hashed; called by several threads.
    """
    missing = set(absent)
    kinds = _kinds(plan)
    checks: list[Check] = []
    for descriptor, manifest in plan.manifests:
        checks.append(_compare_manifest(descriptor, manifest.raw, layout))
    blobs = [blob for blob in plan.blobs if blob.digest not in missing]
    layers = [pair for pair in _layers(plan, layout) if pair[0].digest not in missing]
    with ThreadPoolExecutor(_THREADS) as threads:
        checks += threads.map(lambda blob: _compare_blob(kinds.get(blob.digest, "blob"), blob, layout, progress), blobs)
        checks += threads.map(lambda pair: _compare_plain(pair[0], pair[1], layout, progress), layers)
    return checks


def _kinds(plan: Plan) -> dict[Digest, str]:
    kinds: dict[Digest, str] = {}
    for _, manifest in plan.manifests:
        if isinstance(manifest, Manifest):
            kinds[manifest.config.digest] = "config"
            kinds |= {layer.digest: "layer" for layer in manifest.layers}
    return kinds


def _layers(plan: Plan, layout: Path) -> Iterator[tuple[Descriptor, Digest]]:
    """Each layer of each image, with the diff_id that the config pulled says; no layer twice."""
    seen: set[tuple[Digest, Digest]] = set()
    for _, manifest in plan.manifests:
        if not isinstance(manifest, Manifest) or manifest.config.media_type not in mediatypes.CONFIGS:
            continue
        path = layout / blob_name(manifest.config.digest)
        if not path.is_file():
            continue  # told already, as a blob that is missing
        config = parse_config(path.read_bytes())
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=False):
            if (layer.digest, diff_id) not in seen:
                seen.add((layer.digest, diff_id))
                yield layer, diff_id


def _compare_manifest(descriptor: Descriptor, raw: bytes, layout: Path) -> Check:
    name = str(descriptor.digest)
    try:
        pulled = (layout / blob_name(descriptor.digest)).read_bytes()
    except FileNotFoundError:
        return Check("manifest", name, name, "it was not pulled")
    got = str(Digest.of(pulled, descriptor.digest.algorithm))
    return Check("manifest", name, name, got if pulled == raw else f"other bytes, with the digest {got}")


def _compare_blob(kind: str, blob: Descriptor, layout: Path, progress: Callable[[int], None]) -> Check:
    name = str(blob.digest)
    path = layout / blob_name(blob.digest)
    if not path.is_file():
        return Check(kind, name, name, "it was not pulled")
    return Check(kind, name, name, str(_hash(_read(path), blob.digest.algorithm, progress)))


def _compare_plain(layer: Descriptor, diff_id: Digest, layout: Path, progress: Callable[[int], None]) -> Check:
    name = str(layer.digest)
    try:
        plain = inflate(_read(layout / blob_name(layer.digest)), name)
        got = str(_hash(plain, diff_id.algorithm, progress))
    except FileNotFoundError:
        got = "it was not pulled"
    except LayerInvalidError as error:
        got = error.reason
    return Check("diff_id", name, str(diff_id), got)


def _hash(chunks: Iterable[bytes], algorithm: str, progress: Callable[[int], None]) -> Digest:
    hasher = new_hasher(algorithm)
    for chunk in chunks:
        hasher.update(chunk)
        progress(len(chunk))
    return Digest(algorithm, hasher.digest())


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_PIECE):
            yield chunk
