"""OCI and docker archives: written, read, taken apart by skopeo, and damaged in every way we could think of."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagepool.digest import Digest
from pagepool.errors import (
    DigestMismatchError,
    ImageInvalidError,
    LayerInvalidError,
    PagepoolError,
)
from pagepool.layout import Format, open_sink, open_source, plan_copy, run_copy
from pagepool.layout.inflate import inflate
from pagepool.oci import (
    Config,
    Manifest,
    Platform,
    VerifyingReader,
    encode_manifest,
    mediatypes,
    parse_config,
)
from tests.oci.samples import COMPRESS, Sample, multi_platform, simple, tar

LAYERS = [tar({"a": b"first" * 999}), tar({"b": b"second", "c": b""}), tar({"a": b"first" * 999})]


def _write(sample: Sample, path: Path, form: Format, name: str = "") -> Path:
    sink = open_sink(path, form, name)
    try:
        run_copy(plan_copy(sample, Platform.parse("linux/arm64") if form == "docker-archive" else None), sample, sink)
    finally:
        sink.close()
    return path


def _read(path: Path, name: str | None = None) -> dict[Digest, bytes]:
    source = open_source(path, name)
    try:
        plan = plan_copy(source)
        found = {entry.digest: document.raw for entry, document in plan.manifests}
        for blob in plan.blobs:
            with VerifyingReader(source.open_blob(blob), blob) as reader:
                found[blob.digest] = reader.read()
        return found
    finally:
        source.close()


def _image(path: Path, name: str | None = None) -> tuple[Manifest, Config, list[bytes]]:
    """Manifest, config, and layers as they lie in a file."""
    found = _read(path, name)
    source = open_source(path, name)
    manifest = source.read_manifest(source.root())
    source.close()
    assert isinstance(manifest, Manifest)
    layers = [found[layer.digest] for layer in manifest.layers]
    return manifest, parse_config(found[manifest.config.digest]), layers


def _save(path: Path, members: dict[str, bytes | str], images: list[dict[str, Any]] | None = None) -> Path:
    """A tar by hand: content, or the target of a symbolic link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        if images is not None:
            document = json.dumps(images).encode()
            info = tarfile.TarInfo("manifest.json")
            info.size = len(document)
            archive.addfile(info, io.BytesIO(document))
    return path


def _config(layers: list[bytes]) -> tuple[str, bytes]:
    ids = [str(Digest.of(layer)) for layer in layers]
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids}}
    raw = json.dumps(document).encode()
    return f"{Digest.of(raw).hex}.json", raw


def _old_docker_save(path: Path) -> Path:
    """As docker before 25 wrote it: a directory a layer, and a link where two are equal."""
    name, raw = _config(LAYERS)
    members: dict[str, bytes | str] = {name: raw, "repositories": b"{}"}
    for number, layer in enumerate(LAYERS):
        members |= {f"id{number}/VERSION": b"1.0", f"id{number}/json": b"{}"}
        members[f"id{number}/layer.tar"] = "../id0/layer.tar" if number == 2 else layer
    saved = {"Config": name, "RepoTags": ["app:1", "app:latest"], "Layers": [f"id{n}/layer.tar" for n in range(3)]}
    return _save(path, members, [saved])


# -- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", COMPRESS)
def test_oci_archive_round_trip(tmp_path: Path, media_type: str) -> None:
    sample = simple(3, media_type)
    assert _read(_write(sample, tmp_path / "a.tar", "oci-archive")) == sample.content
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_oci_archive_holds_an_index(tmp_path: Path) -> None:
    sample, _ = multi_platform()
    assert _read(_write(sample, tmp_path / "a.tar", "oci-archive")) == sample.content


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_archives_are_deterministic_and_replaced(tmp_path: Path, form: Format) -> None:
    (tmp_path / "b").write_text("something else")
    one, two = _write(simple(), tmp_path / "a", form, "x:1"), _write(simple(), tmp_path / "b", form, "x:1")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("media_type", COMPRESS)
def test_docker_archive_has_plain_layers_and_the_same_config(tmp_path: Path, media_type: str) -> None:
    sample = Sample()
    sample.add_image(LAYERS, media_type=media_type)
    manifest, config, layers = _image(_write(sample, tmp_path / "a.tar", "docker-archive", "app:1"), "app:1")
    original = sample.read_manifest(sample.root())
    assert isinstance(original, Manifest)
    assert manifest.config.digest == original.config.digest
    assert layers == LAYERS
    assert list(config.diff_ids) == [Digest.of(layer) for layer in LAYERS]


def test_docker_archive_of_an_index_is_one_image(tmp_path: Path) -> None:
    sample, _ = multi_platform()
    _, config, _ = _image(_write(sample, tmp_path / "a.tar", "docker-archive"))
    assert str(config.platform) == "linux/arm64"
    sink = open_sink(tmp_path / "b.tar", "docker-archive", "")
    with pytest.raises(ImageInvalidError, match="--platform"):
        run_copy(plan_copy(sample), sample, sink)
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def _artifact(sample: Sample) -> None:
    config = sample.add("application/vnd.example.config", b"{}")
    document = encode_manifest(config, [])
    sample.top = sample.add(document.media_type, document.raw)


def _wrong_diff_id(sample: Sample) -> None:
    _replace_config(sample, _config([LAYERS[1]])[1])


def _too_few_diff_ids(sample: Sample) -> None:
    _replace_config(sample, _config([])[1])


def _replace_config(sample: Sample, raw: bytes) -> None:
    layer = sample.add(mediatypes.OCI_LAYER_GZIP, COMPRESS[mediatypes.OCI_LAYER_GZIP](LAYERS[0]))
    document = encode_manifest(sample.add(mediatypes.OCI_CONFIG, raw), [layer])
    sample.top = sample.add(document.media_type, document.raw)


def _cut_gzip(sample: Sample) -> None:
    layer = sample.add(mediatypes.OCI_LAYER_GZIP, COMPRESS[mediatypes.OCI_LAYER_GZIP](LAYERS[0])[:-9])
    document = encode_manifest(sample.add(mediatypes.OCI_CONFIG, _config(LAYERS[:1])[1]), [layer])
    sample.top = sample.add(document.media_type, document.raw)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (_artifact, ImageInvalidError, "vnd.example.config"),
        (_wrong_diff_id, DigestMismatchError, Digest.of(LAYERS[1]).hex),
        (_too_few_diff_ids, ImageInvalidError, "1 layers, and the config has 0"),
        (_cut_gzip, LayerInvalidError, "ends early"),
    ],
)
def test_what_no_docker_archive_can_hold(
    tmp_path: Path, make: Callable[[Sample], None], error: type[PagepoolError], words: str
) -> None:
    sample = Sample()
    make(sample)
    with pytest.raises(error, match=words):
        _write(sample, tmp_path / "a.tar", "docker-archive")
    assert not list(tmp_path.iterdir())


# -- reading -------------------------------------------------------------------------------------------------


def test_old_docker_save_is_read(tmp_path: Path) -> None:
    path = _old_docker_save(tmp_path / "a.tar")
    for name in (None, "app:1", "app", "latest", "@0"):
        manifest, _, layers = _image(path, name)
        assert layers == LAYERS
        assert manifest.media_type == mediatypes.DOCKER_MANIFEST
        assert {layer.media_type for layer in manifest.layers} == {mediatypes.DOCKER_LAYER}
        assert manifest.config.digest == Digest.of(_config(LAYERS)[1])


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compressed_archives_are_read(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = _old_docker_save(tmp_path / "a.tar")
    path.write_bytes(compress(path.read_bytes()))
    assert _image(path)[2] == LAYERS
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PagepoolError, match=r"ends early|cut off|damaged"):
        _image(path)


def test_compressed_layers_in_a_docker_archive_stay_compressed(tmp_path: Path) -> None:
    name, raw = _config(LAYERS[:2])
    packed = [gzip.compress(LAYERS[0]), zstandard.compress(LAYERS[1])]
    saved = {"Config": name, "RepoTags": None, "Layers": ["0", "1"]}
    path = _save(tmp_path / "a.tar", {name: raw, "0": packed[0], "1": packed[1]}, [saved])
    manifest, _, layers = _image(path)
    assert layers == packed
    kinds = [layer.media_type for layer in manifest.layers]
    assert kinds == [mediatypes.DOCKER_LAYER_GZIP, mediatypes.DOCKER_LAYER_ZSTD]


def test_newer_docker_save_with_a_part_of_an_index(tmp_path: Path) -> None:
    sample, arm = multi_platform()
    sample.write_layout(tmp_path / "layout", {"1": sample.root()})
    keep = plan_copy(sample, Platform.parse("linux/arm64"))
    kept = {blob.digest.hex for blob in keep.blobs} | {arm.digest.hex, sample.root().digest.hex}
    for path in (tmp_path / "layout/blobs/sha256").iterdir():
        if path.name not in kept:
            path.unlink()
    manifest = keep.root[1]
    assert isinstance(manifest, Manifest)
    names = [f"blobs/sha256/{blob.digest.hex}" for blob in (manifest.config, *manifest.layers)]
    saved = {"Config": names[0], "RepoTags": ["app:1"], "Layers": names[1:]}
    (tmp_path / "layout/manifest.json").write_text(json.dumps([saved]))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "layout", ".")
    found, config, _ = _image(tmp_path / "a.tar")
    assert str(config.platform) == "linux/arm64"
    assert found.config.digest == manifest.config.digest


def test_choice_among_several_images(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {"0": LAYERS[0], "1": LAYERS[1]}
    images = []
    for number in (0, 1):
        name, members[name] = _config([LAYERS[number]])
        images.append({"Config": name, "RepoTags": [f"app:{number}"] if number else None, "Layers": [str(number)]})
    path = _save(tmp_path / "a.tar", members, images)
    assert _image(path, "app:1")[2] == [LAYERS[1]]
    assert _image(path, "@0")[2] == [LAYERS[0]]
    with pytest.raises(ImageInvalidError, match=r"has 2 images.*@0, app:1"):
        _image(path)
    for name in ("app:2", "@7"):
        with pytest.raises(ImageInvalidError, match="no image"):
            _image(path, name)


NAME, RAW = _config(LAYERS[:1])
GOOD: dict[str, bytes | str] = {NAME: RAW, "l": LAYERS[0]}
SAVED = {"Config": NAME, "RepoTags": ["a:1"], "Layers": ["l"]}


@pytest.mark.parametrize(
    ("members", "images", "words"),
    [
        ({NAME: RAW}, [SAVED], "l is missing"),
        ({"l": LAYERS[0]}, [SAVED], f"{NAME} is missing"),
        (GOOD | {NAME: RAW + b" "}, [SAVED], "digest mismatch"),
        (GOOD | {NAME: b"{}", "c": b"{}"}, [SAVED | {"Config": "c"}], "rootfs"),
        (GOOD, [SAVED | {"Layers": ["l", "l"]}], "2 layers, and its config has 1"),
        (GOOD, [SAVED | {"Layers": 5}], "Layers"),
        (GOOD, [], "has no image"),
        (GOOD, [SAVED | {"Layers": ["../l"]}], "is missing"),
        (GOOD | {"../evil": b"x"}, [SAVED], "'../evil' leads out"),
        (GOOD | {"/etc/evil": b"x"}, [SAVED], "'/etc/evil' leads out"),
        (GOOD | {"a/../../evil": b"x"}, [SAVED], "leads out"),
        (GOOD | {"l": "/etc/passwd"}, [SAVED], "'l' leads out"),
        (GOOD | {"l": "../../etc/passwd"}, [SAVED], "'l' leads out"),
        (GOOD | {"l": "l"}, [SAVED], "circle"),
        (GOOD | {"l": "m", "m": "l"}, [SAVED], "circle"),
        (GOOD | {"l": "nowhere"}, [SAVED], "l is missing"),
        (GOOD | {"l": LAYERS[1]}, [SAVED], "digest mismatch"),
        (GOOD, None, "neither an OCI nor a docker archive"),
    ],
)
def test_damaged_docker_archives(
    tmp_path: Path, members: dict[str, bytes | str], images: list[dict[str, Any]] | None, words: str
) -> None:
    path = _save(tmp_path / "a.tar", members, images)
    with pytest.raises(PagepoolError, match=words):
        _read(path)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_archives_cut_off_anywhere(tmp_path: Path, form: Format) -> None:
    whole = _write(simple(), tmp_path / "a.tar", form, "a:1").read_bytes()
    expected = _read(tmp_path / "a.tar")
    cut = tmp_path / "cut.tar"
    refused = 0
    for size in range(0, len(whole), 256):
        cut.write_bytes(whole[:size])
        try:
            # Only the zeros at the end may be missing without harm.
            assert _read(cut) == expected
        except PagepoolError as error:
            refused += 1
            assert str(cut) in str(error) or "digest" in str(error)  # noqa: PT017 - most of the cuts raise
    assert refused > 0.7 * len(whole) / 256


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.data())
def test_archives_with_flipped_bytes(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.tar"
    if not path.exists():
        _write(simple(), path, "oci-archive")
        (tmp_path / "whole").write_bytes(path.read_bytes())
    whole = bytearray((tmp_path / "whole").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        found = _read(path)
    except PagepoolError:
        return
    assert all(Digest.of(content) == digest for digest, content in found.items())


# -- skopeo --------------------------------------------------------------------------------------------------


def _skopeo(*arguments: str) -> None:
    program = shutil.which("skopeo")
    if program is None:
        pytest.skip("needs skopeo (apt-get install skopeo)")
    done = subprocess.run([program, "copy", "--quiet", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_skopeo_reads_what_we_write(tmp_path: Path, form: Format) -> None:
    sample = Sample()
    sample.add_image(LAYERS)
    name = "app:1" if form == "docker-archive" else "1"
    _write(sample, tmp_path / "ours", form, name)
    _skopeo(f"{form}:{tmp_path}/ours:{name}", f"dir:{tmp_path}/dir")
    manifest = json.loads((tmp_path / "dir/manifest.json").read_bytes())
    original = sample.read_manifest(sample.root())
    assert isinstance(original, Manifest)
    assert manifest["config"]["digest"] == str(original.config.digest)
    for described, plain in zip(manifest["layers"], LAYERS, strict=True):
        data = (tmp_path / "dir" / described["digest"][7:]).read_bytes()
        assert b"".join(inflate(iter((data,)), "")) == plain


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_we_read_what_skopeo_writes(tmp_path: Path, form: str) -> None:
    sample = Sample()
    sample.add_image(LAYERS)
    sample.write_layout(tmp_path / "layout", {"1": sample.root()})
    _skopeo(f"oci:{tmp_path}/layout:1", f"{form}:{tmp_path}/theirs:app:1")
    manifest, _, layers = _image(tmp_path / "theirs", "app:1")
    assert [b"".join(inflate(iter((layer,)), "")) for layer in layers] == LAYERS
    original = sample.read_manifest(sample.root())
    assert isinstance(original, Manifest)
    assert manifest.config.digest == original.config.digest
    if form != "docker-archive":
        assert manifest.raw == original.raw
