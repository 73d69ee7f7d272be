"""The command line of imagetool: a table of its commands."""

from __future__ import annotations

import argparse

from imagetool.options import artifacts, disks, project, shared
from rootdisk import __version__
from rootdisk.cli.arguments import Parser
from rootdisk.cli.commands import Command, add_commands
from rootdisk.cli.tools import RUNNER_COMMANDS

_EPILOG = "See imagetool COMMAND --help. Options may also stand before the command: imagetool --debug ls …"


def parser(only: str | None = None) -> Parser:
    """Build the parser: of the command `only`, or of all."""
    top = Parser("imagetool", description="OCI images in, bootable ext4 root disks out.", epilog=_EPILOG)
    top.elsewhere = _elsewhere
    top.add_argument("-v", "--version", action="version", version=f"imagetool {__version__}", help="print the version")
    add_commands(top, COMMANDS, shared.add_common, only)
    return top


def _elsewhere(command: str, word: str) -> str:
    """Say what to type for a command of the runner, a task of doit, or an option of `docker build`; "" if it is none of them."""
    if not command and word in _TASKS:
        return f"it is a task: imagetool doit {word}"
    if not command and word in RUNNER_COMMANDS:
        return f"the runner has it: runner {word}"
    if command == "build" and word in ("-t", "--tag", "-f", "--file"):
        return "it makes a disk of an image that is built already: imagetool build SOURCE ARTIFACT"
    return ""


# Tasks and commands of doit that imagetool itself does not have; tasks/dodo.py.
_TASKS = {"check", "graph", "kernel", "list", "pack", "publish", "report", "reproduce", "resolve"}


def _nothing(own: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


def _completion(own: argparse.ArgumentParser) -> None:
    own.set_defaults(whole_parser=parser)
    project.add_completion(own)


COMMANDS = {
    "init": Command(
        "project",
        "begin a project: write images.toml, dodo.py and .gitignore for a source image",
        project.add_init,
        examples=(
            "debian:13",
            "docker-archive:web.tar other.toml",
        ),
    ),
    "doit": Command(
        "project",
        "run the tasks of a project: build, check, explain, prune, and more",
        project.add_doit,
        examples=(
            "build:web",
            "-f production.toml --set TAG=1.4 build",
            "list",
        ),
    ),
    "schema": Command(
        "completion",
        "print the JSON Schema of images.toml, for editors",
        _nothing,
        examples=("> images.schema.json",),
    ),
    "build": Command(
        "build",
        "build an image's artifact and publish it",
        disks.add_build,
        examples=(
            "debian:13 oci:disks:13",
            "-e MODE=production --owner /srv=www-data registry.example/web:2 registry.example/web-disk:2",
            "--cmd '/usr/bin/app --serve' tar:rootfs.tar.gz oci:disks:app",
        ),
    ),
    "disk": Command(
        "build", "write an image's raw disk to a file", disks.add_disk, examples=("--plain debian:13 debian.ext4",)
    ),
    "inspect": Command(
        "look", "show what a source image, an artifact or a raw disk is", disks.add_inspect, examples=("oci:disks:13",)
    ),
    "ls": Command(
        "look", "list a directory on an artifact's disk or a raw disk", disks.add_ls, examples=("-R oci:disks:13 /etc",)
    ),
    "stat": Command(
        "look",
        "show everything about a file on a disk: owner, layer, extents, attributes",
        disks.add_path,
        examples=("oci:disks:13 /etc/passwd",),
    ),
    "cat": Command("look", "print a file on a disk", disks.add_path, examples=("oci:disks:13 /etc/os-release",)),
    "diff": Command(
        "look",
        "compare two disks file by file; exit 1 if they differ",
        disks.add_diff,
        examples=("oci:disks:12 oci:disks:13",),
    ),
    "explain": Command(
        "look",
        "show which inputs of two artifacts differ, and how much a pull fetches",
        disks.add_explain,
        examples=(
            "oci:disks:12 oci:disks:13",
            "web registry.example/web-disk:1",
        ),
    ),
    "verify": Command(
        "verify",
        "build an artifact again from its recorded inputs; exit 1 if the result differs",
        disks.add_verify,
        examples=(
            "registry.example/web-disk:2",
            "--source oci:web:2 oci:disks:2",
        ),
    ),
    "map": Command(
        "look",
        "draw a disk as an HTML page: blocks by layer, files by size, chunks, boot reads",
        disks.add_map,
        examples=(
            "oci:disks:13 -o map.html",
            "oci:disks:13 --against oci:disks:12 --trace boot.trace -o map.html",
        ),
    ),
    "trace": Command(
        "look",
        "boot an artifact and write which files it reads, in order: boot_trace of images.toml",
        disks.add_trace,
        examples=("oci:disks:13 -o web.trace",),
    ),
    "copy": Command(
        "publish",
        "copy an artifact or image between registries, layouts and archives",
        artifacts.add_copy,
        examples=(
            "oci:disks:13 registry.example/debian-disk:13",
            "registry.example/debian-disk:13 oci-archive:disk.tar:13",
        ),
    ),
    "export": Command(
        "export",
        "write an artifact for other machines than the runner's: QEMU, Firecracker, KubeVirt",
        disks.add_export,
        examples=(
            "oci:disks:13 --to dir:debian",
            "oci:disks:13 --to containerdisk:registry.example/debian-vm:13 > vmi.yaml",
        ),
    ),
    "sign": Command(
        "sign",
        "sign an artifact or image with a key, every byte of it verified first",
        artifacts.add_sign,
        examples=(
            "--key cosign.key registry.example/web-disk:2",
            "--key-command 'openssl dgst -sha256 -sign key.pem' --public-key key.pub oci:disks:13",
        ),
    ),
    "sbom": Command(
        "sbom",
        "list the packages of an artifact, a source image or a raw disk as SPDX or CycloneDX",
        artifacts.add_sbom,
        examples=(
            "oci:disks:13 -o 13.spdx.json",
            "--attach --format cyclonedx registry.example/web-disk:2",
        ),
    ),
    "signatures": Command(
        "sign",
        "list an artifact's signatures; with --key exit 1 if none is by that key",
        artifacts.add_signatures,
        examples=("--key cosign.pub registry.example/web-disk:2",),
    ),
    "push": Command(
        "registry",
        "copy an artifact or image from this machine to a registry",
        artifacts.add_push,
        examples=("oci:disks:13 registry.example/debian-disk:13",),
    ),
    "pull": Command(
        "registry",
        "copy an artifact or image from a registry to this machine",
        artifacts.add_pull,
        examples=(
            "registry.example/debian-disk:13",
            "registry.example/debian-disk:13 oci-archive:disk.tar:13",
        ),
    ),
    "tags": Command(
        "registry",
        "list the tags of a repository",
        artifacts.add_tags,
        examples=(
            "registry.example/debian-disk",
            "oci:disks",
        ),
    ),
    "rm": Command(
        "registry", "delete artifacts, with the tags that name them", artifacts.add_rm, examples=("oci:disks:12",)
    ),
    "discover": Command(
        "registry",
        "list what is attached to an artifact or image",
        artifacts.add_discover,
        examples=("registry.example/web-disk:2",),
    ),
    "index": Command(
        "publish",
        "give artifacts for several platforms one name",
        artifacts.add_index,
        examples=("oci:disks:13 oci:disks:13-amd64 oci:disks:13-arm64",),
    ),
    "attach": Command(
        "publish",
        "attach a file, for example an SBOM, to an artifact or image",
        artifacts.add_attach,
        examples=("--type application/spdx+json registry.example/web-disk:2 web.spdx.json",),
    ),
    "prune": Command(
        "publish",
        "list the tags of a repository that can go: unused keys, old versions",
        artifacts.add_prune,
        examples=(
            "--keep 5 registry.example/web-disk",
            "--keep 5 --delete oci:disks",
        ),
    ),
    "clean": Command(
        "clean",
        "empty your cache of disks, kernels and indexes; builds make them again",
        project.add_clean,
        examples=("--dry-run",),
    ),
    "completion": Command(
        "completion",
        "print a shell's completion script for imagetool",
        _completion,
        examples=(
            "bash > ~/.local/share/bash-completion/completions/imagetool",
            "zsh > ~/.zfunc/_imagetool",
            "fish > ~/.config/fish/completions/imagetool.fish",
        ),
    ),
}
