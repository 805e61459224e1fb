"""What a load test is to do, as the coordinator hands it to each client, in JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pagepool.load.mix import Mix
from pagepool.load.trace import Step
from pagepool.load.versions import Base

PROTOCOL = 1
"""Of the conversation between coordinator and clients; both must be of the same."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image that is read.

    Args:
        name: as it was asked for, for people.
        reference: of its manifest, without a host: what is compared stays the same though a tag is moved.
        truth: SHA-256 of its truth file.
        truth_path: where the coordinator has that, for clients on the same machine.
        trace: what a start reads.
        trace_source: ``recorded``, ``profile of N starts`` or ``made up``.
        files, pages: in the truth.
        size: bytes of all files.
        left_out: files that are not judged.
    """

    name: str
    reference: str
    truth: str
    truth_path: str
    trace: tuple[Step, ...]
    trace_source: str
    files: int
    pages: int
    size: int
    left_out: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A load test.

    Args:
        url: of the service, as clients reach it.
        images: what is read; at least one.
        base: what new versions are made of.
        run: a name for this run: letters and digits.
        clients: how many there are to be.
        seconds: how long clients work.
        mix: what they do how often.
        zipf: exponent of the popularity of pages.
        mode: how they read, one of `access.MODES`.
        seed: of all chance.
        rate: operations of each client in a second; 0: one after the other.
        step_s: seconds that are counted together in a series.
    """

    url: str
    images: tuple[PlannedImage, ...]
    base: Base
    run: str
    clients: int
    seconds: float
    mix: Mix
    zipf: float
    mode: str
    seed: int
    rate: float
    step_s: float

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"protocol": PROTOCOL, **asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> LoadPlan:
        """What `to_json` made.

        Raises:
            ValueError, KeyError, TypeError: it is none, or of another version.
        """
        given = dict(fields)
        protocol = given.pop("protocol", None)
        if protocol != PROTOCOL:
            raise ValueError(f"the coordinator speaks version {protocol!r}, and this client {PROTOCOL}")
        given["images"] = tuple(
            PlannedImage(**{**one, "trace": tuple(Step(*step) for step in one["trace"])}) for one in given["images"]
        )
        given["base"] = Base(**{**given["base"], "replaced": tuple(given["base"]["replaced"])})
        given["mix"] = Mix(**given["mix"])
        return cls(**given)
