"""Thousands of random operations of every kind, with everything that can come in between, against the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.overlay import storage
from tests.overlay.harness import Disk, Pair

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 1000


@pytest.mark.parametrize("seed", range(8))
def test_operations_and_crashes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same results, same refusals, same contents; after every crash what was promised."""
    monkeypatch.setattr(storage, "COMPACT_BYTES", 20_000)
    monkeypatch.setattr(storage, "PENDING_SLOTS", 40)
    disk = Disk(monkeypatch)
    pair = Pair(tmp_path, seed)
    lost = losses = 0
    for _ in range(STEPS):
        pair.step()
        chance = pair.source.random()
        if chance < 0.01:
            pair.reopen()
        elif chance < 0.02:
            pair.kill(disk)
        elif chance < 0.04:
            lost += pair.lose_power(disk)
            losses += 1
        elif chance < 0.08:
            pair.sync(disk if pair.source.random() < 0.6 else None)
        elif chance < 0.09:
            pair.overlay._storage.compact()
        if chance < 0.1:
            pair.check()
    pair.check()
    pair.overlay.close()
    print(f"seed {seed}: {losses} losses of power took {lost} operations that were not synced")
