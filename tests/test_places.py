"""Which pools a client takes for its service's: none that somebody else may have put there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import DeniedError
from pagepool.library.places import check_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOMEBODY = 65534


@pytest.fixture
def above() -> Iterator[Path]:
    """A directory below which nobody but root can have put anything, if we are root."""
    directory = Path(tempfile.mkdtemp(dir="/run" if os.geteuid() == 0 else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def theirs(above: Path) -> Path:
    """A directory of somebody else in it."""
    if os.geteuid() != 0:
        pytest.skip("giving a directory away needs root")
    path = above / "pool"
    path.mkdir()
    os.chown(path, _SOMEBODY, _SOMEBODY)
    return path


def test_what_is_ours_is_taken(above: Path) -> None:
    check_owner(above)
    above.chmod(0o1777)
    (above / "pool").mkdir()
    check_owner(above / "pool")


def test_what_root_gave_to_a_service_is_taken(theirs: Path) -> None:
    check_owner(theirs)


@pytest.mark.parametrize("mode", [0o1777, 0o775])
def test_what_anybody_could_have_made_is_not(theirs: Path, mode: int) -> None:
    theirs.parent.chmod(mode)
    with pytest.raises(DeniedError, match=f"belongs to user {_SOMEBODY}"):
        check_owner(theirs)


def test_what_somebody_made_below_a_directory_of_his_is_not(theirs: Path) -> None:
    os.chown(theirs.parent, _SOMEBODY, _SOMEBODY)
    with pytest.raises(DeniedError):
        check_owner(theirs)


def test_what_is_not_there_is_an_error(above: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_owner(above / "nothing")
