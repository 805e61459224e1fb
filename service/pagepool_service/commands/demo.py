"""``pagepool demo``: one round through a real service, explained."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from isal import isal_zlib

from pagepool.cli import output
from pagepool.cli.exits import CORRUPT
from pagepool.cli.options import complete_path, output_options
from pagepool.errors import DiskFullError, InvalidError
from pagepool.layout import parse_location
from pagepool.oci import Reference, validate_repository, validate_tag
from pagepool.samples import FIRST, SECOND, Made, collect, make_images, packed_size
from pagepool.samples.layers import GZIP_LEVEL, GZIP_WINDOW, Compressor
from pagepool.samples.server import running_service
from pagepool.transport import Session
from pagepool.transport.service import READY
from pagepool_service.demo import guard, words
from pagepool_service.demo.progress import Narrator
from pagepool_service.demo.reading import read_images
from pagepool_service.demo.report import Report, build_report, print_report, to_json
from pagepool_service.demo.tour import Subject, Tour
from pagepool_service.settings import SettingInvalidError, parse_size

# Images, what is pulled, and the store: all are on disk at the same time.
_DISK_FACTOR = 3
_REPOSITORY = "demo/app"
_LEAST_SIZE, _LARGEST_SIZE = 2 * 10**6, 4 * 10**9


class SizeType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """A size as an option."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse."""
        if isinstance(value, int):
            return value
        try:
            size = parse_size(str(value))
        except SettingInvalidError as error:
            self.fail(f"{value!r} {error.reason}", param, ctx)
        if not _LEAST_SIZE <= size <= _LARGEST_SIZE:
            self.fail(f"{value!r} is not between 2MB and 4GB", param, ctx)
        return size


@click.command(short_help="Show on this machine what sharing saves.")
@click.argument("layouts", metavar="[LAYOUT[:NAME]]...", nargs=-1, shell_complete=complete_path)
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep everything in DIR, a new directory.")
@click.option(
    "--size", type=SizeType(), default="120MB", show_default=True, help="About how large each image is to be, plain."
)
@output_options
def demo(layouts: tuple[str, ...], keep: Path | None, size: int) -> None:
    """Take two images through a real service and back, and show what was stored.

    Makes two overlapping images out of files of this machine (only what all users may read, below /usr and in
    the Python installation), starts a service with its store in a temporary directory, pushes both over HTTP,
    waits until every layer was read, pulls them back, and compares every digest. Then it reads every file by
    the library, changes one in an overlay, and mounts it: as root by the kernel where that can be done, else by
    FUSE where that is. Needs no root and no network. Given OCI layouts or archives instead, it takes those.

    When it ends, also by Ctrl-C, a signal or a failure, nothing is left behind: no process, and no file
    unless --keep is given. $TMPDIR says where the temporary directory is. The exit code is 5 if anything
    came back different.

    \b
    Examples:
      pagepool demo
      pagepool demo --keep ./demo
      pagepool demo ./layout:1.0 ./layout:1.1 other.tar
      pagepool demo --json | jq .total
    """
    subjects = _name_subjects(layouts)
    state = output.current()
    narrator = Narrator(speak=not (state.json or state.quiet), live=sys.stderr.isatty() and not state.quiet)
    directory = guard.enter(keep)
    begin = time.perf_counter()
    narrator.say(words.opening(len(subjects)))
    made: tuple[Made, Made] | None = None
    if not subjects:
        made = _make(directory, size, narrator)
        layout = directory / "images"
        subjects = [Subject(layout, tag, Reference(_REPOSITORY, tag)) for tag in (FIRST, SECOND)]
    report = _go_round(directory, subjects, narrator, begin, own=made is not None)
    if state.json:
        output.print_json(to_json(report))
    else:
        narrator.say()
        print_report(report)
        narrator.say(words.explanation(report, made))
        narrator.say(words.next_steps(keep if made else None))
    if not report.equal:
        raise click.exceptions.Exit(CORRUPT)


def _make(directory: Path, size: int, narrator: Narrator) -> tuple[Made, Made]:
    with narrator.step("choose files of this machine"):
        material = collect(size)
    plain = packed_size(material)
    free = shutil.disk_usage(directory).free
    if free < _DISK_FACTOR * plain:
        needed, left = output.human_size(_DISK_FACTOR * plain), output.human_size(free)
        raise DiskFullError(f"the demo needs {needed} in {directory.parent}, which has {left}; see --size and $TMPDIR")
    with narrator.step("pack them into two images", plain) as step:
        made = make_images(material, directory / "images", narrator.advance, _gzip)
        once = {layer.diff_id: layer.plain_size for image in made for layer in image.layers}
        step.size, step.what = sum(once.values()), "plain"
    return made


def _gzip() -> Compressor:
    """ISA-L's, which is faster than zlib's."""
    made: Compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW)
    return made


def _go_round(directory: Path, subjects: Sequence[Subject], narrator: Narrator, begin: float, *, own: bool) -> Report:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAGEPOOL_")}
    with ExitStack() as stack:
        with narrator.step("start the service"):
            url = stack.enter_context(running_service(directory / "store", directory / "service.log", environment)).url
        tour = Tour(stack.enter_context(Session(url)), narrator)
        visits = [tour.push(subject) for subject in subjects]
        stats = tour.stats()
        for number, visit in enumerate(visits, 1):
            tour.pull(visit, directory / f"pulled-{number}")
        for number, visit in enumerate(visits, 1):
            tour.check(visit, directory / f"pulled-{number}")
        ready = [visit.subject.reference for visit in visits if visit.state == READY]
        reading = read_images(url, directory, ready, narrator, run=own)
    return build_report(visits, stats, narrator.steps, time.perf_counter() - begin, reading)


def _name_subjects(layouts: Sequence[str]) -> list[Subject]:
    """The images given, each with a reference of its own."""
    subjects: list[Subject] = []
    for text in layouts:
        location = parse_location(text)
        path, name = location.path, location.name
        if not path.exists():
            raise InvalidError(text, "there is no such layout or archive")
        reference = Reference(f"demo/{_repository(path)}", _tag(name))
        while any(other.reference == reference for other in subjects):
            reference = Reference(f"{reference.repository}-{len(subjects) + 1}", reference.tag)
        subjects.append(Subject(path.absolute(), name, reference))
    return subjects


def _repository(path: Path) -> str:
    words_of_path = re.findall(r"[a-z0-9]+", path.absolute().name.removesuffix(".tar").lower())
    return validate_repository("-".join(words_of_path)[:64].strip("-") or "image")


def _tag(name: str | None) -> str:
    try:
        return validate_tag(name or "latest")
    except InvalidError:
        return "latest"
