"""Plots as SVG, drawn for a page in two themes: colours are the page's CSS variables, words are its text.

A plot is 400 units wide and scales with its column, so that its words can be read on a phone. Each has a title and a
description for those who do not see it; lines differ by their dashes, too, not by colour alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34
_DASHES: Final = ("", "6 3", "2 2", "8 3 2 3", "4 4", "1 3", "10 4", "6 2 1 2")
_LINE_HEIGHT: Final = 16


@dataclass(frozen=True, slots=True)
class Series:
    """A line, or a layer of bars.

    Args:
        name: for people.
        points: (x, y), by x.
        colour: which of the page's colours, from 1.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int


@dataclass(frozen=True, slots=True)
class Axis:
    """How values become places.

    Args:
        label: with the unit.
        low, high: ends.
        ticks: values that are named, and how.
        log: whether places go by the logarithm.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """From 0 to 1."""
        if self.log:
            span = math.log(self.high / self.low)
            part = math.log(max(value, self.low) / self.low) / span if span else 0.0
        else:
            part = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return min(max(part, 0.0), 1.0)


def linear_axis(label: str, high: float, show: Callable[[float], str], low: float = 0.0) -> Axis:
    """From `low` to at least `high`, named at round values."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    count = max(1, math.ceil(span / step - 1e-9))
    values = [low + step * at for at in range(count + 1)]
    return Axis(label, low, values[-1], [(value, _short(show(value))) for value in values])


def log_axis(label: str, low: float, high: float, show: Callable[[float], str]) -> Axis:
    """Powers of ten around two positive values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(max(high, low * 1.01)))
    every = max(1, math.ceil((last - first) / 6))
    ticks = [(10.0**power, _short(show(10.0**power))) for power in range(first, last + 1, every)]
    return Axis(label, 10.0**first, 10.0**last, ticks, log=True)


def _short(text: str) -> str:
    """A figure without zeros behind its point: there are none between round values."""
    return re.sub(r"\.0+(?= |$)", "", text)


def line_plot(name: str, about: str, x: Axis, y: Axis, series: Sequence[Series], *, area: bool = False) -> str:
    """Lines over an axis.

    Args:
        name: an id of the page's own.
        about: what is to be seen, in words.
        area: whether to fill below the only line.
    """
    parts = [_frame(x, y)]
    for number, one in enumerate(series):
        places = [f"{_x(x, at):.1f},{_y(y, value):.1f}" for at, value in one.points]
        if not places:
            continue
        if len(places) == 1:
            across, down = places[0].split(",")
            parts.append(f'<circle class="dot c{one.colour}" cx="{across}" cy="{down}" r="2.5"/>')
            continue
        if area:
            ends = (
                f"{_x(x, one.points[-1][0]):.1f},{_HEIGHT - _BOTTOM} {_x(x, one.points[0][0]):.1f},{_HEIGHT - _BOTTOM}"
            )
            parts.append(f'<polygon class="area c{one.colour}" points="{" ".join(places)} {ends}"/>')
        dash = _DASHES[number % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        title = f"<title>{escape(one.name)}</title>"
        parts.append(f'<polyline class="line c{one.colour}"{style} points="{" ".join(places)}">{title}</polyline>')
    legend = _legend(series, lines=True) if len(series) > 1 else ("", 0)
    return _svg(name, about, "".join(parts), *legend)


def stacked_bars(name: str, about: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Bars side by side, each of several parts; all series have the same places."""
    parts = [_frame(x, y)]
    count = max((len(one.points) for one in series), default=0)
    full = (_WIDTH - _LEFT - _RIGHT) / max(count, 1)
    gap = 1.0 if full > 4 else 0.0
    below = [0.0] * count
    for one in series:
        for at, (_, value) in enumerate(one.points):
            top, bottom = _y(y, below[at] + value), _y(y, below[at])
            below[at] += value
            left = _LEFT + at * full + gap / 2
            parts.append(
                f'<rect class="bar c{one.colour}" x="{left:.2f}" y="{top:.2f}" '
                f'width="{full - gap:.2f}" height="{max(0.0, bottom - top):.2f}"/>'
            )
    return _svg(name, about, "".join(parts), *_legend(series, lines=False))


def _svg(name: str, about: str, content: str, legend: str, more: int) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + more}" role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(name.replace("-", " "))}</title>'
        f'<desc id="{name}-about">{escape(about)}</desc>{content}{legend}</svg>'
    )


def _frame(x: Axis, y: Axis) -> str:
    """The grid, and what is written at the axes."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value, text in y.ticks:
        down = _y(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 4}" y="{down + 3.5:.1f}">{escape(text)}</text>')
    for value, text in x.ticks:
        across = _x(x, value)
        anchor = "end" if across > right - 12 else "mid"
        parts.append(f'<text class="tick {anchor}" x="{across:.1f}" y="{bottom + 13}">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label end" x="{right}" y="{bottom + 28}">{escape(x.label)}</text>')
    parts.append(f'<text class="label" x="0" y="{bottom + 28}">{escape(y.label)}</text>')
    return "".join(parts)


def _legend(series: Sequence[Series], *, lines: bool) -> tuple[str, int]:
    """Names with their colours, in rows of four below the plot, and how much taller that makes it."""
    parts = []
    for at, one in enumerate(series):
        left, top = 4 + at % 4 * 99, _HEIGHT + 6 + at // 4 * _LINE_HEIGHT
        if lines:
            dash = _DASHES[at % len(_DASHES)]
            style = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(
                f'<line class="line c{one.colour}"{style} x1="{left}" x2="{left + 22}" y1="{top}" y2="{top}"/>'
            )
        else:
            parts.append(f'<rect class="bar c{one.colour}" x="{left + 10}" y="{top - 5}" width="10" height="10"/>')
        parts.append(f'<text class="tick" x="{left + 26}" y="{top + 3.5}">{escape(one.name)}</text>')
    return "".join(parts), 2 + _LINE_HEIGHT * -(-len(series) // 4)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _BOTTOM - _TOP)
