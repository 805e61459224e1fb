"""``pagepool profile``: what a service has learned of the starts of an image's containers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect, on_server
from pagepool.cli.options import ReferenceType, output_options, platform_option, server_options
from pagepool.errors import NotFoundError, ProfileUnknownError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind, TreeFile
from pagepool.image.treefile import ROOT
from pagepool.oci import Platform, Reference
from pagepool.transport.profiles import ListedProfile, Profile, ProfileClient
from pagepool.transport.trees import TreeClient, TreeState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@click.group(name="profile", short_help="Show or delete what was learned of containers' starts.")
def command() -> None:
    """Look after start-up profiles: which files the containers of an image open and read in their first seconds.

    Nodes record them, and send them to the service; the next start fetches these files first. Nothing needs them.

    \b
    Examples:
      pagepool profile list app
      pagepool profile show app:1
      pagepool profile rm app:1
    """


@command.command(name="list", short_help="List the profiles of a repository's images.")
@click.argument("repository", metavar="REPOSITORY", type=ReferenceType())
@output_options
@server_options
def list_(repository: Reference, **server: Unpack[ServerOptions]) -> None:
    """List the profiles of a repository's images, the one that was added to last first.

    \b
    Examples:
      pagepool profile list app
    """
    if repository.tag or repository.digest:
        raise click.UsageError("REPOSITORY is a name without tag or digest.")
    repository = on_server(repository)
    with connect(server, repository) as connection:
        try:
            found = ProfileClient(connection.session).list(repository.repository)
        except NotFoundError as error:
            raise connection.explain(error) from error
    if output.current().json:
        output.print_json({"name": repository.repository, "profiles": [_listed(one) for one in found]})
        return
    rows = [
        (one.tree.short, ", ".join(image.short for image in one.images), str(one.starts), str(one.objects), _when(one))
        for one in found
    ]
    output.print_table(("TREE", "IMAGES", "STARTS", "OBJECTS", "UPDATED"), rows, right=(2, 3))


@command.command(name="show", short_help="Show what containers of an image open first.")
@click.argument("reference", metavar="REF", type=ReferenceType())
@click.option("--similar", is_flag=True, help="If there is none: what it inherits from another image.")
@platform_option
@output_options
@server_options
def show(reference: Reference, similar: bool, platform: Platform | None, **server: Unpack[ServerOptions]) -> None:
    """Show which files the containers of an image open first, most urgent first: one path for each content.

    READ is how much of a larger file they read, as far as that is known: only so much of it is fetched at once.

    \b
    Examples:
      pagepool profile show app:1
      pagepool profile show --similar --json app:2
    """
    reference = on_server(reference)
    with connect(server, reference) as connection:
        state = _tree(connection, reference, platform)
        profile = ProfileClient(connection.session).get(reference.repository, state.tree, similar=similar)
        if profile is None:
            raise ProfileUnknownError(f"{state.tree.short} ({reference})")
        tree = TreeFile(TreeClient(connection.session).fetch(reference.repository, state.tree), state.tree.raw)
    paths = _paths(tree)
    rows = [(digest, tree.find_object(digest)) for digest in profile.objects]
    files = [_File.of(digest, place, tree, paths, profile) for digest, place in rows if place >= 0]
    if output.current().json:
        output.print_json(_shown(state, profile, files))
        return
    inherited = "" if profile.tree == state.tree else f", inherited from tree {profile.tree.short}"
    size, read = (output.human_size(sum(getattr(one, name) for one in files)) for name in ("size", "fetched"))
    contents, starts = output.counted(len(files), "content"), output.counted(profile.starts, "start")
    output.note(f"{contents}, {read} of {size}, learned from {starts}{inherited}")
    table = [
        (output.human_size(one.size), "" if one.read is None else output.human_size(one.read), one.path)
        for one in files
    ]
    output.print_table(("SIZE", "READ", "PATH"), table, right=(0, 1))


@command.command(name="rm")
@click.argument("reference", metavar="REF", type=ReferenceType())
@platform_option
@output_options
@server_options
def rm(reference: Reference, platform: Platform | None, **server: Unpack[ServerOptions]) -> None:
    """Have the service forget what it learned of an image's starts.

    \b
    Examples:
      pagepool profile rm app:1
    """
    reference = on_server(reference)
    with connect(server, reference) as connection:
        state = _tree(connection, reference, platform)
        ProfileClient(connection.session).delete(reference.repository, state.tree)
    if output.current().json:
        output.print_json({"reference": str(reference), "tree": str(state.tree)})
    else:
        output.print_line(str(reference))


def _tree(connection: Connection, reference: Reference, platform: Platform | None) -> TreeState:
    try:
        return TreeClient(connection.session).resolve(reference.repository, reference.target, platform)
    except NotFoundError as error:
        raise connection.explain(error) from error


def _paths(tree: TreeFile) -> dict[int, str]:
    """Of each object of a tree, by its place, one path."""
    found: dict[int, str] = {}
    for path, number in _files(tree):
        place = tree.node(number).object
        if place >= 0:
            found.setdefault(place, path.decode(errors="backslashreplace"))
    return found


def _files(tree: TreeFile) -> Iterator[tuple[bytes, int]]:
    """(absolute path, node) of every regular file; a node with several names comes as often."""
    stack = [(b"", ROOT)]
    while stack:
        above, directory = stack.pop()
        for name, number in tree.entries(directory):
            kind = tree.kind(number)
            if kind is Kind.DIRECTORY:
                stack.append((above + b"/" + name, number))
            elif kind is Kind.REGULAR:
                yield above + b"/" + name, number


@dataclass(frozen=True, slots=True)
class _File:
    """An object of a profile: its digest, a path, and how much of it is read, if that is known."""

    digest: bytes
    path: str
    size: int
    read: int | None

    @classmethod
    def of(cls, digest: bytes, place: int, tree: TreeFile, paths: Mapping[int, str], profile: Profile) -> _File:
        size, parts = tree.object(place).size, profile.parts.get(digest)
        read = None if parts is None else sum(max(0, min(EXTENT_SIZE, size - one * EXTENT_SIZE)) for one in parts)
        return cls(digest, paths.get(place, ""), size, read)

    @property
    def fetched(self) -> int:
        return self.size if self.read is None else self.read


def _shown(state: TreeState, profile: Profile, files: list[_File]) -> dict[str, Any]:
    return {
        "image": str(state.image),
        "tree": str(state.tree),
        "learned_from": str(profile.tree),
        "starts": profile.starts,
        "updated_ns": profile.updated_ns,
        "objects": [
            {"object": one.digest.hex(), "path": one.path, "size": one.size, "read": one.read} for one in files
        ],
    }


def _listed(one: ListedProfile) -> dict[str, Any]:
    return {
        "tree": str(one.tree),
        "images": [str(image) for image in one.images],
        "starts": one.starts,
        "updated_ns": one.updated_ns,
        "objects": one.objects,
    }


def _when(one: ListedProfile) -> str:
    return datetime.fromtimestamp(one.updated_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
