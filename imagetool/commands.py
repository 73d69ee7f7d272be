"""What each command of imagetool does: `NAME_command(options)` writes its results and gives the exit status."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagetool.progress import reported
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system.folders import user_folder
from rootdisk.system.ownership import check_cache
from rootdisk.text import one_line, printable

if TYPE_CHECKING:
    from imagetool.config.images import Image

KEPT_DISKS = 16  # in the cache, for their chunks


def _image(options: argparse.Namespace) -> Image:
    """The source and options of the command line as one image of images.toml would be."""
    from imagetool.config.images import of_command_line

    values: dict[str, Any] = {"source": options.source, "plain_http": options.plain_http}
    for key in ("platform", "size"):
        if getattr(options, key):
            values[key] = getattr(options, key)
    if options.ca_file:
        values["ca_file"] = str(options.ca_file)
    values["env"] = _pairs(options.env, "-e", "NAME=VALUE")
    values["owners"] = _pairs(options.owner, "--owner", "PATH=USER[:GROUP]")
    if options.allow_secret:
        values["allow_secret"] = _pairs(options.allow_secret, "--allow-secret", "NAME=REASON")
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


def build_command(options: argparse.Namespace) -> int:
    from imagetool.build import disk_cache
    from imagetool.build.artifact import publish_artifact
    from imagetool.build.disk import opened
    from imagetool.guest.boot_files import boot_files

    target = parse_reference(options.artifact)
    image = _image(options)
    started = time.monotonic()
    cache = _cache()
    boot = boot_files(image, cache)
    with reported(quiet=options.quiet) as report, opened(image) as source:
        tag = target.tag or "latest"
        made = publish_artifact(image, source, boot, cache, (target,), tag, force=options.force, report=report)
    disk_cache.keep_only(cache, KEPT_DISKS)
    chunks_new, chunks_reused = made.chunks
    summary = {
        "digest": str(made.digest),
        "found": str(made.found.place.place) if made.found else "",
        "disk_size": made.disk_size,
        "compressed": made.compressed,
        "chunks_new": chunks_new,
        "chunks_reused": chunks_reused,
        "seconds": round(time.monotonic() - started, 2),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        how = "found in the target" if made.found else f"{chunks_new} chunks new, {chunks_reused} reused"
        print(
            f"{made.digest} {made.disk_size >> 20} MiB disk, {made.compressed / 1e6:.1f} MB compressed, {how}, "
            f"{summary['seconds']} s"
        )
    return 0


def disk_command(options: argparse.Namespace) -> int:
    import tempfile

    from imagetool.build import disk as build
    from imagetool.guest.boot_files import cached_init

    out = Path(options.file)
    image = _image(options)
    cache = _cache()
    folder = out.absolute().parent
    if not folder.is_dir():
        raise BadInput(f"{folder} is no directory", "make it first")
    with tempfile.TemporaryDirectory(prefix=".disk-", dir=folder) as name:
        init = None if options.plain else cached_init(image.platform, cache).read_bytes()
        with reported(quiet=options.quiet) as report, build.opened(image) as source:
            build.make_raw(image, source, init, Path(name, "disk"), cache, report)
        Path(name, "disk").replace(out)
    print(json.dumps({"file": str(out), "size": out.stat().st_size}) if options.json else out)
    return 0


def init_command(options: argparse.Namespace) -> int:
    from imagetool.config.template import described, write_new
    from imagetool.sources.open import open_source

    platform, registry = _looked_at(options)
    reference = parse_reference(options.source)
    with open_source(options.source, platform, registry) as source:
        text = described(reference, _name(reference), source, options.file.parent if options.file else Path())
    if options.file:
        write_new(options.file, text)
    print(json.dumps({"file": str(options.file or ""), "text": text}) if options.json else options.file or text)
    return 0


def schema_command(_: argparse.Namespace) -> int:
    from imagetool.config.schema import PATH

    print(PATH.read_text("utf-8"), end="")
    return 0


def completion_command(options: argparse.Namespace) -> int:
    from rootdisk.cli.completion import script

    text = script(options.whole_parser(), options.shell)
    print(json.dumps({"shell": options.shell, "script": text}) if options.json else text, end="")
    return 0


def _registry(options: argparse.Namespace) -> RegistryOptions:
    return RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file)


def _looked_at(options: argparse.Namespace) -> tuple[Platform, RegistryOptions]:
    platform = Platform.parse(options.platform) if options.platform else Platform.host()
    return platform, _registry(options)


def inspect_command(options: argparse.Namespace) -> int:
    from imagetool.look.inspection import described

    print(json.dumps(described(options.what, *_looked_at(options)), indent=None if options.json else 1))
    return 0


def ls_command(options: argparse.Namespace) -> int:
    from imagetool.look import inspection

    with inspection.opened(options.what, *_looked_at(options)) as found:
        for name, node in inspection.listing(found, os.fsencode(options.path), recursive=options.recursive):
            if options.json:
                value = {"name": inspection.shown(name), "inode": node.number, "mode": node.mode, "uid": node.uid}
                print(json.dumps({**value, "gid": node.gid, "size": node.size, "layer": found.layer(node)}))
            else:
                print(inspection.row(found, name, node))
    return 0


def stat_command(options: argparse.Namespace) -> int:
    from imagetool.look import inspection

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
            print(one_line(f"{name + ':':11} {item}"))
    return 0


def cat_command(options: argparse.Namespace) -> int:
    from imagetool.look import inspection

    with inspection.opened(options.what, *_looked_at(options)) as found:
        node = found.reader.lookup(os.fsencode(options.path), follow=True)
        if node.type != stat.S_IFREG:
            raise BadInput(f"{printable(options.path)}: a {inspection.TYPES.get(node.type, 'thing')} and no plain file")
        content = inspection.content(found.reader, node)
        if options.json:
            data = b"".join(content)
            print(json.dumps({"path": options.path, "size": len(data), "base64": base64.b64encode(data).decode()}))
            return 0
        for piece in content:
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def diff_command(options: argparse.Namespace) -> int:
    from imagetool.look import inspection

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


def explain_command(options: argparse.Namespace) -> int:
    from imagetool.look import explanation

    found = explanation.between(options.a, options.b, *_looked_at(options))
    if options.json:
        print(json.dumps(found._asdict() | {"inputs": [change._asdict() for change in found.inputs]}))
        return 0
    for line in explanation.words(found):
        print(line)
    return 0


def verify_command(options: argparse.Namespace) -> int:
    import tempfile

    from imagetool.prove.verification import verify

    with tempfile.TemporaryDirectory(prefix="verify-", dir=_cache()) as work, reported(quiet=options.quiet) as report:
        done = verify(parse_reference(options.what), options.source, *_looked_at(options), Path(work), report)
    identical = done.digest == done.rebuilt
    if options.json:
        value = {"identical": identical, "digest": str(done.digest), "rebuilt": str(done.rebuilt), "init": done.init}
        print(json.dumps({**value, "differences": done.differences}))
    else:
        for line in done.differences:
            print(one_line(line))
        print(f"identical: {done.digest}" if identical else f"not identical: {done.digest}, built again {done.rebuilt}")
        if not options.quiet:
            print(f"init: {done.init}", file=sys.stderr)
    return 0 if identical else 1


def map_command(options: argparse.Namespace) -> int:
    from imagetool.look.inspection import shown
    from imagetool.look.map import survey
    from imagetool.look.map.page import Against, page
    from rootdisk.artifact.published import open_artifact
    from rootdisk.durable import atomic_write

    looked_at = _looked_at(options)
    against = None
    with survey.opened(options.what, *looked_at) as disk:
        if options.against:
            if disk.index is None:
                raise BadInput(f"{options.what} is a raw disk, which has no chunks", "compare artifacts")
            with open_artifact(parse_reference(options.against), *looked_at) as other:
                against = Against(shown(os.fsencode(options.against)), other.index)
        found = survey.survey(disk)
        reads = survey.read_trace(options.trace, found.size) if options.trace else survey.boot_reads(disk)
        text = page(shown(os.fsencode(options.what)), disk, found, against, reads).encode()
    if options.output is None:
        sys.stdout.buffer.write(text)
    else:
        atomic_write(options.output, text)
        print(json.dumps({"file": str(options.output), "size": len(text)}) if options.json else options.output)
    return 0


def copy_command(options: argparse.Namespace) -> int:
    from imagetool.targets.copy import copy

    with reported(quiet=options.quiet) as report:
        digest = copy(options.source, options.target, _registry(options), report)
    print(json.dumps({"digest": str(digest)}) if options.json else digest)
    return 0


def index_command(options: argparse.Namespace) -> int:
    from imagetool.targets.index import make_index

    digest = make_index(options.target, options.sources, _registry(options))
    print(json.dumps({"digest": str(digest)}) if options.json else digest)
    return 0


def attach_command(options: argparse.Namespace) -> int:
    from imagetool.targets.attach import attach

    digest = attach(options.what, options.file, options.type, _registry(options))
    print(json.dumps({"digest": str(digest)}) if options.json else digest)
    return 0


def prune_command(options: argparse.Namespace) -> int:
    from imagetool.build.cached_artifact import prune

    if options.keep is not None and options.keep < 1:
        raise BadInput(f"--keep {options.keep}", "how many versions stay: 1 or more")
    for tag, digest in prune(parse_reference(options.place), _registry(options), options.keep, delete=options.delete):
        print(json.dumps({"tag": tag, "digest": str(digest)}) if options.json else one_line(f"{tag} {digest}"))
    return 0


def _cache() -> Path:
    """Where indexes, kernels and the init are kept between runs."""
    named = os.environ.get("ROOTDISK_CACHE")
    cache = Path(named) if named else user_folder("XDG_CACHE_HOME", ".cache", "ROOTDISK_CACHE") / "rootdisk"
    cache.mkdir(parents=True, exist_ok=True)
    if os.environ.get("ROOTDISK_STORE_TRUSTED") != "1":  # as for the store: in a container nobody else may be there
        check_cache(cache)
    return cache.absolute()
