"""Signals on command lines."""

from __future__ import annotations

import signal
from typing import Any

import click

from pagepool.linux.signals import find_signal


class SignalType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """A signal by its name, with or without SIG, or its number; its number."""

    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one."""
        number = find_signal(str(value))
        if not number:
            most = signal.NSIG - 1
            self.fail(f"{value!r} is no signal: give a name such as HUP, or a number up to {most}", param, ctx)
        return number
