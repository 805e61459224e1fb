"""Changes of a configuration: what docker's instructions make of it."""

from __future__ import annotations

from typing import Any

import pytest

from pagepool.commit import InstructionInvalidError, parse_instruction
from pagepool.commit.instructions import apply_instructions

_BEFORE: dict[str, Any] = {
    "Cmd": ["sh"],
    "Entrypoint": ["init"],
    "Env": ["A=1", "PATH=/bin"],
    "Labels": {"a": "1"},
    "ExposedPorts": {"1/tcp": {}},
    "WorkingDir": "/srv",
    "User": "root",
}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}),
        ("CMD a 'b c'", {"Cmd": ["/bin/sh", "-c", "a 'b c'"]}),
        ("CMD=/bin/run", {"Cmd": ["/bin/sh", "-c", "/bin/run"]}),
        ("CMD []", {"Cmd": None}),
        ("entrypoint [\"go\"]", {"Entrypoint": ["go"], "Cmd": None}),
        ("ENV B=2 A='two words'", {"Env": ["A=two words", "PATH=/bin", "B=2"]}),
        ("ENV A two words", {"Env": ["A=two words", "PATH=/bin"]}),
        ("ENV=A=b=c", {"Env": ["A=b=c", "PATH=/bin"]}),
        ("ENV A=", {"Env": ["A=", "PATH=/bin"]}),
        ('LABEL b="x y" c=', {"Labels": {"a": "1", "b": "x y", "c": ""}}),
        ("EXPOSE 80 53/udp", {"ExposedPorts": {"1/tcp": {}, "80/tcp": {}, "53/udp": {}}}),
        ("EXPOSE 90-92", {"ExposedPorts": {"1/tcp": {}, "90/tcp": {}, "91/tcp": {}, "92/tcp": {}}}),
        ("VOLUME /data '/more data'", {"Volumes": {"/data": {}, "/more data": {}}}),
        ('VOLUME ["/data"]', {"Volumes": {"/data": {}}}),
        ("WORKDIR sub/../other", {"WorkingDir": "/srv/other"}),
        ("WORKDIR /abs", {"WorkingDir": "/abs"}),
        ("USER 1000:1000", {"User": "1000:1000"}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
        ("ONBUILD RUN make", {"OnBuild": ["RUN make"]}),
    ],
)  # fmt: skip
def test_what_an_instruction_does(written: str, expected: dict[str, Any]) -> None:
    """All else stays."""
    run = dict(_BEFORE)
    apply_instructions(run, [parse_instruction(written)])
    assert run == {name: value for name, value in (_BEFORE | expected).items() if value is not None}


def test_an_entrypoint_with_a_command_keeps_it() -> None:
    run = dict(_BEFORE)
    apply_instructions(run, map(parse_instruction, ('CMD ["arg"]', 'ENTRYPOINT ["go"]')))
    assert (run["Entrypoint"], run["Cmd"]) == (["go"], ["arg"])


def test_a_configuration_that_says_nothing() -> None:
    run: dict[str, Any] = {"Env": None, "Labels": None, "ExposedPorts": None}
    apply_instructions(run, map(parse_instruction, ("ENV A=1", "LABEL a=1", "EXPOSE 1", "WORKDIR w")))
    assert run == {"Env": ["A=1"], "Labels": {"a": "1"}, "ExposedPorts": {"1/tcp": {}}, "WorkingDir": "/w"}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "it has to begin with one of CMD, ENTRYPOINT"),
        ("CMD", "it has to begin with"),
        ("RUN make", "it has to begin with"),
        ("CMD [a]", "it begins like a JSON list"),
        ("CMD [1]", "it is not a JSON list of texts"),
        ("ENV =1", "its value is NAME=VALUE"),
        ("ENV A", "its value is NAME=VALUE"),
        ("LABEL 'a=1", "a quotation has no end"),
        ("EXPOSE 0", "'0' is not a port"),
        ("EXPOSE 65536", "'65536' is not a port"),
        ("EXPOSE 9-8", "'9-8' is not a port"),
        ("EXPOSE 80/icmp", "'80/icmp' is not a port"),
        ("USER a b", "its value is one word"),
        ("WORKDIR ''", "its value is a path"),
        ("VOLUME []", "its value is a path, or several"),
    ],
)
def test_what_is_none(written: str, reason: str) -> None:
    with pytest.raises(InstructionInvalidError) as caught:
        parse_instruction(written)
    assert reason in str(caught.value)
    assert repr(written) in str(caught.value)
