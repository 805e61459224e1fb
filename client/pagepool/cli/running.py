"""What ``pagepool run`` does once its command line is read. Loads little: hundreds of containers start at once."""

from __future__ import annotations

import importlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.cli import exits, roots
from pagepool.cli.connect import PoolOptions
from pagepool.cli.nodeclient import node_client
from pagepool.cli.state import current
from pagepool.cli.usage import refuse
from pagepool.container.options import (
    BRIDGE,
    HOST,
    Container,
    OptionInvalidError,
    RunOptions,
    check_options,
    parse_env,
    parse_env_file,
    parse_memory,
    parse_volume,
)
from pagepool.container.records import WAIT_S
from pagepool.oci.platform import Platform, rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from pagepool.cli.roots import RootProvider
    from pagepool.container import Record
    from pagepool.container.run import RuntimeName
    from pagepool.oci import Reference


class RunGiven(PoolOptions):
    """The options, by the names that click gives them."""

    detach: bool
    log: Path | None
    rm: bool
    runtime: RuntimeName
    upper: Path | None
    eager: bool
    quota: int
    backend: str
    platform: Platform | None
    interactive: bool
    tty: bool
    name: str
    entrypoint: str | None
    env: tuple[str, ...]
    env_file: tuple[TextIO, ...]
    workdir: str | None
    user: str | None
    hostname: str
    network: str | None
    publish: tuple[str, ...]
    volumes: tuple[str, ...]
    memory: str | None
    pids_limit: int | None
    read_only: bool
    labels: tuple[str, ...]
    add_hosts: tuple[str, ...]
    mounts: tuple[str, ...]
    tmpfs: tuple[str, ...]
    shm_size: str | None
    devices: tuple[str, ...]
    cpus: str | None
    ulimits: tuple[str, ...]
    cap_add: tuple[str, ...]
    cap_drop: tuple[str, ...]
    security_opt: tuple[str, ...]
    group_add: tuple[str, ...]
    stop_signal: int | None
    stop_timeout: int | None
    init: bool
    cidfile: Path | None


_SELDOM: Final = (
    *("labels", "add_hosts", "mounts", "tmpfs", "shm_size", "cpus", "ulimits", "cap_add", "cap_drop", "security_opt"),
    *("publish", "devices"),
    *("group_add", "stop_signal", "stop_timeout"),
)


def run_image(reference: Reference, words: tuple[str, ...], given: RunGiven) -> int:
    """Run a program in a container of an image.

    Args:
        reference: the image.
        words: what follows it.
        given: the options.

    Returns:
        The exit code.

    Raises:
        click.UsageError: options that exclude each other.
        PagepoolError, OSError: it could not be run.
    """
    current().failure = exits.CONTAINER
    options = _options(words, given)
    if any(given[name] not in (None, ()) for name in _SELDOM):
        from pagepool.cli.seldom import add_seldom

        options = add_seldom(options, given)
    check_options(options)
    if given["cidfile"] is not None and given["cidfile"].exists():
        raise OptionInvalidError(str(given["cidfile"]), "there is a file of that name already")
    node = node_client()
    if options.volumes:
        from pagepool.cli.volumes import check_volumes

        check_volumes(options.volumes, node.places.state, node.places.run)
    if given["detach"] and options.interactive:
        refuse("--detach and --interactive exclude each other.")
    if given["log"] is not None and not given["detach"]:
        refuse("--log is for --detach.")
    if given["init"] and given["runtime"] == "runc":
        refuse("--init is for pagepool's own runtime, which always has one: --runtime own.")
    upper = None if given["upper"] is None else given["upper"].absolute()
    provider = roots.default_provider(given["backend"], upper)
    programs = tuple(filter(None, (options.entrypoint, *options.command[:1])))
    request = roots.RootRequest(reference, given["platform"], given, given["eager"], given["quota"], programs, upper)
    if given["detach"]:
        return _detach(provider, request, options, given)
    note = None if given["cidfile"] is None else _noting(given["cidfile"])
    return _run(provider, request, options, _runtime(given), note)


def _runtime(given: RunGiven) -> RuntimeName:
    return "own" if given["init"] else given["runtime"]


def _noting(cidfile: Path) -> Callable[[Record], None]:
    """Writes a container's id into a file that is new, once its program runs."""
    path = cidfile.absolute()

    def note(record: Record) -> None:
        with path.open("x") as file:
            file.write(record.id)

    return note


def _detach(provider: RootProvider, request: roots.RootRequest, options: RunOptions, given: RunGiven) -> int:
    """Run it in the background, and say what it is called."""
    from dataclasses import asdict

    from pagepool.cli import output
    from pagepool.cli.background import in_background

    log = None if given["log"] is None else given["log"].absolute()
    note = None if given["cidfile"] is None else _noting(given["cidfile"])
    kept = log or roots.logs_directory()
    ended = None if given["rm"] else roots.ended_directory()
    grace_s = WAIT_S if options.stop_timeout_s is None else options.stop_timeout_s

    def work(tell: Callable[[dict[str, Any]], None]) -> int:
        def started(record: Record) -> None:
            if note is not None:
                note(record)
            tell({**asdict(record), "name": record.name or None})

        return _run(provider, request, options, _runtime(given), started, grace_s, kept, ended)

    answer = in_background(work, log)
    if current().json:
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
    log: Path | None = None,
    ended: Path | None = None,
) -> int:
    loading = threading.Thread(target=_load_rest, name="loading", daemon=True)
    loading.start()  # while the node mounts the image
    if request.upper is not None:
        roots.end_killed(provider)  # one of them may have the upper
    with provider.open_root(request) as root:
        loading.join()  # containers are forked
        from pagepool.container.run import run_container

        roots.end_killed(provider)
        _tell_platform(request, root)
        container = Container(root.container_id, root.image, root.path, root.config, options)
        return run_container(
            container,
            directory=roots.containers_directory(),
            runtime=runtime,
            started=started,
            grace_s=grace_s,
            log=log,
            ended=ended,
            alone=True,
        )


def _load_rest() -> None:
    with suppress(Exception):  # whoever needs it finds out
        importlib.import_module("pagepool.container.run")
        importlib.import_module("pagepool.mount.kernel.listing")  # unmounts; by the end there may be another version


def _tell_platform(request: roots.RootRequest, root: roots.Root) -> None:
    """Say that an image is for other machines: an image that is no index is taken whatever --platform says."""
    wanted, found = request.platform or Platform.local(), root.config.platform
    if found.architecture and rank(wanted, found) is None:
        from pagepool.cli import output

        output.warn(f"{root.image} is for {found}, not for {wanted}")


def _options(words: tuple[str, ...], given: RunGiven) -> RunOptions:
    env = [variable for file in given["env_file"] for variable in parse_env_file(file.read(), os.environ)]
    env += [parse_env(text, os.environ) for text in given["env"]]
    return RunOptions(
        command=words[1:] if words[:1] == ("--",) else words,
        entrypoint=given["entrypoint"],
        env=tuple(env),
        user=given["user"],
        workdir=given["workdir"],
        hostname=given["hostname"],
        network=given["network"] or (BRIDGE if given["publish"] else HOST),
        plugins=tuple(filter(None, os.environ.get("CNI_PATH", "").split(os.pathsep))),
        volumes=tuple(parse_volume(text) for text in given["volumes"]),
        memory=None if given["memory"] is None else parse_memory(given["memory"]),
        pids_limit=given["pids_limit"],
        read_only=given["read_only"],
        tty=given["tty"],
        interactive=given["interactive"],
        name=given["name"],
    )
