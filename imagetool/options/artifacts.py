"""Options of the commands that copy artifacts, sign them, list what they have and remove them."""

from __future__ import annotations

import argparse

from imagetool.options import shared
from rootdisk.cli.arguments import file_path, whole_number


def add_copy(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool copy`."""
    parser.add_argument("source", metavar="FROM")
    parser.add_argument("target", metavar="TO")
    shared.add_no_referrers(parser)


def add_sign(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool sign`."""
    parser.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag, oci:DIR:TAG or oci-archive:FILE:TAG")
    parser.add_argument("--key", metavar="KEY", default="", help="private key: a PEM file, cosign's, or env://NAME")
    parser.add_argument(
        "--key-command", metavar="COMMAND", default="", help="writes a signature of its standard input, as for a KMS"
    )
    parser.add_argument("--public-key", metavar="FILE", type=file_path, help="public key of the command's key")
    parser.add_argument(
        "--passphrase-file", metavar="FILE", type=file_path, help="default: the variable ROOTDISK_SIGN_PASSPHRASE"
    )
    parser.add_argument(
        "--format",
        choices=("bundle", "simple", "both"),
        default="bundle",
        help="simple: as podman, skopeo and cosign 1 and 2 read; default: bundle",
    )
    parser.add_argument(
        "--identity", metavar="NAME", default="", help="repository[:tag] to sign it as; default: ARTIFACT's"
    )


def add_sbom(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool sbom`."""
    shared.add_platform(parser)
    parser.add_argument("what", metavar="ARTIFACT|SOURCE|FILE")
    parser.add_argument(
        "--format", choices=("spdx", "cyclonedx"), default="spdx", help="SPDX 2.3 or CycloneDX 1.6 (default: spdx)"
    )
    parser.add_argument("--attach", action="store_true", help="attach it to ARTIFACT; print the digest")
    parser.add_argument("-o", "--output", metavar="FILE", type=file_path, help="default: standard output")


def add_signatures(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool signatures`."""
    parser.add_argument("what", metavar="ARTIFACT")
    parser.add_argument("--key", metavar="FILE", type=file_path, help="a public key to check them with")


def add_push(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool push`."""
    parser.add_argument("source", metavar="FROM", help="oci:DIR:TAG or oci-archive:FILE:TAG")
    parser.add_argument("target", metavar="TO", help="registry/repository:tag")
    shared.add_no_referrers(parser)


def add_pull(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool pull`."""
    parser.add_argument("source", metavar="FROM", help="registry/repository:tag or registry/repository@sha256:…")
    shared.add_no_referrers(parser)
    parser.add_argument("target", metavar="TO", nargs="?", help="default: oci:REPOSITORY:TAG in this directory")


def add_tags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool tags`."""
    parser.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")


def add_rm(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool rm`."""
    parser.add_argument("artifact", metavar="ARTIFACT", nargs="+", help="registry/repository:tag or oci:DIR:TAG")
    parser.add_argument("-f", "--force", action="store_true", help="delete other tags of the same artifact too")


def add_discover(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool discover`."""
    parser.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")


def add_index(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool index`."""
    parser.add_argument("target", metavar="TARGET", help="registry/repository:tag or oci:DIR:TAG")
    parser.add_argument("sources", metavar="ARTIFACT", nargs="+")


def add_attach(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool attach`."""
    parser.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    parser.add_argument("file", metavar="FILE", type=file_path)
    parser.add_argument("--type", metavar="MEDIA_TYPE", required=True, help="the media type of FILE")


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Add the options of `imagetool prune`."""
    parser.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")
    parser.add_argument("--keep", type=whole_number, metavar="N", help="keep the N newest versions (default: all)")
    parser.add_argument("--delete", action="store_true", help="delete the listed tags (default: list only)")
