"""The command line program `pagepool`."""

from pagepool.cli.app import main

__all__ = ["main"]
