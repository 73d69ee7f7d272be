"""Commands that look into images, artifacts and disks: `inspect`, `ls`, `stat`, `cat`, `diff`, `explain`, `map`."""

from __future__ import annotations

import argparse
import base64
import json
import os
import stat
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from imagetool.commands import options as option_values
from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.text import one_line, printable

if TYPE_CHECKING:
    from imagetool.look.inspection import InspectedDisk
    from rootdisk.oci.documents import Platform
    from rootdisk.oci.repository import RegistryOptions


def inspect_command(options: argparse.Namespace) -> int:
    """Describe an image, artifact or raw disk: as lines on a terminal, else as JSON."""
    from imagetool.look.inspection import described

    found = described(options.what, *option_values.looked_at(options))
    if options.json:
        write_rows([found])
    elif sys.stdout.isatty():
        from imagetool.look.readable import readable

        for line in readable(found):
            print(line)
    else:
        print(json.dumps(found, indent=1))
    return 0


def ls_command(options: argparse.Namespace) -> int:
    """List a directory on a disk."""
    from imagetool.look import inspection

    with inspection.opened(options.what, *option_values.looked_at(options)) as found:
        listed = inspection.listing(found, os.fsencode(options.path), recursive=options.recursive)
        if options.json:
            write_rows(
                {
                    "name": inspection.shown(name),
                    "inode": node.number,
                    "mode": node.mode,
                    "uid": node.uid,
                    "gid": node.gid,
                    "size": node.size,
                    "layer": found.layer(node),
                }
                for name, node in listed
            )
        else:
            for name, node in listed:
                print(inspection.row(found, name, node))
    return 0


def stat_command(options: argparse.Namespace) -> int:
    """Describe a file on a disk."""
    from imagetool.look import inspection

    with inspection.opened(options.what, *option_values.looked_at(options)) as found:
        value = inspection.details(found, os.fsencode(options.path))
    if options.json:
        write_rows([value])
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
    """Write a file on a disk to standard output."""
    from imagetool.look import inspection

    with inspection.opened(options.what, *option_values.looked_at(options)) as found:
        node = found.reader.lookup(os.fsencode(options.path), follow=True)
        if node.type != stat.S_IFREG:
            raise BadInput(f"{printable(options.path)}: a {inspection.TYPES.get(node.type, 'thing')}, not a file")
        content = found.reader.content(node)
        if options.json:
            data = b"".join(content)
            write_rows([{"path": options.path, "size": len(data), "base64": base64.b64encode(data).decode()}])
            return 0
        for piece in content:
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def _opened(text: str, platform: Platform, options: RegistryOptions) -> AbstractContextManager[InspectedDisk]:
    """Open a raw disk, or an artifact by reference or by its name in images.toml."""
    from imagetool.look import explanation, inspection

    if Path(text).is_file():
        return inspection.opened(text, platform, options)
    return inspection.opened_artifact(*explanation.named(text, platform, options))


def diff_command(options: argparse.Namespace) -> int:
    """Compare two disks by file; 1 if they differ."""
    from imagetool.look import inspection

    signs = {"added": "+", "removed": "-", "changed": "~"}
    platform, registry = option_values.looked_at(options)
    first, second = (_opened(text, platform, registry) for text in (options.a, options.b))
    with first as a, second as b:
        changes = inspection.compared(a, b)
        if options.json:
            rows = (
                {"path": one.path, "kind": one.kind, "what": {name: list(pair) for name, pair in one.what.items()}}
                for one in changes
            )
            return int(write_rows(rows) > 0)
        differ = False
        for change in changes:
            differ = True
            words = "; ".join(
                f"{name} {old or '(none)'} -> {new or '(none)'}" for name, (old, new) in change.what.items()
            )
            print(f"{signs[change.kind]} {change.path}{': ' if words else ''}{words}")
    return int(differ)


def explain_command(options: argparse.Namespace) -> int:
    """Compare the inputs of two artifacts."""
    from imagetool.look import explanation

    found = explanation.between(options.a, options.b, *option_values.looked_at(options))
    if options.json:
        write_rows([found._asdict() | {"inputs": [change._asdict() for change in found.inputs]}])
        return 0
    for line in explanation.words(found):
        print(line)
    return 0


def trace_command(options: argparse.Namespace) -> int:
    """Record which files a boot reads, in order."""
    from imagetool.look.map import survey
    from imagetool.look.trace import paths_read, record, text_of
    from rootdisk.durable import atomic_write, check_output
    from rootdisk.system.scratch import scratch

    if options.output is not None:
        check_output(options.output)
    looked_at = option_values.looked_at(options)
    with scratch(option_values.user_cache(), "trace-") as work:
        reads = options.reads
        if reads is None:
            plain = ["--plain-http"] if options.plain_http else []
            ca_file = ["--ca-file", str(options.ca_file)] if options.ca_file else []
            platform = ["--platform", options.platform] if options.platform else []
            words = [*plain, *ca_file, *platform, options.what]
            reads = record([sys.executable, "-m", "runner", "boot", *words], work, options.seconds)
        with survey.opened(options.what, *looked_at) as disk:
            reader = disk.contents.reader
            paths = paths_read(reader, survey.read_trace(reads, reader.blocks * reader.block_size))
    text = os.fsencode(text_of(paths))
    if options.output is None:
        sys.stdout.buffer.write(text)
    else:
        atomic_write(options.output, text)
        if options.json:
            write_rows([{"file": str(options.output), "paths": len(paths)}])
        else:
            print(f"{printable(options.output)}: {len(paths)} paths")
    return 0


def map_command(options: argparse.Namespace) -> int:
    """Draw a disk as an HTML page."""
    from imagetool.look.inspection import shown
    from imagetool.look.map import survey
    from imagetool.look.map.page import Against, page
    from rootdisk.artifact.published import open_artifact
    from rootdisk.durable import atomic_write, check_output

    if options.output is not None:
        check_output(options.output)
    looked_at = option_values.looked_at(options)
    against = None
    with survey.opened(options.what, *looked_at) as disk:
        if options.against is not None:
            if disk.index is None:
                raise BadInput(f"{options.what} is a raw disk, which has no chunks", "compare artifacts")
            with open_artifact(parse_reference(options.against), *looked_at) as other:
                against = Against(shown(os.fsencode(options.against)), other.index)
        found = survey.survey(disk)
        reads = survey.traced(options.trace, disk) if options.trace else survey.boot_reads(disk)
        text = page(shown(os.fsencode(options.what)), disk, found, against, reads).encode()
    if options.output is None:
        sys.stdout.buffer.write(text)
    else:
        atomic_write(options.output, text)
        print(json.dumps([{"file": str(options.output), "size": len(text)}]) if options.json else options.output)
    return 0
