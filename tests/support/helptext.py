"""docs/cli.md, made from the help of the commands themselves. Run as a program it writes the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import click

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_WIDTH = 100
Found = tuple[str, click.Command, click.Context]
"""A command: its words, itself, and a context in which its help is as wide as the page."""

_INTRODUCTION = """\
# The command line

What each command says with `--help`. This page is made from it (`python tests/support/helptext.py`), and a test
compares the two.

The client's commands work with any OCI registry, as far as it can answer; `pip install .` in a copy of the repository
has them. `serve`, `auth`, `fsck`, `gc`, `backup`, `restore`, `demo` and `bench` need the service:
`pip install '.[service]'`.
"""


def make_page() -> str:
    """The whole page."""
    return _INTRODUCTION + "".join(_section(*found) for found in commands())


def commands() -> Iterator[Found]:
    """The program and each of its commands, depth first."""
    from pagepool.cli.app import group

    options = {"terminal_width": _WIDTH, "max_content_width": _WIDTH, "help_option_names": ["-h", "--help"]}
    yield from _walk("pagepool", group, click.Context(group, info_name="pagepool", **options))  # type: ignore[arg-type]


def _walk(title: str, command: click.Command, context: click.Context) -> Iterator[Found]:
    yield title, command, context
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        assert isinstance(command, click.Group)
        inner = command.get_command(context, name)
        assert inner is not None
        own = {key: value for key, value in inner.context_settings.items() if key == "help_option_names"}
        settings = {"terminal_width": _WIDTH, "max_content_width": _WIDTH, **own}
        # click keeps the option --help of whoever asked first, as it was then: a test of that command alone, for one.
        inner = copy(inner)
        inner._help_option = None
        below = click.Context(inner, info_name=name, parent=context, **settings)
        yield from _walk(f"{title} {name}", inner, below)


def _section(title: str, command: click.Command, context: click.Context) -> str:
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return f"\n## {title}\n\n```text\n" + "\n".join(_sort_service_commands(lines)) + "\n```\n"


def _sort_service_commands(lines: list[str]) -> list[str]:
    """Entry points come in another order where pagepool is installed than in a source tree."""
    if "Service commands:" not in lines:
        return lines
    begin = lines.index("Service commands:") + 1
    end = lines.index("", begin)
    return [*lines[:begin], *sorted(lines[begin:end]), *lines[end:]]


def main() -> int:
    """Write the page."""
    PAGE.write_text(make_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
