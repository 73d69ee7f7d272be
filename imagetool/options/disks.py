"""Options of the commands that make disks, look at them, compare them and write them for other machines."""

from __future__ import annotations

import argparse

from imagetool.options import shared
from rootdisk.cli.arguments import file_path, seconds


def add_build(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool build`."""
    shared.add_making(parser)
    parser.add_argument("artifact", metavar="ARTIFACT", help="where to publish: registry/repository:tag or oci:DIR:TAG")
    parser.add_argument(
        "--policy", metavar="FILE", type=file_path, help="policy.json for published disks (default: this host's)"
    )
    parser.add_argument(
        "--verity", action="store_true", help="add a dm-verity tree: boot --read-only then checks every block it reads"
    )
    parser.add_argument("--force", action="store_true", help="move the tag if it names something else")


def add_disk(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool disk`."""
    shared.add_making(parser)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--plain", action="store_true", help="write the image's own files and add nothing")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool inspect`."""
    shared.add_platform(parser)
    parser.add_argument("what", metavar="IMAGE|ARTIFACT|FILE")


def add_ls(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool ls`."""
    _add_what_disk(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/")
    parser.add_argument("-R", "--recursive", action="store_true", help="list subdirectories recursively")


def add_path(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool stat` and `imagetool cat`."""
    _add_what_disk(parser)
    parser.add_argument("path", metavar="PATH")


def _add_what_disk(parser: argparse.ArgumentParser) -> None:
    """Add the disk that a command looks at."""
    shared.add_platform(parser)
    parser.add_argument("what", metavar="ARTIFACT|FILE")


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool diff`."""
    shared.add_platform(parser)
    parser.add_argument("a", metavar="ARTIFACT|FILE")
    parser.add_argument("b", metavar="ARTIFACT|FILE")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool explain`."""
    shared.add_platform(parser)
    parser.add_argument("a", metavar="ARTIFACT|NAME", help="an artifact, or the name of an image in images.toml")
    parser.add_argument("b", metavar="ARTIFACT|NAME")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool verify`."""
    shared.add_platform(parser)
    parser.add_argument("what", metavar="ARTIFACT")
    parser.add_argument(
        "--source", metavar="SOURCE", help="the image that it was built from (default: where the artifact says)"
    )
    parser.add_argument(
        "--key",
        metavar="FILE",
        type=file_path,
        help="public key: provenance that it has signed must be attached, and be true",
    )


def add_map(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool map`."""
    _add_what_disk(parser)
    parser.add_argument("--against", metavar="ARTIFACT", help="another version: show which chunks a pull takes from it")
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=file_path,
        help="what a boot reads: a boot trace, or lines of offset,length (default: as the artifact says)",
    )
    parser.add_argument("-o", "--output", metavar="FILE.html", type=file_path, help="default: standard output")


def add_trace(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool trace`."""
    shared.add_platform(parser)
    parser.add_argument("what", metavar="ARTIFACT")
    parser.add_argument("-o", "--output", metavar="FILE", type=file_path, help="default: standard output")
    parser.add_argument(
        "--seconds", type=seconds, default=30.0, metavar="N", help="end the boot after N seconds (default: 30)"
    )
    parser.add_argument(
        "--reads", type=file_path, metavar="FILE", help="do not boot: use a file of runner boot --record-reads"
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool export`."""
    shared.add_platform(parser)
    parser.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    parser.add_argument(
        "--to",
        required=True,
        metavar="PLACE",
        help="dir:PATH for a new directory, or containerdisk:REFERENCE (registry/repository:tag, oci:DIR:TAG or "
        "oci-archive:FILE:TAG) for KubeVirt's image; its VirtualMachineInstance is printed",
    )
    parser.add_argument(
        "--disk-format",
        choices=("raw", "qcow2"),
        help="of the disk in a directory; Firecracker needs raw (default: raw)",
    )
    parser.add_argument("--force", action="store_true", help="replace an older export, or move the tag")
