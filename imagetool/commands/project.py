"""Commands of a project, a directory with an images.toml: `init`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from imagetool.commands import options as given
from rootdisk.oci.reference import parse_reference


def init_command(options: argparse.Namespace) -> int:
    """Write an images.toml to begin with."""
    from imagetool.config.template import described, write_new
    from imagetool.sources.open import open_source

    platform, registry = given.looked_at(options)
    reference = parse_reference(options.source)
    with open_source(options.source, platform, registry) as source:
        text = described(reference, given.name_of(reference), source, options.file.parent if options.file else Path())
    if options.file:
        write_new(options.file, text)
    print(json.dumps({"file": str(options.file or ""), "text": text}) if options.json else options.file or text)
    return 0
