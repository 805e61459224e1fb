"""Where images come from in `bench mount`: a registry in the server's network namespace, with the images pushed.

Pushing and what it costs is not measured here (`bench registry` does). `warm` reads all that a registry keeps, so that
after the caches were dropped it serves from memory: the way to the container is measured, not the server's disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnreachableError
from pagepool_service.bench.link import SERVER_ADDRESS
from pagepool_service.bench.servers import PAGEPOOL, PEER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pagepool_service.bench.link import Link

PORT: Final = 5000
HOST: Final = f"{SERVER_ADDRESS}:{PORT}"
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 60.0
_PUSH_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.2
_BUFFER: Final = 1 << 20
_RECOMPRESS: Final = "PAGEPOOL_RECOMPRESS"
_CONFIGURATION: Final = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{root}"}}
http: {{addr: "{host}"}}
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """A registry that has the images, at `HOST` for whoever is at the other end of the link.

    Args:
        kind: PAGEPOOL or PEER.
        data: everything it keeps is below.
    """

    kind: str
    data: Path

    def warm(self) -> None:
        """Bring all that it keeps into the page cache."""
        buffer = bytearray(_BUFFER)
        for path in self.data.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    # A store's file has holes of terabytes: only what is on disk is read.
                    for _ in range(-(-path.stat().st_blocks * 512 // _BUFFER)):
                        if not file.readinto(buffer):
                            break


@contextmanager
def serve_images(
    kind: str,
    link: Link,
    layouts: Sequence[Path],
    directory: Path,
    environment: Mapping[str, str],
    *,
    rested: bool = False,
) -> Iterator[Origin]:
    """Run a registry for the length of the block, with the images in it: each by the name of its layout's directory.

    Args:
        kind: PAGEPOOL or PEER.
        link: at whose server's end it runs.
        layouts: OCI layouts of one image each.
        directory: an empty one, for what it keeps.
        environment: of all processes.
        rested: once a service has done all that it does behind a push, compressing once more with it.

    Raises:
        UnreachableError: it did not start, or took an image not.
    """
    data, log = directory / "data", directory / "log"
    data.mkdir(parents=True)
    if kind == PAGEPOOL:
        command = [sys.executable, "-m", "pagepool.cli", "serve", "--data", str(data), "--listen", HOST]
        command += ["--workers", "2", "--cache-dir", str(directory / "cache")]
    else:
        configuration = directory / "config.yml"
        configuration.write_text(_CONFIGURATION.format(root=data, host=HOST))
        command = [PEER, "serve", str(configuration)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*link.server, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "OTEL_TRACES_EXPORTER": "none"},
            start_new_session=True,
        )
    try:
        _await(kind, link, process, log)
        for layout in layouts:
            _push(link, layout, environment)
        if kind == PAGEPOOL:
            for layout in layouts:
                _await_ready(link, layout.name, environment)
            if rested and environment.get(_RECOMPRESS, "yes") != "no":
                _await_rest(link, environment)
        yield Origin(kind, data)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(kind: str, link: Link, process: subprocess.Popen[bytes], log: Path) -> None:
    probe = f"import socket,sys; sys.exit(socket.socket().connect_ex(('{SERVER_ADDRESS}', {PORT})) != 0)"
    deadline = time.monotonic() + _START_TIMEOUT_S
    while subprocess.run([*link.server, sys.executable, "-c", probe], check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise UnreachableError(kind, f"it did not start: {log.read_text(errors='replace')[-1000:].strip()}")


def _push(link: Link, layout: Path, environment: Mapping[str, str]) -> None:
    source, target = f"oci:{layout}", f"docker://{HOST}/{layout.name}:latest"
    command = [*link.server, "skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    command += [source, target]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=_PUSH_TIMEOUT_S
    )
    if done.returncode:
        raise UnreachableError(HOST, f"{layout.name}: {done.stderr.strip()[-500:]}")


def _await_ready(link: Link, name: str, environment: Mapping[str, str]) -> None:
    """Wait until the service has read an image's layers."""
    command = [*link.server, sys.executable, "-m", "pagepool.cli", "ls", "--plain-http", f"{HOST}/{name}:latest:/"]
    deadline = time.monotonic() + _PUSH_TIMEOUT_S
    while True:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=_PUSH_TIMEOUT_S
        )
        if not done.returncode:
            return
        if "not ready" not in done.stderr or time.monotonic() > deadline:
            raise UnreachableError(HOST, f"{name}: {done.stderr.strip()[-500:]}")
        time.sleep(_POLL_S)


def _await_rest(link: Link, environment: Mapping[str, str]) -> None:
    """Wait until the service has nothing left to do: no job, and no frame to compress once more."""
    command = [*link.server, sys.executable, "-m", "pagepool.cli", "stats", "--json", "--server", f"http://{HOST}"]
    deadline = time.monotonic() + _PUSH_TIMEOUT_S
    while time.monotonic() < deadline:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=_PUSH_TIMEOUT_S
        )
        if done.returncode:
            raise UnreachableError(HOST, done.stderr.strip()[-500:])
        found = json.loads(done.stdout)["total"]
        if not found["jobs_waiting"] and not found["frames_waiting"]:
            return
        time.sleep(_POLL_S)
    raise UnreachableError(HOST, "it is still at work on what was pushed")
