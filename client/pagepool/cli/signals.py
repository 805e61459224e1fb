"""Signals on command lines."""

from __future__ import annotations

import signal
from typing import Any

import click


class SignalType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """A signal by its name, with or without SIG, or its number; its number."""

    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one."""
        text = str(value).upper()
        found = getattr(signal, f"SIG{text.removeprefix('SIG')}", None)
        number = int(found) if isinstance(found, signal.Signals) else int(text) if text.isdigit() else 0
        if not 0 < number < signal.NSIG:
            most = signal.NSIG - 1
            self.fail(f"{value!r} is no signal: give a name such as HUP, or a number up to {most}", param, ctx)
        return number
