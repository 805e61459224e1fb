"""The place where `bench mount` measures: images, working directory, and subjects that are set up and taken down."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pagepool_service.bench.link import open_link
from pagepool_service.bench.nodemount import NodeMount
from pagepool_service.bench.origins import serve_images
from pagepool_service.bench.podman import Podman
from pagepool_service.bench.servers import PAGEPOOL, PEER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool_service.bench.link import Link, Shape
    from pagepool_service.bench.origins import Origin
    from pagepool_service.bench.subjects import Starter, Subject

    Maker = Callable[[Link, Path, Mapping[str, str], Sequence[str]], Subject]

S = TypeVar("S", bound="Starter")


def _podman(link: Link, directory: Path, environment: Mapping[str, str], _: Sequence[str]) -> Subject:
    return Podman(link, directory, environment)


MAKERS: Mapping[str, Maker] = {PAGEPOOL: NodeMount, PEER: _podman}


@dataclass(frozen=True, slots=True)
class Bench:
    """A subject that was started, at one end of a link, and a registry with its images at the other."""

    link: Link
    origin: Origin
    subject: Subject


@dataclass(frozen=True, slots=True)
class Lab:
    """What is there to measure with.

    Args:
        layouts: OCI layouts of one image each, by name.
        kinds: of PAGEPOOL and PEER, which are measured.
        rounds: how often what is measured is repeated; the best counts.
        directory: everything is written below it.
        environment: of all processes.
        say: told of progress.
        lazy: whether starts are measured with stargz-snapshotter, too.
        makers: how a subject of each kind is made.
        mounts: how many are mounted at once.
        containers: how many are started at once.
        big_size: of the large file.
    """

    layouts: Mapping[str, Path]
    kinds: Sequence[str]
    rounds: int
    directory: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]
    lazy: bool = False
    makers: Mapping[str, Maker] = field(default_factory=lambda: MAKERS)
    mounts: int = 500
    containers: int = 32
    big_size: int = 1 << 30

    @contextmanager
    def bench(
        self,
        kind: str,
        layouts: Sequence[Path],
        *,
        shape: Shape | None = None,
        options: Sequence[str] = (),
    ) -> Iterator[Bench]:
        """A registry with images, a link and a subject, for the length of the block. Leaves nothing.

        Args:
            kind: PAGEPOOL or PEER.
            layouts: of the images.
            shape: of the link.
            options: of the subject.
        """
        with self.set_up(kind, self.makers[kind], layouts, shape=shape, options=options) as (link, origin, subject):
            yield Bench(link, origin, subject)

    @contextmanager
    def set_up(
        self,
        kind: str,
        maker: Callable[[Link, Path, Mapping[str, str], Sequence[str]], S],
        layouts: Sequence[Path],
        *,
        shape: Shape | None = None,
        options: Sequence[str] = (),
    ) -> Iterator[tuple[Link, Origin, S]]:
        """The same with whatever a maker makes; the kind is that of the registry."""
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppb-", dir=self.directory)))
            link = stack.enter_context(open_link(shape))
            # Over a slow link it is bytes that count: those of a store at rest.
            origin = stack.enter_context(
                serve_images(kind, link, layouts, work / "origin", self.environment, rested=shape is not None)
            )
            subject = maker(link, work / "s", self.environment, options)
            stack.callback(subject.stop)
            subject.start()
            yield link, origin, subject

    @contextmanager
    def mounted(self, bench: Bench, image: str, count: int = 1) -> Iterator[list[Path]]:
        """Mounts of an image for the length of the block."""
        with ExitStack() as stack:
            points = []
            for _ in range(count):
                point = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppb-m-", dir=self.directory)))
                bench.subject.mount(image, point)
                stack.callback(bench.subject.unmount, point)
                points.append(point)
            yield points
