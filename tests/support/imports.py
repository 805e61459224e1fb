"""What the project's modules import and use, read off their syntax trees: wherever it stands, none of it is run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
PACKAGES = {"pagepool": _ROOT / "client", "pagepool_service": _ROOT / "service"}
"""The project's packages, and where each lies."""
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.path.expandvars"}
"""Ways to read the environment: taken for uses of that name however they are imported."""


@dataclass(frozen=True, slots=True)
class Use:
    """One thing that a module uses: another module, or an attribute chain such as ``os.environ``."""

    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Module:
    """A module's name, and what its syntax tree says that it uses."""

    name: str
    imports: tuple[Use, ...]
    chains: tuple[Use, ...]


def parse_module(name: str, source: str, is_package: bool, known: frozenset[str]) -> Module:
    """Read a module's uses off its source.

    Args:
        name: its dotted name.
        source: its text.
        is_package: whether it is a package's ``__init__``.
        known: the names of all modules, which tell `from a import b` of a module from that of anything else.
    """
    imports: list[Use] = []
    chains: list[Use] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += (Use(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports += _imported(node, name if is_package else name.rpartition(".")[0], known)
        elif isinstance(node, ast.Call) and (target := _dynamic(node)):
            imports.append(Use(node.lineno, target))
        elif isinstance(node, ast.Attribute) and (chain := _chain(node)):
            chains.append(Use(node.lineno, chain))
    return Module(name, tuple(imports), tuple(chains))


def _imported(node: ast.ImportFrom, package: str, known: frozenset[str]) -> Iterator[Use]:
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *filter(None, [node.module])])
    for alias in node.names:
        whole = f"{base}.{alias.name}"
        # `from os import environ` is a use of os.environ; `from pagepool import oci` one of pagepool.oci.
        yield Use(node.lineno, whole if whole in known or whole in ENVIRONMENT else base)


def _dynamic(node: ast.Call) -> str:
    """The module that `import_module("…")` or `__import__("…")` names, as far as the source says."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in ("import_module", "__import__") or not node.args:
        return ""
    argument = node.args[0]
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0] if isinstance(argument.values[0], ast.Constant) else argument
    value = argument.value if isinstance(argument, ast.Constant) else ""
    return str(value).rstrip(".")


def _chain(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else [""]), *reversed(parts)])


def read_modules() -> dict[str, tuple[str, bool]]:
    """Every module of the project: name -> source, and whether it is a package."""
    found: dict[str, tuple[str, bool]] = {}
    for package, root in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found[name] = path.read_text(), is_package
    return found


@cache
def parse_modules() -> tuple[Module, ...]:
    """Every module of the project, parsed once: that takes seconds."""
    sources = read_modules()
    known = frozenset(sources)
    return tuple(parse_module(name, source, is_package, known) for name, (source, is_package) in sources.items())
