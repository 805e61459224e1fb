"""``pagepool version``."""

from __future__ import annotations

import platform

import click

from pagepool.cli import output
from pagepool.cli.options import output_options
from pagepool.version import __version__


@click.command(name="version", short_help="Show the version.")
@output_options
def command() -> None:
    """Show the version of pagepool, and of what it runs on.

    \b
    Examples:
      pagepool version
      pagepool version -q
    """
    python, system = platform.python_version(), f"{platform.system()} {platform.release()}"
    if output.current().json:
        output.print_json({"version": __version__, "python": python, "system": system})
    elif output.current().quiet:
        output.print_line(__version__)
    else:
        output.print_line(f"pagepool {__version__} (Python {python}, {system})")
