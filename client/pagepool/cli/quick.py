"""A short way into those commands of the program `pagepool` that run by the hundred, and the usual one into all others.

``run`` and ``mount`` with plain options are read here, by the same rules as click's, and the same functions are called
with them: click alone takes longer to load than all the rest of such a command. Whatever is not plain (help, a
mistake, an option that is seldom used, an option's value that does not look right) is not judged here: click reads it
from the start, and says what is to be said. So there is nothing here that a user could see. A test compares the tables
with click's own.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Syntax(NamedTuple):
    """The plain options of a command.

    Args:
        flags: by spelling, the parameter that is true then.
        values: by spelling, the parameter that has the word that follows; it can be given once.
        lists: the same, any number of times.
        choices: by parameter, what it may be.
        directories: parameters that name a directory.
        variables: by parameter, the environment variable that stands for it.
        defaults: of all parameters of the command.
        interspersed: whether options may follow what is none.
    """

    flags: Mapping[str, str]
    values: Mapping[str, str]
    lists: Mapping[str, str]
    choices: Mapping[str, tuple[str, ...]]
    directories: tuple[str, ...]
    variables: Mapping[str, str]
    defaults: Mapping[str, Any]
    interspersed: bool


_SERVER_DEFAULTS: Final = {
    "server": "http://127.0.0.1:5000",
    "plain_http": False,
    "insecure": False,
    "ca_certificate": None,
    "username": None,
    "password_stdin": False,
    "pool": None,
    "tree_timeout": 600.0,
}
_FLAGS: Final = {
    "--plain-http": "plain_http",
    "--insecure": "insecure",
    "--json": "json",
    "--quiet": "quiet",
    "-q": "quiet",
}
_VALUES: Final = {
    "--server": "server",
    "--pool": "pool",
    "--node-state": "node_state",
    "--node-run": "node_run",
    "--backend": "backend",
}
_BACKENDS: Final = ("auto", "kernel", "fuse")
_DIRECTORIES: Final = ("pool", "node_state", "node_run")
_VARIABLES: Final = {
    "server": "PAGEPOOL_SERVER",
    "ca_certificate": "PAGEPOOL_CA_CERTIFICATE",
    "pool": "PAGEPOOL_POOL",
    "node_state": "PAGEPOOL_NODE_STATE",
    "node_run": "PAGEPOOL_NODE_RUN",
    "backend": "PAGEPOOL_BACKEND",
    "tree_timeout": "PAGEPOOL_TREE_TIMEOUT",
}

RUN: Final = Syntax(
    flags=_FLAGS
    | {
        "-i": "interactive",
        "--interactive": "interactive",
        "-t": "tty",
        "--tty": "tty",
        "-d": "detach",
        "--detach": "detach",
        "--rm": "rm",
        "--read-only": "read_only",
        "--eager": "eager",
        "--fill": "eager",
    },
    values=_VALUES
    | {
        "--name": "name",
        "--entrypoint": "entrypoint",
        "-w": "workdir",
        "--workdir": "workdir",
        "-u": "user",
        "--user": "user",
        "-h": "hostname",
        "--hostname": "hostname",
        "--network": "network",
        "--net": "network",
        "-m": "memory",
        "--memory": "memory",
        "--runtime": "runtime",
    },
    lists={"-e": "env", "--env": "env", "-v": "volumes", "--volume": "volumes"},
    choices={"backend": _BACKENDS, "runtime": ("auto", "runc", "own")},
    directories=_DIRECTORIES,
    variables=_VARIABLES,
    defaults=_SERVER_DEFAULTS
    | {
        "interactive": False,
        "tty": False,
        "detach": False,
        "log": None,
        "name": "",
        "rm": False,
        "entrypoint": None,
        "env": (),
        "env_file": (),
        "workdir": None,
        "user": None,
        "hostname": "",
        "network": None,
        "publish": (),
        "volumes": (),
        "memory": None,
        "pids_limit": None,
        "read_only": False,
        "labels": (),
        "add_hosts": (),
        "mounts": (),
        "tmpfs": (),
        "shm_size": None,
        "devices": (),
        "cpus": None,
        "ulimits": (),
        "cap_add": (),
        "cap_drop": (),
        "security_opt": (),
        "group_add": (),
        "stop_signal": None,
        "stop_timeout": None,
        "init": False,
        "cidfile": None,
        "runtime": "auto",
        "upper": None,
        "eager": False,
        "quota": 0,
        "backend": "auto",
        "platform": None,
    },
    interspersed=False,
)

MOUNT: Final = Syntax(
    flags=_FLAGS
    | {
        "--ro": "read_only",
        "--rw": "temporary",
        "--eager": "eager",
        "--fill": "eager",
        "--no-fill": "no_fill",
        "--dev": "dev",
        "--nosuid": "nosuid",
    },
    values=_VALUES,
    lists={},
    choices={"backend": _BACKENDS},
    directories=_DIRECTORIES,
    variables=_VARIABLES,
    defaults=_SERVER_DEFAULTS
    | {
        "upper": None,
        "read_only": False,
        "temporary": False,
        "eager": False,
        "no_fill": False,
        "quota": None,
        "backend": "auto",
        "foreground": False,
        "dev": False,
        "nosuid": False,
        "allow_other": None,
        "platform": None,
    },
    interspersed=True,
)

SYNTAXES: Final = {"run": RUN, "mount": MOUNT}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit.

    Args:
        arguments: the command line without the program's name; None: this process's own.
    """
    code = run(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and "click" not in sys.modules:
        _end(code)
    sys.exit(code)


def _end(code: int) -> None:
    """End this process without taking it apart, which takes as long as half of its work. Returns if its output cannot
    be written: that is for Python to say."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the program; the exit code."""
    is_known = bool(arguments) and arguments[0] in SYNTAXES
    command = None
    if is_known:
        _load_little()
        # What is loaded stays: nothing of it need be looked through for what can be freed, now or later.
        gc.disable()
        command = _command(arguments)
        gc.freeze()
        gc.enable()
    if command is None:
        _load_all()
        from pagepool.cli.app import run as run_program

        return run_program(arguments)
    try:
        return _flushed(command())
    except BaseException as error:  # noqa: BLE001 - what it is, and whether it is shown, is decided there
        return _explain(error)
    finally:
        from pagepool.cli.state import leave

        leave()


def _flushed(code: int) -> int:
    output = sys.modules.get("pagepool.cli.output")
    if output is not None:  # else nothing was printed
        output.flush()
    return code


class _Later(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the importer's questions
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


class _Inspect(_Later):
    """Stands for `inspect`, and knows what `dataclasses` asks it of every class in Python 3.12 and newer."""

    def get_annotations(self, of: object, **options: object) -> dict[str, Any]:
        """See `inspect.get_annotations`. From 3.14 on a class may have them only when it is asked."""
        if isinstance(of, type) and not options and sys.version_info < (3, 14):
            return dict(vars(of).get("__annotations__", {}))
        found: dict[str, Any] = self.__getattr__("get_annotations")(of, **options)
        return found

    def unwrap(self, of: Any, **options: object) -> Any:
        """See `inspect.unwrap`. No function of ours wraps itself."""
        if options:
            return self.__getattr__("unwrap")(of, **options)
        while not isinstance(of, type) and hasattr(of, "__wrapped__"):
            of = of.__wrapped__
        return of


def _load_little() -> None:
    """Do without what is loaded by others and not used: `dataclasses` has `inspect` for classes without a docstring, of
    which there are none here, and for annotations, and that has half of a compiler."""
    if "inspect" not in sys.modules:
        sys.modules["inspect"] = _Inspect("inspect")


def _load_all() -> None:
    """Have everything as it is elsewhere: click asks much of `inspect`."""
    if isinstance(sys.modules.get("inspect"), _Later):
        del sys.modules["inspect"]


def _explain(error: BaseException) -> int:
    _load_all()
    from pagepool.cli.app import guard
    from pagepool.cli.state import current

    def fail() -> object:
        raise error

    return guard(current(), fail)


def _command(arguments: Sequence[str]) -> Callable[[], int] | None:
    """What to do; None if click has to read it."""
    syntax = SYNTAXES.get(arguments[0]) if arguments else None
    found = None if syntax is None else read(syntax, arguments[1:], os.environ)
    if found is None:
        return None
    given, words = found
    from pagepool.cli.state import State, enter
    from pagepool.errors import PagepoolError
    from pagepool.oci.reference import Reference

    try:
        reference = Reference.parse(words[0])
    except PagepoolError:
        return None
    asked = {name: given.pop(name) for name in ("json", "quiet", "node_state", "node_run") if name in given}
    enter(State(**asked))
    if arguments[0] == "run":
        from pagepool.cli.running import run_image

        return lambda: run_image(reference, tuple(words[1:]), given)  # type: ignore[arg-type]
    from pagepool.cli.mounting import mount

    return lambda: mount(reference, Path(words[1]), given)  # type: ignore[arg-type]


def read(
    syntax: Syntax, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]] | None:
    """Read a command's arguments.

    Args:
        arguments: without the command's name.
        environment: of this process.

    Returns:
        the parameters by name, and the words that are no options; None if any of it is not plain.
    """
    said: dict[str, Any] = {}
    words: list[str] = []
    left = list(reversed(arguments))
    while left:
        word = left.pop()
        if word[:1] != "-" or word == "-":
            words.append(word)
            if not syntax.interspersed:
                words += reversed(left)
                break
        elif not _read_option(syntax, word, left, said):
            return None
    if not _add_variables(syntax, environment, said) or not _is_plain(syntax, said, words):
        return None
    return {**syntax.defaults, **said}, words


def _read_option(syntax: Syntax, word: str, left: list[str], said: dict[str, Any]) -> bool:
    """Read an option, and its value off the end of what is left. False if it is not plain."""
    name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
    if not equals and (flags := _flags(syntax, word)) is not None:
        said |= dict.fromkeys(flags, True)
        return True
    parameter = syntax.values.get(name) or syntax.lists.get(name)
    if parameter is None or (not equals and not left):
        return False
    value = value if equals else left.pop()
    if name in syntax.lists:
        said[parameter] = (*said.get(parameter, ()), value)
    else:
        said[parameter] = value
    return True


def _flags(syntax: Syntax, word: str) -> list[str] | None:
    """The parameters of a flag, or of several in one word, such as ``-it``; None if it is no such word."""
    names = [word] if word.startswith("--") else [f"-{letter}" for letter in word[1:]]
    found = [syntax.flags[name] for name in names if name in syntax.flags]
    return found if len(found) == len(names) else None


def _add_variables(syntax: Syntax, environment: Mapping[str, str], said: dict[str, Any]) -> bool:
    """Add what the environment says. False if that is not plain."""
    spoken = (*syntax.values.values(), *syntax.lists.values())
    for parameter, variable in syntax.variables.items():
        value = environment.get(variable)
        if value and parameter not in said:
            if parameter not in spoken:
                return False
            said[parameter] = value
    return True


def _is_plain(syntax: Syntax, said: dict[str, Any], words: list[str]) -> bool:
    """Whether values are what they may be; directories become paths."""
    if any(said.get(name, choices[0]) not in choices for name, choices in syntax.choices.items()):
        return False
    for name in syntax.directories:
        if name in said:
            if not _is_directory(said[name]):
                return False
            path = Path(said[name])
            said[name] = path if name == "pool" else path.absolute()
    if syntax is MOUNT:
        return len(words) == 2 and not (said.get("read_only") and said.get("temporary")) and _is_directory(words[1])
    return bool(words) and not (said.get("detach") and said.get("interactive"))


def _is_directory(path: str) -> bool:
    """Whether there is a directory that can be read, or nothing."""
    return not os.path.lexists(path) or (Path(path).is_dir() and os.access(path, os.R_OK))
