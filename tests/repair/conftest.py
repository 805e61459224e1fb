"""A store with one of everything, and the program."""

from __future__ import annotations

from tests.backup.conftest import data, made
from tests.cli.conftest import run

__all__ = ["data", "made", "run"]
