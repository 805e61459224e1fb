"""``pagepool inspect``: one image, with its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect, on_server
from pagepool.cli.options import ReferenceType, output_options, server_options
from pagepool.errors import LimitError, ManifestUnknownError
from pagepool.layout.files import MAX_DOCUMENT
from pagepool.oci import Descriptor, Index, Manifest, Reference, parse_config
from pagepool.transport.service import platform_text


@click.command(name="inspect", short_help="Show an image and its layers.")
@click.argument("reference", metavar="REF", type=ReferenceType())
@output_options
@server_options
def command(reference: Reference, **server: Unpack[ServerOptions]) -> None:
    """Show the image REF: its digest, platform, command, and layers.

    Of a pagepool service, the state of each layer is shown too: pending (being read), ready (can be mounted),
    or unmountable, with the reason. Of an index with no image for its machine, what it lists is shown.

    \b
    Examples:
      pagepool inspect app:1
      pagepool inspect -q app:1
      pagepool inspect --json app:1 | jq -r '.layers[].digest'
    """
    reference = on_server(reference)
    with connect(server, reference) as connection:
        found = _of_service(connection, reference) or _of_registry(connection, reference)
    if output.current().json:
        output.print_json(found)
    elif output.current().quiet:
        output.print_line(output.pick(found, "digest"))
    else:
        _print(found)


def _of_service(connection: Connection, reference: Reference) -> Mapping[str, Any] | None:
    """What a pagepool service says of an image; None of an index without one for the service's machine."""
    if not connection.service.available():
        return None
    try:
        return connection.service.image(reference.repository, reference.target).raw
    except ManifestUnknownError:
        return None


def _of_registry(connection: Connection, reference: Reference) -> dict[str, Any]:
    """The same fields, as far as any registry can say."""
    pulled = connection.registry.get_manifest(reference.repository, reference.target)
    manifest = pulled.manifest
    found: dict[str, Any] = {
        "name": reference.repository,
        "reference": reference.target,
        "digest": str(pulled.descriptor.digest),
        "media_type": pulled.descriptor.media_type,
    }
    if isinstance(manifest, Index):
        return found | {"manifests": [entry.to_json() for entry in manifest.manifests]}
    found["size"] = sum(blob.size for blob in manifest.blobs)
    diff_ids: tuple[object, ...] = ()
    if manifest.is_image:
        config = parse_config(_read(connection, reference.repository, manifest.config))
        found |= {"platform": config.platform.to_json(), "config": json.loads(config.raw)}
        diff_ids = config.diff_ids
    return found | {"layers": _layers(manifest, diff_ids)}


def _read(connection: Connection, repository: str, blob: Descriptor) -> bytes:
    if blob.size > MAX_DOCUMENT:
        raise LimitError(f"config {blob.digest}", blob.size, MAX_DOCUMENT)
    with connection.registry.open_blob(repository, blob) as reader:
        return reader.read()


def _layers(manifest: Manifest, diff_ids: tuple[object, ...]) -> list[dict[str, Any]]:
    return [
        {
            "digest": str(layer.digest),
            "media_type": layer.media_type,
            "size": layer.size,
            "diff_id": str(diff_ids[at]) if at < len(diff_ids) else None,
        }
        for at, layer in enumerate(manifest.layers)
    ]


def _print(found: Mapping[str, Any]) -> None:
    document = found.get("config")
    document = document if isinstance(document, dict) else {}
    config = document.get("config")
    lines = {
        "Name": f"{output.pick(found, 'name')} ({output.pick(found, 'reference')})",
        "Digest": output.pick(found, "digest"),
        "Type": output.pick(found, "media_type"),
        "Platform": platform_text(found.get("platform")),
        "Created": output.pick(document, "created"),
        "State": ": ".join(part for part in (output.pick(found, "state"), output.pick(found, "reason")) if part),
    }
    if isinstance(config, dict):
        for name in ("User", "WorkingDir", "Entrypoint", "Cmd"):
            value = config.get(name)
            lines[name] = value if isinstance(value, str) else json.dumps(value) if value else ""
    width = max(len(name) for name in lines) + 2
    for name, text in lines.items():
        if text:
            output.print_line(f"{name + ':':<{width}}{output.printable(text)}")
    for title, rows in (("Layers", found.get("layers")), ("Manifests", found.get("manifests"))):
        if isinstance(rows, list) and rows:
            output.print_line(f"{title}:")
            _print_rows([row for row in rows if isinstance(row, dict)])


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Layers, or the entries of an index: only the columns that have something in them."""
    columns = {
        "DIGEST": [output.pick(row, "digest") for row in rows],
        "PLATFORM": [platform_text(row.get("platform")) for row in rows],
        "TYPE": [(output.pick(row, "media_type") or output.pick(row, "mediaType")).rpartition("/")[2] for row in rows],
        "SIZE": [output.human_size(row.get("size")) for row in rows],
        "PLAIN": [output.human_size(row.get("plain_size")) for row in rows],
        "FILES": [output.pick(row, "members") for row in rows],
        "STATE": [output.pick(row, "state") for row in rows],
        "REASON": [output.pick(row, "reason") for row in rows],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    right = [at for at, title in enumerate(shown) if title in ("SIZE", "PLAIN", "FILES")]
    output.print_table(list(shown), list(zip(*shown.values(), strict=True)), right)
