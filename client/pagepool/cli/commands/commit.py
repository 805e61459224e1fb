"""``pagepool commit``: an overlay, or what a container has written, as a new image."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, PoolOptions, connect, on_server
from pagepool.cli.ending import cleaning_up
from pagepool.cli.options import ReferenceType, jobs_option, output_options, pool_options
from pagepool.cli.progress import Counter, counting, transfer
from pagepool.cli.target import Target, TargetType, open_changed
from pagepool.cli.uppers import read_while_written
from pagepool.cli.waiting import check_wait, wait_until_read
from pagepool.commit import CommitOptions, CommittedImage, Instruction, build_commit, parse_instruction
from pagepool.layout import plan_copy, run_copy
from pagepool.library import Changed, Upper
from pagepool.oci import Reference
from pagepool.oci.mediatypes import Compression
from pagepool.overlay import Change, ChangeKind
from pagepool.transport import ImageState, RegistrySink, RegistrySource
from pagepool.transport.service import UNMOUNTABLE


class _InstructionType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    name = "instruction"

    def convert(self, value: Any, *_: object) -> Instruction:
        """Parse; a bad one is invalid input, not wrong usage."""
        return value if isinstance(value, Instruction) else parse_instruction(value)


@click.command(name="commit", short_help="Push an overlay as a new image.")
@click.argument("overlay", metavar="DIR|CONTAINER", type=TargetType(containers=True))
@click.argument("reference", metavar="REF", type=ReferenceType())
@click.option("-c", "--change", "instructions", type=_InstructionType(), multiple=True, metavar="INSTRUCTION",
              help='Change what is run, as a Dockerfile says it: CMD ["run"], ENV A=1 …; several times.')  # fmt: skip
@click.option("-a", "--author", default="", help="Whose work it is [the author of the overlay's image].")
@click.option("-m", "--message", default="", help="A comment for the history.")
@click.option(
    "--compression",
    type=click.Choice(["auto", "none", "gzip", "zstd"]),
    default="auto",
    show_default=True,
    help="Of the new layer; auto: none for a pagepool service, gzip for others.",
)
@click.option("--allow-empty", is_flag=True, help="Make an image also if nothing changed.")
@jobs_option
@click.option("--wait/--no-wait", default=None, help="Wait until the layers can be mounted [if the server can say].")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Seconds to wait.")
@output_options
@pool_options
@cleaning_up()
def command(
    overlay: Target,
    reference: Reference,
    instructions: tuple[Instruction, ...],
    author: str,
    message: str,
    compression: Literal["auto", "none", "gzip", "zstd"],
    allow_empty: bool,
    jobs: int,
    wait: bool | None,
    timeout: float,
    **options: Unpack[PoolOptions],
) -> None:
    """Push what the overlay in DIR, or CONTAINER, which runs, shows as a new image, REF.

    DIR may be what a kernel mount wrote, too; that takes root. DIR begins with "/" or "."; all else is the name of a
    container, its id, or the first twelve characters of that. The container goes on meanwhile: if it has written
    while it was read, it is read again, three times at most. What is in its volumes and in memory is not committed.

    The new image has the layers of the overlay's image, and one more with what was changed. Layers that the
    registry has are not sent again, and those that another repository of it has are taken from there. The
    overlay must not be open, or mounted, meanwhile; it is not changed, and goes on as an overlay of its image.

    Instructions are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR. Another
    ENTRYPOINT takes the inherited CMD away.

    \b
    Examples:
      pagepool commit ./work app:2
      pagepool commit -m "with data" -c 'CMD ["serve"]' -c 'ENV MODE=test' ./work app:test
      pagepool commit web app:web
      pagepool commit --compression zstd ./work registry.example.org/team/app:2
    """
    if overlay.directory is None:
        raise click.UsageError(
            f"{overlay} is no container that runs, and not the directory of an overlay:"
            " that has to begin with '/' or '.'."
        )
    if overlay.given:
        raise click.UsageError(f"{overlay} has a path: an overlay is committed as a whole.")
    reference = on_server(reference)
    directory = overlay.directory
    with ExitStack() as stack:
        connection = stack.enter_context(connect(options, reference))

        def pack(undo: ExitStack) -> _Packed:
            root = undo.enter_context(open_changed(options, directory))
            waits = check_wait(connection, wait)
            settings = CommitOptions(
                compression=_choose(connection) if compression == "auto" else compression,
                instructions=instructions,
                author=author,
                comment=message,
                allow_empty=allow_empty,
            )
            return _pack(root, settings, waits, undo)

        root, image, changes, waits = read_while_written(overlay.container, stack, pack, _is_whole)
        near = root.image.client.session.where == connection.session.where
        counter = _push(connection, image, reference, root.image.repository if near else None, jobs)
        state = wait_until_read(connection, reference.repository, str(image.root().digest), timeout) if waits else None
        _report(reference, image, changes, counter, state)


class _Packed(NamedTuple):
    """What is to be pushed."""

    root: Changed
    image: CommittedImage
    changes: list[Change]
    waits: bool


def _pack(root: Changed, settings: CommitOptions, waits: bool, undo: ExitStack) -> _Packed:
    parent = RegistrySource(root.image.client.registry, root.parent())
    changes = root.changes()
    with counting("packing") as count:
        image = undo.enter_context(build_commit(root.fs, changes, parent, settings, progress=count))
    return _Packed(root, image, changes, waits)


def _is_whole(packed: _Packed) -> bool:
    assert isinstance(packed.root, Upper)
    return packed.root.is_current()


def _choose(connection: Connection) -> Compression:
    return "none" if connection.service.available() else "gzip"


def _push(
    connection: Connection, image: CommittedImage, reference: Reference, mount_from: str | None, jobs: int
) -> Counter:
    with transfer("pushing") as watcher:
        sink = RegistrySink(connection.registry, reference, mount_from)
        run_copy(plan_copy(image), image, sink, jobs=jobs, watcher=watcher)
    return watcher


def _report(
    reference: Reference, image: CommittedImage, changes: list[Change], counter: Counter, state: ImageState | None
) -> None:
    if state and state.state == UNMOUNTABLE:
        output.warn(f"{reference} is stored, and cannot be mounted: {state.reason}")
    layer = image.layer
    counts = {kind.value: sum(change.kind is kind for change in changes) for kind in ChangeKind}
    if output.current().json:
        result: dict[str, Any] = {
            "reference": str(reference),
            "digest": str(image.root().digest),
            "config": str(image.manifest.config.digest),
            "changes": counts,
            "letters": {kind.letter: counts[kind.value] for kind in ChangeKind},
            "layer": layer and layer.descriptor.to_json() | {"diff_id": str(layer.diff_id)},
            "blobs": {"total": counter.total, "copied": counter.copied, "copied_size": counter.size},
            "state": state.state if state else None,
            "reason": state.reason if state else None,
        }
        output.print_json(result)
        return
    output.print_line(str(image.root().digest))
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "nothing changed"
    size = output.human_size(layer.descriptor.size) if layer else "no layer"
    output.note(f"committed {reference}: {summary}; {size}, {counter.copied} of {counter.total} blobs sent")
