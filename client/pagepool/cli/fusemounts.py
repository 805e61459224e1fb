"""Mounts by FUSE, for `pagepool mount`: in the background, or served by the command itself."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from pagepool.cli import output
from pagepool.cli.kernelmounts import upper_backend
from pagepool.cli.progress import counting, making
from pagepool.cli.target import open_client
from pagepool.digest import Digest
from pagepool.errors import NotFoundError, UnreachableError, UnsupportedError
from pagepool.library import Client, Image
from pagepool.library.mounted import mount_image, mount_in_background, plan_mount
from pagepool.linux.signals import heeded
from pagepool.mount import MountOptions
from pagepool.overlay import OverlayInfo, OverlayUnknownError, read_info

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.cli.mounting import MountGiven
    from pagepool.mount import MountRecord
    from pagepool.oci import Reference


def mount_fuse(reference: Reference, path: Path, given: MountGiven, reason: str) -> None:
    """Mount an image, and say so.

    Args:
        given: the options of the command.
        reason: why it is FUSE.

    Raises:
        PagepoolError, OSError: it cannot be mounted.
    """
    backend, upper, eager = given["backend"], given["upper"], given["eager"]
    others = os.geteuid() == 0 if given["allow_other"] is None else given["allow_other"]
    why = "" if backend == "fuse" else f": {reason}"
    if given["temporary"] or given["quota"] or given["no_fill"]:
        raise UnsupportedError(f"--rw, --quota and --no-fill need the backend kernel{why}")
    if upper is not None and upper_backend(upper) == "kernel":
        raise UnsupportedError(f"{upper} was written by a kernel mount, and needs the backend kernel{why}")
    if backend == "auto":
        output.note(f"mounting by FUSE, not by the kernel: {reason}")
    read_only = given["read_only"] or upper is None
    mode = MountOptions(str(reference), read_only, others, not given["nosuid"], given["dev"])
    with open_client(given, reference) as client:
        image = _resolve(client, reference, given, upper)
        if eager:
            with counting("fetching") as count:
                image.fill(count)
        if given["foreground"]:
            _serve(image, path, upper, mode)
            return
        record = mount_in_background(plan_mount(image, upper), path, mode)
    _report(record)


def _resolve(client: Client, reference: Reference, given: MountGiven, upper: Path | None) -> Image:
    """The image; while the service is gone, the one that an overlay says it is of."""
    try:
        with making() as on_making:
            platform, timeout_s = given["platform"], given["tree_timeout"]
            return client.image(reference, platform=platform, tree_timeout_s=timeout_s, on_making=on_making)
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
    for number in heeded((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
        signal.signal(number, lambda *_: told.set())
    with mount_image(image, path, upper=upper, options=mode) as mounted:
        output.note(f"mounted {mode.source} at {mounted.path}; Ctrl-C unmounts it")
        while not told.is_set() and not mounted.join(0.5):
            pass


def _report(record: MountRecord) -> None:
    if output.current().json:
        output.print_json(_row(record))
        return
    kind = "read-only" if record.read_only else f"changes are kept in {record.upper}"
    output.print_path(record.path)
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
