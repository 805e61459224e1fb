"""Commits without a registry: what the documents say, what is copied, and what umoci makes of the result."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from pagepool.commit import CommitOptions, UnchangedError, build_commit, parse_instruction
from pagepool.commit.document import encode_config
from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, ImageInvalidError, LayerInvalidError, LimitError
from pagepool.image import Kind
from pagepool.layout import open_sink, plan_copy, run_copy
from pagepool.oci import MAX_INDEX_DEPTH, Descriptor, mediatypes, parse_config
from pagepool.oci.mediatypes import MAX_CONFIG_SIZE
from tests.commit.changed import Changed
from tests.image.umoci import needs_umoci
from tests.oci.samples import Sample
from tests.overlay.layers import empty, rows, whole_layer
from tests.support import umoci

if TYPE_CHECKING:
    from pathlib import Path

_A, _B, _UNKNOWN = ({"created_by": name} for name in ("a", "b", "unknown"))
_EMPTY = {"created_by": "c", "empty_layer": True}
_WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
_KINDS = [
    (mediatypes.OCI_MANIFEST, "none", mediatypes.OCI_LAYER),
    (mediatypes.OCI_MANIFEST, "gzip", mediatypes.OCI_LAYER_GZIP),
    (mediatypes.OCI_MANIFEST, "zstd", mediatypes.OCI_LAYER_ZSTD),
    (mediatypes.DOCKER_MANIFEST, "none", mediatypes.DOCKER_LAYER),
    (mediatypes.DOCKER_MANIFEST, "gzip", mediatypes.DOCKER_LAYER_GZIP),
    (mediatypes.DOCKER_MANIFEST, "zstd", mediatypes.DOCKER_LAYER_ZSTD),
]


@pytest.fixture
def changed() -> Changed:
    return Changed()


def _inflate(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if compression == "zstd" else data


@pytest.mark.parametrize(("manifest_type", "compression", "layer_type"), _KINDS)
def test_the_new_image_is_of_its_parents_family(
    changed: Changed, manifest_type: str, compression: mediatypes.Compression, layer_type: str, tmp_path: Path
) -> None:
    parent = Sample()
    docker = manifest_type == mediatypes.DOCKER_MANIFEST
    layer_of_parent = mediatypes.DOCKER_LAYER_GZIP if docker else mediatypes.OCI_LAYER_GZIP
    parent.add_image([whole_layer(changed.base)], media_type=layer_of_parent, kind=manifest_type)
    written: list[int] = []
    options = CommitOptions(compression=compression, created=_WHEN)
    with build_commit(changed.now, changed.plan(), parent, options, directory=tmp_path, progress=written.append) as new:
        assert new.layer is not None
        blob = new.open_blob(new.layer.descriptor).read()
        assert list(tmp_path.iterdir()) == []
        assert sum(written) == new.layer.plain_size
        assert new.manifest.media_type == manifest_type
        assert new.manifest.config.media_type == (mediatypes.DOCKER_CONFIG if docker else mediatypes.OCI_CONFIG)
        below, own = new.manifest.layers
        config = parse_config(new.config)
    parent_manifest = json.loads(parent.content[parent.root().digest])
    assert below.to_json() == parent_manifest["layers"][0]
    assert (own.media_type, own.digest, own.size) == (layer_type, Digest.of(blob), len(blob))
    assert config.diff_ids[1] == Digest.of(_inflate(blob, compression))
    assert new.manifest.annotations == (
        {} if docker else {"org.opencontainers.image.base.digest": str(parent.root().digest)}
    )


def test_the_same_twice_is_the_same_image(changed: Changed) -> None:
    for compression in ("none", "gzip", "zstd"):
        options = CommitOptions(compression=compression, created=_WHEN)
        with (
            build_commit(changed.now, changed.plan(), changed.parent, options) as one,
            build_commit(changed.now, changed.plan(), changed.parent, options) as other,
        ):
            assert one.root() == other.root()


def test_what_the_config_says(changed: Changed) -> None:
    options = CommitOptions(
        instructions=[parse_instruction('CMD ["run"]'), parse_instruction("ENV B=2")],
        author="Somebody <s@example.org>",
        comment="by hand",
        created_by="make",
        created=_WHEN,
    )
    with build_commit(changed.now, changed.plan(), changed.parent, options) as new:
        assert new.layer is not None
        said = json.loads(new.config)
    assert said["config"] == {"Cmd": ["run"], "Env": ["A=ä", "B=2"]}
    assert (said["architecture"], said["os"], said["author"]) == ("amd64", "linux", "Somebody <s@example.org>")
    assert said["created"] == "2024-05-06T07:08:09Z"
    assert said["rootfs"]["diff_ids"][1:] == [str(new.layer.diff_id)]
    step = {"created": said["created"], "created_by": "make", "author": said["author"], "comment": "by hand"}
    assert said["history"] == [{"created_by": "unknown"}, step]


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        (None, [_UNKNOWN, _UNKNOWN]),
        ([_A, _EMPTY], [_A, _EMPTY, _UNKNOWN]),
        ([_A, _B], [_A, _B]),
        ([_A, _A, _A], [_UNKNOWN, _UNKNOWN]),
    ],
    ids=["none", "short", "whole", "long"],
)
def test_the_history_has_an_entry_for_each_layer(history: Any, kept: list[dict[str, Any]]) -> None:
    document = {
        "os": "linux", "history": history, "container": "c", "container_config": {"Cmd": ["x"]}, "my.field": [1],
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(b"1")), str(Digest.of(b"2"))]},
    }  # fmt: skip
    parent = parse_config(json.dumps(document).encode())
    made = json.loads(encode_config(parent, None, created="now", created_by="by"))
    assert made["history"] == [*kept, {"created": "now", "created_by": "by", "empty_layer": True}]
    assert made["my.field"] == [1]
    assert not {"container", "container_config"} & made.keys()


def test_nothing_changed(changed: Changed) -> None:
    """An error, unless it is allowed: then it is an image without a new layer."""
    with pytest.raises(UnchangedError, match="nothing was changed"):
        build_commit(changed.base, [], changed.parent, CommitOptions())
    options = CommitOptions(allow_empty=True, instructions=[parse_instruction("USER me")])
    with build_commit(changed.base, [], changed.parent, options) as new:
        said = json.loads(new.config)
        assert len(new.manifest.layers) == len(said["rootfs"]["diff_ids"]) == 1
        assert said["history"][-1]["empty_layer"] is True
        assert said["config"]["User"] == "me"


def test_the_image_for_this_platform_out_of_an_index(changed: Changed) -> None:
    parent = Sample()
    layer = whole_layer(changed.base)
    entries = [parent.add_image([layer, whole_layer(empty())], "linux/s390x"), parent.add_image([layer])]
    parent.add_index(entries)
    with build_commit(changed.now, changed.plan(), parent, CommitOptions(platform=entries[0].platform)) as new:
        assert len(new.manifest.layers) == 3
        assert json.loads(new.config)["architecture"] == "s390x"


def test_indexes_of_indexes(changed: Changed) -> None:
    """As deep as registries have them, and no deeper."""
    for _ in range(MAX_INDEX_DEPTH):
        changed.parent.add_index([changed.parent.root()])
    build_commit(changed.now, changed.plan(), changed.parent, CommitOptions()).close()
    changed.parent.add_index([changed.parent.root()])
    with pytest.raises(LimitError, match="depth of indexes"):
        build_commit(changed.now, changed.plan(), changed.parent, CommitOptions())


def test_a_config_that_is_too_large(changed: Changed) -> None:
    """It is not read to find that out."""
    manifest = json.loads(changed.parent.content[changed.parent.root().digest])
    manifest["config"]["size"] = MAX_CONFIG_SIZE + 1
    changed.parent.top = changed.parent.add(mediatypes.OCI_MANIFEST, json.dumps(manifest).encode())
    changed.parent.opened.clear()
    with pytest.raises(ImageInvalidError, match=f"a config of {MAX_CONFIG_SIZE + 1} bytes"):
        build_commit(changed.now, changed.plan(), changed.parent, CommitOptions())
    assert changed.parent.opened == []


def test_a_parent_that_contradicts_itself(changed: Changed) -> None:
    parent = Sample()
    parent.add_image([b"one"])
    manifest = json.loads(parent.content[parent.root().digest])
    manifest["layers"] *= 2
    parent.top = parent.add(mediatypes.OCI_MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(ImageInvalidError, match="its config has 1 layers, and its manifest 2"):
        build_commit(changed.now, changed.plan(), parent, CommitOptions())
    parent.content[Digest.parse(manifest["config"]["digest"])] = b"{}"
    with pytest.raises(DigestMismatchError):
        build_commit(changed.now, changed.plan(), parent, CommitOptions())


def test_an_artifact_cannot_be_committed_to(changed: Changed) -> None:
    parent = Sample()
    parent.add_image([b"one"])
    manifest = json.loads(parent.content[parent.root().digest])
    manifest["config"]["mediaType"] = "application/vnd.example"
    parent.top = parent.add(mediatypes.OCI_MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(ImageInvalidError, match="is not an image that can be committed to"):
        build_commit(changed.now, changed.plan(), parent, CommitOptions())


def test_a_layer_that_cannot_be_made_leaves_nothing(changed: Changed, tmp_path: Path) -> None:
    changed.now.put(changed.now.root, b".wh.x", changed.now.new(Kind.REGULAR))
    changed.now.settle()
    with pytest.raises(LayerInvalidError):
        build_commit(changed.now, changed.plan(), changed.parent, CommitOptions(), directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_blobs_are_the_parents(changed: Changed) -> None:
    with build_commit(changed.now, changed.plan(), changed.parent, CommitOptions()) as new:
        stranger = Descriptor.of(mediatypes.OCI_LAYER, b"?")
        assert [new.has_blob(blob) for blob in (*new.manifest.blobs, stranger)] == [True, True, True, False]
        changed.parent.opened.clear()
        for blob in new.manifest.blobs:
            assert len(new.open_blob(blob).read()) == blob.size
        assert changed.parent.opened == [new.manifest.layers[0].digest]
        with pytest.raises(ImageInvalidError):
            new.read_manifest(stranger)


@needs_umoci[0]
@needs_umoci[1]
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_umoci_unpacks_what_was_committed(
    changed: Changed, compression: mediatypes.Compression, tmp_path: Path
) -> None:
    with build_commit(changed.now, changed.plan(), changed.parent, CommitOptions(compression=compression)) as new:
        sink = open_sink(tmp_path / "layout", "oci", "new")
        try:
            run_copy(plan_copy(new), new, sink)
        finally:
            sink.close()
    found = umoci.unpack(tmp_path / "layout", "new", tmp_path)
    expected = rows(changed.now)
    assert found.keys() == expected.keys()
    for path, row in found.items():
        kind, mode, uid, gid, mtime_ns, content, xattrs, names = expected[path]
        assert (row.mode, row.uid, row.gid, row.links) == (mode, uid, gid, names), path
        assert {os.fsencode(name): value for name, value in row.xattrs} == xattrs
        if kind is Kind.REGULAR:
            assert isinstance(content, bytes)
            assert row.content == Digest.of(content).raw
        assert row.mtime_ns in (mtime_ns, None)
