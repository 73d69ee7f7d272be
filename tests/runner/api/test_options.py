"""Options as keyword arguments: those of the command, no more and no fewer."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runner
from rootdisk.cli.arguments import subparsers
from rootdisk.errors import BadInput
from runner import AsyncSandbox, Sandbox
from runner.api.options import NOT_OFFERED, BootOptions, boot_options
from runner.api.store import PullOptions
from runner.parser import parser
from tests.support.commands import ROOT


@pytest.mark.parametrize(("command", "options"), [("boot", BootOptions), ("pull", PullOptions)])
def test_every_option_of_the_command(command: str, options: Any) -> None:
    """A new option of `runner boot` is added to BootOptions too."""
    actions = {action.dest for action in subparsers(parser(command))[command]._actions}
    assert set(options.__annotations__) == actions - NOT_OFFERED


REGISTRY = ("platform", "policy", "plain_http", "ca_file")
# The method that does what a command does, and how it has the options that it does not have by that name.
NAMED = {"name": "get"}
NO_TERMINAL = {"interactive": "spawn, with stdin=True", "tty": "there is no terminal"}
METHODS: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "start": (
        Sandbox.start,
        {**NAMED, "interactive": "there is no terminal", "attach": "wait", "all": "of a host that boots"},
    ),
    "restart": (Sandbox.restart, {**NAMED, "time": "timeout"}),
    "exec": (
        Sandbox.exec,
        {**NAMED, **NO_TERMINAL, "program": "command", "env_file": "env", "detach": "exec_detached"},
    ),
    "cp": (Sandbox.copy_in, {"quiet": "there is no progress"}),
    "stop": (Sandbox.stop, {**NAMED, "time": "timeout", "all": "of a host that shuts down"}),
    "kill": (Sandbox.kill, NAMED),
    "wait": (Sandbox.wait, NAMED),
    "ps": (
        Sandbox.list,
        dict.fromkeys(("last", "latest", "quiet", "filter", "format", "no_trunc"), "a list is filtered by Python"),
    ),
    "logs": (Sandbox.logs, {**NAMED, "timestamps": "LogPiece.time", "network": "connections"}),
    "stats": (Sandbox.stats, {**NAMED, "no_stream": "always", "format": "a dict"}),
    "inspect": (Sandbox.inspect, {"artifact": "get", "format": "a dict", **dict.fromkeys(REGISTRY, "pull")}),
    "snapshot": (Sandbox.snapshot, {"snapshot": "name"}),
    "rename": (Sandbox.rename, NAMED),
    "trim": (Sandbox.trim, NAMED),
    "rm": (Sandbox.remove, {**NAMED, "snapshot": "remove_snapshot"}),
    "prune": (runner.prune, {"older_than": "older_than_days"}),
    "verify": (runner.verify, {}),
    "events": (runner.events, {"filter": "an iterator is filtered by Python", "format": "a dict"}),
    "images": (
        runner.images,
        dict.fromkeys(("quiet", "filter", "format", "no_trunc", "digests"), "a list is filtered by Python"),
    ),
    "rmi": (runner.rmi, {}),
    "snapshots": (runner.snapshots, {"quiet": "a list"}),
}
OTHERS = {
    "boot": "BootOptions",
    "run": "BootOptions",
    "pull": "PullOptions",
    "serve": "a process of its own",
    **dict.fromkeys(("login", "logout", "doctor", "completion"), "for people"),
}


def test_every_command_has_a_method() -> None:
    """A new command or option is added to the API too, or here with the reason."""
    commands = subparsers(parser())
    assert set(commands) == METHODS.keys() | OTHERS.keys()
    for name, (method, otherwise) in METHODS.items():
        options = {action.dest for action in commands[name]._actions} - {"help", "json", "debug"}
        assert options - inspect.signature(method).parameters.keys() == set(otherwise), name


def test_both_kinds_of_sandbox_are_the_same() -> None:
    def methods(kind: type) -> dict[str, Any]:
        """The public methods of a class, with their parameters."""
        found = inspect.getmembers(kind, inspect.isroutine)
        return {name: [*inspect.signature(value).parameters.values()] for name, value in found if name[0] != "_"}

    plain, for_asyncio = methods(Sandbox), methods(AsyncSandbox)
    for name in ("connect", "find", "settle", "drop", "begin", "log", "reached"):  # for AsyncSandbox itself
        del plain[name]
    assert for_asyncio.pop("is_running")
    assert for_asyncio == plain


def test_as_the_parser_reads_them() -> None:
    words = "--memory 512m --cpus 2 --timeout 1.5 -e A=b -e C=d=e -l x=1 --read-only --network none -p 80:81"
    files = "--env-file /a --policy /p"
    typed = parser("boot").parse_args(["boot", *words.split(), *files.split(), "-q", "oci:x", "sh", "-c", "true"])
    options: BootOptions = {
        "memory": "512m",
        "cpus": 2,
        "timeout": 1.5,
        "env": {"A": "b", "C": "d=e"},
        "label": ["x=1"],
        "read_only": True,
        "network": "none",
        "publish": ["80:81"],
        "env_file": ["/a"],
        "policy": Path("/p"),
    }
    assert boot_options("oci:x", ["sh", "-c", "true"], options) == typed
    assert boot_options("oci:x", (), {"memory": 1 << 29, "name": None}).memory == str(1 << 29)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memroy": "1g"}, "memroy is not an option of boot: did you mean memory?"),
        ({"tty": True}, "tty is not an option of boot"),
        ({"network": "host"}, "network='host': write one of user, none"),
        ({"read_only": 1}, "read_only=1: True or False"),
        ({"cpus": "two"}, "cpus: 'two' is not a whole number"),
        ({"cpus": True}, "cpus=True"),
        ({"publish": "80:80"}, "publish is str, not a list"),
        ({"timeout": float("nan")}, "timeout: 'nan' is not a number"),
    ],
)
def test_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        boot_options("oci:x", (), options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("artifact", "command", "options"),
    [
        ("oci:\ud800", ["x"], {}),
        ("oci:a\0", ["x"], {}),
        ("oci:x", ["\ud800"], {}),
        ("oci:x", ["a\0b"], {}),
        ("oci:x", ["x"], {"env": {"A": "\ud800"}}),
        ("oci:x", ["x"], {"label": ["\0"]}),
        ("oci:x", ["x"], {"env_file": [Path("\ud800")]}),
        ("oci:x", ["x"], {"policy": "/\0"}),
        ("oci:x", ["x"], {"from_snapshot": "\ud800"}),
    ],
)
def test_texts_that_no_program_could_receive(artifact: str, command: list[str], options: BootOptions) -> None:
    with pytest.raises(BadInput, match=r"half of a surrogate pair|a NUL byte"):
        boot_options(artifact, command, options)


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    assert boot_options("oci:x", ["\udcff"], {"env": ["A=\udcff"]}).program == ["\udcff"]
    for name in ("\ud800", "\udcff", "a\0"):
        with pytest.raises(BadInput, match="no sandbox"):
            Sandbox.get(name, store=tmp_path)
        with pytest.raises(BadInput, match="no snapshot"):
            runner.remove_snapshot(name, store=tmp_path)


def test_a_command_is_a_list() -> None:
    with pytest.raises(BadInput, match="is one text: write a list"):
        boot_options("oci:x", "sleep 5", {})


def test_the_names_are_there_and_cost_nothing() -> None:
    for name in runner.__all__:
        assert getattr(runner, name).__doc__, name
    assert set(runner.__all__) <= set(dir(runner))
    with pytest.raises(AttributeError, match="has no attribute 'Sandbx'"):
        runner.Sandbx  # noqa: B018
    program = (
        "import sys; import runner; print([m for m in ('typing', 'socket', 'requests', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    program = "import sys; from runner import Sandbox; print([m for m in ('argparse', 'requests', 'subprocess', 'runner.sandbox.prepare') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
