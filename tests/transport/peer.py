"""Debian's `docker-registry`, the reference registry, as a peer to test against; on loopback, in its own directory."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_CONFIG = """\
version: 0.1
log: {{level: info, formatter: text}}
storage:
  filesystem: {{rootdirectory: "{root}"}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:0"}}
{auth}
"""
_AUTH = 'auth: {{htpasswd: {{realm: test, path: "{path}"}}}}'
# bcrypt of "secret"; docker-registry takes no other kind.
_HTPASSWD = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@dataclass(frozen=True, slots=True)
class Peer:
    """A registry that is running.

    Args:
        host: ``127.0.0.1:port``.
        root: its storage.
    """

    host: str
    root: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}"


def require_docker_registry() -> str:
    """The program, or skip."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry (apt-get install docker-registry)")
    return program


@contextmanager
def docker_registry(directory: Path, htpasswd: bool = False) -> Iterator[Peer]:
    """Run a docker-registry in `directory`, with deletion allowed, until the end of the block."""
    program = require_docker_registry()
    root = directory / "registry"
    root.mkdir(parents=True)
    auth = ""
    if htpasswd:
        (directory / "htpasswd").write_text(_HTPASSWD)
        auth = _AUTH.format(path=directory / "htpasswd")
    config = directory / "config.yml"
    config.write_text(_CONFIG.format(root=root, auth=auth))
    process = subprocess.Popen(
        [program, "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"OTEL_TRACES_EXPORTER": "none", "PATH": "/usr/bin:/bin"},
    )
    assert process.stderr is not None
    seen: list[str] = []
    try:
        for line in process.stderr:
            seen.append(line)
            if match := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("docker-registry did not start:\n" + "".join(seen))
        drain = threading.Thread(target=process.stderr.read, daemon=True)  # or it blocks when the pipe is full
        drain.start()
        yield Peer(match[1], root)
        process.terminate()
        drain.join(30)
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stderr.close()
