"""What the options of the command that is running ask of everything, whoever has parsed them: click, or `quick`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class State:
    """One per run of the program.

    Args:
        json: print JSON.
        quiet: print nothing but data.
        failure: the exit code of every error that is not about a container, as docker's commands have it; None:
            each has its own.
        node_state, node_run: where the node of this machine is; None: where it is by default.
    """

    json: bool = False
    quiet: bool = False
    failure: int | None = None
    node_state: Path | None = None
    node_run: Path | None = None


_entered: list[State] = []


def current() -> State:
    """The state of the running command."""
    click = sys.modules.get("click")  # not loaded for this: where it is not, it runs no command
    context = click.get_current_context(silent=True) if click is not None else None
    found = context.find_object(State) if context is not None else None
    if isinstance(found, State):
        return found
    return _entered[-1] if _entered else State()


def enter(state: State) -> None:
    """Run a command that click knows nothing of, until the process ends or `leave` is called."""
    _entered.append(state)


def leave() -> None:
    """It has ended."""
    _entered.pop()
