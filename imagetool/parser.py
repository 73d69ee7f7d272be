"""The command line of imagetool: its commands in groups, and the options that several of them have."""

from __future__ import annotations

import argparse

from rootdisk import __version__
from rootdisk.cli.arguments import Parser, decimal_number, file_path, whole_number
from rootdisk.cli.tools import RUNNER_COMMANDS

EPILOG = "See imagetool COMMAND --help. Options may also stand before the command: imagetool --debug ls …"
SOURCES = "registry/repository:tag, oci:DIR:TAG, docker-archive:FILE, …"


def parser() -> Parser:
    """Build the parser of the whole command line."""
    top = Parser("imagetool", description="OCI images in, bootable ext4 root disks out.", epilog=EPILOG)
    top.elsewhere = _elsewhere
    top.add_argument("-v", "--version", action="version", version=f"imagetool {__version__}", help="print the version")
    commands = _Commands(top)
    _add_project(commands)
    _add_building(commands)
    _add_looking(commands)
    _add_copying(commands)
    _add_trust(commands)
    _add_registries(commands)
    _add_upkeep(commands)
    return top


class _Commands:
    """The commands of a parser, and the options that groups of them share."""

    def __init__(self, top: Parser) -> None:
        self.looking = Parser(add_help=False)
        self.looking.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")
        self.common, self.making = _common_options(), _making_options(self.looking)
        self._below = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(self, name: str, words: str, *examples: str, parents: tuple[Parser, ...] = ()) -> Parser:
        """Add a command with its examples."""
        shown = "\n".join(("examples:", *(f"  imagetool {name} {example}" for example in examples)))
        return self._below.add_parser(
            name,
            parents=[self.common, *parents],
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            epilog=shown,
        )


def _add_project(commands: _Commands) -> None:
    """Add what begins and runs a project."""
    init = commands.add(
        "init",
        "begin a project: write images.toml, dodo.py and .gitignore for a source image",
        "debian:13",
        "docker-archive:web.tar other.toml",
        parents=(commands.looking,),
    )
    init.add_argument("source", metavar="SOURCE", help=SOURCES)
    init.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=file_path,
        help="write the description alone, to FILE or - for standard output",
    )
    doit = commands.add(
        "doit",
        "run the tasks of a project: build, check, explain, prune, and more",
        "build:web",
        "-f production.toml --set TAG=1.4 build",
        "list",
    )
    doit.add_argument("-f", "--file", metavar="FILE", type=file_path, help="what to build; default: images.toml")
    doit.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="the value of ${NAME} in the file"
    )
    doit.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="tasks and options of doit; default: build all"
    )
    commands.add("schema", "print the JSON Schema of images.toml, for editors", "> images.schema.json")


def _add_building(commands: _Commands) -> None:
    """Add what makes disks."""
    build = commands.add(
        "build",
        "build an image's artifact and publish it",
        "debian:13 oci:disks:13",
        "-e MODE=production --owner /srv=www-data registry.example/web:2 registry.example/web-disk:2",
        "--cmd '/usr/bin/app --serve' tar:rootfs.tar.gz oci:disks:app",
        parents=(commands.making,),
    )
    build.add_argument("artifact", metavar="ARTIFACT", help="where to publish: registry/repository:tag or oci:DIR:TAG")
    build.add_argument(
        "--policy", metavar="FILE", type=file_path, help="policy.json for published disks (default: this host's)"
    )
    build.add_argument(
        "--verity", action="store_true", help="add a dm-verity tree: boot --read-only then checks every block it reads"
    )
    build.add_argument("--force", action="store_true", help="move the tag if it names something else")
    disk = commands.add(
        "disk", "write an image's raw disk to a file", "--plain debian:13 debian.ext4", parents=(commands.making,)
    )
    disk.add_argument("file", metavar="FILE")
    disk.add_argument("--plain", action="store_true", help="write the image's own files and add nothing")


def _add_looking(commands: _Commands) -> None:
    """Add what looks at disks and compares them."""
    inspect = commands.add(
        "inspect", "show what a source image, an artifact or a raw disk is", "oci:disks:13", parents=(commands.looking,)
    )
    inspect.add_argument("what", metavar="IMAGE|ARTIFACT|FILE")
    for name, words, example in (
        ("ls", "list a directory on an artifact's disk or a raw disk", "-R oci:disks:13 /etc"),
        (
            "stat",
            "show everything about a file on a disk: owner, layer, extents, attributes",
            "oci:disks:13 /etc/passwd",
        ),
        ("cat", "print a file on a disk", "oci:disks:13 /etc/os-release"),
    ):
        looked = commands.add(name, words, example, parents=(commands.looking,))
        looked.add_argument("what", metavar="ARTIFACT|FILE")
        if name == "ls":
            looked.add_argument("path", metavar="PATH", nargs="?", default="/")
            looked.add_argument("-R", "--recursive", action="store_true", help="list subdirectories recursively")
        else:
            looked.add_argument("path", metavar="PATH")
    diff = commands.add(
        "diff",
        "compare two disks file by file; exit 1 if they differ",
        "oci:disks:12 oci:disks:13",
        parents=(commands.looking,),
    )
    diff.add_argument("a", metavar="ARTIFACT|FILE")
    diff.add_argument("b", metavar="ARTIFACT|FILE")
    explain = commands.add(
        "explain",
        "show which inputs of two artifacts differ, and how much a pull fetches",
        "oci:disks:12 oci:disks:13",
        "web registry.example/web-disk:1",
        parents=(commands.looking,),
    )
    explain.add_argument("a", metavar="ARTIFACT|NAME", help="an artifact, or the name of an image in images.toml")
    explain.add_argument("b", metavar="ARTIFACT|NAME")
    verify = commands.add(
        "verify",
        "build an artifact again from its recorded inputs; exit 1 if the result differs",
        "registry.example/web-disk:2",
        "--source oci:web:2 oci:disks:2",
        parents=(commands.looking,),
    )
    verify.add_argument("what", metavar="ARTIFACT")
    verify.add_argument(
        "--source", metavar="SOURCE", help="the image that it was built from (default: where the artifact says)"
    )
    verify.add_argument(
        "--key",
        metavar="FILE",
        type=file_path,
        help="public key: provenance that it has signed must be attached, and be true",
    )
    map_ = commands.add(
        "map",
        "draw a disk as an HTML page: blocks by layer, files by size, chunks, boot reads",
        "oci:disks:13 -o map.html",
        "oci:disks:13 --against oci:disks:12 --trace boot.trace -o map.html",
        parents=(commands.looking,),
    )
    map_.add_argument("what", metavar="ARTIFACT|FILE")
    map_.add_argument("--against", metavar="ARTIFACT", help="another version: show which chunks a pull takes from it")
    map_.add_argument(
        "--trace",
        metavar="FILE",
        type=file_path,
        help="what a boot reads: a boot trace, or lines of offset,length (default: as the artifact says)",
    )
    map_.add_argument("-o", "--output", metavar="FILE.html", type=file_path, help="default: standard output")
    trace = commands.add(
        "trace",
        "boot an artifact and write which files it reads, in order: boot_trace of images.toml",
        "oci:disks:13 -o web.trace",
        parents=(commands.looking,),
    )
    trace.add_argument("what", metavar="ARTIFACT")
    trace.add_argument("-o", "--output", metavar="FILE", type=file_path, help="default: standard output")
    trace.add_argument(
        "--seconds", type=decimal_number, default=30.0, metavar="N", help="end the boot after N seconds (default: 30)"
    )
    trace.add_argument(
        "--reads", type=file_path, metavar="FILE", help="do not boot: use a file of runner boot --record-reads"
    )


def _add_copying(commands: _Commands) -> None:
    """Add what copies artifacts, and writes them for other machines."""
    copy = commands.add(
        "copy",
        "copy an artifact or image between registries, layouts and archives",
        "oci:disks:13 registry.example/debian-disk:13",
        "registry.example/debian-disk:13 oci-archive:disk.tar:13",
    )
    copy.add_argument("source", metavar="FROM")
    copy.add_argument("target", metavar="TO")
    copy.add_argument("--no-referrers", action="store_true", help="leave out signatures, SBOMs and other attachments")
    export = commands.add(
        "export",
        "write an artifact for other machines than the runner's: QEMU, Firecracker, KubeVirt",
        "oci:disks:13 --to dir:debian",
        "oci:disks:13 --to containerdisk:registry.example/debian-vm:13 > vmi.yaml",
        parents=(commands.looking,),
    )
    export.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    export.add_argument(
        "--to",
        required=True,
        metavar="PLACE",
        help="dir:PATH for a new directory, or containerdisk:REFERENCE (registry/repository:tag, oci:DIR:TAG or "
        "oci-archive:FILE:TAG) for KubeVirt's image; its VirtualMachineInstance is printed",
    )
    export.add_argument(
        "--disk-format",
        choices=("raw", "qcow2"),
        help="of the disk in a directory; Firecracker needs raw (default: raw)",
    )
    export.add_argument("--force", action="store_true", help="replace an older export, or move the tag")


def _add_trust(commands: _Commands) -> None:
    """Add what signs, and lists signatures and packages."""
    sign = commands.add(
        "sign",
        "sign an artifact or image with a key, every byte of it verified first",
        "--key cosign.key registry.example/web-disk:2",
        "--key-command 'openssl dgst -sha256 -sign key.pem' --public-key key.pub oci:disks:13",
    )
    sign.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag, oci:DIR:TAG or oci-archive:FILE:TAG")
    sign.add_argument("--key", metavar="KEY", default="", help="private key: a PEM file, cosign's, or env://NAME")
    sign.add_argument(
        "--key-command", metavar="COMMAND", default="", help="writes a signature of its standard input, as for a KMS"
    )
    sign.add_argument("--public-key", metavar="FILE", type=file_path, help="public key of the command's key")
    sign.add_argument(
        "--passphrase-file", metavar="FILE", type=file_path, help="default: the variable ROOTDISK_SIGN_PASSPHRASE"
    )
    sign.add_argument(
        "--format",
        choices=("bundle", "simple", "both"),
        default="bundle",
        help="simple: as podman, skopeo and cosign 1 and 2 read; default: bundle",
    )
    sign.add_argument(
        "--identity", metavar="NAME", default="", help="repository[:tag] to sign it as; default: ARTIFACT's"
    )
    sbom = commands.add(
        "sbom",
        "list the packages of an artifact, a source image or a raw disk as SPDX or CycloneDX",
        "oci:disks:13 -o 13.spdx.json",
        "--attach --format cyclonedx registry.example/web-disk:2",
        parents=(commands.looking,),
    )
    sbom.add_argument("what", metavar="ARTIFACT|SOURCE|FILE")
    sbom.add_argument(
        "--format", choices=("spdx", "cyclonedx"), default="spdx", help="SPDX 2.3 or CycloneDX 1.6 (default: spdx)"
    )
    sbom.add_argument("--attach", action="store_true", help="attach it to ARTIFACT; print the digest")
    sbom.add_argument("-o", "--output", metavar="FILE", type=file_path, help="default: standard output")
    signatures = commands.add(
        "signatures",
        "list an artifact's signatures; with --key exit 1 if none is by that key",
        "--key cosign.pub registry.example/web-disk:2",
    )
    signatures.add_argument("what", metavar="ARTIFACT")
    signatures.add_argument("--key", metavar="FILE", type=file_path, help="a public key to check them with")


def _add_registries(commands: _Commands) -> None:
    """Add what deals with registries and their tags."""
    push = commands.add(
        "push",
        "copy an artifact or image from this machine to a registry",
        "oci:disks:13 registry.example/debian-disk:13",
    )
    push.add_argument("source", metavar="FROM", help="oci:DIR:TAG or oci-archive:FILE:TAG")
    push.add_argument("target", metavar="TO", help="registry/repository:tag")
    pull = commands.add(
        "pull",
        "copy an artifact or image from a registry to this machine",
        "registry.example/debian-disk:13",
        "registry.example/debian-disk:13 oci-archive:disk.tar:13",
    )
    pull.add_argument("source", metavar="FROM", help="registry/repository:tag or registry/repository@sha256:…")
    for one in (push, pull):
        one.add_argument("--no-referrers", action="store_true", help="leave out signatures and other attachments")
    pull.add_argument("target", metavar="TO", nargs="?", help="default: oci:REPOSITORY:TAG in this directory")
    tags = commands.add("tags", "list the tags of a repository", "registry.example/debian-disk", "oci:disks")
    tags.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")
    rm = commands.add("rm", "delete artifacts, with the tags that name them", "oci:disks:12")
    rm.add_argument("artifact", metavar="ARTIFACT", nargs="+", help="registry/repository:tag or oci:DIR:TAG")
    rm.add_argument("-f", "--force", action="store_true", help="delete other tags of the same artifact too")
    discover = commands.add("discover", "list what is attached to an artifact or image", "registry.example/web-disk:2")
    discover.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    index = commands.add(
        "index", "give artifacts for several platforms one name", "oci:disks:13 oci:disks:13-amd64 oci:disks:13-arm64"
    )
    index.add_argument("target", metavar="TARGET", help="registry/repository:tag or oci:DIR:TAG")
    index.add_argument("sources", metavar="ARTIFACT", nargs="+")
    attach = commands.add(
        "attach",
        "attach a file, for example an SBOM, to an artifact or image",
        "--type application/spdx+json registry.example/web-disk:2 web.spdx.json",
    )
    attach.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    attach.add_argument("file", metavar="FILE", type=file_path)
    attach.add_argument("--type", metavar="MEDIA_TYPE", required=True, help="the media type of FILE")
    prune = commands.add(
        "prune",
        "list the tags of a repository that can go: unused keys, old versions",
        "--keep 5 registry.example/web-disk",
        "--keep 5 --delete oci:disks",
    )
    prune.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")
    prune.add_argument("--keep", type=whole_number, metavar="N", help="keep the N newest versions (default: all)")
    prune.add_argument("--delete", action="store_true", help="delete the listed tags (default: list only)")


def _add_upkeep(commands: _Commands) -> None:
    """Add what keeps this machine in order."""
    clean = commands.add("clean", "empty your cache of disks, kernels and indexes; builds make them again", "--dry-run")
    clean.add_argument("-n", "--dry-run", action="store_true", help="list what would be removed, and remove nothing")
    completion = commands.add(
        "completion",
        "print a shell's completion script for imagetool",
        "bash > ~/.local/share/bash-completion/completions/imagetool",
        "zsh > ~/.zfunc/_imagetool",
        "fish > ~/.config/fish/completions/imagetool.fish",
    )
    completion.set_defaults(whole_parser=parser)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))


def _common_options() -> Parser:
    """Return the options that every command has."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print results as a JSON array")
    common.add_argument("-q", "--quiet", action="store_true", help="show no progress and no remarks")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    common.add_argument("--plain-http", action="store_true", help="use HTTP instead of HTTPS for registries")
    common.add_argument("--ca-file", type=file_path, metavar="FILE", help="trust these certificates too (PEM)")
    return common


def _making_options(looking: Parser) -> Parser:
    """Return the options of commands that make a disk."""
    making = Parser(add_help=False, parents=[looking])
    making.add_argument("source", metavar="SOURCE", help=SOURCES)
    making.add_argument("--size", metavar="SIZE", help="size of the disk, for example 20GiB (default: 8GiB)")
    making.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable for the guest's programs"
    )
    making.add_argument(
        "--owner",
        action="append",
        default=[],
        metavar="PATH=USER[:GROUP]",
        help="set the owner of PATH and everything below it",
    )
    making.add_argument(
        "--allow-secret",
        action="append",
        default=[],
        metavar="NAME=REASON",
        help="publish the private key in NAME, a variable or path, for this reason",
    )
    making.add_argument("--entrypoint", metavar="WORD", help="run this program instead of the image's")
    making.add_argument(
        "--cmd", metavar="WORDS", help="run this command, or give the entrypoint these arguments; split as by a shell"
    )
    making.add_argument(
        "--strict", action="store_true", help="refuse an image of which something cannot be kept as it is"
    )
    making.add_argument("--tls-ca", metavar="FILE", help="give the guest these CA certificates (PEM)")
    return making


def _elsewhere(command: str, word: str) -> str:
    """Say what to type for a command of the runner, or for an option of `docker build`; "" if it is neither."""
    if not command and word in RUNNER_COMMANDS:
        return f"the runner has it: runner {word}"
    if command == "build" and word in ("-t", "--tag", "-f", "--file"):
        return "it makes a disk of an image that is built already: imagetool build SOURCE ARTIFACT"
    return ""
