"""Options about the node that commands speak to; `nodeclient` has it."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pagepool.cli.state import State
from pagepool.node.places import DEFAULT_RUN, DEFAULT_STATE
from pagepool.units import AddressInvalidError, SizeInvalidError, parse_address, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., Any]")


class SizeType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except SizeInvalidError as error:
            self.fail(str(error), param, ctx)


class SpelledOption(click.Option):
    """An option that other commands call by another name: all its names are taken, and the first is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """What the help says of it."""
        shown = copy(self)
        shown.opts = self.opts[:1]
        return click.Option.get_help_record(shown, ctx)


class AddressType(click.ParamType):  # type: ignore[type-arg] # as above
    """A host and a port."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Parse."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_address(str(value))
        except AddressInvalidError as error:
            self.fail(str(error), param, ctx)


def node_options(command: _Command) -> _Command:
    """Where the node of this machine is. They arrive as one `node`."""
    command = click.option(
        "--node-run",
        envvar="PAGEPOOL_NODE_RUN",
        type=click.Path(path_type=Path, file_okay=False, readable=False),
        metavar="DIR",
        expose_value=False,
        callback=_note("run"),
        help=f"Where the node is reached [$PAGEPOOL_NODE_RUN, or {DEFAULT_RUN}].",
    )(command)
    return click.option(
        "--node-state",
        envvar="PAGEPOOL_NODE_STATE",
        type=click.Path(path_type=Path, file_okay=False, readable=False),
        metavar="DIR",
        expose_value=False,
        callback=_note("state"),
        help=f"Where the node keeps its pool [$PAGEPOOL_NODE_STATE, or {DEFAULT_STATE}].",
    )(command)


def _note(which: str) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    def note(context: click.Context, _: click.Parameter, value: Path | None) -> None:
        if value is not None:
            setattr(context.ensure_object(State), f"node_{which}", value.absolute())

    return note
