"""Files that commands are about: in an image, or in an overlay over one.

    REF[:PATH]     an image, by its name; PATH begins at the first ":/"
    DIR[:PATH]     an overlay, or the upper of a kernel mount, by its directory, which begins with "/" or "."
    CONTAINER      what a container has written that runs, by its name or id; of some commands only

No reference and no container's name begins with a slash or a dot, so these cannot be taken for a directory. A name that
a container has is not taken for an image's; a reference with a tag or a host is always an image.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pagepool.cli.connect import PoolOptions, credentials_for, host_of, on_server, server_url, verify_of
from pagepool.cli.progress import making
from pagepool.errors import (
    BusyError,
    InvalidError,
    NotFoundError,
    PathUnknownError,
    ReferenceInvalidError,
    UnsupportedError,
)
from pagepool.oci import Reference
from pagepool.oci.reference import SCHEMES
from pagepool.overlay import read_info
from pagepool.upper import find_upper, read_upper_info

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.container import Record
    from pagepool.library import Changed, Client, Image, Overlay
    from pagepool.vfs import Rootfs

_DIRECTORY = ("/", ".")


@dataclass(frozen=True, slots=True)
class Target:
    """Where something is.

    Args:
        reference: the image; None for an overlay.
        directory: of the overlay; None for an image.
        path: absolute, within it.
        given: whether a path was given.
        name: the image or overlay, without the path, for people.
        container: whose upper the directory is; None if it was named itself.
    """

    reference: Reference | None
    directory: Path | None
    path: str
    given: bool
    name: str
    container: Record | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.path}" if self.given else self.name


class TargetType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """An image or overlay as an argument, or what a container has written.

    Args:
        containers: whether it may be a container that runs.
    """

    name = "target"

    def __init__(self, *, containers: bool = False) -> None:
        self._containers = containers

    def convert(self, value: Any, *_: object) -> Target:
        """Parse; a bad reference is invalid input, not wrong usage."""
        if isinstance(value, Target):
            return value
        found = find_container(value) if self._containers and not value.startswith(_DIRECTORY) else None
        return found or parse_target(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Directories, for overlays; and containers."""
        if incomplete.startswith(_DIRECTORY):
            return [CompletionItem(incomplete, type="dir")]
        return _complete_container(ctx, param, incomplete) if self._containers else []


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete files of this machine, where an argument may be one, and containers that run."""
    if ":/" in incomplete:
        return []
    containers = [] if incomplete.startswith(_DIRECTORY) else _complete_container(ctx, param, incomplete)
    return [
        CompletionItem(incomplete, type="file"),
        *(CompletionItem(f"{one.value}:/", help=one.help) for one in containers),
    ]


def _complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from pagepool.cli.containers import complete_container

    return complete_container(ctx, param, incomplete)


def find_container(text: str) -> Target | None:
    """The container that runs of this name or id; None: there is none.

    Raises:
        UnsupportedError: its image is not mounted by the kernel.
    """
    from pagepool.cli.containers import find_running  # as all that is about containers: few commands need it
    from pagepool.cli.uppers import find_upper_of

    record = find_running(text)
    if record is None:
        return None

    return Target(None, find_upper_of(record), "/", False, text, record)


def parse_target(text: str) -> Target:
    """Split ``REF[:PATH]`` or ``DIR[:PATH]``: the path begins at the first ``:/``."""
    name, found, rest = text.partition(":/")
    path = f"/{rest}" if found else "/"
    if text.startswith(_DIRECTORY):
        return Target(None, Path(name), path, bool(found), name)
    reference = on_server(_reference(text, name))
    return Target(reference, None, path, bool(found), str(reference))


def _reference(text: str, name: str) -> Reference:
    """The image of a target. What is wrong with it is said as somebody needs it who meant a URL, or a path."""
    if text.startswith(f"{name}://") and name in SCHEMES:
        return Reference.parse(text)
    try:
        return Reference.parse(name)
    except ReferenceInvalidError:
        image, _, path = name.rpartition(":")
        if name == text and _is_tagged(image):
            raise ReferenceInvalidError(text[:512], f"a path begins with a slash: {image}:/{path[:256]}") from None
        raise


def _is_tagged(text: str) -> bool:
    try:
        found = Reference.parse(text)
    except InvalidError:
        return False
    return bool(found.tag or found.digest)


@contextmanager
def open_client(options: PoolOptions, reference: Reference | None = None, url: str | None = None) -> Iterator[Client]:
    """A client of the service that a reference names, or else of the one at `url`, or else of the default one."""
    chosen, host = server_url(options, reference)
    if url is not None:
        chosen, host = url.rstrip("/"), host_of(url)[1]
    credentials = credentials_for(options, host, reference.repository if reference else "")
    from pagepool.library import Client

    verify = verify_of(options, host)
    with Client(chosen, directory=options["pool"], credentials=credentials, verify=verify) as client:
        yield client


@contextmanager
def open_image(options: PoolOptions, reference: Reference) -> Iterator[Image]:
    """An image of a service.

    Raises:
        UnsupportedError: the server is another kind of registry.
    """
    with open_client(options, reference) as client:
        try:
            with making() as on_making:
                image = client.image(reference, tree_timeout_s=options["tree_timeout"], on_making=on_making)
        except NotFoundError:
            if not client.service.available():
                raise UnsupportedError(f"{client.session.where} is not a pagepool service") from None
            raise
        yield image


@contextmanager
def open_overlay(options: PoolOptions, directory: Path, image: Reference | None = None) -> Iterator[Overlay]:
    """An overlay. What is missing of its image is asked for where the overlay was made, unless ``--server`` is given.

    Args:
        image: make an overlay over this image, if the directory is empty or not there.

    Raises:
        OverlayUnknownError: the directory holds none.
        UnsupportedError: it is the upper of a kernel mount.
        BusyError: it is open already; mounted, say.
    """
    if find_upper(directory) is not None:
        raise UnsupportedError(f"{directory} is what a kernel mount wrote: it can only be changed through a mount")
    if image is not None and not (directory.is_dir() and any(directory.iterdir())):
        with open_image(options, image) as made, made.overlay(directory) as overlay:
            yield overlay
        return
    server = read_info(directory).info.get("server")
    with open_client(options, url=_noted_url(server)) as client:
        try:
            opened = client.overlay(directory)
        except BusyError as error:
            raise _busy(directory) or error from None
        with opened as overlay:
            yield overlay


def _busy(directory: Path) -> BusyError | None:
    """Where an overlay is mounted, for who has forgotten; None if no mount of this user's is known to have it."""
    from pagepool.mount import default_directory, list_mounts

    for mounted in list_mounts(default_directory()):
        upper = None if mounted.record is None else mounted.record.upper
        if upper is not None and Path(upper).resolve() == directory.resolve():
            return BusyError(f"the overlay {directory} is in use: it is mounted; pagepool umount {mounted.path}")
    return None


@contextmanager
def open_changed(options: PoolOptions, directory: Path) -> Iterator[Changed]:
    """An overlay, or the upper of a kernel mount: to read.

    Raises:
        OverlayUnknownError: the directory is neither.
        BusyError: it is an overlay, and open already.
        DeniedError: it is an upper, and this is not root; or it holds what no mount wrote.
    """
    upper = find_upper(directory)
    if upper is None:
        with open_overlay(options, directory) as overlay:
            yield overlay
        return
    server = read_upper_info(upper).url
    with open_client(options, url=_noted_url(server)) as client, client.upper(upper) as changed:
        yield changed


def _noted_url(server: object) -> str | None:
    """The service that was noted, unless another was asked for on the command line."""
    source = click.get_current_context().get_parameter_source("server")
    return None if source is click.core.ParameterSource.COMMANDLINE or server is None else str(server)


@contextmanager
def naming(target: Target) -> Iterator[None]:
    """Turn a path that is not there into our own error, which has the image's name too, and an exit code of its own."""
    try:
        yield
    except FileNotFoundError as error:
        path = os.fsdecode(error.filename) if error.filename is not None else target.path
        raise PathUnknownError(f"{target.name}:{path}") from error


@contextmanager
def open_target(options: PoolOptions, target: Target) -> Iterator[Rootfs]:
    """What a target names."""
    if target.directory is not None:
        with open_changed(options, target.directory) as changed:
            yield changed
    else:
        assert target.reference is not None
        with open_image(options, target.reference) as image, image.open() as root:
            yield root
