"""Another user of the machine: what of the service and the node he can see, change, or speak to. Next to nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.node.client import KernelMountOptions
from pagepool.node.worker import WorkerOptions
from tests.fault.test_node import contents, point, push
from tests.support.nodeserver import running_node
from tests.support.pythonroot import PYTHON
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65534
_LOOK = """
import json, os, socket, sys
found = {}
for place in sys.argv[1:]:
    for name, try_it in {
        "list": lambda: os.listdir(place),
        "enter": lambda: os.stat(place + "/.").st_mode,
        "read": lambda: open(place, "rb").read(1),
        "write": lambda: os.close(os.open(place, os.O_WRONLY)),
        "make": lambda: os.mkdir(place + "/made"),
        "chmod": lambda: os.chmod(place, 0o777),
        "unlink": lambda: os.unlink(place),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(place),
    }.items():
        try:
            try_it()
        except OSError:
            continue
        found.setdefault(place, []).append(name)
print(json.dumps(found))
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can enter, as /var/lib is: what is refused below it is not refused by that."""
    if os.geteuid():
        pytest.skip("needs root: becoming another user")
    directory = Path(tempfile.mkdtemp(prefix="pagepool-public-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def allowed(*places: Path) -> dict[str, Any]:
    """What another user may do with files, directories and sockets."""
    names = [str(place) for place in places]
    command = [str(PYTHON), "-I", "-c", _LOOK, *names]
    done = subprocess.run(
        command, user=_NOBODY, group=_NOBODY, extra_groups=[], capture_output=True, text=True, check=True, cwd="/"
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def everything(top: Path) -> list[Path]:
    """What is there."""
    return [top, *(path for path in top.rglob("*") if not path.is_symlink())]


def test_the_service_data_directory(public: Path) -> None:
    """Nothing of it: trees name all files, and EROFS images hold small ones. Of the cache what is documented."""
    data = public / "data"
    with running_service(data) as service:
        reference = push(service, "secret", contents(1, 3, 100))
        with httpx.Client(base_url=f"{service.url}/v1/{reference.repository}", timeout=60) as http:
            while (answer := http.get("images/1/tree")).status_code == 202:
                pass
            tree = answer.json()["tree"]
            assert http.get(f"trees/{tree}/erofs").status_code == 200
            http.post("../../v2/secret/blobs/uploads/")
        places = everything(data)
        assert {"spool", "store", "trees", "uploads", "lock"} <= {path.name for path in places}
        assert allowed(*places) == {}
        # docs/security.md: whoever can enter the cache can read it, and do nothing else.
        cache = everything(service.cache)
        assert all(set(what) <= {"list", "enter", "read", "connect"} for what in allowed(*cache).values())
        assert allowed(*(path for path in cache if path.name in ("partial", "tmp", "state", "log"))) == {}
    data.chmod(0o755)
    with running_service(data):
        assert allowed(data, data / "trees") == {}, "one that was made by an earlier version is closed, too"


def test_the_node(public: Path) -> None:
    """Neither its pool, nor its credentials, nor its socket, nor what containers wrote."""
    with running_service(public / "data") as service:
        reference = push(service, "app", contents(2, 3))
        with running_node(public, WorkerOptions(fill=False, profiles=False)) as node:
            at = point(public)
            with node.mount(service.url, reference, at, KernelMountOptions(temporary=True)):
                (at / "written").write_bytes(b"secret")
                assert (at / "d0/f0").read_bytes()
                places = [path for top in (node.places.state, node.places.run) for path in everything(top)]
                assert {"control.sock", "sources", "mounts", "pool", "containers"} <= {path.name for path in places}
                # What mounts of the lazy mount and of metadata images show is below directories of root's, too.
                assert allowed(*places) == {}
                assert set(allowed(at)[str(at)]) == {"list", "enter"}, "the image's own modes count in a mount"
