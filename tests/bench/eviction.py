"""Compares eviction policies on recorded reads of images.

    python -m tests.bench.eviction [--seeds N] [--sessions N]

The sessions in `reads.trace` were recorded by `tests.bench.readtrace` from real programs in real images; how they
follow each other is made here, from a seed: six containers run at the same time, each begins another program when one
ends (some far more often than others), and now and then one of them reads its whole image. A read of an object that is
not there puts it in, and makes room. Hit ratios are of reads and of bytes; the first read of an object is a miss for
everyone, which bounds them (the last line).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import zstandard

from pagepool.pool.layout import cost
from pagepool.pool.policy import S3Fifo
from tests.bench.policies import Arc, Fifo, Lru, Policy, Sieve, TwoQueues

TRACE = Path(__file__).with_name("reads.trace")
POLICIES: dict[str, Callable[[int], Policy]] = {
    "FIFO": lambda _: Fifo(),
    "LRU": lambda _: Lru(),
    "SIEVE": lambda _: Sieve(),
    "2Q": TwoQueues,
    "ARC": Arc,
    "S3-FIFO (the pool's)": lambda _: S3Fifo(),
}
_CONTAINERS = 6
_SHARES = (0.05, 0.1, 0.2, 0.4)
_TURN = 40  # reads that one container makes before another one's turn comes


@dataclass(frozen=True, slots=True)
class Recording:
    """The recorded sessions: object numbers in the order of reading, and what each object counts."""

    costs: list[int]
    sessions: dict[str, list[int]]

    @classmethod
    def read(cls, path: Path = TRACE) -> Recording:
        """Read a trace file."""
        raw = json.loads(zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=64 << 20))
        sessions = {name: list(accumulate(differences)) for name, differences in raw["sessions"].items()}
        return cls([cost(size) for size in raw["sizes"]], sessions)


@dataclass(frozen=True, slots=True)
class Result:
    """Shares of reads, and of bytes read, that were hits."""

    reads: float
    bytes: float

    def __str__(self) -> str:
        return f"{100 * self.reads:.1f} / {100 * self.bytes:.1f}"


def interleave(recording: Recording, sessions: int, seed: int, scan_share: float) -> Iterator[int]:
    """Reads of several containers, as the module says.

    Args:
        recording: what programs read.
        sessions: how many programs run altogether.
        seed: of the order.
        scan_share: of programs, that read a whole image.
    """
    source = random.Random(seed)
    scans = [name for name in recording.sessions if name.endswith("/scan")]
    programs = [name for name in recording.sessions if name not in scans]
    source.shuffle(programs)
    weights = [1 / rank for rank in range(1, len(programs) + 1)]  # Zipf's law
    running: list[Iterator[int]] = []
    while sessions or running:
        while sessions and len(running) < _CONTAINERS:
            sessions -= 1
            name = source.choice(scans) if source.random() < scan_share else source.choices(programs, weights)[0]
            running.append(iter(recording.sessions[name]))
        one = source.choice(running)
        for _ in range(source.randrange(1, 2 * _TURN)):
            number = next(one, None)
            if number is None:
                running.remove(one)
                break
            yield number


def simulate(policy: Policy, reads: list[int], costs: list[int], budget: int) -> Result:
    """Run reads through a cache of so many bytes."""
    present: set[int] = set()
    used = hits = hit_bytes = total = 0
    for number in reads:
        size = costs[number]
        total += size
        name = number.to_bytes(4, "little")
        if number in present:
            hits += 1
            hit_bytes += size
            policy.access(name)
        elif size <= budget:
            while used > budget - size:
                victim = policy.plan_victim()
                if victim is None:
                    raise AssertionError("nothing left to evict")
                present.discard(int.from_bytes(victim[0], "little"))
                used -= victim[1]
            present.add(number)
            used += size
            policy.insert(name, size)
    return Result(hits / len(reads), hit_bytes / total)


def compare(recording: Recording, sessions: int, seeds: int, scan_share: float) -> list[str]:
    """A table: how each policy does at several budgets, over several orders of the sessions."""
    orders = [list(interleave(recording, sessions, seed, scan_share)) for seed in range(seeds)]
    unique = [sum(recording.costs[number] for number in set(reads)) for reads in orders]
    count = sum(map(len, orders))
    lines = [
        f"{scan_share:.0%} of programs are scans; {count // seeds} reads of {sum(unique) / seeds / 1e6:.0f} MB",
        "",
        _row("policy", *(f"{share:.0%}" for share in _SHARES), "µs a read"),
        _row(*["---"] * (len(_SHARES) + 2)),
    ]
    for name, make in POLICIES.items():
        began = time.process_time()
        cells = []
        for share in _SHARES:
            budgets = [int(size * share) for size in unique]
            results = [
                simulate(make(budget), reads, recording.costs, budget)
                for reads, budget in zip(orders, budgets, strict=True)
            ]
            cells.append(str(_mean(results)))
        each = (time.process_time() - began) / count / len(_SHARES) * 1e6
        lines.append(_row(name, *cells, f"{each:.2f}"))
    bound = _mean([_bound(reads, recording.costs) for reads in orders])
    return [*lines, _row("no budget", *[str(bound)] * len(_SHARES), ""), ""]


def _bound(reads: list[int], costs: list[int]) -> Result:
    """What no policy can better: only first reads miss."""
    counts = Counter(reads)
    total = sum(costs[number] * count for number, count in counts.items())
    return Result(1 - len(counts) / len(reads), 1 - sum(costs[number] for number in counts) / total)


def _mean(results: list[Result]) -> Result:
    return Result(*(sum(values) / len(results) for values in zip(*((r.reads, r.bytes) for r in results), strict=True)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="orders of the sessions, whose mean is shown")
    parser.add_argument("--sessions", type=int, default=300, help="programs that run")
    parser.add_argument("--trace", type=Path, default=TRACE)
    arguments = parser.parse_args()
    recording = Recording.read(arguments.trace)
    print("Hits in per cent, of reads / of bytes, by budget as a share of the bytes that are read at all.\n")
    for scan_share in (0.0, 0.02, 0.1):
        print("\n".join(compare(recording, arguments.sessions, arguments.seeds, scan_share)))


if __name__ == "__main__":
    main()
