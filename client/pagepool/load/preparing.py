"""Before a load test: images are made or found, what they must hold is computed, and what a start of each reads."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError, InvalidError, ManifestInvalidError, UnsupportedError
from pagepool.image.member import Kind
from pagepool.layout import open_source, plan_copy, run_copy
from pagepool.load.access.library import manifest_of
from pagepool.load.layertruth import TruthBuilder
from pagepool.load.plan import PlannedImage
from pagepool.load.trace import Step, guess_trace, plan_profile, plan_recorded
from pagepool.load.truth import Truth
from pagepool.load.versions import Base
from pagepool.oci import Manifest, Reference
from pagepool.samples import FIRST, SECOND, collect, make_images, packed_size
from pagepool.transport import RegistrySink
from pagepool.transport.profiles import ProfileClient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pagepool.image.treefile import TreeFile
    from pagepool.library import Client, Image
    from pagepool.load.trace import Recorded

    Counting = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
    """Shows how many bytes of something are done: what it is, and how many there are, if that is known."""

MADE: Final = "pagepool-load/app"
"""The repository of the images that are made."""
_READY_S: Final = 600.0
_MOST_REPLACED, _LARGEST_REPLACED = 2, 1 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a plan is made of.

    Args:
        images: what is read.
        truths: the truth files, by SHA-256.
        base: what new versions are made of.
    """

    images: tuple[PlannedImage, ...]
    truths: dict[str, Path]
    base: Base


def push_made_images(client: Client, directory: Path, size: int, run: str, counting: Counting) -> list[Reference]:
    """Make two overlapping images of files of this machine, and push them.

    Args:
        directory: where they are made.
        size: about how large each is to be, plain bytes.
        run: of the load test; a part of their tags.

    Raises:
        UnsupportedError: this machine has no files to make them of.
        PagepoolError, OSError: they cannot be made or pushed.
    """
    material = collect(size)
    layout = directory / "images"
    with counting("making images", packed_size(material)) as count:
        make_images(material, layout, count)
    found: list[Reference] = []
    for tag in (FIRST, SECOND):
        reference = Reference(MADE, f"{run}-{tag}")
        with closing(open_source(layout, tag)) as source:
            plan = plan_copy(source)
            with counting(f"pushing {reference}", plan.size) as count:
                run_copy(plan, source, RegistrySink(client.registry, reference), watcher=_Count(count))
        found.append(reference)
    return found


class _Count:
    """Passes on how many bytes went through."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def begin(self, blobs: Sequence[object]) -> None:
        """Nothing to do."""

    def progress(self, _blob: object, count: int) -> None:
        """Pass on."""
        self._count(count)

    def finish(self, blob: object, copied: bool) -> None:
        """Nothing to do."""


def prepare(
    client: Client,
    references: Sequence[Reference],
    directory: Path,
    *,
    trace: Sequence[Recorded] | None,
    seed: int,
    counting: Counting,
) -> Prepared:
    """Compute what images must hold, and what their starts read.

    Args:
        client: of the service.
        references: of images there.
        directory: for truth files.
        trace: a recorded one, for all images; None: what the service has learned of each, or a guess.
        seed: of guesses.

    Raises:
        CorruptError: the service shows other files than the layers have.
        PagepoolError: an image is not there, cannot be mounted, or its layers cannot be read.
    """
    images: list[PlannedImage] = []
    truths: dict[str, Path] = {}
    base: Base | None = None
    for reference in references:
        image = client.image(reference, wait_s=_READY_S)
        manifest = _manifest(image)
        path, left_out = _build_truth(image, manifest, directory, counting)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        truths[digest] = path
        with closing(Truth.open(path)) as truth, closing(client.load_tree(image.repository, image.tree)) as tree:
            _compare(truth, tree, reference, left_out)
            steps, source = _trace(image, tree, truth, trace, seed)
            size = sum(truth.size(file) for file in range(truth.count))
            images.append(
                PlannedImage(
                    str(reference),
                    str(Reference(image.repository, digest=manifest_of(image))),
                    *(digest, str(path), tuple(steps), source),
                    *(truth.count, truth.pages, size, left_out),
                )
            )
            if base is None:
                config = image.config.raw.decode()
                base = Base(reference.repository, manifest.raw.decode(), config, _replaced(truth, steps))
    if base is None:
        raise InvalidError("images", "there are none to read")
    if not any(image.pages for image in images):
        raise UnsupportedError("there is nothing to read: all files of the images are empty")
    return Prepared(tuple(images), truths, base)


def _manifest(image: Image) -> Manifest:
    found = image.client.registry.get_manifest(image.repository, str(manifest_of(image))).manifest
    if not isinstance(found, Manifest):
        raise ManifestInvalidError(str(image.manifest), "is an index")
    return found


def _build_truth(image: Image, manifest: Manifest, directory: Path, counting: Counting) -> tuple[Path, int]:
    builder = TruthBuilder()
    with counting(f"reading {image.reference}", None) as count:
        for layer in manifest.layers:
            builder.add_layer(layer, image.client.registry.open_raw_blob(image.repository, layer), count)
    data = builder.encode()
    path = directory / f"{hashlib.sha256(data).hexdigest()}.truth"
    path.write_bytes(data)
    path.chmod(0o644)
    return path, builder.left_out


def _compare(truth: Truth, tree: TreeFile, reference: Reference, left_out: int) -> None:
    """See that the tree has the files that the layers have, and no others."""
    sizes: dict[bytes, int] = {}
    todo = [(1, b"")]
    while todo:
        directory, prefix = todo.pop()
        for name, ino in tree.entries(directory):
            if tree.kind(ino) is Kind.DIRECTORY:
                todo.append((ino, prefix + name + b"/"))
            elif tree.kind(ino) is Kind.REGULAR:
                sizes[prefix + name] = tree.node(ino).size
    for file in range(truth.count):
        path, size = truth.path(file), truth.size(file)
        found = sizes.pop(path, None)
        if found != size:
            shown = "no such file" if found is None else f"{found} bytes"
            raise CorruptError(
                "image",
                str(reference),
                f"/{path.decode(errors='replace')}: the layers have {size} bytes, it has {shown}",
            )
    if sizes and not left_out:
        more = next(iter(sizes)).decode(errors="replace")
        raise CorruptError("image", str(reference), f"it has {len(sizes)} files that no layer has, such as /{more}")


def _trace(
    image: Image, tree: TreeFile, truth: Truth, recorded: Sequence[Recorded] | None, seed: int
) -> tuple[list[Step], str]:
    if recorded is not None:
        steps = plan_recorded(recorded, truth)
        if not steps:
            raise InvalidError("--trace", f"{image.reference} has none of its files")
        return steps, "recorded"
    profile = ProfileClient(image.client.session).get(image.repository, image.tree, similar=True)
    if profile is not None and (steps := plan_profile(profile.objects, tree, truth)):
        return steps, f"profile of {profile.starts} starts"
    return guess_trace(truth, seed), "made up"


def _replaced(truth: Truth, steps: Sequence[Step]) -> tuple[str, ...]:
    """A few files of a start, which every new version has with another content."""
    small = [step.file for step in steps if 0 < truth.size(step.file) <= _LARGEST_REPLACED]
    chosen = dict.fromkeys(small[len(small) // 2 :])
    return tuple(truth.path(file).decode(errors="surrogateescape") for file in list(chosen)[:_MOST_REPLACED])
