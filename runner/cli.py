"""The runner's commands. Standard output is data, standard error is talk; only `main` prints errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from runner.arguments import Parser
from runner.debug import show
from runner.errors import RootdiskError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

FAILED = 125


def _path(text: str) -> Path:
    from pathlib import Path  # here and in `_json`: what most commands need, and --help does not

    return Path(text)


def parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="write results as JSON")
    common.add_argument("--debug", action="store_true", help="say what is done; show tracebacks")
    remote = Parser(add_help=False)
    remote.add_argument("artifact", metavar="ARTIFACT", help="registry/repository:tag, …@sha256:… or oci:DIR:TAG")
    remote.add_argument("--plain-http", action="store_true", help="speak HTTP to the registry")
    remote.add_argument("--ca-file", type=_path, metavar="FILE", help="certificates to trust beside the system's")
    remote.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")

    machine = Parser(add_help=False)
    _add_machine_options(machine)
    program = Parser(add_help=False)
    _add_program_options(program)

    top = Parser("runner", description="Boots rootdisk artifacts in microVMs.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, *parents: Parser, **words: Any) -> Parser:
        return commands.add_parser(name, parents=[common, *parents], **words)

    boot = command(
        "boot",
        remote,
        machine,
        program,
        help="boot a sandbox; exit with its program's status",
        epilog="Example: runner boot -e NAME=value oci:cache/artifacts/demo:1 -- python3 -c 'print(1)'",
    )
    boot.add_argument("program", nargs="*", metavar="COMMAND", help="in place of the image's command, after --")
    start = command("start", help="start a kept sandbox again")
    start.add_argument("name", metavar="NAME")
    start.add_argument("-a", "--attach", action="store_true", help="stay with it; exit with its program's status")
    exec_ = command(
        "exec",
        program,
        help="run a command in a running sandbox",
        epilog="Example: runner exec -it NAME -- sh",
    )
    exec_.add_argument("name", metavar="NAME")
    exec_.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND", help="and its arguments")
    copy = command(
        "cp",
        help="copy files into or out of a running sandbox",
        epilog="Example: runner cp NAME:/sandbox/result . ; a lone - is a tar archive of standard input or output",
    )
    copy.add_argument("source", metavar="SOURCE", help="PATH or NAME:PATH")
    copy.add_argument("target", metavar="TARGET", help="PATH or NAME:PATH")
    stop = command("stop", help="ask programs to end, and their sandboxes with them")
    stop.add_argument("name", nargs="+", metavar="NAME")
    stop.add_argument("-t", "--time", type=int, default=10, metavar="SECONDS", help="how long to wait: default 10")
    kill = command("kill", help="end sandboxes at once, or send their programs a signal")
    kill.add_argument("name", nargs="+", metavar="NAME")
    kill.add_argument("-s", "--signal", metavar="SIGNAL", help="as HUP or 1; not the end, but a signal")
    command("wait", help="wait for a sandbox's end; write its exit status").add_argument("name", nargs="+")
    command("ps", help="list sandboxes").add_argument("-a", "--all", action="store_true", help="ended ones too")
    logs = command("logs", help="what a detached sandbox's program has written")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    logs.add_argument("--console", action="store_true", help="the guest kernel's console instead")
    inspect = command("inspect", remote, help="say what an artifact or a sandbox is")
    inspect.description = "ARTIFACT may also be a sandbox's name."
    remove = command("rm", help="remove ended sandboxes")
    remove.add_argument("name", nargs="+", metavar="NAME")
    remove.add_argument("-f", "--force", action="store_true", help="running ones too")
    command("pull", remote, help="fetch an artifact into the store")
    prune = command("prune", help="remove what no sandbox uses from the store")
    prune.add_argument("--older-than", type=float, default=0, metavar="DAYS", help="unused for that long")
    prune.add_argument("--max-size", metavar="SIZE", help="the longest unused first, until the store is as small")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    verify = command("verify", help="hash everything in the store again")
    verify.add_argument("--repair", action="store_true", help="fetch what is damaged again")
    doctor = command("doctor", help="what this machine can do, and how to mend what it cannot")
    doctor.add_argument("registry", nargs="*", metavar="REGISTRY", help="see whether it can be reached")
    completion = command("completion", help="write what a shell needs to complete the runner's commands")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="write the name and return when the program has started")
    add("--name", help="default: made up")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="seen in ps --json and inspect")
    add("--keep", action="store_true", help="keep the sandbox when it has ended; --detach does")
    add("--rm", action="store_true", help="do not keep it, --detach or not")
    add("--timeout", type=float, metavar="SECONDS", help="end it then, with status 124")
    add("-m", "--memory", metavar="SIZE", help="as 512m or 2g; default: the artifact's")
    add("--cpus", type=int, metavar="N")
    add("--disk-size", metavar="SIZE", help="as 20g, to have more room; default: the artifact's")
    add(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[ADDRESS:]HOST:GUEST[/udp]",
        help="a port of the host; ADDRESS: 127.0.0.1",
    )
    add("-v", "--volume", action="append", default=[], metavar="HOST:GUEST[:ro]", help="a directory of the host")
    add("--network", choices=("user", "none"), default="user")
    add("--read-only", action="store_true", help="root read-only, with an overlay in memory")
    add("--hostname", help="default: the sandbox's name")
    add("--tls-cert", type=_path, metavar="FILE", help="client certificate, as ROOTDISK_TLS_CERT")
    add("--tls-key", type=_path, metavar="FILE", help="its private key, as ROOTDISK_TLS_KEY")
    add("--tls-ca", type=_path, metavar="FILE", help="CA bundle, as ROOTDISK_TLS_CA")
    add("--entrypoint", metavar="PROGRAM", help="in place of the image's; empty for none")
    add("--backend", choices=("qemu", "krun"), help="default: QEMU, or libkrun where only that is installed")
    add("--accel", choices=("kvm", "tcg"), help="default: what works here")
    add("--clone", choices=("overlay", "reflink", "copy"), help="how to copy the disk")
    add(
        "--pull",
        choices=("missing", "always"),
        default="missing",
        help="ask the registry again even if the store knows",
    )


def _add_program_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable")
    add("--env-file", action="append", default=[], type=_path, metavar="FILE", help="NAME=VALUE lines")
    add("-w", "--workdir", metavar="DIR")
    add("-u", "--user", metavar="USER[:GROUP]")
    add("-i", "--interactive", action="store_true", help="pass standard input on")
    add("-t", "--tty", action="store_true", help="give the program a terminal")


# Which module of runner/commands/ has a command's function, which has its name.
_ROOMS = {
    "boot": "boot", "start": "boot", "exec": "inside", "cp": "inside",
    "pull": "store", "prune": "store", "verify": "store", "inspect": "store", "doctor": "doctor",
    "completion": "completion",
}  # fmt: skip
COMMANDS = (*_ROOMS, "stop", "kill", "wait", "ps", "logs", "rm")


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    import importlib

    module = importlib.import_module(f"runner.commands.{_ROOMS.get(name, 'sandboxes')}")
    return cast("Callable[[argparse.Namespace], int]", getattr(module, f"{name}_command"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 125: the runner itself failed; 130: interrupted; of boot, else the program's own status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]
    if debug:
        show()
    try:
        options = parser().parse_args(arguments)
        return _command(options.command)(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except (RootdiskError, OSError) as err:
        if debug:
            raise
        known = isinstance(err, RootdiskError)
        text = (
            str(err)
            if known
            else f"{getattr(err, 'filename', None) or 'input/output'}: {getattr(err, 'strerror', err)}"
        )
        print(f"runner: {text}", file=sys.stderr)
        return FAILED
