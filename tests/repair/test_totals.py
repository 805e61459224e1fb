"""Counting anew, while others write all the time."""

from __future__ import annotations

import secrets
from dataclasses import astuple
from typing import TYPE_CHECKING

import pytest

from pagepool_service.repair import work
from pagepool_service.repair.context import Context
from pagepool_service.repair.quarantine import Quarantine
from pagepool_service.store.recount import recount_totals
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from tests.store.helpers import ingest_all, make_tar, push

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.store.environment import Reader


def test_what_is_written_meanwhile_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "data") as store:
        push(store, make_tar({"a": secrets.token_bytes(400_000)}))
        ingest_all(store)
        with store.env.write() as txn:
            wrong = Totals.load(txn)
            wrong.frames, wrong.files_stored = 7, 12_345
            wrong.store(txn)
        counted: list[int] = []

        def count(reader: Reader, known: Totals) -> Totals:
            """As always; and before it is used somebody else has stored more."""
            found = recount_totals(reader, known)
            push(store, make_tar({"b": secrets.token_bytes(300_000)}))
            ingest_all(store)
            counted.append(found.frames)
            return found

        monkeypatch.setattr(work, "recount_totals", count)
        context = Context(store, [], Quarantine(tmp_path / "data"), recount=True)
        work.count_totals(context)
        assert not context.recount
        assert len(counted) == len(set(counted)) > 1  # each time there was more, and in the end nobody had to wait
        with store.env.read() as reader:
            assert astuple(Totals.load(reader)) == astuple(recount_totals(reader, Totals.load(reader)))
