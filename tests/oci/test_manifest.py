"""Manifests, indexes and descriptors: what is taken, what is refused and by which name, and that nothing escapes."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.digest import Digest
from pagepool.errors import ManifestInvalidError
from pagepool.oci import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    encode_index,
    encode_manifest,
    mediatypes,
    parse_manifest,
)

SHA = str(Digest.of(b"x"))
CONFIG = {"mediaType": mediatypes.OCI_CONFIG, "digest": SHA, "size": 1}
LAYER = {"mediaType": mediatypes.OCI_LAYER_GZIP, "digest": SHA, "size": 7}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
ENTRY = {"mediaType": mediatypes.OCI_MANIFEST, "digest": SHA, "size": 3}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [ENTRY]}
TYPES = [None, *mediatypes.ACCEPT_MANIFESTS, "application/json", ""]


def test_manifest_is_parsed_and_kept_byte_for_byte() -> None:
    body = MANIFEST | {
        "mediaType": mediatypes.OCI_MANIFEST,
        "artifactType": "application/vnd.example",
        "subject": ENTRY,
        "annotations": {"a": "ä"},
        "unknown": [1.5, {"x": None}],
    }
    raw = json.dumps(body, indent=3).encode()
    manifest = parse_manifest(raw, f"{mediatypes.OCI_MANIFEST}; charset=utf-8")
    assert isinstance(manifest, Manifest)
    assert manifest.raw == raw
    assert manifest.descriptor == Descriptor(mediatypes.OCI_MANIFEST, Digest.of(raw), len(raw))
    assert (manifest.config.size, [layer.size for layer in manifest.layers]) == (1, [7])
    assert manifest.subject is not None
    assert manifest.subject.size == 3
    assert manifest.annotations == {"a": "ä"}
    assert manifest.artifact_type == "application/vnd.example"
    assert manifest.is_image
    assert len(manifest.blobs) == 1  # config and layer have one digest here
    hash(manifest)


def test_index_is_parsed_with_platforms() -> None:
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1", "os.features": ["f"]}
    entries = [ENTRY | {"platform": platform, "artifactType": "a/b"}, ENTRY]
    index = parse_manifest(json.dumps(INDEX | {"manifests": entries}).encode())
    assert isinstance(index, Index)
    assert index.media_type == mediatypes.OCI_INDEX
    assert index.manifests[0].platform == Platform("linux", "arm", "v7", "1", ("f",))
    assert index.manifests[0].artifact_type == "a/b"
    assert index.manifests[1].platform is None
    assert index.artifact_type == ""


@pytest.mark.parametrize("body", [MANIFEST | {"layers": None}, INDEX | {"manifests": None}])
def test_null_lists_are_empty_as_go_programs_write_them(body: dict[str, Any]) -> None:
    media_type = mediatypes.OCI_INDEX if "manifests" in body else mediatypes.OCI_MANIFEST
    parsed = parse_manifest(json.dumps(body).encode(), media_type)
    assert not (parsed.layers if isinstance(parsed, Manifest) else parsed.manifests)


@pytest.mark.parametrize("body", [MANIFEST | {"layers": None}, {k: v for k, v in MANIFEST.items() if k != "layers"}])
def test_a_manifest_without_layers_has_none(body: dict[str, Any]) -> None:
    parsed = parse_manifest(json.dumps(body).encode())
    assert isinstance(parsed, Manifest)
    assert parsed.layers == ()


@pytest.mark.parametrize("name", ["referrer.index", "application/vnd.dev.sigstore.bundle+json;version=0.2", "a b"])
def test_types_that_other_registries_take_are_taken(name: str) -> None:
    body = MANIFEST | {"config": CONFIG | {"mediaType": name}, "layers": [LAYER | {"mediaType": name}]}
    body |= {"subject": ENTRY | {"mediaType": name}}
    manifest = parse_manifest(json.dumps(body).encode())
    assert isinstance(manifest, Manifest)
    assert manifest.artifact_type == manifest.config.media_type == manifest.layers[0].media_type == name
    assert parse_manifest(json.dumps(body | {"artifactType": name}).encode()).artifact_type == name
    entries = [ENTRY | {"mediaType": name, "artifactType": name}]
    index = parse_manifest(json.dumps(INDEX | {"manifests": entries}).encode())
    assert isinstance(index, Index)
    assert index.manifests[0].artifact_type == name


def test_artifact_type_falls_back_to_the_config() -> None:
    body = MANIFEST | {"config": CONFIG | {"mediaType": "application/vnd.example.config"}}
    manifest = parse_manifest(json.dumps(body).encode())
    assert manifest.artifact_type == "application/vnd.example.config"
    assert isinstance(manifest, Manifest)
    assert not manifest.is_image


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", 1),
        ("schemaVersion", 3),
        ("schemaVersion", "2"),
        ("schemaVersion", 2.0),
        ("schemaVersion", True),
        ("schemaVersion", DELETE),
        ("schemaVersion", None),
        ("mediaType", 5),
        ("mediaType", "nonsense"),
        ("mediaType", mediatypes.OCI_INDEX),
        ("mediaType", mediatypes.DOCKER_MANIFEST),
        ("config", DELETE),
        ("config", None),
        ("config", []),
        ("config", "x"),
        ("config.mediaType", DELETE),
        ("config.mediaType", ""),
        ("config.mediaType", "text/\x1b[31m"),
        ("config.mediaType", "text/ü"),
        ("config.mediaType", "a" * 256),
        ("config.digest", DELETE),
        ("config.digest", "sha256:1"),
        ("config.digest", SHA.upper()),
        ("config.digest", "md5:" + "0" * 32),
        ("config.digest", SHA + "\n"),
        ("config.size", DELETE),
        ("config.size", -1),
        ("config.size", 1 << 63),
        ("config.size", 10**400),
        ("config.size", 1.0),
        ("config.size", "1"),
        ("config.size", False),
        ("config.urls", "http://x"),
        ("config.urls[0]", None),
        ("config.annotations", []),
        ("config.annotations.a", 1),
        ("config.annotations.a", None),
        ("config.data", "***"),
        ("config.data", "eA"),
        ("config.data", base64.b64encode(b"y").decode()),
        ("config.data", base64.b64encode(b"xx").decode()),
        ("config.data", 1),
        ("config.data", "ä"),
        ("config.platform", []),
        ("config.platform.os", 1),
        ("config.platform.os.features", 1),
        ("config.artifactType", "x\n"),
        ("layers", {}),
        ("layers[0]", None),
        ("layers[0]", 1),
        ("layers[0].size", None),
        ("layers[0].digest", 1),
        ("subject", "x"),
        ("subject.digest", DELETE),
        ("annotations", "x"),
        ("annotations.a", {}),
        ("annotations.a", "\ud800"),
        ("artifactType", "x\n"),
        ("artifactType", 1),
        ("manifests", []),
        ("fsLayers", []),
    ],
)
def test_bad_field_is_named(path: str, value: object) -> None:
    body = MANIFEST | {"annotations": {"a": "b"}, "subject": dict(ENTRY), "fsLayers": None, "manifests": None}
    body["config"] = CONFIG | {"annotations": {"a": "b"}, "urls": ["http://x"], "platform": {}}
    raw = _changed(body, path, value)
    with pytest.raises(ManifestInvalidError) as caught:
        parse_manifest(raw, mediatypes.OCI_MANIFEST)
    assert caught.value.value == path


def _changed(body: dict[str, Any], path: str, value: object) -> bytes:
    whole: Any = copy.deepcopy(body)
    place = whole
    steps: list[Any] = path.replace("[0]", "/0").replace(".", "/").replace("os/features", "os.features").split("/")
    steps = [int(step) if step == "0" else step for step in steps]
    for step in steps[:-1]:
        place = place[step]
    if value is DELETE:
        del place[steps[-1]]
    else:
        place[steps[-1]] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b"null", "not an object"),
        (b"[]", "not an object"),
        (b'"x"', "not an object"),
        (b"{}", "missing"),
        (b"\xff{}", "UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{" * 100_000, "not JSON"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 1_000_000, "nested too deeply"),
        (b'{"schemaVersion":2,"schemaVersion":2}', "'schemaVersion' comes twice"),
        (b'{"schemaVersion":2,"x":{"y":{"z":1,"z":2}}}', "'z' comes twice"),
        (b'{"schemaVersion":NaN}', "NaN is not JSON"),
        (b'{"schemaVersion":-Infinity}', "-Infinity is not JSON"),
        (b'{"schemaVersion":' + b"9" * 100_000 + b"}", "not JSON"),
        (b'{"schemaVersion":' + b"9" * 4000 + b"}", "bits is not between"),
        (b'{"schemaVersion":1e999}', "not an integer"),
        (b'{"schemaVersion":2} x', "not JSON"),
    ],
)
def test_bad_documents_are_refused(raw: bytes, reason: str) -> None:
    for media_type in TYPES:
        with pytest.raises(ManifestInvalidError) as caught:
            parse_manifest(raw, media_type)
        assert len(str(caught.value)) < 500
    with pytest.raises(ManifestInvalidError, match=reason):
        parse_manifest(raw)


def test_an_image_that_is_also_an_index_is_refused() -> None:
    raw = json.dumps(MANIFEST | INDEX).encode()
    for media_type in TYPES:
        with pytest.raises(ManifestInvalidError):
            parse_manifest(raw, media_type)


def test_docker_documents_must_say_what_they_are() -> None:
    with pytest.raises(ManifestInvalidError, match="must have it"):
        parse_manifest(json.dumps(MANIFEST).encode(), mediatypes.DOCKER_MANIFEST)
    body = MANIFEST | {"mediaType": mediatypes.DOCKER_MANIFEST}
    assert parse_manifest(json.dumps(body).encode()).media_type == mediatypes.DOCKER_MANIFEST
    listed = INDEX | {"mediaType": mediatypes.DOCKER_MANIFEST_LIST}
    assert isinstance(parse_manifest(json.dumps(listed).encode()), Index)


def test_inline_data_is_checked_and_kept() -> None:
    body = MANIFEST | {"config": CONFIG | {"data": base64.b64encode(b"x").decode()}}
    manifest = parse_manifest(json.dumps(body).encode())
    assert isinstance(manifest, Manifest)
    assert manifest.config.data == b"x"
    assert json.loads(encode_manifest(manifest.config, manifest.layers).raw)["config"] == body["config"]


def test_encoding_round_trips() -> None:
    config = Descriptor.of(mediatypes.OCI_CONFIG, b"{}")
    layer = Descriptor(mediatypes.OCI_LAYER, Digest.of(b""), 0, ("http://x",), {"k": "v"}, None, "a/b")
    manifest = encode_manifest(config, [layer], annotations={"a": "ä"}, subject=config, artifact_type="x/y")
    assert parse_manifest(manifest.raw, manifest.media_type) == manifest
    entry = Descriptor(manifest.media_type, Digest.of(manifest.raw), 9, platform=Platform("linux", "arm", "v6"))
    index = encode_index([entry], annotations={"a": "b"})
    assert parse_manifest(index.raw) == index
    assert parse_manifest(encode_index([]).raw) == encode_index([])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([SHA, 2, *mediatypes.ACCEPT_MANIFESTS]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations", "artifactType"]
INNER = ["mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType", "os", "variant"]


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(TYPES))
def test_any_bytes_parse_or_are_refused(raw: bytes, media_type: str | None) -> None:
    _parse_or_refuse(raw, media_type)


@given(st.data(), st.sampled_from(TYPES))
def test_mutated_documents_parse_or_are_refused(data: st.DataObject, media_type: str | None) -> None:
    body: dict[str, Any] = copy.deepcopy(data.draw(st.sampled_from([MANIFEST, INDEX])))
    body |= data.draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2))
    for place in (body.get("config"), *_entries(body, "layers"), *_entries(body, "manifests")):
        if isinstance(place, dict):
            place |= data.draw(st.dictionaries(st.sampled_from(INNER), JSON, max_size=2))
    _parse_or_refuse(json.dumps(body).encode(), media_type)


def _entries(body: dict[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    return value if isinstance(value, list) else []


def _parse_or_refuse(raw: bytes, media_type: str | None) -> None:
    try:
        parsed = parse_manifest(raw, media_type)
    except ManifestInvalidError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert len(refused.encode()) < 700
        return
    assert parsed.raw == raw
    described = parsed.blobs if isinstance(parsed, Manifest) else parsed.manifests
    json.dumps([entry.to_json() for entry in described], ensure_ascii=False).encode()
