"""Commands that come from the service: found by entry point, never imported before they are called.

Their packages are the extra ``pagepool[service]``. Without it the commands still show, and say what they
need.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Never

import click

from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP = "pagepool.commands"
NEEDS = "needs pagepool[service]"

# One line for each command, because importing them to ask would make every --help slow.
KNOWN = {
    "serve": "Run the registry and image service.",
    "auth": "Make users and tokens for the service, and see who may do what.",
    "fsck": "Check everything a store holds, and repair it.",
    "gc": "Free what nothing in a store needs any more.",
    "backup": "Back up a store.",
    "restore": "Restore a store from a backup.",
    "demo": "Show on this machine what sharing saves.",
    "bench": "Measure a store on real images.",
}
# What the extra installs; find_spec looks for them without importing.
_PACKAGES = ("fastapi", "lmdb", "isal", "uvicorn")


def service_installed() -> bool:
    """Tell whether the service's packages are there."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def names() -> dict[str, str]:
    """The commands of the service and of other plug-ins, with one line about each."""
    found = {point.name: f"{point.name} (a plug-in)." for point in _entry_points()}
    lines = KNOWN | {name: text for name, text in found.items() if name not in KNOWN}
    if not service_installed():
        lines |= {name: f"{text} ({NEEDS})" for name, text in KNOWN.items()}
    return lines


def load(name: str) -> click.Command | None:
    """Import a command; None if there is none of that name.

    A command whose packages are missing becomes one that says so.
    """
    point = next(iter(_entry_points().select(name=name)), None)
    if point is None and name not in KNOWN:
        return None
    try:
        command = _import(point, name)
    except ImportError as error:
        if name in KNOWN and not service_installed():
            return _placeholder(name)
        raise UnsupportedError(f"the command {name} cannot be loaded: {error}") from error
    if not isinstance(command, click.Command):
        raise UnsupportedError(f"the command {name} is not a click command")
    return command


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # 20 ms, which most commands can do without

    return entry_points(group=GROUP)


def _import(point: EntryPoint | None, name: str) -> object:
    if point is not None:
        return point.load()
    # Run from a source tree, nothing is installed, and there are no entry points.
    return getattr(importlib.import_module(f"pagepool_service.commands.{name}"), name)


def _placeholder(name: str) -> click.Command:
    def refuse(**_: object) -> Never:
        raise UnsupportedError(f"the command {name} {NEEDS}: pip install 'pagepool[service]'")

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        help=f"{KNOWN[name]} ({NEEDS})",
        context_settings={"ignore_unknown_options": True},
    )
