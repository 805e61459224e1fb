"""What a node does for commands: the operations of its control socket.

Each takes the channel of the conversation and the request, and returns what is sent as the answer. They run in threads
of their own, and block.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.errors import InvalidError, PagepoolError, PoolFullError
from pagepool.node.alive import mounts_alive
from pagepool.node.filling import missing
from pagepool.node.images import Resolved
from pagepool.node.mounts import MountWish
from pagepool.node.records import SourceRecord
from pagepool.oci import Platform
from pagepool.pool import Scrubber
from pagepool.pool.layout import cost
from pagepool.transport.making import TREE_TIMEOUT_S, Patience
from pagepool.units import human_size
from pagepool.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.node.control import Channel
    from pagepool.node.records import MountRecord
    from pagepool.node.source import Source
    from pagepool.node.worker import Worker
    from pagepool.transport import Session

log = logging.getLogger("pagepool.node")


class Operations:
    """The operations of one node.

    Args:
        worker: does the work.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._began = time.time()

    def handlers(self) -> dict[str, Callable[[Channel, dict[str, Any]], Any]]:
        """By name."""
        return {
            "status": self.status,
            "mount": self.mount,
            "mounts": self.mounts,
            "lazy": self.lazy,
            "closing": self.closing,
            "prune": self.prune,
            "fill": self.fill,
            "scrub": self.scrub,
            "stop": self.stop,
        }

    def status(self, _channel: Channel, _request: dict[str, Any]) -> dict[str, Any]:
        """Which node this is, and how it is."""
        worker = self._worker
        trees = len(worker.sources.all())
        if trees and not worker.support:
            worker.look_at_kernel()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "since": self._began,
            "state": str(worker.places.state),
            "run": str(worker.places.run),
            "options": asdict(worker.options),
            "mounts": len(worker.mounts.all()),
            "trees": trees,
            "support": worker.support,
            "pool": asdict(worker.pool.stats()),
            "metrics": None if worker.metrics is None else worker.metrics.address,
        }

    # -- mounting ----------------------------------------------------------------------------------------------

    def mount(self, channel: Channel, request: dict[str, Any]) -> dict[str, Any]:
        """Make a mount, hand it over, and write it down once it is in its place."""
        mounts, source = self._worker.mounts, None
        try:
            with mounts.expecting():
                source, metadata, resolved = self._open_source(channel, request)
                if request.get("mounted"):
                    return self._take_over(request, source, resolved)
                offline = resolved.offline
                if self._worker.options.profiles and not offline and not request.get("eager"):
                    self._worker.profiles.ahead(source)
                _check_seen(request)
                config = self._config(source, resolved) if request.get("config") else None
                if isinstance(request.get("programs"), list) and not offline and not request.get("eager"):
                    self._worker.guesses.begin(source, [str(name) for name in request["programs"]], config)
                if request.get("eager"):
                    self._fill(channel, source)
                self._worker.keep_lazy()
                record, descriptor = mounts.make(source, metadata, _wish(request))
            self._hand_over(channel, record, descriptor, source, metadata, offline=offline)
            return self._mounted(record, source, config, resolved)
        except BaseException:
            if source is not None:
                mounts.drop(source.record.tree)
            raise

    def _hand_over(
        self, channel: Channel, record: MountRecord, descriptor: int, source: Source, metadata: Path, *, offline: bool
    ) -> None:
        """Give a mount to whoever asked, and wait until it is in its place. The descriptor is closed here."""
        worker = self._worker
        try:
            try:
                if worker.options.profiles and not offline:
                    worker.profiles.begin(record.id, descriptor, source, metadata)
                channel.send({"mount": record.id, "layers": record.layers}, (descriptor,))
            finally:
                os.close(descriptor)
            answer = channel.receive()
            if answer is None or not answer.get("attached"):
                raise ConnectionAbortedError("who asked for the mount has gone")
        except BaseException:
            if record.id not in mounts_alive():
                worker.mounts.abandon(record)
                raise
            # Whoever asked died between putting it into its place and saying so.
            worker.mounts.attached(record)
            raise

    def _take_over(self, request: dict[str, Any], source: Source, resolved: Resolved) -> dict[str, Any]:
        """A mount that is in its place already: the worker that made it has died just then."""
        record = self._worker.mounts.find(str(request["mounted"]))
        config = self._config(source, resolved) if request.get("config") else None
        return self._mounted(record, source, config, resolved)

    def _mounted(self, record: MountRecord, source: Source, config: str | None, resolved: Resolved) -> dict[str, Any]:
        worker = self._worker
        record = worker.mounts.attached(record)
        worker.sources.update(record.tree, released=0.0)
        worker.leases.want(record.tree)
        if worker.options.fill and record.fill:
            worker.filler.complete(source)
        return {**record.shown(), "offline": resolved.offline, "manifest": resolved.manifest, "config": config}

    def _open_source(self, channel: Channel, request: dict[str, Any]) -> tuple[Source, Path, Resolved]:
        """The tree that a request means, its metadata image, and the image."""
        worker = self._worker
        record = SourceRecord(
            tree="",
            url=str(request["url"]),
            repository=str(request["repository"]),
            image=str(request["image"]),
            username=str(request.get("username", "")),
            password=str(request.get("password", "")),
            identity_token=str(request.get("identity_token", "")),
            verify=_verify(request.get("verify", True)),
        )
        session = worker.sessions.get(record)
        limit_s = float(request.get("tree_timeout_s", TREE_TIMEOUT_S))
        patience = Patience(limit_s, lambda seconds: channel.send({"making": seconds}))
        resolved = self._resolve(session, record, request, patience)
        tree = resolved.tree
        files = worker.images
        if request.get("config") and not resolved.offline:
            # It is asked for again where it is needed: then it is here, or that says what is wrong.
            with suppress(RuntimeError):  # there are too many threads
                threading.Thread(target=self._have_config, args=(session, record, resolved), daemon=True).start()
        _, metadata = _both(
            lambda: files.tree(session, record.repository, tree),
            lambda: files.metadata(session, record.repository, tree, patience),
        )
        # What is taken for the image elsewhere, as when what was written over it is committed, is all of its layers.
        manifest = resolved.manifest if _layers(request) is None else ""
        record = replace(record, tree=tree.hex, manifest=manifest)
        return worker.sources.add(record, asked=not resolved.offline), metadata, resolved

    def _have_config(self, session: Session, record: SourceRecord, resolved: Resolved) -> None:
        with suppress(PagepoolError, OSError):
            self._worker.images.config(session, record.repository, resolved.manifest)

    def _config(self, source: Source, resolved: Resolved) -> str:
        """The image's configuration, as it is stored."""
        return self._worker.images.config(source.session, source.record.repository, resolved.manifest)

    def _resolve(self, session: Session, record: SourceRecord, request: dict[str, Any], patience: Patience) -> Resolved:
        platform = Platform.parse(str(request["platform"])) if request.get("platform") else None
        wait_s, target = float(request.get("wait_s", 60.0)), str(request["target"])
        layers = _layers(request)
        if request.get("noted") and ":" in target:  # a digest, which never means anything else
            found = self._worker.images.noted(session, record.repository, target, platform, layers)
            if found is not None:
                return found
        return self._worker.images.resolve(session, record.repository, target, platform, wait_s, patience, layers)

    # -- looking and undoing -----------------------------------------------------------------------------------

    def mounts(self, _channel: Channel, _request: dict[str, Any]) -> list[dict[str, Any]]:
        """What is mounted, and how much of each image is here."""
        worker = self._worker
        worker.mounts.prune()
        local: dict[str, dict[str, Any]] = {}
        found = []
        for record in worker.mounts.made():
            source = worker.sources.get(record.tree)
            if source is None:
                found.append({**record.shown(), "known": False, "local": False})
                continue
            if record.tree not in local:
                local[record.tree] = self._locality(source)
            lazily = worker.sources.lazily_read(source, record.since)
            here = local[record.tree]
            is_local = not here["missing_objects"] and not lazily
            cut_off = worker.mounts.is_cut_off(record)
            found.append({**record.shown(), **here, "lazily_read": lazily, "cut_off": cut_off, "local": is_local})
        return found

    def _locality(self, source: Source) -> dict[str, Any]:
        absent = missing(source.tree, self._worker.places.objects)
        return {
            "known": True,
            "missing_objects": len(absent),
            "missing_bytes": sum(source.tree.object_key(index)[1] for index in absent),
            "bytes": int(source.tree.object_bytes),
            "filling": self._worker.filler.is_filling(source.record.tree),
            "server": source.record.url,
            "lease": bool(source.record.lease),
            "last_error": None if source.failure is None else source.failure[1],
            "last_error_at": None if source.failure is None else source.failure[0],
        }

    def lazy(self, _channel: Channel, _request: dict[str, Any]) -> list[str]:
        """The objects that are read through the lazy mount."""
        return [digest.hex() for digest in self._worker.sources.lazy_objects()]

    def closing(self, _channel: Channel, request: dict[str, Any]) -> dict[str, Any]:
        """A mount is about to be unmounted: let go of it. Says which ones that may be: device by id."""
        found = self._worker.mounts.at(str(request["name"]))
        for record in found:
            self._worker.profiles.end(record.id)
        return {"devices": {record.id: record.device for record in found}}

    def prune(self, _channel: Channel, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Clean up after mounts that are gone, or only after that of an id, which was just unmounted."""
        mounts, identity = self._worker.mounts, request.get("id")
        return [record.shown() for record in (mounts.prune_one(str(identity)) if identity else mounts.prune())]

    def fill(self, channel: Channel, request: dict[str, Any]) -> dict[str, Any]:
        """Bring in all of a mounted image."""
        record = self._worker.mounts.find(str(request["name"]))
        source = self._worker.sources.get(record.tree)
        if source is None:
            raise InvalidError(record.path, "nothing is known of the service of this mount any more")
        return {"bytes": self._fill(channel, source)}

    def _fill(self, channel: Channel, source: Source) -> int:
        self._check_room(source)
        absent = missing(source.tree, self._worker.places.objects)
        size = sum(source.tree.object_key(index)[1] for index in absent)
        channel.send({"total": size})
        progress = _Progress(channel)
        source.content.prefetch(absent, progress.add)
        progress.flush()
        left = missing(source.tree, self._worker.places.objects)
        if left:
            size = sum(source.tree.object_key(index)[1] for index in left)
            raise PoolFullError(
                f"it does not take {len(left)} of the files of {source.record.image}, {human_size(size)}: "
                "end the node, and start it with more --budget"
            )
        self._worker.pool.sync()
        return size

    def _check_room(self, source: Source) -> None:
        """Refuse what can never be in the pool as a whole, before it is fetched, and others are evicted for it."""
        sizes = (source.tree.object_key(index)[1] for index in range(source.tree.object_count))
        needed, budget = sum(map(cost, sizes)), self._worker.pool.stats().effective_budget
        if needed > budget:
            raise PoolFullError(
                f"all of {source.record.image} takes {human_size(needed)}, of a budget of {human_size(budget)}: "
                "end the node, and start it with more --budget"
            )

    def scrub(self, _channel: Channel, _request: dict[str, Any]) -> dict[str, Any]:
        """Compare all of the pool's objects with their names, as fast as they can be read."""
        worker = self._worker
        report = Scrubber(worker.pool, worker.scrubbing.repair).run(everything=True)
        worker.scrubbing.on_report(report)
        if report.damaged:
            worker.scrubbing.release()
        damaged = [
            {"object": one.digest.hex(), "reason": one.reason, "repaired": one.repaired} for one in report.damaged
        ]
        return {"objects": report.objects, "bytes": report.bytes, "damaged": damaged}

    def stop(self, _channel: Channel, _request: dict[str, Any]) -> dict[str, Any]:
        """End the node. What is mounted stays, and reads what is here."""
        self._worker.mounts.prune()
        mounted = len(self._worker.mounts.all())
        self._worker.announce_end()
        threading.Timer(0.05, self._worker.stop).start()
        return {"mounts": mounted}


def _verify(value: object) -> bool | str:
    return value if isinstance(value, str) else bool(value)


def _layers(request: dict[str, Any]) -> int | None:
    return None if request.get("layers") is None else int(request["layers"])


def _wish(request: dict[str, Any]) -> MountWish:
    return MountWish(
        path=str(request["path"]),
        image=str(request["image"]),
        upper=Path(request["upper"]) if request.get("upper") else None,
        temporary=bool(request.get("temporary")),
        read_only=bool(request.get("read_only")),
        nosuid=bool(request.get("nosuid")),
        nodev=bool(request.get("nodev", True)),
        quota=int(request.get("quota", 0)),
        owner=str(request.get("owner", "")),
        fill=bool(request.get("fill", True)),
        layers=_layers(request),
    )


def _check_seen(request: dict[str, Any]) -> None:
    """Whoever asks may be in another mount namespace: his directory is not ours then, though it is called the same."""
    if not request.get("upper") or not request.get("upper_seen"):
        return
    place, *identity = request["upper_seen"]
    found: list[int] = []
    with suppress(OSError):
        status = Path(place).stat()
        found = [status.st_dev, status.st_ino]
    if found != identity:
        raise InvalidError(str(request["upper"]), "is another directory to the node, or none: see mount namespaces")


class _Progress:
    """Tells of bytes, not more often than it is worth."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._bytes = 0

    def add(self, size: int) -> None:
        self._bytes += size
        if self._bytes >= 1 << 20:
            self.flush()

    def flush(self) -> None:
        if self._bytes:
            self._channel.send({"progress": self._bytes})
            self._bytes = 0


def _both(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Do two things at the same time; an error of either is raised when both are done. It is the second one's that
    takes the longer, if anything has to be fetched."""
    result: list[Any] = []
    error: list[Exception] = []

    def work() -> None:
        try:
            result.append(second())
        except Exception as caught:  # noqa: BLE001 - raised by the caller's thread
            error.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = first()
    finally:
        thread.join()
    if error:
        raise error[0]
    return found, result[0]
