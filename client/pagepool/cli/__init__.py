"""The command line program `pagepool`."""

from pagepool.cli.start import main

__all__ = ["main"]
