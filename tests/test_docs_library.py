"""The examples in docs/library.md and README.md run, in their order, against a real service, and print what is said."""

from __future__ import annotations

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.layout import plan_copy, run_copy
from pagepool.library import client
from pagepool.mount import records
from pagepool.mount.device import DEVICE
from pagepool.oci import Reference
from pagepool.transport import RegistryClient, RegistrySink, Session
from tests.oci.samples import Sample
from tests.overlay.layers import whole_layer
from tests.support.server import running_service
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Service

_ROOT = Path(__file__).parents[1]
_PAGE = _ROOT / "docs" / "library.md"
_BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>\w+) -->\n)?```python\n(?P<code>.*?)```(?:\n```text\n(?P<printed>.*?)```)?", re.DOTALL
)
_SERVICE = "127.0.0.1:5000"


@dataclass(frozen=True, slots=True)
class Example:
    """A block of Python in the page.

    Args:
        page: the page.
        line: where its code begins.
        needs: what a machine must have for it; "" for nothing.
        code: its lines.
        printed: what they print.
    """

    page: Path
    line: int
    needs: str
    code: str
    printed: str


def _examples(page: Path = _PAGE) -> list[Example]:
    text = page.read_text()
    return [
        Example(
            page, text.count("\n", 0, found.start("code")), found["needs"] or "", found["code"], found["printed"] or ""
        )
        for found in _BLOCK.finditer(text)
    ]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the image that the page is about."""
    builder = TreeBuilder()
    builder.file("etc/os-release", b'NAME="Example"\n')
    builder.file("etc/app.conf", b"mode = plain\n")
    builder.file("usr/bin/run", b"#!/bin/sh\n", mode=0o755)
    builder.file("usr/lib/model.bin", bytes(range(250)) * 12_000)
    builder.symlink("bin", "usr/bin")
    sample = Sample()
    sample.add_image([whole_layer(builder.file_system())])
    with running_service(tmp_path_factory.mktemp("service") / "data") as running, Session(running.url) as session:
        sink = RegistrySink(RegistryClient(session), Reference.parse("app:1"))
        run_copy(plan_copy(sample), sample, sink)
        yield running


@pytest.fixture
def names(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What examples run in: a directory of their own, and nothing kept elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "default_directory", lambda: tmp_path / "client")
    monkeypatch.setattr(records, "default_directory", lambda: tmp_path / "mounts")
    found: dict[str, Any] = {"__name__": "example", "host": service.host}
    yield found
    found["client"].close()


def _run(example: Example, names: dict[str, Any]) -> str:
    """Run an example in these names; what it printed."""
    code = compile("\n" * example.line + example.code.replace(_SERVICE, names["host"]), str(example.page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)  # the page's own code
    return printed.getvalue()


def _check(example: Example, names: dict[str, Any]) -> None:
    assert _run(example, names) == example.printed, f"{example.page}:{example.line}"


def test_examples_run_and_print_what_the_page_says(names: dict[str, Any]) -> None:
    examples = [example for example in _examples() if not example.needs]
    assert len(examples) > 5
    for example in examples:
        _check(example, names)


def test_the_example_of_the_readme_runs(service: Service, names: dict[str, Any]) -> None:
    (example,) = _examples(_ROOT / "README.md")
    assert _run(example, names) == 'NAME="Example"\n\n'
    with client.Client(service.url) as again, again.image("app:2").open() as root:
        assert root.read_text("/etc/app.conf") == "mode = test\n"


def test_the_examples_of_mounts_run(names: dict[str, Any]) -> None:
    first, *others = _examples()
    mounts = [example for example in others if example.needs == "fuse"]
    assert {example.needs for example in others} == {"", "fuse"}
    if os.geteuid() or not os.access(DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"mounting needs root and {DEVICE}")
    for example in (first, *mounts):
        _check(example, names)
