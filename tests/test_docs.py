"""The documentation is true: help pages, settings, names and links are compared, and its commands are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from pagepool.version import __version__
from pagepool_service import settings
from tests.support import helptext
from tests.support.server import running_service

_ROOT = Path(__file__).parents[1]
_PAGES = sorted([*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), *_ROOT.glob("deploy/*.md")])
_BLOCK = re.compile(r"(?:<!-- run(?:: (?P<tool>\w+))? -->\n)?(?P<marked>)```sh\n(?P<text>.*?)```", re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_DEFAULT_SERVER = "127.0.0.1:5000"
_TOOLS = ("skopeo",)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of shell commands in a page.

    Args:
        page: the file.
        run: whether it is marked to be run.
        tool: what it needs to be run, beside pagepool; "" for nothing.
        text: the commands.
    """

    page: Path
    run: bool
    tool: str
    text: str


def _blocks(page: Path) -> Iterator[Block]:
    for match in _BLOCK.finditer(page.read_text()):
        yield Block(page, match[0].startswith("<!-- run"), match["tool"] or "", match["text"])


def _pyproject() -> dict[str, object]:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(project, dict)
    return project


def test_the_command_line_page_is_what_help_says() -> None:
    # Not how click wraps and spaces, which differs between its versions.
    assert helptext.PAGE.read_text().split() == helptext.make_page().split(), "run python tests/support/helptext.py"


def test_every_command_has_examples() -> None:
    missing = [
        title
        for title, command, context in helptext.commands()
        if not isinstance(command, click.Group) and "Examples:" not in command.get_help(context)
    ]
    assert missing == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page}: {target}"
        assert not anchor or anchor in _anchors(found), f"{page}: {target}"


def test_tests_that_the_design_names_are_there() -> None:
    page = (_ROOT / "docs" / "design.md").read_text()
    named = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page)) | set(re.findall(r"`tests/(test_\w+\.py)`", page))
    assert len(named) > 20
    assert named <= {path.name for path in (_ROOT / "tests").rglob("test_*.py")}


def test_tests_that_hold_each_line_of_the_threat_model_are_there() -> None:
    """`tests/FILE.py::test`, or `::test` of the file that was named before it in the same line."""
    page = (_ROOT / "docs" / "security.md").read_text()
    named: list[tuple[str, str]] = []
    for line in page.splitlines():
        file = ""
        for found in re.finditer(r"`(?P<file>tests/[\w/]+\.py)?(?:::(?P<test>test_\w+))?`", line):
            file = found["file"] or file
            named.append((file, found["test"] or ""))
    assert len(named) > 60
    for file, test in named:
        path = _ROOT / file
        assert path.is_file(), f"{file} {test}"
        assert not test or re.search(rf"^(?:async )?def {test}\(", path.read_text(), re.MULTILINE), f"{file}::{test}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_commands_in_pages_can_be_parsed(page: Path) -> None:
    """Every `pagepool ...` in a block has only arguments and options that the command takes."""
    from pagepool.cli.app import group

    for line in (line for block in _blocks(page) for line in block.text.replace("\\\n", " ").splitlines()):
        for arguments in _pagepool_commands(line):
            try:
                _parse(group, "pagepool", arguments, None)
            except click.ClickException as error:
                pytest.fail(f"{page}: {line}: {error.format_message()}")


def _pagepool_commands(line: str) -> Iterator[list[str]]:
    """The arguments of each call of pagepool in a line of shell."""
    for part in re.split(r"&&|\|", line.partition("  #")[0]):
        words = shlex.split(part)
        if words and Path(words[0]).name == "pagepool":
            yield [word for word in words[1:] if word != "&"]


def _parse(command: click.Command, name: str, arguments: list[str], parent: click.Context | None) -> None:
    context = command.make_context(name, list(arguments), parent=parent)
    words = [*context._protected_args, *context.args]
    if isinstance(command, click.Group) and (words or not command.invoke_without_command):
        word, inner, rest = command.resolve_command(context, words)
        assert word is not None
        assert inner is not None
        _parse(inner, word, rest, context)


def test_marked_commands_run(tmp_path: Path) -> None:
    """The blocks marked in docs/registry.md, in their order, against one service."""
    program = tmp_path / "bin" / "pagepool"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -m pagepool.cli \"$@\"\n")
    program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    blocks = [block for block in _blocks(_ROOT / "docs" / "registry.md") if block.run]
    assert {block.tool for block in blocks} == {"", *_TOOLS}
    with running_service(work / "pagepool-data") as service:
        for block in blocks:
            if block.tool and shutil.which(block.tool) is None:
                continue  # tests/e2e asks for the tool, and is skipped with the reason
            _run(block.text.replace(_DEFAULT_SERVER, service.host), work, program.parent, service.url)


def _run(script: str, work: Path, programs: Path, url: str) -> None:
    paths = [str(_ROOT / "client"), str(_ROOT / "service"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PAGEPOOL_SERVER": url,
    }
    done = subprocess.run(
        ["sh", "-eux"],
        input=script,
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_every_setting_is_in_the_guide() -> None:
    page = (_ROOT / "docs" / "registry.md").read_text()
    told = set(re.findall(r"^\| `(PAGEPOOL_\w+)` ", page, re.MULTILINE))
    assert told == set(settings._VARIABLES)


def test_every_default_in_the_guide_is_that_of_the_code(tmp_path: Path) -> None:
    """But for those that are words, such as "none"."""
    page = (_ROOT / "docs" / "registry.md").read_text()
    rows = re.findall(r"^\| `(PAGEPOOL_\w+)` \|[^|]*\| `?([^|`]+)`? \|", page, re.MULTILINE)
    told = {name: default for name, default in rows if re.fullmatch(r"yes|no|\d+( ?\w+)?|[\d.:]+|[a-z]+", default)}
    told = {name: default for name, default in told.items() if default not in ("none", "all")}
    assert len(told) > 35
    plain = settings.Settings.load({}, data=tmp_path)
    for name, default in told.items():
        assert settings.Settings.load({name: default}, data=tmp_path) == plain, f"{name}: {default}"


def test_every_statistic_in_the_guide_exists(tmp_path: Path) -> None:
    page = (_ROOT / "docs" / "registry.md").read_text().split("`pagepool stats`\n")[1].split("\n## ")[0]
    told = set(
        re.findall(r"`(\w+_(?:bytes|ratio)|page_rounding|files|opaque|recipes|index|metadata|spool|uploads)`", page)
    )
    from pagepool_service.statistics import collect
    from pagepool_service.store.store import Store

    with Store.open(tmp_path / "data") as store:
        total = collect(store)["total"]
    of_images = {"logical_bytes", "compressed_bytes", "unique_bytes", "shared_bytes"}
    assert told <= set(total) | set(total["stored"]) | of_images


def test_every_dependency_has_its_reason() -> None:
    project = _pyproject()
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [project["dependencies"], *extras.values()]
    names = {re.split(r"[\[<>=!~; ]", requirement)[0] for group in wanted for requirement in group}
    page = (_ROOT / "docs" / "dependencies.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` ", page, re.MULTILINE)) == names - {"pagepool"}


def test_the_version_is_the_same_everywhere() -> None:
    assert _pyproject()["version"] == __version__
    assert f"## {__version__}" in (_ROOT / "CHANGELOG.md").read_text()


def test_setup_commands_are_where_they_are_used() -> None:
    """`.ci/run` and the README set up the tests in the same way."""
    setup = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'"
    script = (_ROOT / ".ci" / "run").read_text()
    for text in ((_ROOT / "README.md").read_text(), (_ROOT / "CONTRIBUTING.md").read_text()):
        assert f"{setup} && .venv/bin/pytest" in text
    assert setup in script
