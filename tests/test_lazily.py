"""Packages whose names are imported when they are used: what type checkers read is what there is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import program_environment

_CLIENT = Path(__file__).resolve().parent.parent / "client"


def lazy_packages() -> list[str]:
    found = [path for path in _CLIENT.glob("pagepool/**/__init__.py") if "lazily import attach" in path.read_text()]
    return sorted(".".join(path.parent.relative_to(_CLIENT).parts) for path in found)


def listed(package: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and their modules: for type checkers, and for `attach`."""
    path = _CLIENT / package.replace(".", "/") / "__init__.py"
    branch = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    typed = {
        alias.name: str(node.module)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is None
    }
    table = next(node for node in ast.walk(branch) if isinstance(node, ast.Dict))
    attached = {
        name: f"{package}.{module}" for module, names in ast.literal_eval(table).items() for name in names.split()
    }
    return typed, attached


def test_there_are_such_packages() -> None:
    assert {"pagepool.transport", "pagepool.library"} <= set(lazy_packages())


@pytest.mark.parametrize("package", lazy_packages())
def test_names_are_where_they_are_said_to_be(package: str) -> None:
    typed, attached = listed(package)
    module = importlib.import_module(package)
    assert typed == attached
    assert set(typed) == set(module.__all__)
    assert set(typed) <= set(dir(module))
    for name, owner in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(owner), name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018


def test_running_a_container_of_the_node_imports_little() -> None:
    """What a command costs before it does anything is paid by each of a hundred containers that start at once."""
    heavy = ("httpx", "rich", "asyncio", "importlib.metadata", "pagepool.library")
    code = f"import sys, pagepool.cli.commands.run; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=program_environment(), capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == []


def test_the_help_of_serve_imports_no_web_framework() -> None:
    code = "import sys, pagepool_service.commands.serve; print(*sorted({'fastapi', 'uvicorn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.split() == []
