"""``pagepool pull``: an image out of a registry, into a file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, connect, on_server
from pagepool.cli.ending import cleaning_up
from pagepool.cli.options import (
    ReferenceType,
    complete_path,
    jobs_option,
    output_options,
    platform_option,
    server_options,
)
from pagepool.cli.platforms import warn_of_platform
from pagepool.cli.progress import Counter, transfer
from pagepool.layout import FORMATS, Format, Plan, choose_format, open_sink, parse_location, plan_copy, run_copy
from pagepool.layout.formats import STANDARD_INPUT
from pagepool.oci import Platform, Reference
from pagepool.transport import RegistrySource


@click.command(name="pull", short_help="Pull an image into a file.")
@click.argument("reference", metavar="REF", type=ReferenceType())
@click.argument("path", metavar="PATH[:NAME]", required=False, shell_complete=complete_path)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="What to write [oci-archive for *.tar, else oci: a layout directory].",
)
@platform_option
@jobs_option
@output_options
@server_options
@cleaning_up()
def command(
    reference: Reference,
    path: str | None,
    form: Format | None,
    platform: Platform | None,
    jobs: int,
    **server: Unpack[ServerOptions],
) -> None:
    """Pull the image REF and write it to PATH.

    An index is pulled whole into a layout or OCI archive, with the images of all its platforms, unless
    --platform names one. A docker archive holds one image: of an index, the one for this machine, unless
    --platform names another; its layers are written plain, and its config as it is, so that the image keeps
    its id. An image that is no index is taken whatever --platform says, with a warning if it is for another.

    A layout that is there already gets the image added to those it has; blobs it has are not fetched again.
    An archive that is there is replaced. The image is called NAME there: if not given, the tag of REF, or in
    a docker archive the whole REF. All content is verified, and nothing appears at PATH before it is whole.
    The format may be written before PATH, as for skopeo: docker-archive:app.tar.

    \b
    Examples:
      pagepool pull app:1 ./layout
      pagepool pull app:1 ./layout:stable
      pagepool pull --platform linux/arm64 app:1 app.tar
      pagepool pull --format docker-archive app:1 app.tar && docker load -i app.tar
    """
    if path is None:
        where = "where to write the image; run and mount fetch what they need by themselves"
        raise click.UsageError(f"Missing argument 'PATH[:NAME]': {where}.")
    location = parse_location(path)
    if path in (STANDARD_INPUT, f"{location.form}:{STANDARD_INPUT}"):
        raise click.UsageError("pull does not write to standard output: PATH - can be pushed only.")
    place, name = location.path, location.name
    if form and location.form and form != location.form:
        raise click.UsageError(f"{path} is {location.form}, and --format says {form}.")
    form = form or location.form or choose_format(place)
    asked = platform
    if platform is None and form == "docker-archive":
        platform = Platform.local()
    if name is None:
        name = _default_name(reference, form)
    reference = on_server(reference)
    with connect(server, reference) as connection:
        source = RegistrySource(connection.registry, reference)
        plan = plan_copy(source, platform)
        warn_of_platform(plan, source, asked, str(reference))
        with closing(open_sink(place, form, name)) as sink, transfer("pulling") as watcher:
            run_copy(plan, source, sink, jobs=jobs, watcher=watcher)
    _report(reference, place, form, name, plan, watcher)


def _default_name(reference: Reference, form: Format) -> str:
    if reference.digest and not reference.tag:
        return ""
    tag = reference.tag or "latest"
    if form != "docker-archive":
        return tag
    host = f"{reference.host}/" if reference.host else ""
    return f"{host}{reference.repository}:{tag}"


def _report(reference: Reference, place: Path, form: Format, name: str, plan: Plan, counter: Counter) -> None:
    descriptor, _ = plan.root
    if output.current().json:
        output.print_json(
            {
                "reference": str(reference),
                "digest": str(descriptor.digest),
                "media_type": descriptor.media_type,
                "size": plan.size,
                "path": str(place),
                "format": form,
                "name": name,
                "blobs": {"total": counter.total, "copied": counter.copied, "copied_size": counter.size},
            }
        )
        return
    output.print_line(str(descriptor.digest))
    fetched = f"{counter.copied} of {counter.total} blobs fetched, {output.human_size(counter.size)}"
    output.note(f"pulled {reference} into {place}: {fetched}")
