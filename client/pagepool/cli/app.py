"""The program `pagepool`: its commands, and the one place where errors become text and an exit code.

Expected errors (pagepool's own, wrong usage, the operating system's) are one line on standard error, never a
traceback. Anything else is a bug, and shows its traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence

import click

from pagepool.cli import exits, output
from pagepool.cli.lazy import LazyGroup
from pagepool.cli.options import DEFAULT_SERVER
from pagepool.errors import BusyError, ContainerError, PagepoolError, StoreFullError, UnreachableError
from pagepool.linux import threads
from pagepool.version import __version__

_COMMANDS = {
    "push": "Push an image file into a registry.",
    "pull": "Pull an image into a file.",
    "images": "List images.",
    "tags": "List the tags of a repository.",
    "tag": "Give an image further names.",
    "inspect": "Show an image and its layers.",
    "ls": "List files in images and overlays.",
    "find": "Find files in images and overlays.",
    "cat": "Print files of images and overlays.",
    "cp": "Copy files out of images, in and out of overlays and containers.",
    "tree": "Show an image's tree as text, and make one of text.",
    "diff": "Show what changed in an overlay.",
    "commit": "Push an overlay as a new image.",
    "mount": "Mount an image or an overlay of it.",
    "umount": "Unmount images.",
    "mounts": "List the kernel mounts of this machine.",
    "run": "Run a program in a container of an image.",
    "exec": "Run a program in a container that runs.",
    "logs": "Show what a container in the background has written.",
    "ps": "List containers that run.",
    "stop": "End containers.",
    "wait": "Wait until containers end, and print their exit codes.",
    "container": "Remove what is kept of containers that have ended.",
    "node": "Run the node, which mounts images by the kernel.",
    "snapshotter": "Let containerd start containers on kernel mounts.",
    "memory": "Show what containers take in memory, and what sharing saves.",
    "cache": "Show, fill, check or empty what is kept on this machine.",
    "stats": "Show sizes, and what sharing saves.",
    "load": "Load a service with many clients, and report how it did.",
    "profile": "Show or delete what was learned of containers' starts.",
    "rm": "Delete tags or manifests.",
    "login": "Log in to a server, for docker and podman, too.",
    "logout": "Forget the credentials of a server.",
    "completion": "Print a shell completion script.",
    "version": "Show the version.",
}


_DEFAULT_WHERE = DEFAULT_SERVER.removeprefix("http://")
# By their words: some errors have come without their number.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
# What click (8.2 and newer) raises for a group without a command: it carries the help, and that is what to show.
_HELP_INSTEAD: tuple[type[click.ClickException], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])
)


def _epilog() -> str:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exits.MEANINGS.items())
    return f"""\b
A REF is [HOST[:PORT]/]NAME[:TAG][@DIGEST], the tag "latest" if none is given. An overlay is named by its
directory, which begins with "/" or "."; a PATH in an image or overlay follows after a colon: app:1:/etc.

\b
Examples:
  pagepool push ./layout app:1
  pagepool images
  pagepool ls -l app:1:/etc
  pagepool pull app:1 app.tar

\b
Errors are one line on standard error; with --json, a JSON object there:
  {{"error": {{"class": "…", "message": "…", "exit_code": 3}}}}

\b
Exit codes:
{codes}
"""


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_epilog(),
)
@click.version_option(__version__, prog_name="pagepool")
def group() -> None:
    """Push, pull and look into container images on a pagepool service, or any OCI registry."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: the command line without the program's name; None: this process's own.

    Returns:
        The exit code.
    """
    state = output.State()

    def work() -> object:
        try:
            result = group.main(arguments, prog_name="pagepool", standalone_mode=False, obj=state)
        except click.ClickException:
            state.json = state.json or _wants_json(sys.argv[1:] if arguments is None else arguments)
            raise
        output.flush()
        return result

    return guard(state, work)


def guard(state: output.State, work: Callable[[], object]) -> int:
    """Do a command's work, and make of every error what users see of it.

    Args:
        state: of the command.
        work: returns its exit code, or something else, which is 0.

    Returns:
        The exit code.
    """
    try:
        result = work()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(state, "Interrupted", "interrupted", exits.INTERRUPTED)
    except click.ClickException as error:
        if isinstance(error, _HELP_INSTEAD):
            click.echo(error.format_message(), err=True)
            return exits.USAGE
        return _fail(state, type(error).__name__, _usage(error), state.failure or exits.USAGE)
    except ContainerError as error:
        if error.told and not state.json:
            return _code(state, error)
        return _fail(state, type(error).__name__, str(error), _code(state, error))
    except PagepoolError as error:
        return _fail(state, type(error).__name__, _words(error), _code(state, error))
    except OSError as error:
        return _os_error(state, error)
    except RuntimeError as error:
        if not threads.is_want_of_threads(error):
            raise
        return _fail(state, BusyError.__name__, threads.WORDS, _code(state, BusyError(threads.WORDS)))
    return result if isinstance(result, int) else exits.OK


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line that could not be understood has ``--json``: then nobody has heeded it yet."""
    words = list(arguments)
    return "--json" in words[: words.index("--")] if "--" in words else "--json" in words


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        from pagepool.cli.elsewhere import LIST_OPTIONS, LISTS, unknown_option

        error = unknown_option(error, LIST_OPTIONS) if context.command.name in LISTS else error
    message = error.format_message().rstrip(".")
    return f"{message} (see {context.command_path} --help)" if context else message


def _words(error: PagepoolError) -> str:
    """What is said of an error: also what to do where nobody named a server, and none is there."""
    if str(error) == str(UnreachableError(_DEFAULT_WHERE, os.strerror(errno.ECONNREFUSED))):
        return f"{error}; pagepool serve starts a service there; --server or PAGEPOOL_SERVER names another"
    return str(error)


def _os_error(state: output.State, error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        output.hush()
        return exits.BROKEN_PIPE
    words = error.strerror or str(error)
    full = StoreFullError(words) if words in _FULL else None
    named = isinstance(error.filename, str | bytes | os.PathLike)  # a call on a descriptor has its number there
    message = f"{os.fsdecode(error.filename)}: {_more(error) if full else words}" if named else words
    return _fail(state, type(error).__name__, message, _code(state, full or error))


def _more(error: OSError) -> str:
    from pagepool import linux

    return linux.words_of(error, os.path.dirname(os.fsdecode(error.filename)) or ".")  # noqa: PTH120 - as above


def _code(state: output.State, error: BaseException) -> int:
    if state.failure is not None and not isinstance(error, ContainerError):
        return state.failure
    return exits.exit_code(error)


def _fail(state: output.State, kind: str, message: str, code: int) -> int:
    """Tell the error in one line, and return the code."""
    text = output.printable(" ".join(message.split()))
    if state.json:
        text = json.dumps({"error": {"class": kind, "message": text, "exit_code": code}}, ensure_ascii=False)
    else:
        text = f"pagepool: error: {text}"
    try:
        click.echo(text, err=True)
    except OSError:
        output.hush()  # nobody reads it; the code still says it
    return code
