"""The imagetool command: argparse, errors and exit statuses. Standard output is data, standard error is talk."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

from rootdisk import __version__
from rootdisk.cli.arguments import Parser, command_first, decimal_number, file_path, whole_number
from rootdisk.cli.tools import RUNNER_COMMANDS
from rootdisk.errors import RootdiskError
from rootdisk.system.notices import show_by
from rootdisk.system.stdio import OutputError, discard_output, settle, speak_utf8
from rootdisk.text import describe_error, error_text

# In which module of imagetool/commands/ each command is.
ROOMS = {
    **dict.fromkeys(("build", "disk"), "build"),
    **dict.fromkeys(("inspect", "ls", "stat", "cat", "diff", "explain", "map", "trace"), "look"),
    **dict.fromkeys(("sign", "signatures"), "sign"),
    "sbom": "sbom",
    "export": "export",
    **dict.fromkeys(("copy", "index", "attach", "prune"), "publish"),
    **dict.fromkeys(("push", "pull", "tags", "rm", "discover"), "registry"),
    **dict.fromkeys(("schema", "completion"), "completion"),
    "verify": "verify",
    "clean": "clean",
    **dict.fromkeys(("init", "doit"), "project"),
}
EPILOG = "See imagetool COMMAND --help. Options may also stand before the command: imagetool --debug ls …"
SOURCES = "registry/repository:tag, oci:DIR:TAG, docker-archive:FILE, …"


def parser() -> Parser:
    """Build the parser of the whole command line."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print results as a JSON array")
    common.add_argument("-q", "--quiet", action="store_true", help="show no progress and no remarks")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    common.add_argument("--plain-http", action="store_true", help="use HTTP instead of HTTPS for registries")
    common.add_argument("--ca-file", type=file_path, metavar="FILE", help="trust these certificates too (PEM)")
    looking = Parser(add_help=False)
    looking.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")
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

    top = Parser("imagetool", description="OCI images in, bootable ext4 root disks out.", epilog=EPILOG)
    top.elsewhere = _elsewhere
    top.add_argument("-v", "--version", action="version", version=f"imagetool {__version__}", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, words: str, *examples: str, parents: tuple[Parser, ...] = ()) -> Parser:
        """Add a command with its examples."""
        shown = "\n".join(("examples:", *(f"  imagetool {name} {example}" for example in examples)))
        return commands.add_parser(
            name, parents=[common, *parents], help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=shown
        )

    init = command(
        "init",
        "begin a project: write images.toml, dodo.py and .gitignore for a source image",
        "debian:13",
        "docker-archive:web.tar other.toml",
        parents=(looking,),
    )
    init.add_argument("source", metavar="SOURCE", help=SOURCES)
    init.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=file_path,
        help="write the description alone, to FILE or - for standard output",
    )
    doit = command(
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
    command("schema", "print the JSON Schema of images.toml, for editors", "> images.schema.json")
    build = command(
        "build",
        "build an image's artifact and publish it",
        "debian:13 oci:disks:13",
        "-e MODE=production --owner /srv=www-data registry.example/web:2 registry.example/web-disk:2",
        "--cmd '/usr/bin/app --serve' tar:rootfs.tar.gz oci:disks:app",
        parents=(making,),
    )
    build.add_argument("artifact", metavar="ARTIFACT", help="where to publish: registry/repository:tag or oci:DIR:TAG")
    build.add_argument(
        "--policy", metavar="FILE", type=file_path, help="policy.json for published disks (default: this host's)"
    )
    build.add_argument(
        "--verity", action="store_true", help="add a dm-verity tree: boot --read-only then checks every block it reads"
    )
    build.add_argument("--force", action="store_true", help="move the tag if it names something else")
    disk = command("disk", "write an image's raw disk to a file", "--plain debian:13 debian.ext4", parents=(making,))
    disk.add_argument("file", metavar="FILE")
    disk.add_argument("--plain", action="store_true", help="write the image's own files and add nothing")
    inspect = command(
        "inspect", "show what a source image, an artifact or a raw disk is", "oci:disks:13", parents=(looking,)
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
        looked = command(name, words, example, parents=(looking,))
        looked.add_argument("what", metavar="ARTIFACT|FILE")
        if name == "ls":
            looked.add_argument("path", metavar="PATH", nargs="?", default="/")
            looked.add_argument("-R", "--recursive", action="store_true", help="list subdirectories recursively")
        else:
            looked.add_argument("path", metavar="PATH")
    diff = command(
        "diff",
        "compare two disks file by file; exit 1 if they differ",
        "oci:disks:12 oci:disks:13",
        parents=(looking,),
    )
    diff.add_argument("a", metavar="ARTIFACT|FILE")
    diff.add_argument("b", metavar="ARTIFACT|FILE")
    explain = command(
        "explain",
        "show which inputs of two artifacts differ, and how much a pull fetches",
        "oci:disks:12 oci:disks:13",
        "web registry.example/web-disk:1",
        parents=(looking,),
    )
    explain.add_argument("a", metavar="ARTIFACT|NAME", help="an artifact, or the name of an image in images.toml")
    explain.add_argument("b", metavar="ARTIFACT|NAME")
    verify = command(
        "verify",
        "build an artifact again from its recorded inputs; exit 1 if the result differs",
        "registry.example/web-disk:2",
        "--source oci:web:2 oci:disks:2",
        parents=(looking,),
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
    map_ = command(
        "map",
        "draw a disk as an HTML page: blocks by layer, files by size, chunks, boot reads",
        "oci:disks:13 -o map.html",
        "oci:disks:13 --against oci:disks:12 --trace boot.trace -o map.html",
        parents=(looking,),
    )
    map_.add_argument("what", metavar="ARTIFACT|FILE")
    map_.add_argument("--against", metavar="ARTIFACT", help="another version: show which chunks a pull takes from it")
    map_.add_argument(
        "--trace",
        metavar="FILE",
        type=file_path,
        help="what a boot reads, as lines of offset,length (default: as the artifact says)",
    )
    map_.add_argument("-o", "--output", metavar="FILE.html", type=file_path, help="default: standard output")
    trace = command(
        "trace",
        "boot an artifact and write which files it reads, in order: boot_trace of images.toml",
        "oci:disks:13 -o web.trace",
        parents=(looking,),
    )
    trace.add_argument("what", metavar="ARTIFACT")
    trace.add_argument("-o", "--output", metavar="FILE", type=file_path, help="default: standard output")
    trace.add_argument(
        "--seconds", type=decimal_number, default=30.0, metavar="N", help="end the boot after N seconds (default: 30)"
    )
    trace.add_argument(
        "--reads", type=file_path, metavar="FILE", help="do not boot: use a file of runner boot --record-reads"
    )
    copy = command(
        "copy",
        "copy an artifact or image between registries, layouts and archives",
        "oci:disks:13 registry.example/debian-disk:13",
        "registry.example/debian-disk:13 oci-archive:disk.tar:13",
    )
    copy.add_argument("source", metavar="FROM")
    copy.add_argument("target", metavar="TO")
    copy.add_argument("--no-referrers", action="store_true", help="leave out signatures, SBOMs and other attachments")
    export = command(
        "export",
        "write an artifact for other machines than the runner's: QEMU, Firecracker, KubeVirt",
        "oci:disks:13 --to dir:debian",
        "oci:disks:13 --to containerdisk:registry.example/debian-vm:13 > vmi.yaml",
        parents=(looking,),
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
    sign = command(
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
    sbom = command(
        "sbom",
        "list the packages of an artifact, a source image or a raw disk as SPDX or CycloneDX",
        "oci:disks:13 -o 13.spdx.json",
        "--attach --format cyclonedx registry.example/web-disk:2",
        parents=(looking,),
    )
    sbom.add_argument("what", metavar="ARTIFACT|SOURCE|FILE")
    sbom.add_argument(
        "--format", choices=("spdx", "cyclonedx"), default="spdx", help="SPDX 2.3 or CycloneDX 1.6 (default: spdx)"
    )
    sbom.add_argument("--attach", action="store_true", help="attach it to ARTIFACT; print the digest")
    sbom.add_argument("-o", "--output", metavar="FILE", type=file_path, help="default: standard output")
    signatures = command(
        "signatures",
        "list an artifact's signatures; with --key exit 1 if none is by that key",
        "--key cosign.pub registry.example/web-disk:2",
    )
    signatures.add_argument("what", metavar="ARTIFACT")
    signatures.add_argument("--key", metavar="FILE", type=file_path, help="a public key to check them with")
    push = command(
        "push",
        "copy an artifact or image from this machine to a registry",
        "oci:disks:13 registry.example/debian-disk:13",
    )
    push.add_argument("source", metavar="FROM", help="oci:DIR:TAG or oci-archive:FILE:TAG")
    push.add_argument("target", metavar="TO", help="registry/repository:tag")
    pull = command(
        "pull",
        "copy an artifact or image from a registry to this machine",
        "registry.example/debian-disk:13",
        "registry.example/debian-disk:13 oci-archive:disk.tar:13",
    )
    pull.add_argument("source", metavar="FROM", help="registry/repository:tag or registry/repository@sha256:…")
    for one in (push, pull):
        one.add_argument("--no-referrers", action="store_true", help="leave out signatures and other attachments")
    pull.add_argument("target", metavar="TO", nargs="?", help="default: oci:REPOSITORY:TAG in this directory")
    tags = command("tags", "list the tags of a repository", "registry.example/debian-disk", "oci:disks")
    tags.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")
    rm = command("rm", "delete artifacts, with the tags that name them", "oci:disks:12")
    rm.add_argument("artifact", metavar="ARTIFACT", nargs="+", help="registry/repository:tag or oci:DIR:TAG")
    rm.add_argument("-f", "--force", action="store_true", help="delete other tags of the same artifact too")
    discover = command("discover", "list what is attached to an artifact or image", "registry.example/web-disk:2")
    discover.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    index = command(
        "index", "give artifacts for several platforms one name", "oci:disks:13 oci:disks:13-amd64 oci:disks:13-arm64"
    )
    index.add_argument("target", metavar="TARGET", help="registry/repository:tag or oci:DIR:TAG")
    index.add_argument("sources", metavar="ARTIFACT", nargs="+")
    attach = command(
        "attach",
        "attach a file, for example an SBOM, to an artifact or image",
        "--type application/spdx+json registry.example/web-disk:2 web.spdx.json",
    )
    attach.add_argument("what", metavar="ARTIFACT", help="registry/repository:tag or oci:DIR:TAG")
    attach.add_argument("file", metavar="FILE", type=file_path)
    attach.add_argument("--type", metavar="MEDIA_TYPE", required=True, help="the media type of FILE")
    prune = command(
        "prune",
        "list the tags of a repository that can go: unused keys, old versions",
        "--keep 5 registry.example/web-disk",
        "--keep 5 --delete oci:disks",
    )
    prune.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")
    prune.add_argument("--keep", type=whole_number, metavar="N", help="keep the N newest versions (default: all)")
    prune.add_argument("--delete", action="store_true", help="delete the listed tags (default: list only)")
    clean = command("clean", "empty your cache of disks, kernels and indexes; builds make them again", "--dry-run")
    clean.add_argument("-n", "--dry-run", action="store_true", help="list what would be removed, and remove nothing")
    completion = command(
        "completion",
        "print a shell's completion script for imagetool",
        "bash > ~/.local/share/bash-completion/completions/imagetool",
        "zsh > ~/.zfunc/_imagetool",
        "fish > ~/.config/fish/completions/imagetool.fish",
    )
    completion.set_defaults(whole_parser=parser)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top


def _elsewhere(command: str, word: str) -> str:
    """Say what to type for a command of the runner, or for an option of `docker build`; "" if it is neither."""
    if not command and word in RUNNER_COMMANDS:
        return f"the runner has it: runner {word}"
    if command == "build" and word in ("-t", "--tag", "-f", "--file"):
        return "it makes a disk of an image that is built already: imagetool build SOURCE ARTIFACT"
    return ""


def _with_run(words: list[str]) -> list[str]:
    """Insert doit's command run before its first option, as plain doit does: `doit -n 2 build` is `doit run -n 2 build`."""
    at = 1
    while at < len(words) and words[at].startswith("-"):
        if words[at].partition("=")[0] not in ("-f", "--file", "--set", "--debug", "-h", "--help", "--"):
            return [*words[:at], "run", *words[at:]]
        at += 2 if words[at] in ("-f", "--file", "--set") else 1
    return words


def _end(number: int, frame: object) -> None:
    """End by a signal as by an error: what is half made goes."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (failed, or a difference was found), 2 (wrong input), 130."""
    if argv is None:
        speak_utf8()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
    settle()
    show_by(lambda text: print(f"imagetool: {error_text(text)}", file=sys.stderr, flush=True))
    words = command_first(list(sys.argv[1:] if argv is None else argv), ("--ca-file", "--platform"))
    if words[:1] == ["doit"]:
        words = _with_run(words)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    debug = False
    try:
        try:
            options = parser().parse_args(words)
            debug = options.debug
            from rootdisk.durable import keep_others_out

            keep_others_out()
            room = importlib.import_module(f"imagetool.commands.{ROOMS[options.command]}")  # --help needs none of them
            return int(getattr(room, f"{options.command}_command")(options))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except SystemExit as err:  # --help, and a project that doit cannot load
        if not isinstance(err.code, str):
            raise
        print(error_text(err.code), file=sys.stderr)
        return 1
    except BrokenPipeError:
        discard_output()
        return 1
    except ModuleNotFoundError as err:  # an installation for the runner alone lacks what building needs
        print(f"imagetool: {err.name} is not installed: pip install 'rootdisk[build]'", file=sys.stderr)
        return 1
    except (RootdiskError, OSError) as err:
        if isinstance(err, OutputError):
            discard_output()
        if debug:
            import traceback

            traceback.print_exc()
        print(f"imagetool: {error_text(describe_error(err))}", file=sys.stderr)
        return err.exit_status if isinstance(err, RootdiskError) else 1
