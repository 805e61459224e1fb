"""containerd with our snapshotter, driven as the kubelet does: nothing is downloaded, and pods run on kernel mounts."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool_service.bench.cri import CriError, Pod
from tests.support.kernelmounts import skip_without_kernel_mounts
from tests.support.podimages import LARGE, busybox, make_tar, push_layers, push_pause, push_workload, workload
from tests.support.snapshotting import Snapshotting, containerd_on, snapshotting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.server import Service

_SEEN = "/app:\nchanged\nkept\nlarge\nlink\nopaque\n\n/app/opaque:\nafter\n"
_SCRIPT = "cat /app/kept /app/link /app/changed && ls /app /app/opaque && wc -c </app/large && echo new >/app/kept"
_PRINTED = f"kept\nkept\nafter\n{_SEEN}{len(LARGE)}\n"
_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[Snapshotting]:
    skip_without_kernel_mounts()
    with httpx.Client(base_url=service.url) as http:
        push_pause(http, "pause", "1")
        push_workload(http, "work", "1")
    with snapshotting([service.url]) as found, containerd_on(found, service.host):
        yield found


@pytest.fixture
def image(service: Service, running: Snapshotting) -> Iterator[str]:
    """An image that is not there before, and nothing is after."""
    yield f"{service.host}/work:1"
    cri = running.cri
    for pod in cri.pods():
        cri.remove_pod(Pod(pod, {}))
    for name in list(cri.images()):
        cri.remove_image(name)
    _await(lambda: not running.snapshots() and not running.mounts() and not _left(running))


def _left(running: Snapshotting) -> list[Path]:
    return list((running.root / "snapshots").iterdir())


def _await(is_so: Callable[[], bool]) -> None:
    """Wait for what containerd does in its own time."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pod_runs_on_what_was_not_downloaded(running: Snapshotting, image: str) -> None:
    cri = running.cri
    identity = cri.pull(image)
    assert cri.images()[identity].repo_tags == [image]
    blobs = running.ctr("content", "ls").splitlines()[1:]
    assert len(blobs) == 2, blobs  # the manifest and the configuration
    pod = cri.run_pod("lazily")
    container, other = cri.run(pod, image), cri.run(pod, image)
    done = cri.exec(container, "sh", "-c", _SCRIPT)
    assert (done.stdout.decode(), done.exit_code) == (_PRINTED, 0), done.stderr
    assert cri.exec(other, "cat", "/app/kept").stdout == b"kept\n"
    assert cri.exec(container, "cat", "/app/kept").stdout == b"new\n"
    assert sum(not mount["read_only"] for mount in running.mounts()) == 3  # with the pod's own
    cri.remove_pod(pod)
    _await(lambda: all(mount["read_only"] for mount in running.mounts()))  # later containerds remove them in their time


def test_images_that_begin_alike(service: Service, running: Snapshotting, image: str) -> None:
    """containerd knows layers by their chain: what is the first layer of one image is the last one of another."""
    cri = running.cri
    with httpx.Client(base_url=service.url) as http:
        push_layers(http, "more", "1", [busybox(), make_tar({"own": b"own\n"})])
    cri.pull(image)
    pause, more = f"{service.host}/pause:1", f"localhost:{service.host.partition(':')[2]}/more:1"
    cri.pull(pause)
    cri.pull(more)  # by a name that the snapshotter was not told of: its second layer is unpacked upon our first
    pod = cri.run_pod("alike")
    assert _listed(running, cri.run(pod, pause)) == ["bin", "dev", "etc", "proc", "sys"]
    assert _listed(running, cri.run(pod, more)) == ["bin", "dev", "etc", "own", "proc", "sys"]
    assert _listed(running, cri.run(pod, image)) == ["app", "bin", "dev", "etc", "proc", "sys"]
    container = cri.run(pod, more)
    assert cri.exec(container, "sh", "-c", "cat /own; echo new >/own; rm /bin/wc; cat /own").stdout == b"own\nnew\n"
    assert cri.exec(cri.run(pod, more), "cat", "/own").stdout == b"own\n"


def test_what_dies_is_not_seen(running: Snapshotting, image: str) -> None:
    cri = running.cri
    cri.pull(image)
    pod = cri.run_pod("outlives")
    container = cri.run(pod, image)
    assert cri.exec(container, "sh", "-c", "echo written >/app/new").exit_code == 0
    running.daemon.end(signal.SIGKILL)
    assert cri.exec(container, "sh", "-c", _SCRIPT).stdout.decode() == _PRINTED.replace("link\n", "link\nnew\n", 1)
    running.start()
    running.await_containerd()
    other = cri.run(pod, image)
    assert cri.exec(other, "sh", "-c", _SCRIPT).stdout.decode() == _PRINTED
    running.pagepool("node", "stop")  # as after a boot, but that the containers are still there
    another = cri.run(pod, image)
    assert cri.exec(another, "sh", "-c", _SCRIPT).stdout.decode() == _PRINTED
    assert cri.exec(container, "cat", "/app/new").stdout == b"written\n"
    mounts = running.ctr("snapshots", "--snapshotter", "pagepool", "mounts", "/mnt", container)
    assert mounts.split()[3].removeprefix(f"{running.place.directory}") in "".join(running.place.mounts())
    cri.remove_pod(pod)


def test_images_of_others_are_unpacked(running: Snapshotting, image: str) -> None:
    """By a name of the registry that the snapshotter was not told of."""
    cri = running.cri
    elsewhere = image.replace("127.0.0.1", "localhost")
    cri.pull(elsewhere)
    assert len(running.ctr("content", "ls").splitlines()[1:]) == 5
    pod = cri.run_pod("unpacked")
    container = cri.run(pod, elsewhere)
    done = cri.exec(container, "sh", "-c", _SCRIPT)
    assert (done.stdout.decode(), done.exit_code) == (_PRINTED, 0), done.stderr
    assert not any(mount["image"].startswith("localhost") for mount in running.mounts())
    cri.remove_pod(pod)


def test_an_image_of_ours_upon_layers_that_are_unpacked(service: Service, running: Snapshotting, image: str) -> None:
    cri = running.cri
    cri.pull(image.replace("127.0.0.1", "localhost"))
    with httpx.Client(base_url=service.url) as http:
        push_layers(http, "upon", "1", [*workload(), make_tar({"app/.wh.kept": b"", "upon": b"upon\n"})])
    cri.pull(f"{service.host}/upon:1")
    pod = cri.run_pod("upon")
    container = cri.run(pod, f"{service.host}/upon:1")
    assert _listed(running, container) == ["app", "bin", "dev", "etc", "proc", "sys", "upon"]
    assert cri.exec(container, "ls", "/app").stdout.split() == [b"changed", b"large", b"link", b"opaque"]
    assert any(mount["image"].startswith(f"{service.host}/upon:1@") for mount in running.mounts())


def test_what_is_here_is_started_whatever_the_service_says(service: Service, running: Snapshotting) -> None:
    """As by containerd's own snapshotters: an image that was pulled is asked for no more."""
    cri, image = running.cri, f"{service.host}/gone:1"
    with httpx.Client(base_url=service.url) as http:
        digest = push_layers(http, "gone", "1", [*workload(), make_tar({"own": b"own\n"})])
        cri.pull(f"{service.host}/pause:1")  # whose only layer is this image's first one
        cri.pull(image)
        assert http.delete(f"/v2/gone/manifests/{digest}").status_code == 202
    pod = cri.run_pod("gone")
    assert cri.exec(cri.run(pod, image), "cat", "/own", "/app/kept").stdout == b"own\nkept\n"
    running.pagepool("node", "stop")
    assert cri.exec(cri.run(pod, image), "cat", "/own", "/app/kept").stdout == b"own\nkept\n"
    cri.remove_pod(pod)
    cri.remove_image(image)


def _listed(running: Snapshotting, container: str) -> list[str]:
    return running.cri.exec(container, "ls", "/").stdout.decode().split()


@pytest.mark.usefixtures("image")
def test_layers_of_an_image_that_the_service_has_no_more(service: Service, running: Snapshotting) -> None:
    """Another registry's image begins with them: its own layers cannot be unpacked upon what cannot be mounted."""
    cri = running.cri
    begin = [make_tar({"begin": b"begin\n"}), busybox()]  # not as the image of sandboxes begins
    gone, other = f"{service.host}/gone:1", f"localhost:{service.host.partition(':')[2]}/other:1"
    with httpx.Client(base_url=service.url) as http:
        digest = push_layers(http, "gone", "1", [*begin, make_tar({"gone": b"gone\n"})])
        push_layers(http, "other", "1", [*begin, make_tar({"own": b"own\n"})])
        cri.pull(gone)
        assert http.delete(f"/v2/gone/manifests/{digest}").status_code == 202
    with pytest.raises(CriError, match=f"layers of {gone} are needed.* remove that image") as found:
        cri.pull(other)
    assert found.value.code == "UNAVAILABLE"
    pod = cri.run_pod("gone")
    assert "gone" in _listed(running, cri.run(pod, gone))
    cri.remove_pod(pod)
    cri.remove_image(gone)
    cri.pull(other)
    pod = cri.run_pod("other")
    assert _listed(running, cri.run(pod, other)) == ["begin", "bin", "dev", "etc", "own", "proc", "sys"]
