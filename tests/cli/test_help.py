"""Help, start-up, and the commands that come from the service."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path

import click
import pytest

from pagepool.cli import plugins
from pagepool.cli.app import group
from pagepool.cli.lazy import LazyGroup
from pagepool.version import __version__
from tests.cli.conftest import ROOT, Run, program_environment, spawn
from tests.support.helptext import commands

COMMANDS = [
    "push",
    "pull",
    "images",
    "tags",
    "inspect",
    "ls",
    "find",
    "cat",
    "cp",
    "diff",
    "commit",
    "wait",
    "container",
    "stats",
    "profile",
    "rm",
    "completion",
    "version",
]


def test_group_help_shows_everything(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for name in (*COMMANDS, *plugins.KNOWN):
        assert re.search(rf"^  {name} ", result.out, re.MULTILINE), name
    assert "Exit codes:" in result.out


@pytest.mark.parametrize("arguments", [[], ["tree"], ["bench"]])
def test_a_group_without_a_command_shows_its_help(run: Run, arguments: list[str]) -> None:
    """As it is, on several lines: not as an error of one."""
    result = run(*arguments)
    shown = result.out + result.err  # click before 8.2 prints it on standard output, and calls that a success
    assert shown == run(*arguments, "--help").out
    assert result.code == (2 if result.err else 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.code == 0
    assert f"  pagepool {name}" in result.out.partition("Examples:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_one_line_of_help_is_the_same_in_both_places(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert isinstance(group, LazyGroup)
    assert command.short_help == group.lazy[name]


def test_nothing_heavy_is_imported_to_show_help() -> None:
    code = (
        "import sys; from pagepool.cli.app import run; run(['--help']); "
        "print([name for name in ('httpx', 'rich', 'zstandard', 'fastapi', 'lmdb') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=program_environment(), capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_distributions(run: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert run("version", "-q").out == f"{__version__}\n"
    assert run("version", "--json").json["version"] == __version__
    assert __version__ in run("--version").out
    assert __version__ in run("version").out


def test_known_commands_are_the_entry_points() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"][plugins.GROUP]
    assert points.keys() == plugins.KNOWN.keys()
    for name, target in points.items():
        assert target == f"pagepool_service.commands.{name}:{name}"  # what plugins imports without entry points
    assert project["scripts"]["pagepool"] == "pagepool.cli:main"


def _without_service(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        return None if name in plugins._PACKAGES else real(name)

    def fail(*_: object) -> object:
        raise ModuleNotFoundError("No module named 'fastapi'")

    monkeypatch.setattr(plugins, "find_spec", find_spec)
    monkeypatch.setattr(plugins, "_import", fail)


def test_commands_without_the_service_say_what_they_need(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_service(monkeypatch)
    shown = " ".join(run("--help").out.split())
    assert shown.count("(needs pagepool[service])") == len(plugins.KNOWN)
    result = run("serve", "--data", "x", "anything")
    assert result.code == 1
    assert result.err == "pagepool: error: the command serve needs pagepool[service]: pip install 'pagepool[service]'\n"
    assert "(needs pagepool[service])" in run("serve", "--help").out


def test_service_commands_are_loaded(run: Run) -> None:
    result = run("serve", "--help")
    assert result.code == 0
    assert "--listen" in result.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.code == 0
    assert "_PAGEPOOL_COMPLETE" in result.out


def test_completion_completes() -> None:
    environment = program_environment() | {
        "_PAGEPOOL_COMPLETE": "bash_complete",
        "COMP_WORDS": "pagepool p",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pagepool.cli"], env=environment, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.stdout.split() == ["plain,push", "plain,pull", "plain,ps", "plain,profile"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["push"],
        ["push", "x"],
        ["push", "x", "y", "z"],
        ["push", "--nonsense", "x", "y"],
        ["push", "--jobs", "0", "x", "y"],
        ["push", "--platform", "nonsense", "x", "y"],
        ["push", "--timeout", "-1", "x", "y"],
        ["push", "-", "y", "--username", "u", "--password-stdin"],
        ["pull", "--format", "zip", "x", "y"],
        ["images", "--username", "u"],
        ["images", "--password-stdin"],
        ["tags", "a:1"],
        ["rm", "a"],
        ["completion", "csh"],
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(r"pagepool: error: [^\n]+ \(see pagepool[^\n]* --help\)\n", result.err)


def test_no_command_shows_help() -> None:
    done = spawn()
    assert done.returncode == 2
    assert "Usage: pagepool" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "words", "expected"),
    [
        ("pagepool push ./lay", ["pagepool", "push", "./lay"], "compopt default"),
        ("pagepool pull app:1 ./la", ["pagepool", "pull", "app", ":", "1", "./la"], "compopt default"),
        ("pagepool mount app:1 ./m", ["pagepool", "mount", "app", ":", "1", "./m"], "compopt dirnames"),
        ("pagepool mount app:1 ", ["pagepool", "mount", "app", ":", "1", ""], "compopt dirnames"),
        ("pagepool  pull a:1 --format d", ["pagepool", "pull", "a", ":", "1", "--format", "d"], "reply docker-archive"),
        ("pagepool ls app:1:/et", ["pagepool", "ls", "app", ":", "1", ":", "/et"], ""),
    ],
)
def test_completion_in_bash(tmp_path: Path, line: str, words: list[str], expected: str) -> None:
    """Bash divides words at colons, which references have."""
    program = tmp_path / "pagepool"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pagepool.cli "$@"\n')
    program.chmod(0o755)
    script = """
compopt() { echo "compopt $2"; }
source <("$1" completion bash)
COMP_LINE=$2 COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3))
_pagepool_completion "$1"
printf 'reply %s\\n' "${COMPREPLY[@]}"
"""
    command = ["bash", "--norc", "-c", script, "bash", str(program), line, *words]
    done = subprocess.run(command, env=program_environment(), capture_output=True, text=True, check=False, cwd="/")
    assert done.stderr == ""
    assert [said for said in done.stdout.splitlines() if said != "reply "] == ([expected] if expected else [])


def test_lists_of_commands_are_not_cut_off() -> None:
    """On a terminal of 80 columns each line says what its command does."""
    cut = [
        f"{title} {name}"
        for title, found, context in commands()
        if isinstance(found, click.Group) and title != "pagepool"  # which has a table of its own
        for name in found.list_commands(context)
        if (inner := found.get_command(context, name)) is not None
        and inner.get_short_help_str(80 - 6 - max(map(len, found.list_commands(context)))).endswith("...")
    ]
    assert cut == []


def test_the_package_is_the_program(run: Run) -> None:
    command = [sys.executable, "-m", "pagepool", "--version"]
    done = subprocess.run(command, env=program_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").out
