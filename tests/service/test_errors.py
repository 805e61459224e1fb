"""Every error of pagepool has an answer, and one place says which."""

from __future__ import annotations

import json
import re

import pytest

from pagepool import errors
from pagepool_service.routes.errors import TABLE, render, status_and_code
from pagepool_service.settings import SettingInvalidError


def all_errors(root: type[Exception] = errors.PagepoolError) -> list[type[Exception]]:
    """The tree of `pagepool.errors`, whichever modules have been imported."""
    below = [error for child in root.__subclasses__() for error in all_errors(child)]
    return [root, *below] if root.__module__ == errors.__name__ else below


def test_the_table_has_every_error() -> None:
    """By itself: an error that falls back to its base was forgotten."""
    assert set(all_errors()) == set(TABLE)


@pytest.mark.parametrize("error", TABLE, ids=lambda error: error.__name__)
def test_codes_have_the_specifications_form(error: type[Exception]) -> None:
    """Capital letters and underscores; and a status that is none of success, but for what is not ready yet."""
    status, code = TABLE[error]
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code)
    assert 400 <= status < 600 or (status == 202 and error is errors.PendingError)


def test_only_our_own_faults_are_500() -> None:
    """A client cannot cause them."""
    assert {error for error, (status, _) in TABLE.items() if status == 500} == {
        errors.PagepoolError,
        errors.CorruptError,
    }


def test_errors_of_other_modules_fall_back_to_their_base() -> None:
    """And what is none of ours is our fault."""
    assert status_and_code(SettingInvalidError("x")) == TABLE[errors.InvalidError]
    assert status_and_code(ValueError("x")) == (500, "UNKNOWN")


def test_answers_are_json_whatever_was_sent() -> None:
    """Also what cannot be encoded."""
    answer = render(errors.TagInvalidError("a\udc80\x00"))
    (error,) = json.loads(bytes(answer.body))["errors"]
    assert (answer.status_code, error["code"]) == (400, "TAG_INVALID")


def test_headers_that_http_asks_for() -> None:
    """Allow with 405, Retry-After with 503."""
    assert render(errors.ReadOnlyError("x")).headers["allow"] == "GET, HEAD"
    assert render(errors.BusyError("x")).headers["retry-after"]
