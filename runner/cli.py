"""The runner's commands. Standard output is data, standard error is talk; only `main` prints errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from rootdisk.cli.arguments import Parser, decimal_number, whole_number
from rootdisk.errors import RootdiskError
from rootdisk.system.debug import show
from rootdisk.system.stdio import OutputError, discard_output, settle, speak_utf8
from rootdisk.text import describe_error, error_text

if TYPE_CHECKING:
    from pathlib import Path

FAILED = 125


def _path(text: str) -> Path:
    from pathlib import Path  # here and in `_json`: what most commands need, and --help does not

    return Path(text)


class _Command(NamedTuple):
    """A command: its module in runner/commands/, what --help says of it, and what adds its options to a parser."""

    room: str
    help: str
    fill: Callable[[argparse.ArgumentParser], None]
    epilog: str | None = None


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Of the whole command line; with `only`, the other commands are without their options, which takes a third of the time."""
    top = Parser("runner", description="Boots rootdisk artifacts in microVMs.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in _COMMANDS.items():
        below = commands.add_parser(name, help=command.help, epilog=command.epilog)
        if only in (None, name):
            below.add_argument("--json", action="store_true", help="write results as JSON")
            below.add_argument("--debug", action="store_true", help="say what is done; show tracebacks")
            command.fill(below)
    return top


def _artifact(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("artifact", metavar="ARTIFACT", help="registry/repository:tag, …@sha256:… or oci:DIR:TAG")
    add("--plain-http", action="store_true", help="speak HTTP to the registry")
    add("--ca-file", type=_path, metavar="FILE", help="certificates to trust beside the system's")
    add("--platform", metavar="OS/ARCH", help="default: this machine's")


def _boot(parser: argparse.ArgumentParser) -> None:
    _artifact(parser)
    _add_machine_options(parser)
    _add_program_options(parser)
    parser.add_argument("program", nargs="*", metavar="COMMAND", help="in place of the image's command, after --")


def _exec(parser: argparse.ArgumentParser) -> None:
    _add_program_options(parser)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND", help="and its arguments")


def _start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-a", "--attach", action="store_true", help="stay with it; exit with its program's status")


def _cp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what SOURCE leads to, not the link")
    parser.add_argument("source", metavar="SOURCE", help="PATH or NAME:PATH")
    parser.add_argument("target", metavar="TARGET", help="PATH or NAME:PATH")


def _names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="+", metavar="NAME")


def _stop(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument(
        "-t", "--time", type=whole_number, default=10, metavar="SECONDS", help="how long to wait: default 10"
    )


def _kill(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="as HUP or 1; not the end, but a signal")


def _rm(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="running ones too")


def _ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="ended ones too")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    parser.add_argument("--console", action="store_true", help="the guest kernel's console instead")


def _prune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--older-than", type=decimal_number, default=0, metavar="DAYS", help="unused for that long")
    add("--max-size", metavar="SIZE", help="the longest unused first, until the store is as small")
    add("--dry-run", action="store_true", help="only say what would go")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="fetch what is damaged again")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("registry", nargs="*", metavar="REGISTRY", help="see whether it can be reached")


def _completion(own: argparse.ArgumentParser) -> None:
    own.set_defaults(whole_parser=parser)
    own.add_argument("shell", choices=("bash", "zsh", "fish"))


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="write the name and return when the program has started")
    add("--name", help="default: made up")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="seen in ps --json and inspect")
    add("--keep", action="store_true", help="keep the sandbox when it has ended; --detach does")
    add("--rm", action="store_true", help="do not keep it, --detach or not")
    add("--timeout", type=decimal_number, metavar="SECONDS", help="end it then, with status 124")
    add("-m", "--memory", metavar="SIZE", help="as 512m or 1.5g; default: the artifact's")
    add("--cpus", type=whole_number, metavar="N")
    add("--disk-size", metavar="SIZE", help="as 20g, to have more room; default: the artifact's")
    add(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[ADDRESS:]HOST:GUEST[/udp]",
        help="a port of the host; ADDRESS: 127.0.0.1",
    )
    add(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="HOST:GUEST[:MODE]",
        help="a directory of the host; MODE: ro, dev, suid",
    )
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


_COMMANDS = {
    "boot": _Command(
        "boot",
        "boot a sandbox; exit with its program's status",
        _boot,
        "Example: runner boot -e NAME=value oci:cache/artifacts/demo:1 -- python3 -c 'print(1)'",
    ),
    "start": _Command("boot", "start a kept sandbox again", _start),
    "exec": _Command("exec_cp", "run a command in a running sandbox", _exec, "Example: runner exec -it NAME sh"),
    "cp": _Command(
        "exec_cp",
        "copy files into or out of a running sandbox",
        _cp,
        "Example: runner cp NAME:/sandbox/result . ; a lone - is a tar archive of standard input or output",
    ),
    "stop": _Command("sandboxes", "ask programs to end, and their sandboxes with them", _stop),
    "kill": _Command("sandboxes", "end sandboxes at once, or send their programs a signal", _kill),
    "wait": _Command("sandboxes", "wait for a sandbox's end; write its exit status", _names),
    "ps": _Command("sandboxes", "list sandboxes", _ps),
    "logs": _Command("sandboxes", "what a detached sandbox's program has written", _logs),
    "inspect": _Command("store", "say what an artifact is, or a sandbox by its name", _artifact),
    "rm": _Command("sandboxes", "remove ended sandboxes", _rm),
    "pull": _Command("store", "fetch an artifact into the store", _artifact),
    "prune": _Command("store", "remove what no sandbox uses from the store", _prune),
    "verify": _Command("store", "hash everything in the store again", _verify),
    "doctor": _Command("doctor", "what this machine can do, and how to mend what it cannot", _doctor),
    "completion": _Command("completion", "write what a shell needs to complete the runner's commands", _completion),
}


def _function(name: str) -> Callable[[argparse.Namespace], int]:
    import importlib

    module = importlib.import_module(f"runner.commands.{_COMMANDS[name].room}")
    return cast("Callable[[argparse.Namespace], int]", getattr(module, f"{name}_command"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 125: the runner itself failed; 130: interrupted; of boot, else the program's own status."""
    if argv is None:
        speak_utf8()
    settle()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]
    if debug:
        show()
    try:
        try:
            options = parser(arguments[0] if arguments else "").parse_args(arguments)
            status = _function(options.command)(options)
        except (RootdiskError, SystemExit):  # the parser's --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        discard_output()  # whoever reads it may not read any more
        return 130
    except BrokenPipeError:
        discard_output()
        return FAILED
    except (RootdiskError, OSError) as err:
        if isinstance(err, OutputError):
            discard_output()
        if debug:
            raise
        print(f"runner: {error_text(describe_error(err))}", file=sys.stderr)
        return FAILED
