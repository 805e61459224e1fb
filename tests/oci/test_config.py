"""Image configurations: OCI's, Docker's, and hostile ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.digest import Digest
from pagepool.errors import ImageInvalidError
from pagepool.oci import Platform, RunConfig, parse_config

SHA = str(Digest.of(b"x"))
MINIMAL: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [SHA]},
}


def test_minimal_config() -> None:
    raw = json.dumps(MINIMAL).encode()
    config = parse_config(raw)
    assert config.raw == raw
    assert config.platform == Platform("linux", "amd64")
    assert config.diff_ids == (Digest.of(b"x"),)
    assert config.run == RunConfig()


def test_full_config_as_docker_writes_it() -> None:
    run: dict[str, Any] = {
        "Hostname": "",
        "User": "1000:1000",
        "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
        "Env": ["PATH=/bin"],
        "Cmd": ["-c", "x"],
        "Entrypoint": "sh",
        "Image": "sha256:abc",
        "Volumes": None,
        "WorkingDir": "/w",
        "OnBuild": None,
        "Labels": {"k": "v"},
        "StopSignal": "SIGQUIT",
    }
    body = MINIMAL | {"config": run, "created": "2025-01-01T00:00:00Z", "variant": "v2", "container_config": 5}
    config = parse_config(json.dumps(body).encode())
    assert config.created == "2025-01-01T00:00:00Z"
    assert config.platform == Platform("linux", "amd64", "v2")
    assert config.run.entrypoint == ("sh",)
    assert config.run.exposed_ports == ("443/tcp", "80/tcp")
    assert config.run.to_json() == {
        "User": "1000:1000",
        "ExposedPorts": {"443/tcp": {}, "80/tcp": {}},
        "Env": ["PATH=/bin"],
        "Entrypoint": ["sh"],
        "Cmd": ["-c", "x"],
        "WorkingDir": "/w",
        "Labels": {"k": "v"},
        "StopSignal": "SIGQUIT",
    }


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"rootfs": None}, "rootfs"),
        ({"rootfs": {}}, "rootfs.type"),
        ({"rootfs": {"type": "tar"}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, "rootfs.diff_ids[0]"),
        ({"rootfs": {"type": "layers", "diff_ids": [SHA, None]}}, "rootfs.diff_ids[1]"),
        ({"config": []}, "config"),
        ({"config": {"Env": {}}}, "config.Env"),
        ({"config": {"Cmd": [1]}}, "config.Cmd[0]"),
        ({"config": {"Labels": {"a": 1}}}, "config.Labels.a"),
        ({"os": 1}, "os"),
    ],
)
def test_bad_field_is_named(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ImageInvalidError) as caught:
        parse_config(json.dumps(MINIMAL | change).encode())
    assert caught.value.value == path


@given(st.binary(max_size=64))
def test_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    with pytest.raises(ImageInvalidError):
        parse_config(raw)
