"""The table of docker's words: what it calls the same is in the parser, what it calls missing is not."""

from __future__ import annotations

import re

import pytest

import imagetool.parser
from rootdisk.cli.arguments import subparsers
from rootdisk.cli.tools import IMAGETOOL_COMMANDS, RUNNER_COMMANDS
from rootdisk.errors import BadInput
from runner.cli import parser
from runner.docker_words import COMMANDS, GLOBAL, NOT, OPTIONS, SAME, answer

OURS = subparsers(parser())
IMAGETOOL = subparsers(imagetool.parser.parser())


def flags(command: str) -> set[str]:
    return set(OURS[command]._option_string_actions)


def test_commands() -> None:
    for name, word in COMMANDS.items():
        assert (word == SAME) == (name in OURS), name
    beyond = set(OURS) - set(COMMANDS)
    assert beyond == {"boot", "prune", "verify", "doctor", "completion", "snapshot", "snapshots", "serve", "trim"}


def test_options() -> None:
    for command, some in OPTIONS.items():
        for name, word in some.items():
            if name == "-h":  # --help here
                continue
            assert (word == SAME) == (name in flags(command)), (command, name)
    for command in set(OPTIONS) & set(OURS):
        beyond = flags(command) - set(OPTIONS[command])
        assert not beyond & {"--volume", "--env", "--name"}, command


def test_what_it_tells_to_type_is_there() -> None:
    words = [*COMMANDS.values(), *(word for some in OPTIONS.values() for word in some.values())]
    for word in words:
        for tool, command in re.findall(r"\b(runner|imagetool) ([a-z]+)", word):
            assert command in (OURS if tool == "runner" else IMAGETOOL) or word.startswith(NOT), word
    for name, word in OPTIONS["run"].items():
        for option in re.findall(r"^(-{1,2}[a-z-]+)", word):
            assert option in flags("run"), (name, word)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push", "a"], "imagetool push"),
        (["pause", "a"], "runner stop NAME"),
        (["version"], "runner --version"),
        (["run", "--privileged", "a"], "virtual machine"),
        (["boot", "--mount", "x", "a"], "-v HOST:GUEST"),
        (["rm", "-v", "a"], "nothing of a sandbox stays"),
        (["exec", "--privileged", "a", "b"], "-u 0"),
        (["ps", "-H", "ssh://x"], "docker's -H is not here: there is no daemon"),
        (["system", "prune"], "'system' is not a command: here docker's system is runner prune, runner doctor"),
        (["network", "ls"], "docker's network is not here: a sandbox has its own network"),
        (["tags", "a"], "imagetool has it: imagetool tags"),
        (["login", "-p", "x"], "--password-stdin"),
    ],
)
def test_errors_say_ours(words: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parser().parse_args(words)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_global_options() -> None:
    every = [flags(command) for command in OURS]
    for name, word in GLOBAL.items():
        there = name in {"-v", "--version"} or all(name in some for some in every)
        assert (word == SAME) == there, name


def test_the_tools_know_each_others_commands() -> None:
    both = set(OURS) & set(IMAGETOOL)
    assert set(OURS) - both == RUNNER_COMMANDS
    assert set(IMAGETOOL) - both == IMAGETOOL_COMMANDS


def test_unknown_words() -> None:
    assert answer("", "frobnicate") == answer("run", "--frobnicate") == ""
