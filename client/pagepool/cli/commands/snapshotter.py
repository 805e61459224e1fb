"""``pagepool snapshotter``: lets containerd, and so Kubernetes, start containers on kernel mounts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pagepool.cli import output
from pagepool.cli.connect import host_of, verify_of
from pagepool.cli.credentials import find_credentials
from pagepool.cli.nodeclient import node_client
from pagepool.cli.nodes import node_options
from pagepool.cli.options import DEFAULT_SERVER, certificate_options, output_options
from pagepool.errors import InvalidError, UnsupportedError
from pagepool.transport.addresses import is_loopback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.cli.connect import TrustOptions
    from pagepool.snapshotter.claims import Server
    from pagepool.snapshotter.snapshotter import Snapshotter

DEFAULT_ADDRESS: Final = Path("/run/pagepool/snapshotter/snapshotter.sock")
DEFAULT_ROOT: Final = Path("/var/lib/pagepool/snapshotter")
_GRACE_S: Final = 10.0
_KEEP_EVERY_S: Final = 60.0
_NEEDS: Final = ("grpc", "google.protobuf")


@click.command(name="snapshotter", short_help="Let containerd start containers on kernel mounts.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    envvar="PAGEPOOL_SNAPSHOTTER_SERVERS",
    metavar="[HOST=]URL",
    help="A service whose images are mounted; HOST is how names of images have it, if not as URL. May be given several "
    f"times [$PAGEPOOL_SNAPSHOTTER_SERVERS, with spaces between them, or $PAGEPOOL_SERVER, or {DEFAULT_SERVER}].",
)
@click.option(
    "--address",
    envvar="PAGEPOOL_SNAPSHOTTER_ADDRESS",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_ADDRESS,
    metavar="SOCKET",
    help=f"Where containerd finds the snapshotter [$PAGEPOOL_SNAPSHOTTER_ADDRESS, or {DEFAULT_ADDRESS}].",
)
@click.option(
    "--root",
    envvar="PAGEPOOL_SNAPSHOTTER_ROOT",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_ROOT,
    metavar="DIR",
    help="Where it keeps snapshots, and what containers write; on a file system that overlayfs takes for that "
    f"[$PAGEPOOL_SNAPSHOTTER_ROOT, or {DEFAULT_ROOT}].",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="How long to wait for a service that still reads an image's layers; after that they are unpacked.",
)
@click.option("--plain-http", is_flag=True, help="http also for hosts other than this machine.")
@certificate_options
@output_options
@node_options
def command(
    servers: Sequence[str],
    address: Path,
    root: Path,
    wait_s: float,
    plain_http: bool,
    insecure: bool,
    ca_certificate: Path | None,
) -> None:
    """Serve containerd as a proxy snapshotter, until SIGTERM or Ctrl-C.

    Images of the services that are named are mounted by the node, and not downloaded: a pull takes as long as asking
    for the manifest, and a container reads what it opens. Whatever is not of these services, or cannot be mounted, is
    unpacked as by containerd's own overlayfs snapshotter. Containers go on when the snapshotter ends, or is replaced.


    Credentials are those that root has logged in with (pagepool login, docker login).

    \b
    containerd's configuration, /etc/containerd/config.toml:
      [proxy_plugins.pagepool]
        type = "snapshot"
        address = "/run/pagepool/snapshotter/snapshotter.sock"
      [plugins."io.containerd.grpc.v1.cri".containerd]
        snapshotter = "pagepool"
        disable_snapshot_annotations = false

    \b
    Examples:
      pagepool snapshotter --server https://registry.example.org
      pagepool snapshotter --server registry.local=http://127.0.0.1:5000
    """
    if os.geteuid():
        raise UnsupportedError("a snapshotter needs root: it mounts file systems for containers")
    if not is_installed():
        raise UnsupportedError("the snapshotter needs pagepool[containerd]: pip install 'pagepool[containerd]'")
    trust: TrustOptions = {
        "insecure": insecure,
        "ca_certificate": ca_certificate,
        "username": None,
        "password_stdin": False,
    }
    named = servers or (os.environ.get("PAGEPOOL_SERVER") or DEFAULT_SERVER,)
    known = [_server(text, trust, plain_http=plain_http) for text in named]
    root = root.resolve()
    _serve(_open(root, known, wait_s), root, address.absolute(), known)


def is_installed() -> bool:
    """Whether there is what the extra ``containerd`` installs."""
    return all(_is_there(name) for name in _NEEDS)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # of the package that it is in
        return False


def _server(text: str, trust: TrustOptions, *, plain_http: bool) -> Server:
    """A service, as it is named in an option.

    Raises:
        InvalidError: not an address of a server.
    """
    from pagepool.snapshotter.claims import Server

    name, found, given = text.partition("=")
    given = (given if found else text).rstrip("/")
    if not given or (found and not name):
        raise InvalidError(text, "a service is named by its URL, or HOST=URL")
    if "://" not in given:
        bare, _ = host_of(f"http://{given}")
        given = f"{'http' if plain_http or is_loopback(bare) else 'https'}://{given}"
    host = host_of(given)[1]
    name = name if found else host
    return Server(name, given, partial(find_credentials, host), verify_of(trust, host))


def _open(root: Path, servers: Sequence[Server], wait_s: float) -> Snapshotter:
    from pagepool.snapshotter.claims import Claims
    from pagepool.snapshotter.imagemounts import ImageMounts
    from pagepool.snapshotter.snapshotter import Snapshotter

    claims, node = Claims(servers), node_client()
    return Snapshotter(root, claims, lambda directory: ImageMounts(node, claims.servers, directory, wait_s))


def _serve(snapshotter: Snapshotter, root: Path, address: Path, servers: Sequence[Server]) -> None:
    """Answer containerd until somebody ends it."""
    import logging

    from pagepool.linux.notify import notify
    from pagepool.mount import kernel
    from pagepool.snapshotter.serving import SnapshotServer

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    manager = os.environ.get("NOTIFY_SOCKET", "")
    try:
        support = kernel.probe(root)
        if not support.kernel:
            output.warn(f"images are unpacked, since the kernel cannot mount them: {support.reason}")
        snapshotter.cleanup()
        server = SnapshotServer(snapshotter, address)
        keeper = threading.Thread(target=_keep, args=(snapshotter, ended), name="keeper")
        server.start()
        keeper.start()
        if output.current().json:
            output.print_json({"address": str(address), "servers": {one.name: one.url for one in servers}})
        else:
            output.note(f"serving containerd at {address}; images of {', '.join(one.name for one in servers)}")
        output.flush()
        notify(manager, "READY=1")
        while not ended.wait(3600):
            pass
        notify(manager, "STOPPING=1")
        server.stop(_GRACE_S)
    finally:
        ended.set()
        snapshotter.close()
    output.note("ended")
    output.flush()
    os._exit(0)  # not waiting for threads that wait for a service: what they do is undone when this process is gone


def _keep(snapshotter: Snapshotter, ended: threading.Event) -> None:
    """See again and again that what should be mounted is: after a boot, or when a node was ended, it is not."""
    while not ended.is_set():
        try:
            snapshotter.keep()
        except Exception:
            import logging

            logging.getLogger("pagepool.snapshotter").exception("images are not looked after")
        ended.wait(_KEEP_EVERY_S)
