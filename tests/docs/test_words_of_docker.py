"""The table of docker's words: what it calls the same is in the parser, what it calls missing is not."""

from __future__ import annotations

import re

import pytest

import imagetool.parser
from rootdisk.cli.arguments import subparsers
from rootdisk.cli.tools import IMAGETOOL_COMMANDS, RUNNER_COMMANDS
from rootdisk.errors import BadInput
from runner.cli import parser
from runner.sandbox.state import Spec
from runner.words.docker import COMMANDS, FIELDS, GLOBAL, NOT, OPTIONS, PAIRS, SAME
from runner.words.hints import answer, answer_field
from runner.words.podman import PODMAN_COMMANDS, PODMAN_OPTIONS

OURS = subparsers(parser())
IMAGETOOL = subparsers(imagetool.parser.parser())


def flags(command: str) -> set[str]:
    return set(OURS[command]._option_string_actions)


def test_a_command_is_the_same_only_if_we_have_it() -> None:
    for name, word in COMMANDS.items():
        assert (word == SAME) == (name in OURS), name
    beyond = set(OURS) - set(COMMANDS)
    assert beyond == {"boot", "prune", "verify", "doctor", "completion", "snapshot", "snapshots", "serve", "trim"}


def test_an_option_is_the_same_only_if_we_have_it() -> None:
    for command, some in OPTIONS.items():
        for name, word in some.items():
            if name == "-h":  # --help here
                continue
            assert (word == SAME) == (name in flags(command)), (command, name)
    for command in set(OPTIONS) & set(OURS):
        beyond = flags(command) - set(OPTIONS[command])
        assert not beyond & {"--volume", "--env", "--name"}, command


def test_suggested_commands_and_options_exist() -> None:
    tables = (COMMANDS, PAIRS, PODMAN_COMMANDS, *OPTIONS.values(), *PODMAN_OPTIONS.values())
    words = [word for table in tables for word in table.values()]
    for word in words:
        for tool, command in re.findall(r"\b(runner|imagetool) ([a-z]+)", word):
            assert command in (OURS if tool == "runner" else IMAGETOOL) or word.startswith(NOT), word
    for name, word in {**OPTIONS["run"], **PODMAN_OPTIONS["run"]}.items():
        for option in re.findall(r"^(-{1,2}[a-z0-9-]+)", word):
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
        (["ps", "-H", "ssh://x"], "docker's -H is not here: the runner has no daemon"),
        (
            ["system", "prune", "-f"],
            "'system' is not a command: here docker's system prune is runner prune; runner rm NAME…",
        ),
        (["system", "dial-stdio"], "here docker's system is runner prune, runner doctor"),
        (["image", "prune", "-a"], "'image' is not a command: here docker's image prune is runner prune"),
        (["image", "rm", "a"], "here docker's image rm is runner rmi"),
        (["container", "ls", "-a"], "here docker's container ls is runner ps"),
        (["container", "run", "-d", "a"], "here docker's container run is runner run"),
        (["container", "pause", "a"], "docker's container pause is not here: runner stop NAME"),
        (["volume", "prune"], "docker's volume prune is not here: a volume is a directory of the host, which stays"),
        (["prune", "-f"], "here docker's -f is the default: it does not ask"),
        (["prune", "--filter", "until=24h"], "here docker's --filter is --older-than DAYS"),
        (["pod", "ps"], "podman's pod is not here: the runner has no pods"),
        (["run", "--replace", "--name", "b", "a"], "here podman's --replace is runner rm -f NAME first"),
        (["rm", "-a"], "missing: NAME: here podman's -a is runner rm -f $(runner ps -aq)"),
        (["rm", "-af"], "missing: NAME: here podman's -a is runner rm -f $(runner ps -aq)"),
        (["rm", "-fa"], "here podman's -a is runner rm -f $(runner ps -aq)"),
        (["rm", "-fv", "a"], "here docker's -v is the default: nothing of a sandbox stays"),
        (["logs", "-fl"], "podman's -l is not here: name the sandboxes"),
        (["cp", "-aL", "a", "b:/"], "docker's -a is not here: owners are not kept"),
        (
            ["cp", "--pause=false", "a", "b:/"],
            "podman's --pause is not here: the sandbox runs on while files are copied",
        ),
        (["wait", "--condition=stopped", "a"], "here podman's --condition is the default: runner wait returns"),
        (["wait", "--latest"], "missing: NAME: podman's --latest is not here: name the sandboxes"),
        (["exists", "a"], "here podman's exists is runner inspect NAME > /dev/null, by its exit status"),
        (["container", "exists", "a"], "here podman's container exists is runner inspect NAME"),
        (["image", "tree", "a"], "here podman's image tree is imagetool inspect ARTIFACT"),
        (["run", "--rm=true", "a"], "--rm takes no value: write --rm alone, or leave it out"),
        (
            ["login", "--username=a", "--password=b"],
            "unrecognized arguments: --password: here docker's --password is --password-stdin",
        ),
        (["run", "--pidfile", "a", "b"], "here podman's --pidfile is runner inspect NAME"),
        (["desktop", "start"], "docker's desktop is not here: it is a part of Docker Desktop"),
        (["pull", "--tls-verify=false", "a"], "--plain-http"),
        (["network", "ls"], "docker's network is not here: a sandbox has its own network"),
        (["tags", "a"], "imagetool has it: imagetool tags"),
        (["login", "-p", "x"], "--password-stdin"),
        (["rm", "-fz", "a"], "unrecognized arguments: -z: see runner rm --help"),
        (["run", "-itv", "/a:/b", "--tty=1", "a", "ls", "-la"], "--tty takes no value: write --tty alone"),
        (["run", "--pid", "host", "a"], "unrecognized arguments: --pid: docker's --pid is not here"),
        (["run", "--network", "host", "a"], "--network=host is not here: a sandbox has its own network"),
        (["run", "--network=bridge", "a"], "here docker's --network=bridge is --network user, the default"),
        (["run", "--network=usr", "a"], "did you mean user?"),
        (["run", "--pull", "newer", "a"], "here docker's --pull=newer is --pull always"),
        # As command_first() has them: an option before the command has left its value behind.
        (["tcp://x", "-H", "ps"], "unrecognized arguments: -H: docker's -H is not here: the runner has no daemon"),
        (["debug", "--log-level", "ps"], "unrecognized arguments: --log-level: here docker's --log-level is --debug"),
        (["x", "--context", "run", "-p", "80:80", "a"], "docker's --context is not here"),
        (["debug", "a"], "'debug' is not a command: here docker's debug is runner exec -it NAME sh"),
    ],
)
def test_errors_name_our_command(words: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parser().parse_args(words)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "words",
    [
        ["login", "registry.example.org", "-p", "hunter2"],
        ["login", "registry.example.org", "--password", "hunter2"],
        ["login", "registry.example.org", "--password=hunter2"],
        ["login", "-phunter2", "registry.example.org"],
        ["login", "-u", "me", "-p", "hunter2", "registry.example.org"],
    ],
)
def test_a_password_is_not_shown(words: list[str]) -> None:
    with pytest.raises(BadInput, match=r"here docker's -?-p(assword)? is --password-stdin") as caught:
        parser().parse_args(words)
    assert "hunter2" not in str(caught.value)


def test_abbreviations() -> None:
    """Docker's own short names of ours go on working."""
    assert parser().parse_args(["run", "--net=none", "--dns-opt", "ndots:2", "a"]).network == "none"


def test_fields_of_inspect() -> None:
    """A field is one of ours, or there is a reason."""
    ours = {*Spec._fields, "error", "ended", "pid", "ports", "running", "started", "state", "status"}
    for name, word in FIELDS.items():
        assert word.startswith(NOT) or word in ours, name
    assert answer_field("State.Running") == "here docker's .State.Running is {{.running}}"
    assert answer_field("Config.Env").startswith("docker's .Config.Env is not here: variables may be secrets")
    assert answer_field("Nosuch") == ""


def test_podmans_table_repeats_nothing_of_dockers() -> None:
    """What docker has too is in docker's table. What is the same here is in neither."""
    for name, word in PODMAN_COMMANDS.items():
        assert name not in {**COMMANDS, **OURS}, name
        assert word != SAME
    for command, some in PODMAN_OPTIONS.items():
        for name, word in some.items():
            assert name not in {**OPTIONS[command], **dict.fromkeys(flags(command))}, (command, name)
            assert word != SAME


def test_a_global_option_is_the_same_only_if_all_commands_have_it() -> None:
    every = [flags(command) for command in OURS]
    for name, word in GLOBAL.items():
        there = name in {"-v", "--version"} or all(name in some for some in every)
        assert (word == SAME) == there, name


def test_the_tools_know_each_others_commands() -> None:
    both = set(OURS) & set(IMAGETOOL)
    assert set(OURS) - both == RUNNER_COMMANDS
    assert set(IMAGETOOL) - both == IMAGETOOL_COMMANDS


def test_unknown_words_get_no_answer() -> None:
    assert answer("", "frobnicate") == answer("run", "--frobnicate") == ""
