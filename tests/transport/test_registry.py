"""The registry client against real registries: every operation, and what is missing."""

from __future__ import annotations

import hashlib
import io
import threading
import uuid

import pytest

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    DigestMismatchError,
    ManifestBlobUnknownError,
    ManifestUnknownError,
    NameUnknownError,
    NotFoundError,
)
from pagepool.oci import Descriptor, Index, Manifest, encode_index, encode_manifest, mediatypes
from pagepool.transport import RegistryClient, ServiceClient
from pagepool.transport.upload import MONOLITHIC_SIZE

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


def _bytes(size: int, seed: str = "x") -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def _name() -> str:
    return f"test/{uuid.uuid4().hex}"


def _push(registry: RegistryClient, name: str, data: bytes, media_type: str = mediatypes.OCI_LAYER) -> Descriptor:
    blob = Descriptor.of(media_type, data)
    registry.push_blob(name, blob, lambda: io.BytesIO(data))
    return blob


def _push_image(registry: RegistryClient, name: str, tag: str, layer: bytes = b"layer") -> Manifest:
    config = _push(registry, name, CONFIG, mediatypes.OCI_CONFIG)
    manifest = encode_manifest(config, [_push(registry, name, layer)])
    registry.put_manifest(name, tag, manifest)
    return manifest


def test_ping(registry: RegistryClient) -> None:
    registry.ping()


@pytest.mark.parametrize("size", [0, 1, MONOLITHIC_SIZE, MONOLITHIC_SIZE + 1, 20_000_003])
def test_blob_round_trip(registry: RegistryClient, size: int) -> None:
    name, data = _name(), _bytes(size, str(size))
    blob = Descriptor.of(mediatypes.OCI_LAYER, data)
    steps: list[int] = []
    assert registry.push_blob(name, blob, lambda: io.BytesIO(data), progress=steps.append)
    assert sum(steps) == size
    assert registry.has_blob(name, blob)
    assert not registry.push_blob(name, blob, lambda: io.BytesIO(b"not read at all"))
    with registry.open_blob(name, blob) as reader:
        assert reader.read() == data


def test_sha512_blob(registry: RegistryClient) -> None:
    name, data = _name(), _bytes(MONOLITHIC_SIZE + 5)
    blob = Descriptor(mediatypes.OCI_LAYER, Digest.of(data, "sha512"), len(data))
    if not ServiceClient(registry.session).available():
        pytest.skip("docker-registry 2.8 does not take SHA-512")
    assert registry.push_blob(name, blob, lambda: io.BytesIO(data))
    with registry.open_blob(name, blob) as reader:
        assert reader.read() == data


def test_mount_from_another_repository(registry: RegistryClient) -> None:
    first, second, data = _name(), _name(), _bytes(1000, "mount")
    blob = _push(registry, first, data)

    def refuse() -> io.BytesIO:
        raise AssertionError("a mounted blob must not be uploaded")

    assert not registry.push_blob(second, blob, refuse, mount_from=first)
    assert registry.has_blob(second, blob)
    assert registry.push_blob(second, Descriptor.of("a/b", b"new"), lambda: io.BytesIO(b"new"), mount_from=first)


@pytest.mark.parametrize("size", [100, MONOLITHIC_SIZE + 100])
@pytest.mark.parametrize("change", ["flip", "short", "long"])
def test_wrong_content_is_never_committed(registry: RegistryClient, size: int, change: str) -> None:
    name, data = _name(), _bytes(size, "wrong")
    blob = Descriptor.of(mediatypes.OCI_LAYER, data)
    wrong = {"flip": b"!" + data[1:], "short": data[:-1], "long": data + b"x"}[change]
    steps: list[int] = []
    with pytest.raises(DigestMismatchError):
        registry.push_blob(name, blob, lambda: io.BytesIO(wrong), progress=steps.append)
    assert sum(steps) == 0
    assert not registry.has_blob(name, blob)


def test_manifest_round_trip(registry: RegistryClient) -> None:
    name = _name()
    manifest = _push_image(registry, name, "1")
    for reference in ("1", str(manifest.descriptor.digest)):
        pulled = registry.get_manifest(name, reference)
        assert pulled.manifest == manifest
        assert pulled.descriptor == manifest.descriptor
        assert registry.head_manifest(name, reference) == manifest.descriptor
    assert list(registry.tags(name)) == ["1"]
    assert name in list(registry.catalog())


def test_index_round_trip(registry: RegistryClient) -> None:
    name = _name()
    child = _push_image(registry, name, "child").descriptor
    index = encode_index([child])
    registry.put_manifest(name, "all", index)
    pulled = registry.get_manifest(name, "all").manifest
    assert isinstance(pulled, Index)
    assert pulled == index


def test_manifest_under_a_digest_that_is_not_its_own(registry: RegistryClient) -> None:
    name = _name()
    manifest = _push_image(registry, name, "1")
    with pytest.raises(DigestMismatchError):
        registry.put_manifest(name, str(Digest.of(b"other")), manifest)


def test_what_is_missing(registry: RegistryClient) -> None:
    name, nothing = _name(), Descriptor.of(mediatypes.OCI_LAYER, b"nothing")
    _push_image(registry, name, "1")
    with pytest.raises(ManifestUnknownError, match=f"{name}:2"):
        registry.get_manifest(name, "2")
    assert registry.head_manifest(name, "2") is None
    with pytest.raises(BlobUnknownError, match=str(nothing.digest)):
        registry.open_blob(name, nothing)
    with pytest.raises(NameUnknownError):
        list(registry.tags(_name()))
    with pytest.raises(NotFoundError):
        registry.delete_manifest(name, str(nothing.digest))
    with pytest.raises(NotFoundError):
        registry.delete_blob(name, nothing.digest)
    with pytest.raises(ManifestBlobUnknownError):
        registry.put_manifest(name, "2", encode_manifest(nothing, []))


def test_delete(registry: RegistryClient) -> None:
    name = _name()
    manifest = _push_image(registry, name, "1")
    registry.delete_manifest(name, str(manifest.descriptor.digest))
    assert registry.head_manifest(name, "1") is None
    blob = _push(registry, name, b"alone")
    registry.delete_blob(name, blob.digest)
    assert not registry.has_blob(name, blob)


def test_many_tags_and_repositories_come_in_pages(registry: RegistryClient) -> None:
    prefix = _name()
    for number in range(120):
        _push_image(registry, f"{prefix}/{number:03}", "1")
    assert len([name for name in registry.catalog() if name.startswith(prefix)]) == 120


def test_referrers_by_api_or_by_tag(registry: RegistryClient) -> None:
    name = _name()
    subject = _push_image(registry, name, "1").descriptor
    config = _push(registry, name, b"{}", mediatypes.OCI_EMPTY)
    for kind in ("application/vnd.example.a", "application/vnd.example.b"):
        about = encode_manifest(config, [], subject=subject, artifact_type=kind, annotations={"kind": kind})
        for _ in range(2):  # pushing again must not list it twice
            registry.put_manifest(name, str(about.descriptor.digest), about)
    found = registry.referrers(name, subject.digest)
    assert sorted(entry.artifact_type[-1] for entry in found) == ["a", "b"]
    assert all(entry.annotations == {"kind": entry.artifact_type} for entry in found)
    (only,) = registry.referrers(name, subject.digest, "application/vnd.example.b")
    assert only.artifact_type == "application/vnd.example.b"
    assert registry.referrers(name, Digest.of(b"nobody")) == ()


def test_threads_share_one_client(registry: RegistryClient) -> None:
    name, failures = _name(), []
    contents = [_bytes(MONOLITHIC_SIZE + number, f"thread{number}") for number in range(6)]

    def work(data: bytes) -> None:
        try:
            blob = _push(registry, name, data)
            with registry.open_blob(name, blob) as reader:
                assert reader.read() == data
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
