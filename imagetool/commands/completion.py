"""Commands for other programs: `schema` for editors, `completion` for shells."""

from __future__ import annotations

import argparse
import json


def schema_command(_: argparse.Namespace) -> int:
    """Write the JSON Schema of images.toml."""
    from imagetool.config.schema import PATH

    print(PATH.read_text("utf-8"), end="")
    return 0


def completion_command(options: argparse.Namespace) -> int:
    """Write the completion script of a shell."""
    from rootdisk.cli.completion import script

    text = script(options.whole_parser(), options.shell)
    print(json.dumps([{"shell": options.shell, "script": text}]) if options.json else text, end="")
    return 0
