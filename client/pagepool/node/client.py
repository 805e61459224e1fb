"""Asking a node: what commands and programs use.

    node = NodeClient()
    node.ensure()
    with node.mount(url, reference, "/mnt/app", temporary=True) as mounted: ...

Blocks; thread-safe: each call is a conversation of its own. Root only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pagepool.errors import BusyError, InvalidError, PagepoolError, UnreachableError, UnsupportedError
from pagepool.mount import kernel
from pagepool.mount.mountinfo import mounted_at
from pagepool.mount.turns import turn
from pagepool.node.control import ask, converse, have_again
from pagepool.node.places import DEFAULT_RUN, DEFAULT_STATE, NodePlaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.node.control import Channel
    from pagepool.node.ending import Ended
    from pagepool.oci import Platform, Reference
    from pagepool.transport import Credentials

_STOP_TIMEOUT_S: Final = 60.0
_LOOK_S: Final = 0.01


def default_places() -> NodePlaces:
    """Where this machine's node is, unless somebody says otherwise."""
    return NodePlaces(DEFAULT_STATE, DEFAULT_RUN)


@dataclass(frozen=True, slots=True)
class KernelMountOptions:
    """How to mount.

    Args:
        upper: directory that keeps what is written; made if it is not there.
        temporary: without `upper`: whether something can be written, and is gone with the mount.
        read_only: nothing can be written, though there is an upper.
        nosuid: setuid, setgid and file capabilities do not count.
        dev: device nodes are devices.
        eager: fetch all of the image first.
        fill: fetch the rest of the image when there is time.
        quota: most bytes that may be written; 0 for no limit.
        owner: what the mount belongs to.
        config: whether the image's configuration is wanted, too: `KernelMount.fields` has it as "config".
        programs: what will be run on it at once, as far as that is known: paths or names; the node has what that
            needs ready. None: nothing will.
        layers: mount only the first so many layers of the image, whether the others are ready or not; None: all.
        noted: of an image by its digest: what the node noted when it mounted that last is enough, and the service is
            asked only where there is no such note. So it is mounted whatever has become of it at the service.
    """

    upper: Path | None = None
    temporary: bool = False
    read_only: bool = False
    nosuid: bool = False
    dev: bool = False
    eager: bool = False
    fill: bool = True
    quota: int = 0
    owner: str = ""
    config: bool = False
    programs: tuple[str, ...] | None = None
    layers: int | None = None
    noted: bool = False


@dataclass(frozen=True, slots=True)
class KernelMount:
    """A mount of the kernel's. As a context manager it is unmounted in the end.

    Args:
        client: of its node.
        path: where it is.
        id: as the node calls it.
        fields: all that the node says of it.
    """

    client: NodeClient
    path: Path
    id: str
    fields: dict[str, Any]

    def unmount(self, *, force: bool = False) -> None:
        """Unmount it.

        Raises:
            BusyError: it is in use.
        """
        self.client.unmount(self.path, force=force)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount(force=True)


class NodeClient:
    """A node of this machine.

    Args:
        places: where it is.
    """

    def __init__(self, places: NodePlaces | None = None) -> None:
        self.places = places or default_places()
        self.met = False
        """Whether it has answered: then it runs, or another worker of it does in a moment."""

    def ensure(self) -> bool:
        """Start the node if it is not running. Returns whether it was started now.

        Raises:
            UnsupportedError, UnreachableError: it cannot be.
        """
        if self.is_running():
            return False
        from pagepool.node.start import ensure_node

        return ensure_node(self.places)

    def is_running(self) -> bool:
        """Whether it answers."""
        try:
            self.status()
        except UnreachableError:
            return False
        return True

    def support(self) -> str | None:
        """What this machine has for kernel mounts, in a few words, if the node runs and has tried it. None if it does
        not run, or has not, or is of an older version."""
        try:
            found = self.status()
        except UnreachableError:
            return None
        reason = found.get("support")
        return str(reason) if reason else None

    def status(self) -> dict[str, Any]:
        """Which node it is, and how it is."""
        found = dict(self._ask("status"))
        self.met = True
        return found

    def _ask(self, operation: str, **fields: object) -> Any:
        return ask(self.places.control, operation, **fields)

    def mount(
        self,
        url: str,
        reference: Reference,
        path: str | os.PathLike[str],
        options: KernelMountOptions | None = None,
        *,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        verify: bool | str = True,
        wait_s: float = 60.0,
        tree_timeout_s: float | None = None,
        on_making: Callable[[int], object] = lambda _: None,
        on_total: Callable[[int], object] = lambda _: None,
        on_bytes: Callable[[int], object] = lambda _: None,
    ) -> KernelMount:
        """Mount an image; it is in its place when this returns.

        Args:
            url: of the service.
            reference: of the image; its host is not looked at.
            path: an existing directory.
            options: how.
            platform: of an index, which image.
            credentials: who we are to the service; the node keeps them as long as the tree is mounted.
            verify: whether, and by whom, the service's certificate is vouched for: see `pagepool.transport.trust`.
            wait_s: how long to wait while the service still reads the image's layers.
            tree_timeout_s: how long at most while it puts the image's tree together, if it goes on with that; None: ten
                minutes.
            on_making: told again and again for how many seconds it has done so.
            on_total, on_bytes: told of the bytes to fetch, and those fetched, if `eager`.

        Raises:
            UnreachableError: no node, or no service, and the image is not here.
            PendingError: the image is not ready after all that time.
            BusyError: the upper is in use, or an image is mounted there already.
            InvalidError: upper and directory are in each other, or the node sees another directory by that name.
            KernelLimitError: the image has something in it that the kernel cannot hold: FUSE can.
            UnsupportedError: the node, or the service, is of an earlier version, and does not know of `layers`; or the
                image does not have so many.
            PagepoolError, OSError: it cannot be mounted. Nothing is left of it.
        """
        options = options or KernelMountOptions()
        target = Path(os.path.realpath(path))
        os.scandir(target).close()
        _check_target(target)
        if options.upper is not None:
            options = replace(options, upper=Path(os.path.realpath(options.upper)))
            _check_upper(options.upper, target)
        request = self._request(url, reference, target, options, platform, credentials)
        request |= {"verify": verify, "wait_s": wait_s}
        request |= {} if tree_timeout_s is None else {"tree_timeout_s": tree_timeout_s}

        attached: list[str] = []

        def take(channel: Channel, message: dict[str, Any]) -> None:
            if "total" in message:
                on_total(int(message["total"]))
            elif "making" in message:
                on_making(int(message["making"]))
            elif "mount" in message:
                descriptor = channel.descriptors.pop()
                try:
                    if options.layers is not None and message.get("layers") != options.layers:
                        raise UnsupportedError(
                            f"the node mounts all layers of {reference}, where the first {options.layers} were asked "
                            "for: it is of an earlier version; end it, so that it is started again"
                        )
                    with turn(target):  # somebody else's may be there by now
                        _check_target(target)
                        kernel.attach(descriptor, target)
                    attached.append(str(message["mount"]))
                    request["mounted"] = str(message["mount"])
                finally:
                    os.close(descriptor)
                channel.send({"attached": True})

        try:
            fields = self._converse_again(request, on_bytes, take)
        except BaseException:
            if attached:
                with suppress(OSError, PagepoolError):
                    kernel.unmount_kernel(target, force=True)
                self.prune()
            raise
        return KernelMount(self, target, str(fields["id"]), fields)

    def _converse_again(
        self,
        request: dict[str, Any],
        on_bytes: Callable[[int], object],
        take: Callable[[Channel, dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Have a conversation; again with the next worker, if the one that it was begun with has died.

        If it was put into its place already, `take` has noted that in the request: that is all there is to say then.
        """
        return dict(have_again(lambda: converse(self.places.control, request, on_bytes, take), self.is_running))

    def _request(
        self,
        url: str,
        reference: Reference,
        target: Path,
        options: KernelMountOptions,
        platform: Platform | None,
        credentials: Credentials | None,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "op": "mount",
            "url": url,
            "repository": reference.repository,
            "target": reference.target,
            "image": str(reference),
            "path": str(target),
            "upper": None if options.upper is None else str(options.upper),
            "upper_seen": None if options.upper is None else seen_place(options.upper),
            "temporary": options.temporary,
            "read_only": options.read_only,
            "nosuid": options.nosuid,
            "nodev": not options.dev,
            "eager": options.eager,
            "fill": options.fill,
            "quota": options.quota,
            "owner": options.owner,
            "config": options.config,
            "platform": None if platform is None else str(platform),
            "programs": None if options.programs is None else list(options.programs),
            "layers": options.layers,
            "noted": options.noted,
        }
        if credentials is not None:
            found |= {
                "username": credentials.username,
                "password": credentials.password,
                "identity_token": credentials.identity_token,
            }
        return found

    def unmount(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Unmount, and have the node clean up: a temporary upper is removed.

        Args:
            force: also if it is in use: whoever uses it keeps it until he is done.

        Raises:
            BusyError: it is in use; the error names who can be seen to use it.
            NotFoundError: nothing of ours is mounted there.
            OSError: it may not be unmounted.
        """
        target = Path(os.path.realpath(path))
        devices: dict[str, str] = {}
        with suppress(UnreachableError):
            devices = self._ask("closing", name=str(target)).get("devices", {})  # none from an older node
        known = {_device(shown): identity for identity, shown in devices.items()}
        device = kernel.unmount_kernel(target, force=force, known=known)
        # One that is noted and gone may have had the same number.
        self.prune(known.get(device) if device is not None and len(known) == len(devices) else None)

    def prune(self, identity: str | None = None) -> None:
        """Have the node clean up after mounts that are gone. Does nothing if it is not running: it does so later.

        Args:
            identity: of one that was just unmounted: the others need not be looked at.
        """
        with suppress(UnreachableError):
            self._ask("prune", id=identity)

    def mounts(self) -> list[dict[str, Any]]:
        """What is mounted, and how much of each image is here."""
        return list(self._ask("mounts"))

    def lazy_objects(self) -> list[bytes]:
        """The objects that are read through the lazy mount."""
        return [bytes.fromhex(text) for text in self._ask("lazy")]

    def fill(
        self,
        name: str,
        on_total: Callable[[int], object] = lambda _: None,
        on_bytes: Callable[[int], object] = lambda _: None,
    ) -> int:
        """Fetch all of a mounted image. Returns its bytes that were missing.

        If the node's worker dies meanwhile the next one goes on with what is still missing.

        Args:
            name: of the mount: its path, or its id.
            on_total, on_bytes: told of the bytes to fetch, once, and those fetched.
        """
        total: list[int] = []

        def take(_channel: Channel, message: dict[str, Any]) -> None:
            if "total" in message and not total:
                total.append(int(message["total"]))
                on_total(total[0])

        request = {"op": "fill", "name": name}
        found = have_again(lambda: converse(self.places.control, request, on_bytes, take), self.is_running)
        return int((total or [found["bytes"]])[0])

    def scrub(self) -> dict[str, Any]:
        """Compare every object of the pool with its name. Blocks for as long as reading them takes."""
        return dict(self._ask("scrub"))

    def stop(self) -> Ended:
        """End the node; mounts stay. If there are none, nothing of the node stays mounted. Blocks until it has ended.

        Raises:
            BusyError: it does not end.
        """
        from pagepool.node.ending import stop_node

        return stop_node(self.places)


def seen_place(path: Path) -> list[Any]:
    """What there is of a path: its nearest existing directory, and device and inode of that."""
    for place in (path, *path.parents):
        with suppress(OSError):
            status = place.stat()
            return [str(place), status.st_dev, status.st_ino]
    raise InvalidError(str(path), "is nowhere")


def _device(shown: str) -> tuple[int, int]:
    major, _, minor = shown.partition(":")
    return int(major), int(minor)


def _check_target(target: Path) -> None:
    if not os.path.ismount(target):
        return
    point = mounted_at(target)
    if point is not None and point.type == kernel.KIND and point.source.startswith(kernel.PREFIX):
        image = point.source.removeprefix(kernel.PREFIX).partition(":")[2]
        raise BusyError(f"{target} is in use: {image} is mounted there; pagepool umount {target}")


def _check_upper(upper: Path | None, target: Path) -> None:
    if upper is not None and (upper.is_relative_to(target) or target.is_relative_to(upper)):
        raise InvalidError(str(upper), f"and {target}, where the image is to be mounted, are in each other")
