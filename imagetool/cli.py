"""The imagetool command: argparse, errors and exit statuses. Standard output is data, standard error is talk."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import BadInput, RootdiskError
from runner.oci import Platform
from runner.reference import parse_reference
from runner.repository import RegistryOptions

if TYPE_CHECKING:
    from imagetool.config import Image


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
    commands = {"build": _build, "disk": _disk, "inspect": _inspect, "copy": _copy}
    return commands[options.command](options)


def _image(options: argparse.Namespace) -> Image:
    """The source and options of the command line as one image of images.toml would be."""
    from imagetool.config import Image, parse_size

    image = Image(
        name=parse_reference(options.source).place.rpartition("/")[2] or "image",
        source=parse_reference(options.source),
        publish=(),
        platform=Platform.parse(options.platform) if options.platform else Platform.host(),
        plain_http=options.plain_http,
    )
    return replace(image, size=parse_size(options.size)) if options.size else image


def _build(options: argparse.Namespace) -> int:
    from imagetool import build
    from imagetool.oci.push import open_target

    target = parse_reference(options.artifact)
    image = _image(options)
    started = time.monotonic()
    cache = _cache()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as name:
        artifact, disk = build.build_artifact(image, Path(name), cache)
        place = open_target(target, RegistryOptions(plain_http=options.plain_http))
        try:
            build.push(artifact, place, (target.tag or "latest", artifact.key_tag))
        finally:
            place.close()
    digest = artifact.descriptor.digest
    packed = disk.packed
    summary = {
        "digest": str(digest),
        "disk_size": packed.index.disk_size,
        "compressed": packed.blob_size,
        "chunks_new": packed.new_chunks,
        "chunks_reused": packed.reused_chunks,
        "seconds": round(time.monotonic() - started, 2),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print(
            f"{digest} {packed.index.disk_size >> 20} MiB disk, {packed.blob_size / 1e6:.1f} MB compressed, "
            f"{packed.new_chunks} chunks new, {packed.reused_chunks} reused, {summary['seconds']} s"
        )
    return 0


def _disk(options: argparse.Namespace) -> int:
    from imagetool import build

    out = Path(options.file)
    image = _image(options)
    cache = _cache()
    folder = out.absolute().parent
    if not folder.is_dir():
        raise BadInput(f"{folder} is no directory", "make it first")
    with tempfile.TemporaryDirectory(prefix=".disk-", dir=folder) as name:
        build.make_raw(image, Path(name, "disk"), cache, plain=options.plain)
        Path(name, "disk").replace(out)
    print(json.dumps({"file": str(out), "size": out.stat().st_size}) if options.json else out)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from runner.cli import main as runner

    arguments = ["inspect", options.artifact, *(["--plain-http"] if options.plain_http else [])]
    return runner(arguments)


def _copy(options: argparse.Namespace) -> int:
    from imagetool.oci.copy import copy

    digest = copy(options.source, options.target, RegistryOptions(plain_http=options.plain_http))
    print(json.dumps({"digest": str(digest)}) if options.json else digest)
    return 0


def _cache() -> Path:
    """Where indexes, kernels and the init are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("ROOTDISK_CACHE") or Path(home, "rootdisk"))
    cache.mkdir(parents=True, exist_ok=True)
    return cache.absolute()
