"""Starting a node: once, whoever asks for it at the same time.

What a start does that a restart of the worker does not: make the directories, forget the records of an earlier boot,
mount the lazy mount, open the control socket. Then it hands both to the supervisor and its worker.

A node must not end with whoever happened to need it first: it is started in a session, a working directory, an
environment and, where that is possible, a cgroup of its own; the pages that it fetches are charged there. Limits of
processes are not inherited either.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, InvalidError, PagepoolError, UnreachableError, UnsupportedError
from pagepool.linux import boot_id
from pagepool.mount import kernel
from pagepool.mount.device import unmount_device
from pagepool.node.control import ask, converse, decode_error, encode_error
from pagepool.node.guard import Guard
from pagepool.node.handover import SUPERVISOR, WORKER, Post, count_starts, end_processes, is_ready, is_stopped
from pagepool.node.lazy import mount_lazy
from pagepool.node.limits import leave_limits
from pagepool.node.links import ReadInParts
from pagepool.node.places import NodePlaces
from pagepool.node.supervisor import start_node
from pagepool.node.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_START_TIMEOUT_S: Final = 60.0
_MOST_STARTS: Final = 5
_LOOK_S: Final = 0.02
_CGROUP: Final = "pagepool-node"
_ENVIRONMENT: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)

log = logging.getLogger("pagepool.node")


def is_running(places: NodePlaces) -> bool:
    """Whether a node answers there."""
    try:
        converse(places.control, {"op": "status"})
    except UnreachableError:
        return False
    return True


def ensure_node(places: NodePlaces, options: WorkerOptions | None = None) -> bool:
    """See that a node is running; start one if none is. Blocks until it answers.

    Returns:
        whether it was started by this call.

    Raises:
        UnsupportedError: this user or kernel cannot have one.
        InvalidError: it cannot have such a pool image.
        UnreachableError: it did not start; the error has what it said.
    """
    if is_running(places):
        return False
    if os.geteuid():
        raise UnsupportedError("a node needs root: it mounts file systems for containers")
    places.make_tops()
    options = options or WorkerOptions()
    words = [sys.executable, "-m", "pagepool.node", "start", *arguments(places, options)]
    words += [] if options.pool_image is None else ["--pool-image", str(options.pool_image)]
    if options.metrics_listen is not None:
        host, port = options.metrics_listen
        words += ["--metrics-host", host, "--metrics-port", str(port)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    done = subprocess.run(
        words,
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        raise _error_said(places, done.stdout, done.returncode)
    return True


def _error_said(places: NodePlaces, said: str, code: int) -> Exception:
    """What kept a node from starting: the last line that the process has said, if it is how errors are handed on."""
    last = (said.strip().splitlines() or [f"the node ended with {code}"])[-1]
    with contextlib.suppress(ValueError):
        found = json.loads(last)
        if isinstance(found, dict):
            return decode_error(found)
    return UnreachableError(str(places.run), last)


def arguments(places: NodePlaces, options: WorkerOptions) -> list[str]:
    """Words that say the same to `parse`. How big a pool image is to be is no business of the worker's."""
    words = ["--state", str(places.state), "--run", str(places.run), "--timeout", str(options.timeout_s)]
    words += ["--large", str(options.large), "--parts", options.parts]
    words += [] if options.budget is None else ["--budget", str(options.budget)]
    words += [] if options.reserve is None else ["--reserve", str(options.reserve)]
    return words + ["--no-fill"] * (not options.fill) + ["--no-profiles"] * (not options.profiles)


def parse(words: Sequence[str]) -> tuple[str, NodePlaces, WorkerOptions]:
    """What `arguments` made, after the word that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m pagepool.node")
    parser.add_argument("action", choices=("start", "worker"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--large", type=int, default=WorkerOptions().large)
    parser.add_argument("--parts", type=ReadInParts, default=ReadInParts.AUTO)
    parser.add_argument("--budget", type=int)
    parser.add_argument("--reserve", type=int)
    parser.add_argument("--pool-image", type=int)
    parser.add_argument("--metrics-host")
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--no-fill", action="store_true")
    parser.add_argument("--no-profiles", action="store_true")
    found = parser.parse_args(words)
    options = WorkerOptions(
        budget=found.budget,
        timeout_s=found.timeout,
        large=found.large,
        fill=not found.no_fill,
        profiles=not found.no_profiles,
        parts=found.parts,
        reserve=found.reserve,
        pool_image=found.pool_image,
        metrics_listen=None if found.metrics_host is None else (found.metrics_host, found.metrics_port),
    )
    return found.action, NodePlaces(found.state, found.run), options


def start(places: NodePlaces, options: WorkerOptions) -> None:
    """Start supervisor and worker, and return when the node answers. In a process of its own: see `ensure_node`.

    Raises:
        BusyError: another process starts one, and does not come to an end.
        UnreachableError: it does not begin to serve.
        UnsupportedError: it may open too few files.
        PagepoolError, OSError: it cannot be started.
    """
    leave_limits()
    places.make_tops()
    for _ in range(_MOST_STARTS):
        if not _begin(places, options) or _wait(places):
            return
    raise UnreachableError(str(places.run), f"its processes end before they serve; see {places.log}")


def _begin(places: NodePlaces, options: WorkerOptions) -> bool:
    """Start the processes; False: somebody else has. See `start`."""
    with locked(places.start_lock):
        if is_running(places):
            return False
        os.umask(0o022)
        # First of all: an address that cannot be had leaves nothing behind.
        metrics = None if options.metrics_listen is None else _listen_for_metrics(*options.metrics_listen)
        mount_pool_image(places, options.pool_image)
        # Before anything is taken away: a node that runs, and has not answered, has its lazy mount.
        state = _lock_state(places.state)
        unmount_lazy(places)  # one that was never served is an error to whoever looks at its directory
        places.make()
        _forget_other_boot(places)
        _leave_cgroup()
        _clear(places)
        device = mount_lazy(places.lazy)
        listener = _listen(places.control)
        command = [sys.executable, "-m", "pagepool.node", "worker", *arguments(places, options)]
        descriptors = {"fuse": device, "control": listener.fileno(), "state": state}
        descriptors |= {} if metrics is None else {"metrics": metrics.fileno()}
        start_node(command, descriptors, places.run)
        os.close(device)
        os.close(state)
        if metrics is not None:
            metrics.close()
        listener.close()
    return True


def mount_pool_image(places: NodePlaces, size: int | None) -> None:
    """Mount the file system that the node keeps everything in, if there is one; make it, if that was asked for.

    Args:
        size: bytes of a new one; None: none is made.

    Raises:
        InvalidError: there is a pool already, which it would hide; or one of another size.
        UnsupportedError: there is no XFS here, or nothing that makes one.
        StoreFullError, BusyError, OSError: it cannot be made, or mounted.
    """
    image = kernel.PoolImage(places.pool_image)
    if not image.file.exists():
        if size is None:
            return
        if places.pool.exists():
            raise InvalidError(str(places.state), "has a pool already, which a pool image would hide: move it away")
        kernel.PoolImage.create(image.file, size)
    elif size is not None and image.file.stat().st_size != kernel.PoolImage.rounded(size):
        is_size = image.file.stat().st_size
        raise InvalidError(str(image.file), f"is a pool image of {is_size} bytes already, and does not change its size")
    image.mount(places.state)
    places.state.chmod(0o700)


def _lock_state(state: Path) -> int:
    """The locked descriptor of a state directory, which the node's processes hold as long as one of them lives.

    One with another RUN would take for left over what the mounts of this one write.

    Raises:
        BusyError: another node has it.
    """
    descriptor = os.open(state / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BusyError(
            f"{state} is in use by another node, with another --node-run; or by this one, which does not answer"
        ) from None
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def upgrade_node(places: NodePlaces) -> int:
    """Have a node's processes replaced by new ones, of the version that is installed. Blocks until they answer.

    Returns:
        the number of the new worker.

    Raises:
        UnreachableError: no node is running, or it was ended meanwhile.
        BusyError: the new one does not answer.
    """
    before = ask(places.control, "status")["pid"]
    supervisor = Post(places.run, SUPERVISOR)
    if supervisor.holder() is None:
        raise UnreachableError(str(places.run), "there is no supervisor just now; try again")
    supervisor.send(signal.SIGHUP)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(UnreachableError):
            found = int(converse(places.control, {"op": "status"})["pid"])
            if found != before:
                return found
        if is_stopped(places.run):
            raise UnreachableError(str(places.run), "the node was ended meanwhile")
        time.sleep(_LOOK_S)
    raise BusyError(f"process {before} was not replaced after {_START_TIMEOUT_S:.0f} s; see {places.log}")


def _wait(places: NodePlaces) -> bool:
    """Wait until the node serves, however long it has to look through its pool. One whose worker ends again and again
    is ended: whoever asked it would wait for ever.

    Returns:
        False: all of its processes were killed meanwhile.
    """
    posts = [Post(places.run, name) for name in (SUPERVISOR, WORKER)]
    while count_starts(places.run, WORKER) <= _MOST_STARTS and not is_stopped(places.run):
        # Asked only then: no worker accepts before it serves.
        if is_ready(places.run) and is_running(places):
            return True
        if _is_dead_altogether(places) and not is_stopped(places.run):
            return False
        time.sleep(_LOOK_S)
    end_processes(places.run)
    for post in posts:
        os.close(post.wait())
    unmount_lazy(places)
    raise UnreachableError(str(places.run), f"the node does not begin to serve{_reason(places)}; see {places.log}")


def _is_dead_altogether(places: NodePlaces) -> bool:
    """Whether nobody has the state directory. Nobody who starts a node is kept from it meanwhile."""
    with locked(places.start_lock), contextlib.suppress(BusyError, OSError):
        os.close(_lock_state(places.state))
        return True
    return False


def _reason(places: NodePlaces) -> str:
    """What a worker has ended with last, as `main` says it."""
    for line in reversed(places.log.read_text(errors="replace").splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            return f": {decode_error(found)}" if isinstance(found, dict) else ""
        if line.startswith(("RuntimeError", "MemoryError")):
            return f": {line}"
    return ""


def _forget_other_boot(places: NodePlaces) -> None:
    """RUN may be on a disk: what it says of mounts before the last boot is not so any more."""
    note = places.run / "boot"
    with contextlib.suppress(OSError):
        if note.read_bytes() == boot_id():
            return
    for directory in (places.sources, places.mounts, places.serving, places.tree_mounts):
        shutil.rmtree(directory, ignore_errors=True)
    # What belonged to mounts is the worker's to remove: it knows of none.
    places.make()
    note.write_bytes(boot_id())


def _clear(places: NodePlaces) -> None:
    """Take away what a node that died altogether has left: its lazy mount serves nobody any more."""
    places.control.unlink(missing_ok=True)
    unmount_lazy(places)
    shutil.rmtree(places.serving, ignore_errors=True)
    places.make()


def unmount_lazy(places: NodePlaces) -> bool:
    """Unmount the lazy mount of a node that has ended, however often it is there. Returns whether it was."""
    found = False
    while os.path.ismount(places.lazy) or _is_dead(places.lazy):
        unmount_device(places.lazy, detach=True)
        found = True
    return found


def _is_dead(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    return listener


def _listen_for_metrics(host: str, port: int) -> socket.socket:
    from pagepool.node.metrics import listen

    return listen(host, port)


def _leave_cgroup() -> None:
    """Move into a cgroup of the node's own, where that can be done: else it stays in that of who asked."""
    if Path("/run/systemd/system").exists():
        return  # systemd owns the hierarchy: the unit in deploy/ puts the node where it belongs
    for own in own_cgroups():
        with contextlib.suppress(OSError):
            own.mkdir(exist_ok=True)
            (own / "cgroup.procs").write_text(str(os.getpid()))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-900")


def own_cgroups() -> Iterator[Path]:
    """The directories of a node's own cgroups, whether they are there or not."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, _ = line.split(":", 2)
        top = Path("/sys/fs/cgroup") / controllers.removeprefix("name=")
        if not controllers:
            top = Path("/sys/fs/cgroup/unified")
            top = top if top.is_dir() else Path("/sys/fs/cgroup")
        yield top / _CGROUP


def main(words: Sequence[str]) -> Any:
    """The program `python -m pagepool.node`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    action, places, options = parse(words)
    try:
        if action == "start":
            start(places, options)
        else:
            leave_limits()
            Worker(places, options, Guard(places.run)).run()
    except (PagepoolError, OSError) as error:
        # `ensure_node` reads it; in the log it says as much.
        print(json.dumps(encode_error(error)), file=sys.stderr)
        return 1
    return 0
