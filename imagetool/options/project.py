"""Options of the commands that begin a project, run it and clean up."""

from __future__ import annotations

import argparse

from imagetool.options import shared
from rootdisk.cli.arguments import file_path


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool init`."""
    shared.add_platform(parser)
    parser.add_argument("source", metavar="SOURCE", help=shared.SOURCES)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=file_path,
        help="write the description alone, to FILE or - for standard output",
    )


def add_doit(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool doit`."""
    parser.add_argument("-f", "--file", metavar="FILE", type=file_path, help="what to build; default: images.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="the value of ${NAME} in the file"
    )
    parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="tasks and options of doit; default: build all"
    )


def add_clean(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool clean`."""
    parser.add_argument("-n", "--dry-run", action="store_true", help="list what would be removed, and remove nothing")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
