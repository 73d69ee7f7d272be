"""The imagetool command: argparse, errors and exit statuses. Standard output is data, standard error is talk."""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import BadInput, RootdiskError
from runner.oci import Platform
from runner.reference import Reference, parse_reference
from runner.repository import RegistryOptions

KEPT_DISKS = 16  # in the cache, for their chunks

if TYPE_CHECKING:
    from imagetool.config import Image


def parser() -> argparse.ArgumentParser:
    """The command line: init, schema, build, disk, copy, index, prune; inspect, ls, stat, cat, diff."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="write results as JSON")
    common.add_argument("--debug", action="store_true", help="show commands and tracebacks")
    common.add_argument("--plain-http", action="store_true", help="speak HTTP to registries")
    common.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates to trust beside the system's")
    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("source", metavar="SOURCE", help="registry/repository:tag, oci:DIR:TAG, docker-archive:FILE, …")
    making.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")
    making.add_argument("--size", metavar="SIZE", help="of the disk, as 8GiB (the default)")
    making.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="for the guest's programs"
    )
    making.add_argument("--owner", action="append", default=[], metavar="PATH=USER[:GROUP]", help="of all below PATH")
    making.add_argument("--tls-ca", metavar="FILE", help="CA certificates for the guest")

    top = argparse.ArgumentParser("imagetool", description="OCI images in, bootable ext4 root disks out.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    build = commands.add_parser("build", parents=[common, making], help="build an image's artifact and publish it")
    build.add_argument("artifact", metavar="ARTIFACT", help="where to: registry/repository:tag or oci:DIR:TAG")
    build.add_argument("--force", action="store_true", help="move the tag where it names something else in a registry")
    disk = commands.add_parser("disk", parents=[common, making], help="write an image's raw disk to a file")
    disk.add_argument("file", metavar="FILE")
    disk.add_argument("--plain", action="store_true", help="the image's own files and nothing added")
    looking = argparse.ArgumentParser(add_help=False)
    looking.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")
    init = commands.add_parser("init", parents=[common, looking], help="write a commented images.toml for a source")
    init.add_argument("source", metavar="SOURCE", help="registry/repository:tag, oci:DIR:TAG, docker-archive:FILE, …")
    init.add_argument("file", metavar="FILE", nargs="?", type=Path, help="default: standard output")
    commands.add_parser("schema", parents=[common], help="write the JSON Schema of images.toml, for editors")
    inspect = commands.add_parser(
        "inspect", parents=[common, looking], help="say what a source image, an artifact or a raw disk is"
    )
    inspect.add_argument("what", metavar="IMAGE|ARTIFACT|FILE")
    for name, words in (
        ("ls", "list a directory of an artifact's or a raw disk"),
        ("stat", "say everything about a file on a disk: owner, layer, extents, attributes"),
        ("cat", "write a file on a disk to standard output"),
    ):
        command = commands.add_parser(name, parents=[common, looking], help=words)
        command.add_argument("what", metavar="ARTIFACT|FILE")
        if name == "ls":
            command.add_argument("path", metavar="PATH", nargs="?", default="/")
            command.add_argument("-R", "--recursive", action="store_true", help="with all below")
        else:
            command.add_argument("path", metavar="PATH")
    diff = commands.add_parser("diff", parents=[common, looking], help="compare two disks by file; exits with 1 on any")
    diff.add_argument("a", metavar="ARTIFACT|FILE")
    diff.add_argument("b", metavar="ARTIFACT|FILE")
    explain = commands.add_parser(
        "explain",
        parents=[common, looking],
        help="say which inputs of two artifacts differ, and what that costs to pull",
    )
    explain.add_argument(
        "a", metavar="ARTIFACT|NAME", help="an artifact, or what an image of images.toml is published as"
    )
    explain.add_argument("b", metavar="ARTIFACT|NAME")
    verify = commands.add_parser(
        "verify", parents=[common, looking], help="build an artifact again from its recorded inputs; 1: it is another"
    )
    verify.add_argument("what", metavar="ARTIFACT")
    verify.add_argument("--source", metavar="SOURCE", help="the image it was made of; default: where the artifact says")
    copy = commands.add_parser(
        "copy", parents=[common], help="copy an artifact or image between registries and layouts"
    )
    copy.add_argument("source", metavar="FROM")
    copy.add_argument("target", metavar="TO")
    index = commands.add_parser("index", parents=[common], help="give artifacts for several platforms one name")
    index.add_argument("target", metavar="TARGET", help="registry/repository:tag or oci:DIR:TAG")
    index.add_argument("sources", metavar="ARTIFACT", nargs="+")
    prune = commands.add_parser(
        "prune", parents=[common], help="say which tags of a repository may go: unused keys, old versions"
    )
    prune.add_argument("place", metavar="REPOSITORY", help="registry/repository or oci:DIR")
    prune.add_argument("--keep", type=int, metavar="N", help="versions to keep; all when left out")
    prune.add_argument("--delete", action="store_true", help="and remove them")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 failed (diff: there are differences), 2 wrong input, 130 interrupted."""
    options = parser().parse_args(argv)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (RootdiskError, OSError) as err:
        if options.debug:
            raise
        text = (
            str(err) if isinstance(err, RootdiskError) else f"{err.filename or 'input/output'}: {err.strerror or err}"
        )
        print(f"imagetool: {text}", file=sys.stderr)
        return err.exit_status if isinstance(err, RootdiskError) else 1


def _run(options: argparse.Namespace) -> int:
    commands = {
        "build": _build,
        "disk": _disk,
        "init": _init,
        "schema": _schema,
        "copy": _copy,
        "inspect": _inspect,
        "ls": _ls,
        "stat": _stat,
        "cat": _cat,
        "diff": _diff,
        "explain": _explain,
        "verify": _verify,
        "index": _index,
        "prune": _prune,
    }
    return commands[options.command](options)


def _image(options: argparse.Namespace) -> Image:
    """The source and options of the command line as one image of images.toml would be."""
    from imagetool.config import of_command_line

    values: dict[str, Any] = {"source": options.source, "plain_http": options.plain_http}
    for key in ("platform", "size"):
        if getattr(options, key):
            values[key] = getattr(options, key)
    if options.ca_file:
        values["ca_file"] = str(options.ca_file)
    values["env"] = _pairs(options.env, "-e", "NAME=VALUE")
    values["owners"] = _pairs(options.owner, "--owner", "PATH=USER[:GROUP]")
    values["tls"] = {"ca": options.tls_ca} if options.tls_ca else {}
    return of_command_line(_name(parse_reference(options.source)), values)


def _name(source: Reference) -> str:
    """What images.toml could call it."""
    name = re.sub(r"[^a-z0-9._-]", "-", source.place.rpartition("/")[2].lower())
    return name.strip("._-")[:63] or "image"


def _pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals:
            raise BadInput(f"{option} {name!r:.80}", f"write {option} {form}")
    return {name: value for name, _, value in pairs}


def _build(options: argparse.Namespace) -> int:
    from imagetool import build, publish, recipe
    from imagetool.artifact import frames
    from imagetool.disks import keep_only, kept_disk, read_disk
    from imagetool.guest.files import cached_init, cached_kernel, guest_of

    target = parse_reference(options.artifact)
    image = _image(options)
    started = time.monotonic()
    cache = _cache()
    init = cached_init(image.platform, cache)
    boot, kernel = cached_kernel(image, init, cache)
    with build.opened(image) as source:
        inputs = recipe.inputs(image, source.manifest_digest, guest_of(init, kernel), frames.versions())
        folder, made = kept_disk(image, inputs, init, cache, source)
    artifact = publish.assembled(image, folder, boot)
    publish.publish(artifact, image, (target,), target.tag or "latest", force=options.force)
    keep_only(cache, KEPT_DISKS)
    receipt = read_disk(folder)
    chunks = receipt["chunks"]
    summary = {
        "digest": str(artifact.descriptor.digest),
        "disk_size": receipt["size"],
        "compressed": sum(blob["size"] for blob in receipt["blobs"]),
        "chunks_new": chunks["new"] if made else 0,
        "chunks_reused": chunks["reused"] if made else sum(chunks.values()),
        "seconds": round(time.monotonic() - started, 2),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print(
            f"{summary['digest']} {receipt['size'] >> 20} MiB disk, {summary['compressed'] / 1e6:.1f} MB compressed, "
            f"{summary['chunks_new']} chunks new, {summary['chunks_reused']} reused, {summary['seconds']} s"
        )
    return 0


def _disk(options: argparse.Namespace) -> int:
    import tempfile

    from imagetool import build
    from imagetool.guest.files import cached_init

    out = Path(options.file)
    image = _image(options)
    cache = _cache()
    folder = out.absolute().parent
    if not folder.is_dir():
        raise BadInput(f"{folder} is no directory", "make it first")
    with tempfile.TemporaryDirectory(prefix=".disk-", dir=folder) as name:
        init = None if options.plain else cached_init(image.platform, cache).read_bytes()
        with build.opened(image) as source:
            build.make_raw(image, source, init, Path(name, "disk"), cache)
        Path(name, "disk").replace(out)
    print(json.dumps({"file": str(out), "size": out.stat().st_size}) if options.json else out)
    return 0


def _init(options: argparse.Namespace) -> int:
    from imagetool.description import described, write_new
    from imagetool.oci.sources import open_source

    platform, registry = _looked_at(options)
    reference = parse_reference(options.source)
    with open_source(options.source, platform, registry) as source:
        text = described(reference, _name(reference), source, options.file.parent if options.file else Path())
    if options.file:
        write_new(options.file, text)
    print(json.dumps({"file": str(options.file or ""), "text": text}) if options.json else options.file or text)
    return 0


def _schema(_: argparse.Namespace) -> int:
    from imagetool.schema import PATH

    print(PATH.read_text("utf-8"), end="")
    return 0


def _registry(options: argparse.Namespace) -> RegistryOptions:
    return RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file)


def _looked_at(options: argparse.Namespace) -> tuple[Platform, RegistryOptions]:
    platform = Platform.parse(options.platform) if options.platform else Platform.host()
    return platform, _registry(options)


def _inspect(options: argparse.Namespace) -> int:
    from imagetool.inspection import described

    print(json.dumps(described(options.what, *_looked_at(options)), indent=None if options.json else 1))
    return 0


def _ls(options: argparse.Namespace) -> int:
    from imagetool import inspection

    with inspection.opened(options.what, *_looked_at(options)) as found:
        for name, node in inspection.listing(found, os.fsencode(options.path), recursive=options.recursive):
            if options.json:
                value = {"name": inspection.shown(name), "inode": node.number, "mode": node.mode, "uid": node.uid}
                print(json.dumps({**value, "gid": node.gid, "size": node.size, "layer": found.layer(node)}))
            else:
                print(inspection.row(found, name, node))
    return 0


def _stat(options: argparse.Namespace) -> int:
    from imagetool import inspection

    with inspection.opened(options.what, *_looked_at(options)) as found:
        value = inspection.details(found, os.fsencode(options.path))
    if options.json:
        print(json.dumps(value))
        return 0
    for name, item in value.items():
        if isinstance(item, dict):
            item = ", ".join(f"{key}={data}" for key, data in item.items())
        elif isinstance(item, list):
            item = ", ".join(f"{e['length']} bytes from {e['offset']} at {e['disk']}" for e in item)
        if item != "":
            print(f"{name + ':':11} {item}")
    return 0


def _cat(options: argparse.Namespace) -> int:
    from imagetool import inspection

    with inspection.opened(options.what, *_looked_at(options)) as found:
        node = found.reader.lookup(os.fsencode(options.path), follow=True)
        if node.type != stat.S_IFREG:
            raise BadInput(f"{options.path}: a {inspection.TYPES.get(node.type, 'thing')} and no plain file")
        for data in inspection.content(found.reader, node):
            sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


def _diff(options: argparse.Namespace) -> int:
    from imagetool import inspection

    signs = {"added": "+", "removed": "-", "changed": "~"}
    differ = False
    platform, registry = _looked_at(options)
    with inspection.opened(options.a, platform, registry) as a, inspection.opened(options.b, platform, registry) as b:
        for change in inspection.compared(a, b):
            differ = True
            if options.json:
                what = {name: list(pair) for name, pair in change.what.items()}
                print(json.dumps({"path": change.path, "kind": change.kind, "what": what}))
                continue
            words = "; ".join(
                f"{name} {old or '(none)'} -> {new or '(none)'}" for name, (old, new) in change.what.items()
            )
            print(f"{signs[change.kind]} {change.path}{': ' if words else ''}{words}")
    return int(differ)


def _explain(options: argparse.Namespace) -> int:
    from imagetool import explanation

    found = explanation.between(options.a, options.b, *_looked_at(options))
    if options.json:
        print(json.dumps(found._asdict() | {"inputs": [change._asdict() for change in found.inputs]}))
        return 0
    for line in explanation.words(found):
        print(line)
    return 0


def _verify(options: argparse.Namespace) -> int:
    import tempfile

    from imagetool.verification import verify

    with tempfile.TemporaryDirectory(prefix="verify-", dir=_cache()) as work:
        done = verify(parse_reference(options.what), options.source, *_looked_at(options), Path(work))
    identical = done.digest == done.rebuilt
    if options.json:
        value = {"identical": identical, "digest": str(done.digest), "rebuilt": str(done.rebuilt), "init": done.init}
        print(json.dumps({**value, "differences": done.differences}))
    else:
        for line in done.differences:
            print(line)
        print(f"identical: {done.digest}" if identical else f"not identical: {done.digest}, built again {done.rebuilt}")
        print(f"init: {done.init}", file=sys.stderr)
    return 0 if identical else 1


def _copy(options: argparse.Namespace) -> int:
    from imagetool.oci.copy import copy

    digest = copy(options.source, options.target, _registry(options))
    print(json.dumps({"digest": str(digest)}) if options.json else digest)
    return 0


def _index(options: argparse.Namespace) -> int:
    from imagetool.oci.index import make_index

    digest = make_index(options.target, options.sources, _registry(options))
    print(json.dumps({"digest": str(digest)}) if options.json else digest)
    return 0


def _prune(options: argparse.Namespace) -> int:
    from imagetool.remote import prune

    for tag, digest in prune(parse_reference(options.place), _registry(options), options.keep, delete=options.delete):
        print(json.dumps({"tag": tag, "digest": str(digest)}) if options.json else f"{tag} {digest}")
    return 0


def _cache() -> Path:
    """Where indexes, kernels and the init are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("ROOTDISK_CACHE") or Path(home, "rootdisk"))
    cache.mkdir(parents=True, exist_ok=True)
    return cache.absolute()
