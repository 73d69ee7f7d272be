"""A commented images.toml to begin with, from what a source image says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from imagetool.config import schema
from imagetool.sources.open import SourceImage
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.reference import Reference
from rootdisk.text import printable

_PLAIN_KEYS = ("publish", "version", "platform", "size", "memory", "cpus", "kernel", "remove")


def described(reference: Reference, name: str, source: SourceImage, folder: Path) -> str:
    """Return the text of images.toml for `source` as the image `name`; paths become relative to `folder`, the file's directory.

    As it is it builds what the source has; what may be changed stands in comments.
    """
    return "".join(f"{line}\n" for line in _lines(reference, name, source, folder))


DODO = "from imagetool.tasks.dodo import *"
# What lies beside images.toml in a project, and the line that it must have.
COMPANIONS = (
    (
        Path("dodo.py"),
        f'"""Tasks of this project: `doit list` shows them, images.toml says what to build."""\n\n{DODO}  # noqa: F403\n',
        DODO,
    ),
    (Path(".gitignore"), "# What `doit` makes and finds again.\n/cache/\n/__pycache__/\n", "cache/"),
)


def refuse_existing(path: Path) -> None:
    """Raise BadInput if there is something at `path`."""
    if os.path.lexists(path):
        raise BadInput(f"{path} is there already", "write to another file, or remove it")


def write_new(path: Path, text: str) -> None:
    """Write `text` to the new file `path`, whole or not at all.

    Raises:
        BadInput: there is something at `path`.
        RootdiskError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)  # unlike a rename, it replaces nothing
    except FileExistsError as err:
        raise BadInput(f"{path} is there already", "write to another file, or remove it") from err
    except OSError as err:
        raise RootdiskError(f"cannot write {path}: {err.strerror}") from err
    finally:
        partial.unlink(missing_ok=True)


def write_companion(path: Path, text: str, line: str) -> tuple[bool, bool]:
    """Write `text` to `path`, unless something is there. Return whether it was written, and whether the file contains `line`."""
    if not os.path.lexists(path):
        write_new(path, text)
        return True, True
    try:
        return False, line in path.read_text("utf-8", "replace")
    except OSError:
        return False, False


def _lines(reference: Reference, name: str, source: SourceImage, folder: Path) -> Iterator[str]:
    config, process = source.config, source.config.process
    size = sum(layer.descriptor.size for layer in source.layers)
    if reference.path is not None:
        reference = reference._replace(path=Path(os.path.relpath(reference.path, folder)))
    yield "#:schema images.schema.json"
    yield "# What to build: `imagetool doit` makes every image here. `imagetool schema > images.schema.json` makes editors know the keys."
    yield ""
    yield f"[image.{name}]"
    yield f"# {printable(config.platform)}, {len(source.layers)} layer{'s'[: len(source.layers) != 1]}, {size / 1e6:.1f} MB, {source.manifest_digest}"
    yield f"source = {_text(str(reference))}"
    examples = {
        "publish": f"oci:cache/artifacts/{name}",
        "version": "{source_tag}" if reference.tag else "1",
        "platform": str(config.platform),
        "remove": ["/usr/share/doc"],
    }
    keys = schema.definitions()["image"]["properties"]
    for key in _PLAIN_KEYS:
        yield f"# {key} = {_text(examples.get(key, keys[key].get('default')))}  # {keys[key]['description']}"
    yield ""
    if config.env:
        yield f"# The image sets {', '.join(_text(text.partition('=')[0])[1:-1] for text in config.env)}."
    yield f"# {keys['env']['description']}"
    yield f"[image.{name}.env]"
    yield '# NAME = "value"'
    yield ""
    yield f"# {schema.definitions()['process']['description']} It runs, as {_text(process.user or 'root')} in {_text(process.workdir)}:"
    yield f"[image.{name}.process]"
    yield f"# entrypoint = {_text(list(process.entrypoint))}"
    yield f"# cmd = {_text(list(process.cmd))}"
    yield f"# user = {_text(process.user or 'root')}"
    yield ""
    yield f"# {keys['owners']['description']}"
    if config.volumes:
        yield "# The image's volumes are directories of the disk like all others, and what is written there goes with the sandbox."
    yield f"[image.{name}.owners]"
    for path in config.volumes or ("/sandbox",):
        owner = _text(process.user) if process.user else '{ user = "sandbox", create = true }'
        yield f"# {_text(path)} = {owner}"
    if config.ports:
        yield ""
        yield f"# The image listens on {', '.join(_text(port)[1:-1] for port in config.ports)}."
    yield ""
    yield f"# {keys['files']['description']}"
    yield f"# [[image.{name}.files]]"
    yield '# path = "/etc/motd"'
    yield '# text = "welcome"  # or from = "FILE or DIRECTORY"; mode = "0644", owner = "user:group"'


def _text(value: object) -> str:
    """Return a value as TOML, in JSON's form. Unprintable characters are escaped for terminals, and ${ stays text."""
    return "".join(map(_escaped, json.dumps(value, ensure_ascii=False))).replace("${", "$${")


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
