"""Kernel mounts by command: what is refused, what is left alone, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import pytest

from pagepool.cli import kernelmounts, roots
from pagepool.errors import BusyError
from pagepool.image import Kind, Member
from pagepool.image.tarencode import END, encode_member, padding
from pagepool.mount.kernel import list_kernel_mounts
from pagepool.node.client import KernelMount, KernelMountOptions, NodeClient
from pagepool.node.places import NodePlaces
from pagepool.oci import Reference
from tests.cli.conftest import program_command, program_environment, spawn
from tests.fault.test_node_life import none_left
from tests.oci.samples import Sample
from tests.support.nodeserver import running_node
from tests.support.pythonroot import PYTHON, python_root

if TYPE_CHECKING:
    from pagepool.cli.connect import PoolOptions
    from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rw", "--upper", "w"), "--rw and --upper exclude each other"),
        (("--rw", "--ro"), "--rw and --ro exclude each other"),
        (("--quota", "1MB"), "--quota is for --rw and --upper"),
        (("--disk", "1MB"), "--quota is for --rw and --upper"),
    ],
)
def test_a_wish_that_would_be_forgotten_is_refused(
    run: Run, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    refused = run("mount", "app:1", tmp_path, *options)
    assert refused.code == 2
    assert said in refused.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: kernel mounts")
def test_a_pool_of_the_environment_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It chooses FUSE, and whoever has it set may not think of it."""
    monkeypatch.setenv("PAGEPOOL_POOL", str(tmp_path / "pool"))
    refused = run("mount", "app:1", tmp_path, "--rw", "--node-run", tmp_path / "run", "--server", "http://127.0.0.1:9")
    assert "need the backend kernel: --foreground and --pool, or PAGEPOOL_POOL, are for FUSE" in refused.err


@pytest.mark.parametrize("command", ["mount", "run"])
def test_options_have_one_name_in_the_help(run: Run, command: str) -> None:
    """What the other command called them before is taken, too."""
    shown = run(command, "--help").out
    assert "  --quota SIZE  " in shown
    assert "  --eager  " in shown
    for spelling in ("--disk", "--fill"):
        assert spelling not in shown.replace("--no-fill", "")
        assert "No such option" not in run(command, spelling, *(["1MB"] if spelling == "--disk" else [])).err


def test_a_place_that_is_a_file_is_named_as_the_help_has_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Invalid value for 'DIR': " in run("mount", "app:1", tmp_path / "file").err


def test_a_directory_that_looks_like_an_image(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "The directory is ./work" in run("diff", "work").err
    assert "The directory" not in run("diff", "other").err


@pytest.fixture
def of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's directory that is another user's, for a root without the capabilities that would let him in."""
    run = tmp_path / "run"
    (run / "mounts").mkdir(parents=True)
    os.chown(run, 65534, 65534)
    run.chmod(0o700)
    monkeypatch.setenv("PAGEPOOL_NODE_RUN", str(run))
    return run


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv (util-linux)")
@pytest.mark.parametrize("words", ["mounts", "memory", "node", "node status", "node stop"])
def test_the_node_of_root_is_not_for_others(of_root: Path, words: str) -> None:
    """It is not said that it does not run, nor which of its files could not be read."""
    done = _as_nobody(*words.split())
    assert (done.returncode, done.stderr) == (
        7,
        f"pagepool: error: the node in {of_root} is root's: only root can ask it\n",
    )


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv (util-linux)")
@pytest.mark.usefixtures("of_root")
def test_users_see_their_own_mounts_beside_a_node_of_root() -> None:
    done = _as_nobody("mount", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["mounts"], list)


def test_users_unmount_all_of_their_own_beside_a_node_of_root(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", "/run/pagepool/node/mounts")

    monkeypatch.setattr("pagepool.node.alive.noted_mounts", refuse)
    monkeypatch.setattr(kernelmounts, "may_ask", lambda _: False)
    monkeypatch.setattr("pagepool.cli.commands.umount.list_mounts", lambda _: [])
    unmounted = run("umount", "--all", "--json")
    assert (unmounted.code, unmounted.json) == (0, {"unmounted": []})


def _as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    without = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
    return subprocess.run(
        [*without, *program_command(*arguments)],
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv (util-linux)")
def test_a_mount_that_fails_leaves_no_overlay_that_it_has_made(run: Run, image: str, tmp_path: Path) -> None:
    point, new, old = tmp_path / "mnt", tmp_path / "new", tmp_path / "old"
    point.mkdir()
    assert run("mount", image, point, "--backend", "fuse", "--upper", old).code == 0
    assert run("umount", point).code == 0
    for upper in (new, old):
        failed = _as_nobody("mount", image, str(point), "--backend", "fuse", "--upper", str(upper))
        assert failed.returncode != 0
        assert failed.stderr.startswith("pagepool: error: ")
    assert not new.exists()
    assert old.is_dir()


def test_mounting(run: Run, node: NodeClient, image: str, tmp_path: Path) -> None:
    point, upper, no_text = tmp_path / "mnt", tmp_path / "w", tmp_path / os.fsdecode(b"caf\xe9")
    no_text.mkdir()
    assert spawn("mount", image, no_text, errors="surrogateescape").stdout == f"{no_text}\n"
    assert run("umount", no_text).code == 0
    assert none_left(node)
    point.mkdir()
    mounted = run("mount", image, point, "--upper", upper)
    assert (mounted.code, mounted.out) == (0, f"{point}\n")
    assert f"mounted {image} (kernel: Linux " in mounted.err
    for backend in ("kernel", "fuse"):
        again = run("mount", image, point, "--backend", backend)
        assert again.code == 9
        assert f"{point} is mounted already: {image}" in again.err
    assert [row["path"] for row in run("mounts", "--json").json["mounts"]] == [str(point)]
    other = tmp_path / "fuse"
    other.mkdir()
    overlay = tmp_path / "overlay"
    assert run("mount", image, other, "--backend", "fuse", "--upper", overlay).code == 0
    try:
        for words in (("diff", overlay), ("commit", overlay, "app:2"), ("ls", f"{overlay}:/")):
            busy = run(*words)
            said = f"pagepool: error: the overlay {overlay} is in use: it is mounted; pagepool umount {other}\n"
            assert (busy.code, busy.err) == (9, said)
        assert "by FUSE beside these: pagepool mount lists all" in run("mounts").err
        assert {str(point), str(other)} <= {row["path"] for row in run("mount", "--json").json["mounts"]}
    finally:
        assert run("umount", other).code == 0
    assert run("umount", point).code == 0
    assert none_left(node)
    nothing = run("umount", point)
    assert (nothing.code, nothing.err) == (3, f"pagepool: error: nothing of pagepool's is mounted at {point}\n")
    wrong = run("mount", image, point, "--upper", upper, "--backend", "fuse")
    assert wrong.code == 1
    assert "was written by a kernel mount" in wrong.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    strange = run("mount", image, point, "--upper", tmp_path / "other")
    assert strange.code == 4
    assert "neither empty nor what a kernel mount has written" in strange.err
    assert "fuse" not in strange.err
    assert none_left(node)


@pytest.mark.parametrize("offline", [True, False])
def test_a_container_of_what_was_known_before_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: bool
) -> None:
    """As `pagepool mount` tells it: the tag may be that of a newer image by now."""
    node = NodeClient(NodePlaces(tmp_path / "state", tmp_path / "run"))
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    fields = {"offline": offline, "config": json.dumps(config)}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(NodeClient, "ensure", lambda _: False)
    monkeypatch.setattr(NodeClient, "unmount", lambda *_, **__: None)
    monkeypatch.setattr(
        roots, "mount_kernel", lambda _options, _reference, point, *_: KernelMount(node, point, "", fields)
    )
    options = {"server": "http://127.0.0.1:1"}
    request = roots.RootRequest(Reference.parse("h:1/app:1"), None, cast("PoolOptions", options))
    with roots.NodeRoots(node).open_root(request):
        assert ("the service cannot be reached" in capsys.readouterr().err) == offline


_KILLED = """
import json, os, signal, sys
from pathlib import Path
from pagepool.cli import roots
from pagepool.node.client import NodeClient
from pagepool.node.places import NodePlaces
from pagepool.oci import Reference
state, run, options, image, kind = sys.argv[1:]
provider = roots.NodeRoots(NodeClient(NodePlaces(Path(state), Path(run)))) if kind == "kernel" else roots.FuseRoots()
options = json.loads(options)
with provider.open_root(roots.RootRequest(Reference.parse(image), None, options)) as root:
    print(root.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["kernel", "fuse"])
def test_the_root_of_a_run_that_was_killed_before_its_container_was_noted(
    node: NodeClient, image: str, service: str, kind: str, tmp_path: Path
) -> None:
    """The next one takes it away, and leaves those alone that somebody wants."""
    no = dict.fromkeys(("plain_http", "insecure", "ca_certificate", "username", "password_stdin"))
    options = no | {"server": f"http://{service}", "pool": str(tmp_path / "pool"), "tree_timeout": 600.0}
    request = roots.RootRequest(Reference.parse(image), None, cast("PoolOptions", options))
    provider: roots.RootProvider = roots.NodeRoots(node) if kind == "kernel" else roots.FuseRoots()
    words = [node.places.state, node.places.run, json.dumps(options), image, kind]
    with provider.open_root(request) as wanted:
        killed = subprocess.run(
            [sys.executable, "-c", _KILLED, *map(str, words)],
            env=program_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        left = Path(killed.stdout.strip())
        assert left.is_mount()
        with provider.open_root(request):
            assert not left.exists()
            assert not left.with_suffix(".lock").exists()
            assert wanted.path.is_mount()
    assert not wanted.path.exists()


@pytest.mark.parametrize("kind", ["kernel", "fuse"])
def test_what_a_container_writes_is_kept_where_it_is_wanted(
    run: Run, node: NodeClient, image: str, service: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "node_client", lambda: node)  # no command's options name it here
    no = dict.fromkeys(("plain_http", "insecure", "ca_certificate", "username", "password_stdin"))
    options = no | {"server": f"http://{service}", "pool": str(tmp_path / "pool"), "tree_timeout": 600.0}
    upper = tmp_path / "work"
    request = roots.RootRequest(Reference.parse(image), None, cast("PoolOptions", options), upper=upper)
    provider: roots.RootProvider = roots.NodeRoots(node) if kind == "kernel" else roots.FuseRoots()
    with provider.open_root(request) as root:
        (root.path / "kept").write_text("here")
        with pytest.raises(BusyError), provider.open_root(request):
            pass
    with roots.default_provider("auto", upper).open_root(request) as root:  # by whatever has made it
        assert (root.path / "kept").read_text() == "here"
        assert (root.path.parent.parent == Path("/var/tmp")) == (kind == "fuse")
    assert "A /kept" in run("diff", upper).out.splitlines()


def test_unmounting_all_leaves_containers_and_other_nodes_alone(
    run: Run, node: NodeClient, image: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FUSE mounts of whoever else is at work on this machine are not ours to end.
    monkeypatch.setattr("pagepool.cli.commands.umount.list_mounts", lambda _: [])
    first, container, foreign = (tmp_path / name for name in ("first", "container", "foreign"))
    for directory in (first, container, foreign):
        directory.mkdir()
    reference = Reference.parse(image)
    (tmp_path / "other").mkdir()
    with running_node(tmp_path / "other") as other:
        node.mount(f"http://{service}", reference, container, KernelMountOptions(temporary=True, owner="container"))
        other.mount(f"http://{service}", reference, foreign)
        assert run("mount", image, first).code == 0
        unmounted = run("umount", "--all", "--json")
        assert unmounted.json == {"unmounted": [str(first)]}
        left = {one.path for one in list_kernel_mounts()}
        assert {container, foreign} <= left
        assert first not in left


@pytest.fixture
def unholdable(run: Run, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image that runs Python, and has an attribute as large as Linux allows: one byte more than EROFS can say."""
    monkeypatch.setenv("PAGEPOOL_SERVER", f"http://{service}")
    big = _file("big")._replace(xattrs={b"user.big": bytes(65536)})
    files = [(_file(name, len(data)), data) for name, data in python_root().items()]
    sample = Sample()
    layer = b"".join(encode_member(file) + data + padding(len(data)) for file, data in [(big, b""), *files])
    sample.add_image([layer + END])
    layout = sample.write_layout(tmp_path / "unholdable", {"1": sample.root()})
    assert run("push", "-q", layout, "unholdable:1").code == 0
    return "unholdable:1"


def _file(name: str, size: int = 0) -> Member:
    return Member(name.encode(), name.encode(), Kind.REGULAR, 0o755, 0, 0, 0, size, size)


_NOT_HELD = "the kernel cannot mount this image: extended attribute user.big of 65536 is over the limit of 65535"


def test_what_the_kernel_cannot_hold_is_mounted_by_fuse(
    run: Run, node: NodeClient, unholdable: str, tmp_path: Path
) -> None:
    """And the kernel's own backend says what it is, as does a wish that FUSE cannot fulfil."""
    point = tmp_path / "mnt"
    point.mkdir()
    refused = run("mount", unholdable, point, "--backend", "kernel")
    assert (refused.code, refused.err) == (4, f"pagepool: error: {_NOT_HELD}\n")
    refused = run("mount", unholdable, point, "--rw")
    assert refused.code == 1
    assert f"need the backend kernel: {_NOT_HELD}" in refused.err
    mounted = run("mount", unholdable, point, "--upper", tmp_path / "upper")
    try:
        assert (mounted.code, mounted.out) == (0, f"{point}\n"), mounted.err
        assert f"mounting by FUSE, not by the kernel: {_NOT_HELD}\n" in mounted.err
        assert os.getxattr(point / "big", "user.big") == bytes(65536)
        (point / "new").write_text("x")
    finally:
        run("umount", point)
    assert none_left(node)


@pytest.mark.usefixtures("node")
def test_what_the_kernel_cannot_hold_is_run_on_fuse(unholdable: str) -> None:
    command = ("--runtime", "own", unholdable, "--", str(PYTHON), "-I", "-S", "-c")
    words = (*command, "import os; print(len(os.getxattr('/big', 'user.big')))")
    refused = spawn("run", "--backend", "kernel", *words)
    assert (refused.returncode, refused.stderr) == (125, f"pagepool: error: {_NOT_HELD}\n")
    for spelling in ("--quota", "--disk"):
        limited = spawn("run", spelling, "1MB", *words)
        assert limited.returncode == 125
        assert limited.stderr.endswith("pagepool: error: --quota needs the backend kernel\n")
    done = spawn("run", "--eager", *words)
    assert (done.returncode, done.stdout) == (0, "65536\n"), done.stderr
    assert done.stderr == f"pagepool: mounting by FUSE, not by the kernel: {_NOT_HELD}\n"


@pytest.mark.parametrize("action", ["stop", "restart", "scrub", "status"])
def test_a_node_that_is_not_running(run: Run, tmp_path: Path, action: str) -> None:
    refused = run("node", action, "--node-run", tmp_path / "run", "--node-state", tmp_path / "state")
    assert refused.code == 6
    assert "the node is not running" in refused.err
    assert not (tmp_path / "run").exists()


def test_a_node_that_was_stopped_leaves_nothing_mounted(run: Run, node: NodeClient) -> None:
    assert node.places.lazy.is_mount()
    assert run("node", "stop").code == 0
    assert not node.places.lazy.is_mount()
    assert "the node is not running" in run("node", "stop").err
