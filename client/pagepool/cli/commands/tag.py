"""``pagepool tag``: further names for an image."""

from __future__ import annotations

from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, connect, on_server, server_url
from pagepool.cli.options import ReferenceType, output_options, server_options
from pagepool.cli.progress import transfer
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.transport import RegistrySink, RegistrySource


@click.command(name="tag", short_help="Give an image further names.")
@click.argument("reference", metavar="REF", type=ReferenceType())
@click.argument("names", metavar="NEW...", type=ReferenceType(), nargs=-1, required=True)
@output_options
@server_options
def command(reference: Reference, names: tuple[Reference, ...], **server: Unpack[ServerOptions]) -> None:
    """Give the image REF each of the names NEW, too, on the same server.

    NEW may be in another repository, which takes the layers from the one of REF: none is transferred, unless that
    is a registry that cannot do it. A tag that is there already is moved. An index goes whole, with the images of
    all its platforms.

    \b
    Examples:
      pagepool tag app:1 app:stable
      pagepool tag ci/app:4711 team/app:2.0 team/app:latest
    """
    reference, names = on_server(reference), tuple(map(on_server, names))
    for name in names:
        if server_url(server, name) != server_url(server, reference):
            raise click.UsageError(f"{name} is on another server than {reference}: pull and push it.")
    with connect(server, reference) as connection:
        source = RegistrySource(connection.registry, reference)
        plan = plan_copy(source)
        for name in names:
            other = None if name.repository == reference.repository else reference.repository
            with transfer("copying") as watcher:
                run_copy(plan, source, RegistrySink(connection.registry, name, other), watcher=watcher)
    digest = str(source.root().digest)
    if output.current().json:
        output.print_json({"reference": str(reference), "digest": digest, "names": [str(name) for name in names]})
        return
    output.print_line(digest)
    output.note(f"{reference} is {' and '.join(map(str, names))}, too")
