"""``pagepool run``: a program in a container of an image."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, Unpack

import click

from pagepool.cli import exits, output, roots
from pagepool.cli.background import in_background
from pagepool.cli.nodes import SizeType, node_client, node_options
from pagepool.cli.options import ReferenceType, output_options, platform_option, pool_options
from pagepool.cli.target import PoolOptions
from pagepool.cli.volumes import check_volumes
from pagepool.container import Container, RunOptions, cleanup_stale, run_container
from pagepool.container.options import check_options, parse_env, parse_env_file, parse_memory, parse_volume
from pagepool.oci.platform import Platform, rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.cli.roots import RootProvider
    from pagepool.container import Record
    from pagepool.container.options import Network
    from pagepool.container.run import RuntimeName
    from pagepool.oci import Reference

_GRACE_S = 10.0


class _Given(PoolOptions):
    """The options, by the names that click gives them."""

    interactive: bool
    tty: bool
    name: str
    entrypoint: str | None
    env: tuple[str, ...]
    env_file: tuple[TextIO, ...]
    workdir: str | None
    user: str | None
    hostname: str
    network: Network
    volumes: tuple[str, ...]
    memory: str | None
    pids_limit: int | None
    read_only: bool


@click.command(
    name="run",
    short_help="Run a program in a container of an image.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("reference", metavar="REF", type=ReferenceType())
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="The program reads our standard input.")
@click.option("-t", "--tty", is_flag=True, help="The program has a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Print the container's id when the program runs, and end.")
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With --detach, append the program's output to FILE [it is thrown away].",
)
@click.option("--name", default="", metavar="NAME", help="A name for the container.")
@click.option("--rm", is_flag=True, help="Remove the container when it has ended: always done, for docker's users.")
@click.option("--entrypoint", metavar="PROGRAM", help='Instead of the image\'s entrypoint and command; "" is none.')
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable; without =, as it is here.")
@click.option(
    "--env-file",
    multiple=True,
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Set the variables of FILE, a NAME=VALUE in each line.",
)
@click.option("-w", "--workdir", metavar="DIR", help="Start there, instead of in the image's working directory.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Run as this user, by name or number, not as the image's.")
@click.option("--hostname", default="", metavar="NAME", help="The container's host name.")
@click.option(
    "--network",
    type=click.Choice(["host", "none"]),
    default="host",
    show_default=True,
    help="This machine's network, or nothing but loopback.",
)
@click.option(
    "-v",
    "--volume",
    "volumes",
    multiple=True,
    metavar="SRC:DST[:ro]",
    help="Show SRC of this machine at DST; with :ro it cannot be written.",
)
@click.option("-m", "--memory", metavar="SIZE", help="The most memory, swap included: 512m, 2g.")
@click.option("--pids-limit", type=click.IntRange(1), metavar="N", help="The most processes and threads.")
@click.option("--read-only", is_flag=True, help="The root cannot be written; volumes and /dev/shm can.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "runc", "own"]),
    default="auto",
    show_default=True,
    help="runc, or pagepool itself by namespaces; auto: runc where it is installed.",
)
@click.option("--eager", is_flag=True, help="Fetch all of the image first (kernel only).")
@click.option("--disk", type=SizeType(), default=0, metavar="SIZE", help="Most bytes it may write (kernel only).")
@click.option(
    "--backend",
    type=click.Choice(["auto", "kernel", "fuse"]),
    default="auto",
    envvar="PAGEPOOL_BACKEND",
    show_default=True,
    help="What mounts the image: see pagepool mount [$PAGEPOOL_BACKEND].",
)
@platform_option
@output_options
@node_options
@pool_options
def command(
    reference: Reference,
    words: tuple[str, ...],
    detach: bool,
    log: Path | None,
    rm: bool,  # noqa: ARG001 - accepted, and always so
    runtime: RuntimeName,
    eager: bool,
    disk: int,
    backend: str,
    platform: Platform | None,
    **given: Unpack[_Given],
) -> int:
    """Run a program in a container of the image REF, as the image says: entrypoint, command, user, environment and
    working directory, each of which options replace as docker's do. COMMAND replaces the image's command.

    What the program writes is gone when it has ended, but for what is in volumes. Ctrl-C and other signals go
    to the program; the third SIGINT or SIGTERM kills it. Needs root.

    \b
    Examples:
      pagepool run app:1
      pagepool run -it app:1 -- bash
      pagepool run -v ./data:/data:ro -e MODE=test app:1 -- python3 /data/job.py
      pagepool run -d --name web --log web.log nginx:1
      pagepool run --network none --memory 256m --pids-limit 50 --user nobody app:1 -- id

    \b
    Exit codes: the program's, or 128 and the number of the signal that killed it;
      125 if it could not be run, 126 if it cannot be executed, 127 if it is not there.
    """
    output.current().failure = exits.CONTAINER
    options = _options(words, given)
    check_options(options)
    places = node_client().places
    check_volumes(options.volumes, places.state, places.run)
    if detach and options.interactive:
        raise click.UsageError("--detach and --interactive exclude each other.")
    if log is not None and not detach:
        raise click.UsageError("--log is for --detach.")
    provider = roots.default_provider(backend)
    for record in cleanup_stale(roots.containers_directory()):
        provider.discard(record.id, Path(record.root))
    request = roots.RootRequest(reference, platform, _pool_options(given), eager, disk)
    if not detach:
        return _run(provider, request, options, runtime)
    answer = in_background(
        lambda tell: _run(provider, request, options, runtime, lambda record: tell(asdict(record)), _GRACE_S),
        None if log is None else log.absolute(),
    )
    if output.current().json:
        output.print_json(answer)
    else:
        output.print_line(answer["id"])
    return exits.OK


def _run(
    provider: RootProvider,
    request: roots.RootRequest,
    options: RunOptions,
    runtime: RuntimeName,
    started: Callable[[Record], None] | None = None,
    grace_s: float | None = None,
) -> int:
    with provider.open_root(request) as root:
        _tell_platform(request, root)
        container = Container(root.container_id, root.image, root.path, root.config, options)
        return run_container(
            container,
            directory=roots.containers_directory(),
            runtime=runtime,
            started=started,
            grace_s=grace_s,
        )


def _tell_platform(request: roots.RootRequest, root: roots.Root) -> None:
    """Say that an image is for other machines: an image that is no index is taken whatever --platform says."""
    wanted, found = request.platform or Platform.local(), root.config.platform
    if found.architecture and rank(wanted, found) is None:
        output.warn(f"{root.image} is for {found}, not for {wanted}")


def _options(words: tuple[str, ...], given: _Given) -> RunOptions:
    env = [variable for file in given["env_file"] for variable in parse_env_file(file.read(), os.environ)]
    env += [parse_env(text, os.environ) for text in given["env"]]
    return RunOptions(
        command=words[1:] if words[:1] == ("--",) else words,
        entrypoint=given["entrypoint"],
        env=tuple(env),
        user=given["user"],
        workdir=given["workdir"],
        hostname=given["hostname"],
        network=given["network"],
        volumes=tuple(parse_volume(text) for text in given["volumes"]),
        memory=None if given["memory"] is None else parse_memory(given["memory"]),
        pids_limit=given["pids_limit"],
        read_only=given["read_only"],
        tty=given["tty"],
        interactive=given["interactive"],
        name=given["name"],
    )


def _pool_options(given: _Given) -> PoolOptions:
    return {
        "server": given["server"],
        "plain_http": given["plain_http"],
        "insecure": given["insecure"],
        "ca_certificate": given["ca_certificate"],
        "username": given["username"],
        "password_stdin": given["password_stdin"],
        "pool": given["pool"],
    }
