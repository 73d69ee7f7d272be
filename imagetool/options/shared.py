"""Options that several commands have."""

from __future__ import annotations

import argparse

from rootdisk.cli.arguments import file_path

SOURCES = "registry/repository:tag, oci:DIR:TAG, docker-archive:FILE, …"


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    parser.add_argument("--json", action="store_true", help="print results as a JSON array")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress and no remarks")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--plain-http", action="store_true", help="use HTTP instead of HTTPS for registries")
    parser.add_argument("--ca-file", type=file_path, metavar="FILE", help="trust these certificates too (PEM)")


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Add what chooses from an index."""
    parser.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")


def add_making(parser: argparse.ArgumentParser) -> None:
    """Add what commands that make a disk have."""
    add_platform(parser)
    parser.add_argument("source", metavar="SOURCE", help=SOURCES)
    parser.add_argument("--size", metavar="SIZE", help="size of the disk, for example 20GiB (default: 8GiB)")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable for the guest's programs"
    )
    parser.add_argument(
        "--owner",
        action="append",
        default=[],
        metavar="PATH=USER[:GROUP]",
        help="set the owner of PATH and everything below it",
    )
    parser.add_argument(
        "--allow-secret",
        action="append",
        default=[],
        metavar="NAME=REASON",
        help="publish the private key in NAME, a variable or path, for this reason",
    )
    parser.add_argument("--entrypoint", metavar="WORD", help="run this program instead of the image's")
    parser.add_argument(
        "--cmd", metavar="WORDS", help="run this command, or give the entrypoint these arguments; split as by a shell"
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse an image if a part of it must be changed or left out"
    )
    parser.add_argument("--tls-ca", type=file_path, metavar="FILE", help="give the guest these CA certificates (PEM)")


def add_no_referrers(parser: argparse.ArgumentParser) -> None:
    """Add what leaves attachments out of a copy."""
    parser.add_argument("--no-referrers", action="store_true", help="leave out signatures, SBOMs and other attachments")
