"""A snapshotter for containerd over gRPC, on a socket of this machine."""

from __future__ import annotations

import logging
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import grpc

from pagepool.errors import InvalidError, ListenError, NotFoundError, PagepoolError, UnreachableError
from pagepool.snapshotter.catalogue import SnapshotExistsError, SnapshotStateError
from pagepool.snapshotter.messages import EMPTY, MESSAGES, SERVICE
from pagepool.snapshotter.snapshotter import LayersGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pagepool.snapshotter.catalogue import Snapshot
    from pagepool.snapshotter.snapshotter import Mount, Snapshotter

log = logging.getLogger("pagepool.snapshotter")

_THREADS: Final = 32
_PAGE: Final = 100
_LONGEST: Final = 107  # see unix(7)
_CODES: Final = (
    (SnapshotExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (SnapshotStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (LayersGoneError, grpc.StatusCode.UNAVAILABLE),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (InvalidError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnreachableError, grpc.StatusCode.UNAVAILABLE),
)


class SnapshotServer:
    """Serves a snapshotter.

    Args:
        snapshotter: what is asked.
        address: of the socket; one that is left of a server that was killed is replaced.

    Raises:
        ListenError: it cannot be listened there.
    """

    def __init__(self, snapshotter: Snapshotter, address: Path) -> None:
        self._address = address
        self._server: Any = grpc.server(ThreadPoolExecutor(_THREADS, "snapshots"), options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((_handlers(_Methods(snapshotter)),))
        address.parent.mkdir(parents=True, exist_ok=True)
        _check_address(address)
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{address}")
        except RuntimeError as error:
            raise ListenError(str(address), str(error)) from None
        finally:
            os.umask(before)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Answer nothing new, and wait for what is under way, at most so long."""
        self._server.stop(grace_s).wait()


def _check_address(address: Path) -> None:
    """Refuse what gRPC refuses without a reason, and a socket that somebody serves, which it would replace.

    Raises:
        ListenError: it cannot be listened there.
    """
    if len(os.fsencode(address)) > _LONGEST:
        raise ListenError(str(address), f"paths of sockets have at most {_LONGEST} bytes")
    if address.exists() and not address.is_socket():
        raise ListenError(str(address), "something is there that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(address)) == 0:
            raise ListenError(str(address), "another process does; end it, or choose another --address")


class _Methods:
    """The methods of the service, each from a request to an answer."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(self, request: Any) -> Any:
        mounts = self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return MESSAGES["PrepareSnapshotResponse"](mounts=_mounts(mounts))

    def view(self, request: Any) -> Any:
        mounts = self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return MESSAGES["ViewSnapshotResponse"](mounts=_mounts(mounts))

    def mounts(self, request: Any) -> Any:
        return MESSAGES["MountsResponse"](mounts=_mounts(self._snapshotter.mounts(request.key)))

    def commit(self, request: Any) -> Any:
        self._snapshotter.commit(request.key, request.name, dict(request.labels))
        return EMPTY()

    def remove(self, request: Any) -> Any:
        self._snapshotter.remove(request.key)
        return EMPTY()

    def stat(self, request: Any) -> Any:
        return MESSAGES["StatSnapshotResponse"](info=_info(self._snapshotter.stat(request.key)))

    def update(self, request: Any) -> Any:
        info = request.info
        found = self._snapshotter.update(info.name, dict(info.labels), list(request.update_mask.paths))
        return MESSAGES["UpdateSnapshotResponse"](info=_info(found))

    def list(self, request: Any) -> Iterator[Any]:
        found = self._snapshotter.find(list(request.filters))
        for start in range(0, len(found), _PAGE):
            yield MESSAGES["ListSnapshotsResponse"](info=[_info(one) for one in found[start : start + _PAGE]])

    def usage(self, request: Any) -> Any:
        size, inodes = self._snapshotter.usage(request.key)
        return MESSAGES["UsageResponse"](size=size, inodes=inodes)

    def cleanup(self, _request: Any) -> Any:
        self._snapshotter.cleanup()
        return EMPTY()


def _handlers(methods: _Methods) -> Any:
    one = {
        "Prepare": (methods.prepare, "PrepareSnapshotRequest"),
        "View": (methods.view, "ViewSnapshotRequest"),
        "Mounts": (methods.mounts, "MountsRequest"),
        "Commit": (methods.commit, "CommitSnapshotRequest"),
        "Remove": (methods.remove, "RemoveSnapshotRequest"),
        "Stat": (methods.stat, "StatSnapshotRequest"),
        "Update": (methods.update, "UpdateSnapshotRequest"),
        "Usage": (methods.usage, "UsageRequest"),
        "Cleanup": (methods.cleanup, "CleanupRequest"),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answering(name, act), MESSAGES[request].FromString, lambda answer: answer.SerializeToString()
        )
        for name, (act, request) in one.items()
    }
    handlers["List"] = grpc.unary_stream_rpc_method_handler(
        _streaming(methods.list),
        MESSAGES["ListSnapshotsRequest"].FromString,
        lambda answer: answer.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _answering(name: str, act: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: Any) -> Any:
        begun = time.monotonic()
        try:
            return act(request)
        except Exception as error:  # noqa: BLE001 - each is told to containerd
            _abort(context, error)
        finally:
            log.debug("%s took %.1f ms", name, 1000 * (time.monotonic() - begun))

    return answer


def _streaming(act: Callable[[Any], Iterable[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
    def answer(request: Any, context: Any) -> Iterator[Any]:
        try:
            yield from act(request)
        except Exception as error:  # noqa: BLE001 - each is told to containerd
            _abort(context, error)

    return answer


def _abort(context: Any, error: Exception) -> None:
    """End a call with an error, in containerd's terms."""
    if not isinstance(error, PagepoolError | OSError):
        log.exception("a fault of the snapshotter")
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)
    context.abort(code, " ".join(str(error).split()) or type(error).__name__)


def _mounts(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    return [{"type": one.type, "source": one.source, "options": list(one.options)} for one in mounts]


def _info(snapshot: Snapshot) -> Any:
    found = MESSAGES["Info"](
        name=snapshot.name, parent=snapshot.parent, kind=int(snapshot.kind), labels=dict(snapshot.labels)
    )
    found.created_at.FromNanoseconds(snapshot.created_ns)
    found.updated_at.FromNanoseconds(snapshot.updated_ns)
    return found
