"""Commands of a project, a directory with an images.toml: `init`, `doit`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from imagetool.commands import options as option_values
from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference

IMAGES = Path("images.toml")
STANDARD_OUTPUT = Path("-")


def init_command(options: argparse.Namespace) -> int:
    """Write what a project needs: images.toml, dodo.py and .gitignore; or only the file named."""
    from imagetool.config import template
    from imagetool.sources.open import open_source

    alone: Path | None = options.file
    if alone is None:
        template.refuse_existing(IMAGES)  # before anything is asked
    platform, registry = option_values.looked_at(options)
    reference = parse_reference(options.source)
    with open_source(options.source, platform, registry) as source:
        folder = alone.parent if alone is not None else Path()
        text = template.described(reference, option_values.name_of(reference), source, folder)
    if alone == STANDARD_OUTPUT:
        print(json.dumps([{"file": "", "files": [], "text": text}]) if options.json else text, end="\n")
        return 0
    written = [alone or IMAGES]
    template.write_new(written[0], text)
    if alone is None:
        for path, words, line in template.COMPANIONS:
            is_new, has_line = template.write_companion(path, words, line)
            if is_new:
                written.append(path)
            if not has_line:
                print(f"imagetool: {path} is there already: add this line to it: {line}", file=sys.stderr)
    if options.json:
        write_rows([{"file": str(written[0]), "files": list(map(str, written)), "text": text}])
    else:
        print("\n".join(map(str, written)))
    return 0


def doit_command(options: argparse.Namespace) -> int:
    """Run doit on the project's graph: by its dodo.py, or without one."""
    from doit.cmd_base import DodoTaskLoader, ModuleTaskLoader

    from imagetool.config.images import file_named
    from imagetool.tasks.command import Main

    if "" in options.arguments:  # doit looks at the first character of each
        raise BadInput("doit: a word is empty", "is a variable of the shell not set?")
    os.environ.update(option_values.pairs(options.set, "--set", "NAME=VALUE"))
    if options.file is not None:
        os.environ["ROOTDISK_IMAGES"] = str(options.file.absolute())
    described = file_named().absolute()
    try:
        os.chdir(described.parent)
    except OSError as err:
        raise BadInput(
            f"cannot enter {described.parent}: {err.strerror}", "go to the project, or name its file: -f"
        ) from err
    dodo = Path("dodo.py")
    if dodo.is_file() and "imagetool" in dodo.read_text("utf-8", "replace"):
        loader = DodoTaskLoader()
    else:
        from imagetool.tasks import dodo as graph

        loader = ModuleTaskLoader(graph)
    return int(Main(loader).run(options.arguments) or 0)
