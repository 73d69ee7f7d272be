"""Commands on signatures: `sign`, `signatures`."""

from __future__ import annotations

import argparse

from imagetool.commands import options as option_values
from rootdisk.cli.rows import write_rows
from rootdisk.oci.reference import parse_reference
from rootdisk.text import one_line


def sign_command(options: argparse.Namespace) -> int:
    """Sign an image or artifact."""
    from imagetool.signing.keys import KeyOptions, load_key
    from imagetool.signing.sign import sign

    key = load_key(KeyOptions(options.key, options.passphrase_file, options.key_command, options.public_key))
    reference = parse_reference(options.what)
    signed = sign(reference, key, option_values.registry(options), formats=options.format, identity=options.identity)
    if options.json:
        write_rows([{"digests": [str(digest) for digest in signed], "key": key.public.fingerprint}])
    else:
        for digest in signed:
            print(digest)
    return 0


def signatures_command(options: argparse.Namespace) -> int:
    """List signatures."""
    from imagetool.signing.listing import listed

    found = listed(parse_reference(options.what), options.key, option_values.registry(options))
    if options.json:
        write_rows(found)
    else:
        for item in found:
            said = f"as {item['identity'] or 'no repository'}" if item.get("identity") is not None else "not checked"
            why = f" ({item['why']})" if "why" in item else ""
            print(one_line(f"{item['format'] or 'none':7} {item['key'] or '-'} {said}{why}"))
    return 1 if options.key and not any(item["verified"] for item in found) else 0
