"""Commands on what is published: `copy`, `index`, `attach`, `prune`."""

from __future__ import annotations

import argparse
import json
import sys

from imagetool.commands import options as option_values
from imagetool.progress import reported
from rootdisk.cli.rows import write_rows
from rootdisk.oci.reference import parse_reference
from rootdisk.text import one_line


def copy_command(options: argparse.Namespace) -> int:
    """Copy an image or artifact."""
    from imagetool.targets.copy import copy

    with reported(quiet=options.quiet) as report:
        digest = copy(
            options.source, options.target, option_values.registry(options), report, referrers=not options.no_referrers
        )
    print(json.dumps([{"digest": str(digest)}]) if options.json else digest)
    return 0


def index_command(options: argparse.Namespace) -> int:
    """Publish an index over several artifacts."""
    from imagetool.targets.index import make_index

    digest = make_index(options.target, options.sources, option_values.registry(options))
    print(json.dumps([{"digest": str(digest)}]) if options.json else digest)
    return 0


def attach_command(options: argparse.Namespace) -> int:
    """Attach a file to an artifact."""
    from imagetool.targets.attach import attach

    digest = attach(options.what, options.file, options.type, option_values.registry(options))
    print(json.dumps([{"digest": str(digest)}]) if options.json else digest)
    return 0


def prune_command(options: argparse.Namespace) -> int:
    """List tags that are not needed, or remove them."""
    from imagetool.build.cached_artifact import prune

    done = prune(parse_reference(options.place), option_values.registry(options), options.keep, delete=options.delete)
    if options.json:
        write_rows({"tag": tag, "digest": str(digest)} for tag, digest in done.tags)
    else:
        for tag, digest in done.tags:
            print(one_line(f"{tag} {digest}"))
    if not options.quiet:
        for line in done.remarks():
            print(one_line(line), file=sys.stderr)
        if not options.delete:
            print(
                "imagetool: nothing was removed; --delete removes these"
                if done.tags
                else "imagetool: nothing to remove",
                file=sys.stderr,
            )
    return 0
