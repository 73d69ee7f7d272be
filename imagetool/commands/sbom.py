"""The command `sbom`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from imagetool.commands import options as given
from rootdisk.artifact.format import NotAnArtifact
from rootdisk.durable import atomic_write, check_output
from rootdisk.oci.reference import parse_reference
from rootdisk.text import one_line, printable

if TYPE_CHECKING:
    from imagetool.sbom.packages import Found

SOURCE_MAX_BYTES = 64 << 30  # of the disk that is planned to look through a source image


def sbom_command(options: argparse.Namespace) -> int:
    """List the packages of an artifact or disk as an SBOM."""
    from imagetool.look.inspection import opened
    from imagetool.sbom.documents import document
    from imagetool.sbom.formats import MEDIA_TYPES
    from imagetool.sbom.packages import find

    if options.output is not None:
        check_output(options.output)
    try:
        with opened(options.what, *given.looked_at(options)) as disk:
            found = find(disk)
            digest = str(disk.config.disk_digest) if disk.config is not None else Path(options.what).name
    except NotAnArtifact:
        found, digest = _of_source(options)
    for path in found.unread:
        print(
            f"imagetool: {printable(path)}: this kind of database is not read; its packages are missing",
            file=sys.stderr,
        )
    text = document(found, digest, options.format)
    if options.attach:
        from imagetool.targets.attach import attach

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "sbom.json")
            file.write_bytes(text)
            name = str(parse_reference(options.what))
            attached = str(attach(name, file, MEDIA_TYPES[options.format], given.registry(options)))
        print(one_line(attached))
    elif options.output is not None:
        atomic_write(options.output, text)
        print(printable(options.output))
    else:
        sys.stdout.buffer.write(text)
    return 0


def _of_source(options: argparse.Namespace) -> tuple[Found, str]:
    """List the packages of a source image; with the digest of its manifest."""
    from imagetool.build.bill import packages_of_source
    from imagetool.config.images import Image
    from imagetool.progress import reported
    from imagetool.sources.open import open_source

    platform, registry = given.looked_at(options)
    image = Image("sbom", parse_reference(options.what), (), platform=platform, size=SOURCE_MAX_BYTES)
    with reported(quiet=True) as report, open_source(options.what, platform, registry) as source:
        return packages_of_source(image, source, given.user_cache(), report), str(source.manifest_digest)
