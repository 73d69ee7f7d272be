"""The imagetool command: argparse, errors and exit statuses. Standard output is data, standard error is talk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runner.errors import RootdiskError


def parser() -> argparse.ArgumentParser:
    """The command line: build, disk, inspect, copy."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="write results as JSON")
    common.add_argument("--debug", action="store_true", help="show commands and tracebacks")
    common.add_argument("--plain-http", action="store_true", help="speak HTTP to registries")
    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("source", metavar="SOURCE", help="registry/repository:tag, oci:DIR:TAG, docker-archive:FILE, …")
    making.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")
    making.add_argument("--size", metavar="SIZE", help="of the disk, as 8GiB (the default)")

    top = argparse.ArgumentParser("imagetool", description="OCI images in, bootable ext4 root disks out.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    build = commands.add_parser("build", parents=[common, making], help="build an image's artifact and publish it")
    build.add_argument("artifact", metavar="ARTIFACT", help="where to: registry/repository:tag or oci:DIR:TAG")
    disk = commands.add_parser("disk", parents=[common, making], help="write an image's raw disk to a file")
    disk.add_argument("file", metavar="FILE")
    disk.add_argument("--plain", action="store_true", help="the image's own files and nothing added")
    inspect = commands.add_parser("inspect", parents=[common], help="say what an artifact is and was made of")
    inspect.add_argument("artifact", metavar="ARTIFACT")
    copy = commands.add_parser(
        "copy", parents=[common], help="copy an artifact or image between registries and layouts"
    )
    copy.add_argument("source", metavar="FROM")
    copy.add_argument("target", metavar="TO")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 failed, 2 wrong input, 130 interrupted."""
    options = parser().parse_args(argv)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 130
    except (RootdiskError, OSError) as err:
        if options.debug:
            raise
        text = (
            str(err) if isinstance(err, RootdiskError) else f"{err.filename or 'input/output'}: {err.strerror or err}"
        )
        print(f"imagetool: {text}", file=sys.stderr)
        return err.exit_status if isinstance(err, RootdiskError) else 1


def _run(options: argparse.Namespace) -> int:
    raise NotImplementedError(options.command)
