"""Image configurations: what to run, on what, and the digests of the plain layers.

Follows image-spec v1.1.0 `config.md`; Docker's configurations have the same fields and more. Only what
pagepool uses is read; `raw` keeps the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagepool.digest import Digest
from pagepool.errors import ImageInvalidError
from pagepool.oci.fields import Object, load_object
from pagepool.oci.platform import Platform


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The part of a configuration that a runtime uses. Absent lists are empty, absent texts "".

    Args:
        entrypoint: the command that is always run.
        cmd: its default arguments, or the default command.
        env: ``NAME=value``.
        user: user, or user:group, by name or number.
        working_dir: where the command starts.
        labels: free text by key.
        exposed_ports: ``port[/protocol]``, sorted.
        volumes: paths that hold data, sorted.
        stop_signal: what asks the container to end.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""

    def to_json(self) -> dict[str, Any]:
        """The ``config`` object, spelled as in the specification, absent fields left out."""
        fields: dict[str, Any] = {
            "User": self.user,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "Volumes": {path: {} for path in self.volumes},
            "WorkingDir": self.working_dir,
            "Labels": dict(self.labels),
            "StopSignal": self.stop_signal,
        }
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of an image.

    Args:
        raw: the document as it came.
        platform: what the image runs on.
        diff_ids: digests of the plain layers, lowest first; one for each layer of the manifest.
        run: what to run.
        created: date and time, RFC 3339, as it was written; "" if not said.
        author: who made it.
    """

    raw: bytes = field(repr=False)
    platform: Platform
    diff_ids: tuple[Digest, ...]
    run: RunConfig
    created: str = ""
    author: str = ""


def parse_config(data: bytes) -> Config:
    """Parse an image configuration.

    Args:
        data: the document. The caller has limited its size.

    Raises:
        ImageInvalidError: not a configuration; it names the bad field. Nothing else is ever raised.
    """
    fields = load_object(data, "config", ImageInvalidError)
    rootfs = fields.object("rootfs")
    if rootfs.string("type") != "layers":
        rootfs.refuse("type", "is not 'layers'")
    return Config(
        raw=bytes(data),
        platform=Platform.from_fields(fields),
        diff_ids=rootfs.digests("diff_ids"),
        run=_run_config(fields.object("config")) if fields.has("config") else RunConfig(),
        created=fields.optional_string("created"),
        author=fields.optional_string("author"),
    )


def _run_config(fields: Object) -> RunConfig:
    return RunConfig(
        entrypoint=_words(fields, "Entrypoint"),
        cmd=_words(fields, "Cmd"),
        env=fields.strings("Env"),
        user=fields.optional_string("User"),
        working_dir=fields.optional_string("WorkingDir"),
        labels=fields.string_map("Labels"),
        exposed_ports=fields.keys("ExposedPorts"),
        volumes=fields.keys("Volumes"),
        stop_signal=fields.optional_string("StopSignal"),
    )


def _words(fields: Object, name: str) -> tuple[str, ...]:
    # Docker has always taken a lone string for a list of one, and old images have it.
    return (fields.string(name),) if isinstance(fields.fields.get(name), str) else fields.strings(name)
