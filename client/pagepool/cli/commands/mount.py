"""``pagepool mount``: an image, or an overlay of one, as a directory; without arguments, what is mounted."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import on_server
from pagepool.cli.kernelmounts import (
    check_free,
    choose,
    kernel_row,
    kernel_rows,
    mount_kernel,
    state_of,
    tell_offline,
    upper_backend,
)
from pagepool.cli.nodes import SizeType, may_ask, node_client, node_options
from pagepool.cli.options import ReferenceType, output_options, platform_option, pool_options
from pagepool.cli.progress import counting
from pagepool.cli.target import PoolOptions, open_client
from pagepool.digest import Digest
from pagepool.errors import InvalidError, NotFoundError, UnreachableError, UnsupportedError
from pagepool.library import Client, Image
from pagepool.library.mounted import mount_image, mount_in_background, plan_mount
from pagepool.mount import MountOptions, default_directory, list_mounts
from pagepool.node.client import KernelMountOptions
from pagepool.oci import Platform, Reference
from pagepool.overlay import OverlayInfo, OverlayUnknownError, read_info

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool.mount import MountRecord, MountState
    from pagepool.node.client import KernelMount


class _Directory(click.Argument):
    """DIR, which is named without the bracket that ends the two arguments together."""

    def get_error_hint(self, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        return "'DIR'"


@click.command(name="mount", short_help="Mount an image or an overlay of it.")
@click.argument("reference", metavar="[REF", type=ReferenceType(), required=False)
@click.argument(
    "path", cls=_Directory, metavar="DIR]", type=click.Path(path_type=Path, file_okay=False), required=False
)
@click.option(
    "--upper",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep what is written in this directory: a new overlay, or one of the same image [nothing can be written].",
)
@click.option("--ro", "read_only", is_flag=True, help="Nothing can be written, though there is an overlay.")
@click.option("--rw", "temporary", is_flag=True, help="What is written is kept until it is unmounted (kernel only).")
@click.option(
    "--eager",
    "--fill",
    "eager",
    is_flag=True,
    help="Fetch all of the image first: then the service is not needed any more.",
)
@click.option("--no-fill", is_flag=True, help="Do not fetch the rest of the image in the background (kernel only).")
@click.option("--quota", type=SizeType(), metavar="SIZE", help="Most bytes that may be written (kernel only).")
@click.option(
    "--backend",
    type=click.Choice(["auto", "kernel", "fuse"]),
    default="auto",
    envvar="PAGEPOOL_BACKEND",
    show_default=True,
    help="What mounts it [$PAGEPOOL_BACKEND].",
)
@click.option("--foreground", is_flag=True, help="Serve the mount until Ctrl-C, not in the background (fuse only).")
@click.option("--dev", is_flag=True, help="Device nodes are devices (root only).")
@click.option("--nosuid", is_flag=True, help="setuid, setgid and file capabilities do not count.")
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Other users may look into it; for a user /etc/fuse.conf has to allow that [root: yes, users: no].",
)
@platform_option
@output_options
@node_options
@pool_options
def command(
    reference: Reference | None,
    path: Path | None,
    upper: Path | None,
    read_only: bool,
    temporary: bool,
    eager: bool,
    no_fill: bool,
    quota: int | None,
    backend: str,
    foreground: bool,
    dev: bool,
    nosuid: bool,
    allow_other: bool | None,
    platform: Platform | None,
    **options: Unpack[PoolOptions],
) -> None:
    """Mount the image REF at the directory DIR, where every program can use it.

    Files are fetched when they are first opened, and kept. With --upper what is written is kept, survives the
    death of every process, and can be mounted again, compared with the image (pagepool diff) or pushed as a new
    one (pagepool commit).

    The backend kernel gives a mount of the kernel's own: files that are here cost what local files cost, and all
    containers share one copy of each in memory, whatever image it came with. It needs root, Linux 6.5, EROFS and
    overlayfs; the node (pagepool node), which fetches what is missing, is started if it is not running. The
    backend fuse works wherever there is /dev/fuse; users other than root need fusermount3 (package fuse3). auto
    takes the kernel where it can, and says why if it cannot. Without arguments, lists what is mounted.

    \b
    Examples:
      pagepool mount app:1 /mnt/app
      pagepool mount app:1 /mnt/app --upper ./work
      pagepool mount app:1 /mnt/app --rw --eager
      pagepool mount
      pagepool umount /mnt/app
    """
    if reference is None:
        _print_mounts(list_mounts(default_directory()), kernel_rows() if may_ask(node_client()) else [])
        return
    if path is None:
        raise click.UsageError("Missing argument 'DIR': where to mount the image.")
    _check_wishes(upper, temporary, read_only, quota)
    if not path.is_dir():
        raise InvalidError(str(path), "is no directory to mount upon; make one")
    check_free(path)
    reference = on_server(reference)
    others = os.geteuid() == 0 if allow_other is None else allow_other
    choice = choose(backend, node_client().places.state, upper, needs_fuse=foreground or options["pool"] is not None)
    if choice.backend == "kernel":
        wish = KernelMountOptions(upper, temporary, read_only, nosuid, dev, eager, not no_fill, quota or 0)
        _report_kernel(mount_kernel(options, reference, path, wish, platform), choice.reason)
        return
    why = "" if backend == "fuse" else f": {choice.reason}"
    if temporary or quota or no_fill:
        raise UnsupportedError(f"--rw, --quota and --no-fill need the backend kernel{why}")
    if upper is not None and upper_backend(upper) == "kernel":
        raise UnsupportedError(f"{upper} was written by a kernel mount, and needs the backend kernel{why}")
    if backend == "auto":
        output.note(f"mounting by FUSE, not by the kernel: {choice.reason}")
    mode = MountOptions(str(reference), read_only or upper is None, others, not nosuid, dev)
    with open_client(options, reference) as client:
        image = _resolve(client, reference, platform, upper)
        if eager:
            with counting("fetching") as count:
                image.fill(count)
        if foreground:
            _serve(image, path, upper, mode)
            return
        record = mount_in_background(plan_mount(image, upper), path, mode)
    _report(record)


def _check_wishes(upper: Path | None, temporary: bool, read_only: bool, quota: int | None) -> None:
    """Refuse wishes of which one would be forgotten."""
    if temporary and upper is not None:
        raise click.UsageError("--rw and --upper exclude each other: what is written is kept, or it is not.")
    if temporary and read_only:
        raise click.UsageError("--rw and --ro exclude each other.")
    if quota and not temporary and upper is None:
        raise click.UsageError("--quota is for --rw and --upper: nothing can be written without.")


def _resolve(client: Client, reference: Reference, platform: Platform | None, upper: Path | None) -> Image:
    """The image; while the service is gone, the one that an overlay says it is of."""
    try:
        return client.image(reference, platform=platform)
    except NotFoundError:
        if not client.service.available():
            raise UnsupportedError(f"{client.session.where} is not a pagepool service") from None
        raise
    except UnreachableError:
        noted = None if upper is None else _noted(upper)
        if noted is None or noted.info.get("image") != str(reference):
            raise
        output.warn(f"{client.session.where} cannot be reached: only what was fetched before can be read")
        manifest = Digest.parse(str(noted.info["manifest"])) if "manifest" in noted.info else None
        tree = Digest("blake3", noted.tree)
        place = client.tree(reference.repository, tree).pool
        return Image(client, reference.repository, tree, reference=reference, manifest=manifest, pool=place)


def _noted(upper: Path) -> OverlayInfo | None:
    try:
        return read_info(upper)
    except OverlayUnknownError:
        return None


def _serve(image: Image, path: Path, upper: Path | None, mode: MountOptions) -> None:
    """Serve a mount by this process until somebody unmounts it, or it is told to end."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: told.set())
    with mount_image(image, path, upper=upper, options=mode) as mounted:
        output.note(f"mounted {mode.source} at {mounted.path}; Ctrl-C unmounts it")
        while not told.is_set() and not mounted.join(0.5):
            pass


def _report_kernel(mounted: KernelMount, reason: str) -> None:
    fields = mounted.fields
    tell_offline(mounted)
    if output.current().json:
        output.print_json(kernel_row(fields))
        return
    output.print_line(str(mounted.path))
    kind = "read-only" if fields["read_only"] else f"changes are kept in {fields['upper']}"
    if fields["temporary"]:
        kind = "changes go when it is unmounted"
    output.note(f"mounted {fields['image']} (kernel: {reason}; {kind})")


def _report(record: MountRecord) -> None:
    if output.current().json:
        output.print_json(_row(record))
        return
    kind = "read-only" if record.read_only else f"changes are kept in {record.upper}"
    output.print_line(record.path)
    output.note(f"mounted {record.source} ({record.backend}, {kind})")


def _row(record: MountRecord) -> dict[str, Any]:
    return {
        "path": record.path,
        "image": record.source,
        "upper": record.upper,
        "read_only": record.read_only,
        "backend": record.backend,
        "pid": record.pid,
    }


def _print_mounts(states: Iterable[MountState], kernel: list[dict[str, Any]]) -> None:
    rows = kernel + [
        {
            "path": str(one.path),
            "image": one.source,
            "upper": one.record.upper if one.record else None,
            "read_only": one.read_only,
            "backend": one.record.backend if one.record else "fuse",
            "pid": one.record.pid if one.record else None,
            "dead": one.dead,
        }
        for one in states
    ]
    if output.current().json:
        output.print_json({"mounts": rows})
    elif output.current().quiet:
        output.print_lines(output.printable(str(row["path"])) for row in rows)
    else:
        cells = [
            (str(row["path"]), str(row["image"]), str(row["backend"]), str(row["upper"] or "-"), state_of(row))
            for row in rows
        ]
        output.print_table(("PATH", "IMAGE", "BACKEND", "UPPER", "STATE"), cells)
