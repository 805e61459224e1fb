"""The table of exit codes covers every error there is, and the help shows every code."""

from __future__ import annotations

import inspect

import pytest

from pagepool import errors
from pagepool.cli import exits
from pagepool.cli.app import group
from pagepool.errors import PagepoolError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PagepoolError)]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not PagepoolError])
def test_every_error_has_an_exit_code(kind: type[PagepoolError]) -> None:
    assert any(base in exits.CODES for base in kind.__mro__), f"{kind.__name__} is not in pagepool.cli.exits.CODES"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ManifestInvalidError, 4),
        (errors.LimitError, 4),
        (errors.PathUnknownError, 3),
        (errors.DigestMismatchError, 5),
        (errors.CorruptError, 5),
        (errors.UnreachableError, 6),
        (errors.DeniedError, 7),
        (errors.UnauthorizedError, 7),
        (errors.StoreFullError, 8),
        (errors.ReadOnlyError, 8),
        (errors.PendingError, 9),
        (errors.ResponseError, 1),
        (PagepoolError, 1),
    ],
)
def test_codes(kind: type[PagepoolError], code: int) -> None:
    assert exits.exit_code(kind.__new__(kind)) == code


def test_every_code_has_a_meaning_in_the_help() -> None:
    assert set(exits.CODES.values()) <= exits.MEANINGS.keys()
    assert group.epilog is not None
    for code, meaning in exits.MEANINGS.items():
        assert f"{code:>3}  {meaning}" in group.epilog
