"""Many containers: started at once, and mounted one after the other, all staying. Is the last as quick as the first?"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from pagepool_service.bench.mountrows import row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.bench.lab import Bench, Lab
    from pagepool_service.bench.mountrows import Row

PHASE: Final = "many"
_PREFERRED: Final = ("debian-new", "debian-old")
_COMMAND: Final = ("echo", "started")
_MOST_MS: Final = 20.0
_FLAT: Final = 1.5


def measure_many(lab: Lab) -> Iterator[Row]:
    """Measure each subject with its image in storage."""
    image = next((name for name in (*_PREFERRED, *sorted(lab.layouts)) if name in lab.layouts), None)
    if image is None:
        return
    together: dict[str, float] = {}
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for kind in lab.kinds:
        with lab.bench(kind, [lab.layouts[image]]) as bench:
            bench.subject.fill(image)
            together[kind] = _start(lab, bench, image)
            lab.say(f"{bench.subject.name}: {lab.containers} containers started in {together[kind]:.2f} s")
            times = _mount(lab, bench, image)
            part = max(1, len(times) // 10)
            first[kind], last[kind] = median(times[:part]), median(times[-part:])
            lab.say(f"{bench.subject.name}: {len(times)} mounts in {sum(times):.2f} s")
    yield row(PHASE, f"{lab.containers} containers at once, until the last has ended, s", together, "faster")
    yield row(PHASE, f"a mount, first tenth of {lab.mounts}, ms", first, "value", _MOST_MS, unit=1e-3)
    yield row(PHASE, f"a mount, last tenth of {lab.mounts}, ms", last, "value", _MOST_MS, unit=1e-3)
    growth = {kind: last[kind] / first[kind] for kind in lab.kinds}
    yield row(PHASE, "last tenth to first tenth", growth, "value", _FLAT)


def _start(lab: Lab, bench: Bench, image: str) -> float:
    begun = time.monotonic()
    with ThreadPoolExecutor(lab.containers) as pool:
        for done in [pool.submit(bench.subject.run, image, _COMMAND) for _ in range(lab.containers)]:
            done.result()
    return time.monotonic() - begun


def _mount(lab: Lab, bench: Bench, image: str) -> list[float]:
    times: list[float] = []
    points: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="ppb-many-", dir=lab.directory) as name:
        try:
            for number in range(lab.mounts):
                point = Path(name) / str(number)
                point.mkdir()
                begun = time.monotonic()
                bench.subject.mount(image, point)
                times.append(time.monotonic() - begun)
                points.append(point)
        finally:
            for point in reversed(points):
                bench.subject.unmount(point)
    return times
