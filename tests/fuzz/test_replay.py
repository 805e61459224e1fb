"""Every parser of outside input: its corpus, what once failed, and a fixed number of mutations of both."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import inputs
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

_MUTATIONS = 150
_ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What servers log of hostile requests is of no interest here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_replay(target: Target) -> None:
    seeds, failed = inputs.read(inputs.CORPUS, target.name), inputs.read(inputs.REGRESSIONS, target.name)
    assert seeds, "run python -m tests.fuzz.seed"
    for data in (*seeds.values(), *failed.values()):
        target.try_one(data)
    mutator = Mutator([*seeds.values(), *failed.values()], target.words, seed=5)
    for _ in range(_MUTATIONS):
        data = mutator.next()
        try:
            target.try_one(data)
        except BaseException:
            print(f"input: {data.hex()}")
            raise


def test_seeds_get_past_the_first_checks() -> None:
    """At least one of each target is read to its end."""
    for target in TARGETS.values():
        passed = 0
        for data in inputs.read(inputs.CORPUS, target.name).values():
            try:
                target.run(data)
            except target.errors:
                continue
            passed += 1
        assert passed, target.name


def test_no_inputs_without_a_target() -> None:
    kept = {path.name for kind in (inputs.CORPUS, inputs.REGRESSIONS) for path in kind.glob("*")}
    assert kept <= set(TARGETS)


def test_the_command_runs() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "names", "--blind", "--runs", "200", "--seed", "1"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "names: 200 runs" in done.stdout
