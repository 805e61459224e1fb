"""``pagepool rm``: delete tags and manifests."""

from __future__ import annotations

from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect, on_server
from pagepool.cli.options import ReferenceType, output_options, server_options
from pagepool.errors import DigestInvalidError, ManifestUnknownError, UnsupportedError
from pagepool.oci import Reference


@click.command(name="rm", short_help="Delete tags or manifests.")
@click.argument("references", metavar="REF...", type=ReferenceType(), nargs=-1, required=True)
@output_options
@server_options
def command(references: tuple[Reference, ...], **server: Unpack[ServerOptions]) -> None:
    """Delete each REF, without asking.

    NAME:TAG deletes the tag only. NAME@DIGEST deletes the manifest, and with it every tag that names it.
    Content that nothing refers to any more goes later: a pagepool service collects it by itself (pagepool gc).
    Stops at the first failure.

    \b
    Examples:
      pagepool rm app:1
      pagepool rm app@sha256:…
    """
    for reference in references:
        if not reference.tag and not reference.digest:
            raise click.UsageError(f"{reference} has no tag and no digest: rm does not assume one.")
    done = []
    for reference in map(on_server, references):
        with connect(server, reference) as connection:
            _delete(connection, reference)
        done.append({"reference": str(reference), "kind": "manifest" if reference.digest else "tag"})
        if not output.current().json:
            output.print_line(str(reference))
    if output.current().json:
        output.print_json({"deleted": done})


def _delete(connection: Connection, reference: Reference) -> None:
    try:
        connection.registry.delete_manifest(reference.repository, reference.target)
    except (UnsupportedError, DigestInvalidError) as error:
        # Docker's registry takes digests only, and complains of a tag as of a bad digest.
        if reference.digest:
            raise
        found = connection.registry.head_manifest(reference.repository, reference.target)
        if found is None:
            raise ManifestUnknownError(str(reference)) from None
        whole = reference.with_digest(found.digest)
        raise UnsupportedError(
            f"{connection.session.where} does not delete single tags; this deletes the image with all its tags: "
            f"pagepool rm {whole}"
        ) from error
