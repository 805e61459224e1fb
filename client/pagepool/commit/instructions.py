"""Changes of an image's configuration, written as a Dockerfile writes them: ``CMD ["run"]``, ``ENV A=1``.

The instructions, and what each does to a configuration, are those of ``docker commit --change``. ``NAME=value`` is
understood too, as podman has it.

Pure functions.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from pagepool.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FORM: Final = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)", re.DOTALL)
_PORT: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?")
_MAX_PORT: Final = 65535
_SHELL: Final = ("/bin/sh", "-c")


class InstructionInvalidError(InvalidError):
    """A change of the configuration that cannot be understood."""

    what = "change"


class Instruction(NamedTuple):
    """One change.

    Args:
        name: what is changed, in capitals.
        value: to what, parsed: a list of words, pairs, or a text, as the instruction has it.
        text: as it was written.
    """

    name: str
    value: Any
    text: str


def parse_instruction(text: str) -> Instruction:
    """Parse one change.

    Raises:
        InstructionInvalidError: not an instruction that is known, or its value is none.
    """
    match = _FORM.fullmatch(text)
    name = match[1].upper() if match else ""
    if match is None or name not in _PARSERS:
        raise InstructionInvalidError(text, f"it has to begin with one of {', '.join(sorted(_PARSERS))}")
    return Instruction(name, _PARSERS[name](text, match[2].strip()), text)


def apply_instructions(run: dict[str, Any], instructions: Iterable[Instruction]) -> None:
    """Change the ``config`` object of an image's configuration, in place.

    As docker has it, another entrypoint takes the inherited command away, unless one is given along with it.
    """
    instructions = list(instructions)
    names = {instruction.name for instruction in instructions}
    if "ENTRYPOINT" in names and "CMD" not in names:
        run.pop("Cmd", None)
    for name, value, _ in instructions:
        _APPLY[name](run, value)


def _refuse(text: str, reason: str) -> NoReturn:
    raise InstructionInvalidError(text, reason)


def _command(text: str, value: str) -> list[str]:
    """A JSON list of words, or a line for the shell."""
    return _words_of_json(text, value) if value.startswith("[") else [*_SHELL, value] if value else []


def _words_of_json(text: str, value: str) -> list[str]:
    try:
        words = json.loads(value)
    except ValueError:
        _refuse(text, "it begins like a JSON list, and is none")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        _refuse(text, "it is not a JSON list of texts")
    return words


def _pairs(text: str, value: str) -> list[tuple[str, str]]:
    """``A=1 B="two words"``, or, of one pair, ``A two words``."""
    name, space, rest = value.partition(" ")
    if space and "=" not in name:
        return [(name, rest.strip())]
    pairs = [word.partition("=") for word in _words(text, value)]
    if not pairs or not all(name and equals for name, equals, _ in pairs):
        _refuse(text, "its value is NAME=VALUE, or several of them")
    return [(name, content) for name, _, content in pairs]


def _words(text: str, value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        _refuse(text, "a quotation has no end")


def _one(text: str, value: str) -> str:
    words = _words(text, value)
    return words[0] if len(words) == 1 else _refuse(text, "its value is one word")


def _path(text: str, value: str) -> str:
    path = _one(text, value)
    return path if path else _refuse(text, "its value is a path")


def _paths(text: str, value: str) -> list[str]:
    paths = _words_of_json(text, value) if value.startswith("[") else _words(text, value)
    return paths if paths and all(paths) else _refuse(text, "its value is a path, or several of them")


def _ports(text: str, value: str) -> list[str]:
    ports: list[str] = []
    for word in _words(text, value):
        match = _PORT.fullmatch(word)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if match is None or not 0 < first <= last <= _MAX_PORT:
            _refuse(text, f"{word!r} is not a port")
        ports += (f"{port}/{match[3] or 'tcp'}" for port in range(first, last + 1))
    return ports or _refuse(text, "its value is a port, or several of them")


def _raw(text: str, value: str) -> str:
    return value or _refuse(text, "it has no value")


def _set(key: str) -> Callable[[dict[str, Any], Any], None]:
    def apply(run: dict[str, Any], value: Any) -> None:
        if value:
            run[key] = value
        else:
            run.pop(key, None)

    return apply


def _add_keys(key: str) -> Callable[[dict[str, Any], Any], None]:
    def apply(run: dict[str, Any], value: list[str]) -> None:
        run[key] = dict(run.get(key) or {}) | {name: {} for name in value}

    return apply


def _add_environment(run: dict[str, Any], value: list[tuple[str, str]]) -> None:
    found = {line.partition("=")[0]: line for line in run.get("Env") or []}
    run["Env"] = list((found | {name: f"{name}={content}" for name, content in value}).values())


def _add_labels(run: dict[str, Any], value: list[tuple[str, str]]) -> None:
    run["Labels"] = dict(run.get("Labels") or {}) | dict(value)


def _add_trigger(run: dict[str, Any], value: str) -> None:
    run["OnBuild"] = [*(run.get("OnBuild") or []), value]


def _set_directory(run: dict[str, Any], value: str) -> None:
    run["WorkingDir"] = posixpath.normpath(posixpath.join("/", run.get("WorkingDir") or "", value))


_PARSERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "CMD": _command,
    "ENTRYPOINT": _command,
    "ENV": _pairs,
    "EXPOSE": _ports,
    "LABEL": _pairs,
    "ONBUILD": _raw,
    "STOPSIGNAL": _one,
    "USER": _one,
    "VOLUME": _paths,
    "WORKDIR": _path,
}
_APPLY: Final[dict[str, Callable[[dict[str, Any], Any], None]]] = {
    "CMD": _set("Cmd"),
    "ENTRYPOINT": _set("Entrypoint"),
    "ENV": _add_environment,
    "EXPOSE": _add_keys("ExposedPorts"),
    "LABEL": _add_labels,
    "ONBUILD": _add_trigger,
    "STOPSIGNAL": _set("StopSignal"),
    "USER": _set("User"),
    "VOLUME": _add_keys("Volumes"),
    "WORKDIR": _set_directory,
}
