"""Add arguments and options to a parser: those of `runner boot`, and those that other commands share with it."""

from __future__ import annotations

import argparse

from rootdisk.cli.arguments import Parser, file_path, processors, seconds, whole_number


class _From(argparse.Action):
    """Stores the name of a snapshot; then no artifact is needed. An optional artifact would be none before any option."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            if action.dest in ("artifact", "program"):
                action.required = False
        for name, default in (("artifact", ""), ("program", [])):
            if getattr(namespace, name, None) is None:
                setattr(namespace, name, default)


def boot_actions() -> list[argparse.Action]:
    """Return the arguments and options of `runner boot`."""
    parser = Parser("boot")
    add_common(parser)
    add_boot(parser)
    return parser._actions


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    parser.add_argument("--json", action="store_true", help="print results as a JSON array")
    parser.add_argument("--debug", action="store_true", help="show what is done, and tracebacks")


def add_boot(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of `runner boot`."""
    add_artifact(parser)
    parser.add_argument(
        "--from",
        action=_From,
        dest="from_snapshot",
        metavar="SNAPSHOT",
        help="continue from a snapshot instead of ARTIFACT; with --cold, boot its disk only",
    )
    for add_options in (_add_lifetime, _add_resources, _add_guest, _add_start):
        add_options(parser)
    add_program(parser)
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="COMMAND", help="run this instead of the image's command"
    )


def _add_lifetime(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a sandbox and say how long it lives."""
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="print the name and return when the program has started")
    add("--name", metavar="NAME", help="name the sandbox (default: a random name)")
    add("-l", "--label", action="append", default=[], metavar="NAME=VALUE", help="set a label; ps can filter by it")
    add("--events", type=whole_number, metavar="FD", help="write events to this open file, a line of JSON each")
    add("--keep", action="store_true", help="keep the sandbox after it exits (default with --detach)")
    add("--rm", action="store_true", help="remove the sandbox when it exits (default without --detach)")
    add("--timeout", type=seconds, metavar="SECONDS", help="stop the sandbox after SECONDS; exit 124")
    add(
        "--restart",
        default="no",
        metavar="POLICY",
        help="start the sandbox again when it ends: no, on-failure[:N], always or unless-stopped (with --detach)",
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options for what the machine has and reaches: memory, processors, disk, ports, volumes, network."""
    add = parser.add_argument
    add("-m", "--memory", metavar="SIZE", help="memory, for example 512m or 1.5g (default: the artifact's)")
    add("--cpus", type=processors, metavar="N", help="number of processors (default: the artifact's)")
    add("--disk-size", metavar="SIZE", help="a larger disk, for example 20g (default: the artifact's)")
    add(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[ADDRESS:]HOST:GUEST[/udp]",
        help="publish a port of the guest on this host (default ADDRESS: 127.0.0.1)",
    )
    add(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="HOST:GUEST[:MODE]",
        help="share a directory or file of this host; MODE: ro, dev, suid",
    )
    add("--network", choices=("user", "none"), help="user: outgoing network and -p (default); none: no network")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="reach only this; HOST may be *.example.org, an address or a network (default ports: 80 and 443)",
    )
    add(
        "--allow-file",
        action="append",
        default=[],
        type=file_path,
        metavar="FILE",
        help="read rules for --allow from a file",
    )
    add(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=SOURCE@HOST",
        help="a variable with a placeholder, replaced in requests to HOST; SOURCE: env:VARIABLE, file:PATH, cmd:COMMAND",
    )
    add("--widen", action="store_true", help="accept --allow and --network user even if the artifact allows less")


def _add_guest(parser: argparse.ArgumentParser) -> None:
    """Add the options for the system that programs find in the guest."""
    add = parser.add_argument
    add("--read-only", action="store_true", help="keep all changes to the root in memory")
    add("--verify", action="store_true", help="hash the artifact's files in the store before they are used")
    add(
        "--tmpfs",
        action="append",
        default=[],
        metavar="PATH[:OPTIONS]",
        help="mount a file system in memory; OPTIONS as in docker: size=64m, mode=1777, exec, …",
    )
    add("--shm-size", metavar="SIZE", help="size of /dev/shm (default: half of the memory)")
    add(
        "--ulimit",
        action="append",
        default=[],
        metavar="NAME=SOFT[:HARD]",
        help="limit every program, for example nofile=1024",
    )
    add("--add-host", action="append", default=[], metavar="NAME:ADDRESS", help="add a line to /etc/hosts")
    add("--dns", action="append", default=[], metavar="ADDRESS", help="use a name server (default: the host's)")
    add("--dns-search", action="append", default=[], metavar="DOMAIN", help="search a domain; . for none")
    add(
        "--dns-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="set an option of resolv.conf, for example ndots:2",
    )
    add("--pid1", action="store_true", help="run the program as process 1 (default for systemd, tini and others)")
    add("--init", action="store_true", help="keep the sandbox's init as process 1, whatever the program is")
    add("--hostname", metavar="NAME", help="the guest's host name (default: the sandbox's name)")
    add("--tls-cert", type=file_path, metavar="FILE", help="give the guest a client certificate (ROOTDISK_TLS_CERT)")
    add("--tls-key", type=file_path, metavar="FILE", help="give the guest its private key (ROOTDISK_TLS_KEY)")
    add("--tls-ca", type=file_path, metavar="FILE", help="give the guest a CA bundle (ROOTDISK_TLS_CA)")
    add("--entrypoint", metavar="PROGRAM", help="run PROGRAM instead of the image's entrypoint; '' for none")


def _add_start(parser: argparse.ArgumentParser) -> None:
    """Add the options for how the machine is started and its disk fetched."""
    add = parser.add_argument
    add("--backend", choices=("qemu", "krun"), help="default: QEMU, or libkrun if only that is installed")
    add("--accel", choices=("kvm", "tcg"), help="default: KVM if it works here, else TCG")
    add("--clone", choices=("overlay", "reflink", "copy"), help="how to copy the disk (default: overlay)")
    add("--cold", action="store_true", help="boot the kernel, even if there is a template")
    add_fetching(parser, "missing", lazily=True)
    add(
        "--record-reads",
        type=file_path,
        metavar="FILE",
        help="with --pull lazy: write which bytes of the disk are read, in order, as lines of offset and length",
    )


def add_program(parser: argparse.ArgumentParser) -> None:
    """Add how a program in a sandbox is started: for `boot` and `exec`."""
    add = parser.add_argument
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable, or pass on yours")
    add("--env-file", action="append", default=[], type=file_path, metavar="FILE", help="read variables from a file")
    add("-w", "--workdir", metavar="DIR", help="working directory in the guest")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user")
    add("-i", "--interactive", action="store_true", help="pass standard input to the program")
    add("-t", "--tty", action="store_true", help="give the program a terminal")


def add_artifact(parser: argparse.ArgumentParser) -> None:
    """Add ARTIFACT, and how it is found and trusted."""
    add = parser.add_argument
    add("artifact", metavar="ARTIFACT", help="registry/repository:tag, …@sha256:… or oci:DIR:TAG")
    add_registry(parser)
    add("--platform", metavar="OS/ARCH", help="default: this machine's")
    add("--policy", type=file_path, metavar="FILE", help="policy.json: who must have signed it (default: this host's)")


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Add how registries are reached."""
    parser.add_argument("--plain-http", action="store_true", help="use HTTP instead of HTTPS")
    parser.add_argument("--ca-file", type=file_path, metavar="FILE", help="trust these certificates too (PEM)")


def add_fetching(parser: argparse.ArgumentParser, default: str, *, lazily: bool = False) -> None:
    """Add when the registry is asked, and whether progress is shown. `--pull lazy` is offered if `lazily`."""
    parser.add_argument(
        "--pull",
        choices=("missing", "always", "never", "lazy") if lazily else ("missing", "always", "never"),
        default=default,
        help=f"when to ask the registry: if the store does not know the tag, every time, or never (default: {default})"
        + ("; lazy: as missing, but start while the disk is still being fetched" if lazily else ""),
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
