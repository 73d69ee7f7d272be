"""The command `sbom`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from imagetool.commands import options as given
from rootdisk.durable import atomic_write, check_output
from rootdisk.oci.reference import parse_reference
from rootdisk.text import one_line, printable


def sbom_command(options: argparse.Namespace) -> int:
    """List the packages of an artifact or disk as an SBOM."""
    from imagetool.look.inspection import opened
    from imagetool.sbom.documents import MEDIA_TYPES, document
    from imagetool.sbom.packages import find

    if options.output is not None:
        check_output(options.output)
    with opened(options.what, *given.looked_at(options)) as disk:
        found = find(disk)
        digest = str(disk.config.disk_digest) if disk.config is not None else Path(options.what).name
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
