"""The command line program `pagepool`."""

from pagepool.cli.quick import main

__all__ = ["main"]
