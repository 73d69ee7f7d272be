"""The runner's command line: a table of its commands, and for each a function that adds its arguments and options."""

from __future__ import annotations

import argparse

from rootdisk import __version__
from rootdisk.cli.arguments import Parser, days, file_path, whole_number, whole_seconds
from rootdisk.cli.commands import Command, add_commands
from runner.options import arguments


def parser(only: str | None = None) -> Parser:
    """Build the parser: of the command `only`, or of all."""
    top = Parser("runner", description="Boots rootdisk artifacts in microVMs.", epilog=_EPILOG)
    top.elsewhere = _elsewhere
    top.add_argument("-v", "--version", action="version", version=f"runner {__version__}", help="print the version")
    add_commands(top, COMMANDS, arguments.add_common, only)
    return top


def _elsewhere(command: str, word: str) -> str:
    """Name our command or option for docker's or podman's `word`; "" if they do not know it either."""
    from rootdisk.cli.tools import IMAGETOOL_COMMANDS  # only needed for an error
    from runner.words import docker, hints

    if not command and word in IMAGETOOL_COMMANDS and docker.COMMANDS.get(word, "") in ("", docker.SAME):
        return f"imagetool has it: imagetool {word}"
    return hints.answer(command, word)


def _exec(parser: argparse.ArgumentParser) -> None:
    arguments.add_program(parser)
    parser.add_argument(
        "-d", "--detach", action="store_true", help="return when the command has started; drop its output"
    )
    parser.add_argument("name", metavar="NAME", help="a running sandbox")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND", help="a program and its arguments")


def _start(parser: argparse.ArgumentParser) -> None:
    _names_or_all(parser, "start all sandboxes that their --restart wants started, for example after a reboot")
    parser.add_argument("-a", "--attach", action="store_true", help="stay attached; exit with the program's status")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input to it (with --attach)")


def _cp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-L", "--follow-link", action="store_true", help="if SOURCE is a link, copy what it leads to")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("source", metavar="SOURCE", help="PATH or NAME:PATH; - is a tar archive on standard input")
    parser.add_argument("target", metavar="TARGET", help="PATH or NAME:PATH; - is a tar archive on standard output")


def _names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="+", metavar="NAME", help="a sandbox, as ps shows it")


def _names_or_all(parser: argparse.ArgumentParser, all_help: str) -> None:
    parser.add_argument("name", nargs="*", metavar="NAME", help="a sandbox, as ps shows it")
    parser.add_argument("--all", action="store_true", help=all_help)


def _stop(parser: argparse.ArgumentParser) -> None:
    _names_or_all(parser, "stop all sandboxes that have a --restart policy; the next start --all starts them")
    _stop_time(parser)


def _stopping(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    _stop_time(parser)


def _stop_time(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t",
        "--time",
        "--timeout",
        type=whole_seconds,
        default=10,
        metavar="SECONDS",
        help="how long to wait before the sandbox is killed (default: 10)",
    )


def _kill(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument(
        "-s", "--signal", metavar="SIGNAL", help="send SIGNAL (HUP, 1, …) instead of ending the sandbox"
    )


def _rm(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="remove running sandboxes too")
    parser.add_argument("--snapshot", action="store_true", help="NAME is a snapshot, as snapshots shows it")


def _snapshot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a running sandbox, as ps shows it")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="a name for the snapshot")
    parser.add_argument(
        "--without-memory", action="store_true", help="save the disk only; the sandbox need not run then"
    )


def _snapshots(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print names only")


def _rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a sandbox, as ps -a shows it")
    parser.add_argument("new", metavar="NEW", help="its new name")


def _listing(parser: argparse.ArgumentParser, keys: str, columns: str) -> None:
    add = parser.add_argument
    add("-q", "--quiet", action="store_true", help="print names only")
    add("-f", "--filter", action="append", default=[], metavar="KEY=VALUE", help=f"list only these; KEY: {keys}")
    add("--format", metavar="FORMAT", help=f"json, table, or a line such as '{columns}' (Go templates as in docker)")
    add("--no-trunc", action="store_true", help="do not shorten anything")


def _events(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--since", metavar="TIME", help="print events since then too: 10m, 2025-06-01T12:00:00Z or Unix seconds")
    add("--until", metavar="TIME", help="print events until then, and end")
    add(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE", help="print only these; KEY: sandbox, event"
    )
    add(
        "--format",
        metavar="FORMAT",
        help="json, or a line such as '{{.Sandbox}} {{.Event}}' (Go templates as in docker)",
    )


def _stats(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="*", metavar="NAME", help="a running sandbox (default: all)")
    add("--no-stream", action="store_true", help="print one result, and end")
    add("--format", metavar="FORMAT", help="json, table, or a line such as '{{.Name}} {{.CPUPerc}}' (as in docker)")


def _ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="list sandboxes that have ended too")
    parser.add_argument(
        "-n", "--last", type=whole_number, metavar="N", help="list the N newest, also if they have ended"
    )
    parser.add_argument("-l", "--latest", action="store_true", help="list the newest, also if it has ended")
    _listing(parser, "name, status, label, ancestor, exited", "{{.Names}} {{.Status}}")


def _images(parser: argparse.ArgumentParser) -> None:
    _listing(parser, "reference, digest, platform, dangling", "{{.Repository}}:{{.Tag}} {{.Size}}")
    parser.add_argument("--digests", action="store_true", help="show whole digests")


def _rmi(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", nargs="+", metavar="ARTIFACT", help="a name or digest, as images shows it")
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="remove names even if a sandbox still needs the artifact; stop a fetch in the background",
    )
    parser.add_argument("--platform", metavar="OS/ARCH", help="remove this platform only")


def _logs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="a detached sandbox, or any with --console")
    add("-f", "--follow", action="store_true", help="keep printing until the sandbox ends")
    add("-n", "--tail", metavar="N", default="all", help="print only the last N lines (default: all)")
    add("--since", metavar="TIME", help="print lines since then: 10m, 2025-06-01T12:00:00Z or Unix seconds")
    add("--until", metavar="TIME", help="print lines until then")
    add("-t", "--timestamps", action="store_true", help="print each line's time before it")
    add("--console", action="store_true", help="print the guest kernel's console instead")
    add("--network", action="store_true", help="print the connections of a sandbox with --allow instead")


def _prune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--older-than", type=days, default=0, metavar="DAYS", help="keep what was used in the last DAYS days")
    add("--max-size", metavar="SIZE", help="stop when the store is that small; the longest unused goes first")
    add("--dry-run", action="store_true", help="list what would be removed, and remove nothing")


def _inspect(parser: argparse.ArgumentParser) -> None:
    arguments.add_artifact(parser)
    parser.add_argument("-f", "--format", metavar="FORMAT", help="print a line such as '{{.State}}'")


def _pull(parser: argparse.ArgumentParser) -> None:
    arguments.add_artifact(parser)
    arguments.add_fetching(parser, "always")


def _serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--listen",
        default="127.0.0.1:5001",
        metavar="[ADDRESS:]PORT",
        help="where to listen (default: 127.0.0.1:5001); another ADDRESS needs a token or client certificates",
    )
    add(
        "--token-file",
        type=file_path,
        metavar="FILE",
        help="serve those who have the token in FILE, as password or bearer token",
    )
    add("--tls-cert", type=file_path, metavar="FILE", help="certificate chain of this server (PEM)")
    add("--tls-key", type=file_path, metavar="FILE", help="key of --tls-cert (PEM)")
    add("--tls-client-ca", type=file_path, metavar="FILE", help="serve those who have a certificate of this CA (PEM)")


def _login(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("registry", nargs="?", metavar="REGISTRY", default="docker.io", help="HOST or HOST:PORT (default: docker.io)")
    add("-u", "--username", metavar="NAME", help="default: ask")
    add("--password-stdin", action="store_true", help="read the password from standard input (default: ask)")
    arguments.add_registry(parser)


def _logout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "registry", nargs="?", metavar="REGISTRY", default="docker.io", help="HOST or HOST:PORT (default: docker.io)"
    )


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="fetch what is damaged again")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("registry", nargs="*", metavar="REGISTRY", help="check that HOST or HOST:PORT can be reached")
    arguments.add_registry(parser)


def _completion(own: argparse.ArgumentParser) -> None:
    own.set_defaults(whole_parser=parser)
    own.add_argument("shell", choices=("bash", "zsh", "fish"))


_EPILOG = "See runner COMMAND --help. Options may also stand before the command: runner --debug boot …"

COMMANDS = {
    "boot": Command(
        "boot",
        "boot a sandbox; exit with its program's status",
        arguments.add_boot,
        "Options go before ARTIFACT; everything after it is the command. "
        "Example: runner boot -e NAME=value oci:cache/artifacts/demo:1 python3 -c 'print(1)'",
        alias="run",
    ),
    "start": Command("boot", "start kept sandboxes again", _start),
    "restart": Command("boot", "stop kept sandboxes and start them again", _stopping),
    "exec": Command("exec_cp", "run a command in a running sandbox", _exec, "Example: runner exec -it NAME sh"),
    "cp": Command(
        "exec_cp",
        "copy files into or out of a sandbox",
        _cp,
        "A sandbox that does not run is booted for the copy. Example: runner cp NAME:/sandbox/result .",
    ),
    "stop": Command("sandboxes", "ask programs to end; their sandboxes end with them", _stop),
    "kill": Command("sandboxes", "end sandboxes at once, or send their programs a signal", _kill),
    "wait": Command("sandboxes", "wait until sandboxes end; print their exit statuses", _names),
    "ps": Command("listing", "list sandboxes", _ps),
    "logs": Command("logs", "print the output of a detached sandbox's program", _logs),
    "events": Command(
        "events",
        "print what happens to sandboxes, until interrupted",
        _events,
        "Example: runner events --since 10m --until 0s --format json",
    ),
    "stats": Command("stats", "print what sandboxes use: processors, memory, disk, network", _stats),
    "trim": Command(
        "sandboxes",
        "give the host back what files in sandboxes no longer use",
        _names,
        "Sandboxes do so by themselves when files are deleted, unless their root is mounted with nodiscard.",
    ),
    "inspect": Command("store", "show what an artifact is, or a sandbox by its name", _inspect),
    "snapshot": Command(
        "snapshots",
        "save a running sandbox, its memory and its disk",
        _snapshot,
        "Sandboxes go on from it with runner boot --from SNAPSHOT. Secrets in the sandbox's memory are in it.",
    ),
    "snapshots": Command("snapshots", "list snapshots", _snapshots),
    "rename": Command("sandboxes", "give a sandbox another name", _rename),
    "rm": Command("sandboxes", "remove sandboxes that have ended", _rm),
    "images": Command("listing", "list the artifacts in the store", _images),
    "pull": Command("store", "fetch an artifact into the store", _pull),
    "rmi": Command("store", "remove artifacts from the store", _rmi),
    "prune": Command("store", "remove what no sandbox uses from the store", _prune),
    "verify": Command("store", "read everything in the store and compare it with its digests", _verify),
    "serve": Command("serve", "serve the store to other hosts, as a read-only registry to use as a mirror", _serve),
    "login": Command("login", "save your name and password for a registry", _login),
    "logout": Command("login", "remove your name and password for a registry", _logout),
    "doctor": Command("doctor", "show what this machine can do, and how to fix what is missing", _doctor),
    "completion": Command("completion", "print a shell's completion script for the runner", _completion),
}
