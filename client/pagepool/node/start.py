"""Starting a node: once, whoever asks for it at the same time.

What a start does that a restart of the worker does not: make the directories, forget the records of an earlier boot,
mount the lazy mount, open the control socket. Then it hands both to the supervisor and its worker.

A node must not end with whoever happened to need it first: it is started in a session, a working directory, an
environment and, where that is possible, a cgroup of its own; the pages that it fetches are charged there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
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
from pagepool.node.control import converse
from pagepool.node.guard import Guard
from pagepool.node.handover import SUPERVISOR, Post
from pagepool.node.lazy import mount_lazy
from pagepool.node.places import NodePlaces
from pagepool.node.supervisor import start_node
from pagepool.node.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

_START_TIMEOUT_S: Final = 60.0
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
    _check_pool_image(places, None if options is None else options.pool_image)
    places.make()
    words = [sys.executable, "-m", "pagepool.node", "start", *arguments(places, options or WorkerOptions())]
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
        said = done.stdout.strip().splitlines()
        raise UnreachableError(str(places.run), said[-1] if said else f"the node ended with {done.returncode}")
    return True


def arguments(places: NodePlaces, options: WorkerOptions) -> list[str]:
    """Words that say the same to `parse`."""
    words = ["--state", str(places.state), "--run", str(places.run), "--timeout", str(options.timeout_s)]
    words += ["--large", str(options.large)]
    words += [] if options.budget is None else ["--budget", str(options.budget)]
    words += [] if options.pool_image is None else ["--pool-image", str(options.pool_image)]
    return words + ["--no-fill"] * (not options.fill) + ["--no-profiles"] * (not options.profiles)


def parse(words: Sequence[str]) -> tuple[str, NodePlaces, WorkerOptions]:
    """What `arguments` made, after the word that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m pagepool.node")
    parser.add_argument("action", choices=("start", "worker"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--large", type=int, default=WorkerOptions().large)
    parser.add_argument("--budget", type=int)
    parser.add_argument("--pool-image", type=int)
    parser.add_argument("--no-fill", action="store_true")
    parser.add_argument("--no-profiles", action="store_true")
    found = parser.parse_args(words)
    options = WorkerOptions(
        found.budget,
        found.timeout,
        found.large,
        not found.no_fill,
        not found.no_profiles,
        pool_image=found.pool_image,
    )
    return found.action, NodePlaces(found.state, found.run), options


def start(places: NodePlaces, options: WorkerOptions) -> None:
    """Start supervisor and worker, and return when the node answers. In a process of its own: see `ensure_node`.

    Raises:
        BusyError: another process starts one, and does not come to an end.
        PagepoolError, OSError: it cannot be started.
    """
    places.make()
    with (places.run / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_running(places):
            return
        os.umask(0o022)
        _mount_pool_image(places, options.pool_image)
        _forget_other_boot(places)
        _leave_cgroup()
        _clear(places)
        device = mount_lazy(places.lazy)
        listener = _listen(places.control)
        command = [sys.executable, "-m", "pagepool.node", "worker", *arguments(places, options)]
        start_node(command, {"fuse": device, "control": listener.fileno()}, places.run)
        os.close(device)
        listener.close()
    _wait(places)


def upgrade_node(places: NodePlaces) -> int:
    """Have a node's processes replaced by new ones, of the version that is installed. Blocks until they answer.

    Returns:
        the number of the new worker.

    Raises:
        UnreachableError: no node is running.
        BusyError: the new one does not answer.
    """
    before = converse(places.control, {"op": "status"})["pid"]
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
        time.sleep(_LOOK_S)
    raise BusyError(f"process {before} was not replaced after {_START_TIMEOUT_S:.0f} s; see {places.log}")


def _wait(places: NodePlaces) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        # Nobody accepts before the worker is ready; whoever connects waits for it.
        try:
            converse(places.control, {"op": "status"})
        except UnreachableError:
            time.sleep(_LOOK_S)
        else:
            return
    raise BusyError(f"the node does not answer after {_START_TIMEOUT_S:.0f} s; see {places.log}")


def _forget_other_boot(places: NodePlaces) -> None:
    """RUN may be on a disk: what it says of mounts before the last boot is not so any more."""
    note = places.run / "boot"
    with contextlib.suppress(OSError):
        if note.read_bytes() == boot_id():
            return
    for directory in (places.sources, places.mounts, places.serving, places.tree_mounts):
        shutil.rmtree(directory, ignore_errors=True)
    for directory in places.containers.iterdir():
        if _is_temporary(directory):
            shutil.rmtree(directory, ignore_errors=True)
    places.make()
    note.write_bytes(boot_id())


def _check_pool_image(places: NodePlaces, size: int | None) -> None:
    """See that a node can have a pool image of this size.

    Raises:
        InvalidError: it has another one, or a pool that is on none, or the size is too small.
    """
    file = places.pool_image
    if size is None:
        return
    if size < kernel.POOL_IMAGE_MIN_SIZE:
        raise InvalidError(size, f"a pool image has at least {kernel.POOL_IMAGE_MIN_SIZE} bytes")
    if file.exists():
        if abs(file.stat().st_size - size) >= 4096:
            raise InvalidError(str(file), f"is there, with {file.stat().st_size} bytes; it is used without the option")
    elif places.pool.exists():
        raise InvalidError(str(places.state), "has a pool that is on no pool image; take another --node-state")


def _mount_pool_image(places: NodePlaces, size: int | None) -> None:
    """Mount the file system that a node keeps everything on, if it has one of its own; make it if it is to have one.

    Raises:
        PagepoolError, OSError: it cannot be made, or mounted.
    """
    file = places.pool_image
    _check_pool_image(places, size)
    if size is not None and not file.exists():
        kernel.PoolImage.create(file, size)
    if file.exists():
        kernel.PoolImage(file).mount(places.state)
        places.make()


def _is_temporary(directory: Path) -> bool:
    return (directory / "temporary").exists()


def _clear(places: NodePlaces) -> None:
    """Take away what a node that died altogether has left: its lazy mount serves nobody any more."""
    places.control.unlink(missing_ok=True)
    while os.path.ismount(places.lazy) or _is_dead(places.lazy):
        unmount_device(places.lazy, detach=True)
    shutil.rmtree(places.serving, ignore_errors=True)
    places.make()


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


def _leave_cgroup() -> None:
    """Move into a cgroup of the node's own, where that can be done: else it stays in that of who asked."""
    if Path("/run/systemd/system").exists():
        return  # systemd owns the hierarchy: the unit in deploy/ puts the node where it belongs
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, _ = line.split(":", 2)
        top = Path("/sys/fs/cgroup") / controllers.removeprefix("name=")
        if not controllers:
            top = Path("/sys/fs/cgroup/unified")
            top = top if top.is_dir() else Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError):
            own = top / _CGROUP
            own.mkdir(exist_ok=True)
            (own / "cgroup.procs").write_text(str(os.getpid()))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-900")


def main(words: Sequence[str]) -> Any:
    """The program `python -m pagepool.node`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    action, places, options = parse(words)
    try:
        if action == "start":
            start(places, options)
        else:
            Worker(places, options, Guard(places.run)).run()
    except (PagepoolError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
