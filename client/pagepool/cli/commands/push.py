"""``pagepool push``: an image file into a registry."""

from __future__ import annotations

from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect, on_server
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
from pagepool.cli.waiting import check_wait, wait_until_read
from pagepool.layout import Location, Plan, open_source, parse_location, plan_copy, run_copy
from pagepool.layout.formats import STANDARD_INPUT
from pagepool.oci import Platform, Reference
from pagepool.transport import ImageState, RegistrySink
from pagepool.transport.service import UNMOUNTABLE


@click.command(name="push", short_help="Push an image file into a registry.")
@click.argument("path", metavar="PATH[:NAME]", shell_complete=complete_path)
@click.argument("reference", metavar="REF", type=ReferenceType())
@platform_option
@jobs_option
@click.option("--mount-from", metavar="REPOSITORY", help="Another repository there that may have the layers.")
@click.option("--wait/--no-wait", default=None, help="Wait until the layers can be mounted [if the server can say].")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Seconds to wait.")
@output_options
@server_options
@cleaning_up()
def command(
    path: str,
    reference: Reference,
    platform: Platform | None,
    jobs: int,
    mount_from: str | None,
    wait: bool | None,
    timeout: float,
    **server: Unpack[ServerOptions],
) -> None:
    """Push the image at PATH into a registry, as REF.

    PATH is an OCI layout directory, an OCI archive, or what "docker save" wrote, compressed or not; "-" is
    standard input. Which of these it is, is found out. If it holds several images, NAME says which: its tag
    there, its digest, or, in a docker archive, @0, @1 and so on. oci:, oci-archive: or docker-archive: may be
    written before PATH, as for skopeo.

    An index is pushed whole, with the images of all its platforms, unless --platform names one. Manifests and
    blobs go as they are, so digests do not change. What the registry has already is not sent again. The
    layers of a docker archive are pushed plain, as they lie in it.

    A pagepool service reads the layers after the push; push waits for that, unless --no-wait is given. An
    image that cannot be mounted is stored all the same: push says why, and succeeds.

    \b
    Examples:
      pagepool push ./layout app:1
      pagepool push ./layout:2.0 registry.example.org/team/app:2.0
      docker save app:1 | pagepool push - app:1
      pagepool push --platform linux/arm64 multi.tar app:arm
    """
    place = parse_location(path)
    if str(place.path) == STANDARD_INPUT and server["password_stdin"]:
        raise click.UsageError("PATH - and --password-stdin both want standard input.")
    reference = on_server(reference)
    with connect(server, reference) as connection:
        wait = check_wait(connection, wait)
        plan, counter = _copy(connection, place, reference, platform, jobs, mount_from)
        image = wait_until_read(connection, reference.repository, str(plan.root[0].digest), timeout) if wait else None
    _report(reference, plan, counter, image)


def _copy(
    connection: Connection,
    place: Location,
    reference: Reference,
    platform: Platform | None,
    jobs: int,
    mount_from: str | None,
) -> tuple[Plan, Counter]:
    source = open_source(place.path, place.name)
    try:
        plan = plan_copy(source, platform)
        warn_of_platform(plan, source, platform, str(place.path))
        with transfer("pushing") as watcher:
            sink = RegistrySink(connection.registry, reference, mount_from)
            run_copy(plan, source, sink, jobs=jobs, watcher=watcher)
    finally:
        source.close()
    return plan, watcher


def _report(reference: Reference, plan: Plan, counter: Counter, image: ImageState | None) -> None:
    descriptor, _ = plan.root
    if image and image.state == UNMOUNTABLE:
        output.warn(f"{reference} is stored, and cannot be mounted: {image.reason}")
    if output.current().json:
        result: dict[str, Any] = {
            "reference": str(reference),
            "digest": str(descriptor.digest),
            "media_type": descriptor.media_type,
            "size": plan.size,
            "blobs": {"total": counter.total, "copied": counter.copied, "copied_size": counter.size},
            "state": image.state if image else None,
            "reason": image.reason if image else None,
        }
        output.print_json(result)
        return
    output.print_line(str(descriptor.digest))
    output.note(
        f"pushed {reference}: {counter.copied} of {counter.total} blobs sent, {output.human_size(counter.size)}"
        + (f", {image.state}" if image else "")
    )
