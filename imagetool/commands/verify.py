"""The command `verify`."""

from __future__ import annotations

import argparse
import sys

from imagetool.commands import options as option_values
from imagetool.progress import reported
from rootdisk.cli.rows import write_rows
from rootdisk.oci.reference import parse_reference
from rootdisk.system.scratch import scratch
from rootdisk.text import one_line


def verify_command(options: argparse.Namespace) -> int:
    """Build an artifact again and compare; 1 if they differ."""

    from imagetool.prove.verification import verify

    key = None
    if options.key is not None:
        from imagetool.signing.keys import read_key_file
        from rootdisk.text import printable
        from rootdisk.trust.keys import PublicKey

        key = PublicKey.parse(read_key_file(options.key), printable(options.key))
    with (
        scratch(option_values.user_cache(), "verify-") as work,
        reported(quiet=options.quiet) as report,
    ):
        done = verify(
            parse_reference(options.what), options.source, *option_values.looked_at(options), work, report, key
        )
    identical = done.digest == done.rebuilt
    if options.json:
        value: dict[str, object] = {
            "identical": identical,
            "digest": str(done.digest),
            "rebuilt": str(done.rebuilt),
            "init": done.init,
        }
        value["provenance"] = done.provenance
        write_rows([{**value, "differences": done.differences}])
    else:
        for line in done.differences:
            print(one_line(line))
        print(f"identical: {done.digest}" if identical else f"not identical: {done.digest}, built again {done.rebuilt}")
        if not options.quiet:
            print(f"init: {done.init}", file=sys.stderr)
            if done.provenance != "none":
                print(one_line(f"provenance: {done.provenance}"), file=sys.stderr)
    return 0 if identical else 1
