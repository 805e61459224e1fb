"""A store with one of everything, and the program."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import run
from tests.store.samples import Sample, make_sample

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]


@dataclass(frozen=True)
class Made:
    """A sample that tests copy."""

    data: Path
    sample: Sample


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Made once."""
    data = tmp_path_factory.mktemp("made") / "data"
    return Made(data, make_sample(data))


@pytest.fixture
def data(made: Made, tmp_path: Path) -> Path:
    """A copy of the sample, to do anything with."""
    shutil.copytree(made.data, tmp_path / "data")
    return tmp_path / "data"
