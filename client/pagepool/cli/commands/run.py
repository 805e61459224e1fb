"""``pagepool run``: a program in a container of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from pagepool.cli.containers import ProgramCommand
from pagepool.cli.nodes import SizeType, SpelledOption, node_options
from pagepool.cli.options import ReferenceType, output_options, platform_option, pool_options
from pagepool.cli.running import run_image
from pagepool.cli.signals import SignalType

if TYPE_CHECKING:
    from pagepool.cli.running import RunGiven
    from pagepool.oci import Reference


class _RunCommand(ProgramCommand):
    """`-h` is the host's name, as docker has it: a script that means that would run nothing, and end with 0. Alone it
    asks for help, as with other commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        return super().parse_args(ctx, ["--help"] if args == ["-h"] else args)


@click.command(
    name="run",
    cls=_RunCommand,
    short_help="Run a program in a container of an image.",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]},
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
    help="With --detach, append the program's output to FILE; else the last of it is kept for pagepool logs.",
)
@click.option("--name", default="", metavar="NAME", help="A name for the container.")
@click.option(
    "--rm",
    is_flag=True,
    help="With --detach, keep neither exit code nor log when it has ended. [else the last 200 containers' are kept]",
)
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
@click.option("-h", "--hostname", default="", metavar="NAME", help="The container's host name.")
@click.option(
    "--network",
    "--net",
    "network",
    cls=SpelledOption,
    metavar="NAME",
    help="host: this machine's; none: nothing but loopback; bridge, or one of /etc/cni/net.d: a network of its own.  "
    "[default: host; with --publish, bridge]",
)
@click.option(
    "-p",
    "--publish",
    multiple=True,
    metavar="[IP:]HOST:PORT",
    help="Have a port of this machine be the container's: 8080:80, 127.0.0.1:5353:53/udp.",
)
@click.option(
    "-v",
    "--volume",
    "volumes",
    multiple=True,
    metavar="SRC:DST[:ro]",
    help="Show SRC of this machine at DST; with :ro it cannot be written.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SRC[:DST][:rwm]",
    help="A device of this machine: /dev/kvm, /dev/fuse, or all below a directory.",
)
@click.option("-m", "--memory", metavar="SIZE", help="The most memory, swap included: 512m, 2g.")
@click.option("--pids-limit", type=click.IntRange(1), metavar="N", help="The most processes and threads.")
@click.option("--cpus", metavar="N", help="The most processors, with a fraction: 1.5.")
@click.option(
    "--ulimit",
    "ulimits",
    multiple=True,
    metavar="NAME=SOFT[:HARD]",
    help="A limit of each process: nofile=1024:4096, core=0.",
)
@click.option("--shm-size", metavar="SIZE", help="Of /dev/shm.  [64m]")
@click.option(
    "--tmpfs",
    multiple=True,
    metavar="DST[:OPTIONS]",
    help="A file system in memory: size=64m, mode=1777, uid=, gid=, ro, exec, with commas.",
)
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="type=bind,source=SRC,target=DST[,readonly], as -v; or type=tmpfs,target=DST[,tmpfs-size=][,tmpfs-mode=].",
)
@click.option("--add-host", "add_hosts", multiple=True, metavar="NAME:IP", help="A line for /etc/hosts.")
@click.option("--group-add", multiple=True, metavar="GROUP", help="One more group of the user, by name or number.")
@click.option("--cap-drop", multiple=True, metavar="NAME", help="A capability that programs do not get, or ALL.")
@click.option(
    "--cap-add",
    multiple=True,
    metavar="NAME",
    help="One that they get: of docker's, IPC_LOCK, NET_ADMIN, SYS_NICE, and with runc SYS_PTRACE.",
)
@click.option(
    "--security-opt",
    multiple=True,
    metavar="OPTION",
    help="no-new-privileges; seccomp=FILE, a profile of system calls as docker has them, or seccomp=unconfined.",
)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Noted with the container.")
@click.option("--stop-signal", type=SignalType(), help="What asks the program to end, instead of the image's.")
@click.option(
    "--stop-timeout",
    type=click.IntRange(0, 86400),
    metavar="SECONDS",
    help="After which it is killed if it has not ended.  [10]",
)
@click.option("--init", is_flag=True, help="An init that reaps orphans: pagepool's own runtime, which always has one.")
@click.option(
    "--cidfile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the container's id into FILE, which is not there yet.",
)
@click.option("--read-only", is_flag=True, help="The root cannot be written; volumes and /dev/shm can.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "runc", "own"]),
    default="auto",
    show_default=True,
    help="runc, or pagepool itself by namespaces; auto: runc where it is installed.",
)
@click.option(
    "--upper",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep what it writes in this directory, for the next one, and for pagepool diff and commit.",
)
@click.option("--eager", "--fill", "eager", cls=SpelledOption, is_flag=True, help="Fetch all of the image first.")
@click.option(
    "--quota",
    "--disk",
    "quota",
    cls=SpelledOption,
    type=SizeType(),
    default=0,
    metavar="SIZE",
    help="Most bytes it may write (kernel only).",
)
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
def command(reference: Reference, words: tuple[str, ...], **given: Unpack[RunGiven]) -> int:
    """Run a program in a container of the image REF, as the image says: entrypoint, command, user, environment and
    working directory, each of which options replace as docker's do. COMMAND replaces the image's command.

    What the program writes is gone when it has ended, but for what is in volumes, unless --upper says where to
    keep it. Of one in the background (--detach) exit code and log are kept, unless --rm says otherwise. Ctrl-C and
    other signals go to the program; the third SIGINT or SIGTERM kills it. Needs root.

    \b
    Examples:
      pagepool run app:1
      pagepool run -it app:1 -- bash
      pagepool run -v ./data:/data:ro -e MODE=test app:1 -- python3 /data/job.py
      pagepool run -d --name web --log web.log nginx:1
      pagepool run --upper ./work app:1 -- make install && pagepool commit ./work app:2
      pagepool run --network none --memory 256m --pids-limit 50 --user nobody app:1 -- id

    \b
    Exit codes: the program's, or 128 and the number of the signal that killed it;
      125 if it could not be run, 126 if it cannot be executed, 127 if it is not there.
    """
    return run_image(reference, words, given)
