"""Read the options of a program, for `boot` and `exec`. `exec` needs no other options and must start fast, so this imports little."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rootdisk.cli.files import read_small_file
from rootdisk.errors import BadInput
from rootdisk.limits import SMALL_FILE_MAX_BYTES
from rootdisk.parsing import env_file
from rootdisk.parsing.ids import check_user
from rootdisk.records import Record
from rootdisk.text import printable


def program_records(options: argparse.Namespace) -> list[Record]:
    """Return the records for variables, working directory, user and command: for `boot` and `exec`."""
    records: list[Record] = []
    if options.tty and "TERM" in os.environ:
        records.append(("term", os.fsencode(os.environ["TERM"])))
    for path in options.env_file:
        for variable in env_file.parse(read_small(path, "--env-file"), f"--env-file {printable(path)}"):
            records += _variable(variable)
    for text in options.env:
        records += _variable(os.fsencode(text))
    if options.user:
        if not options.user.strip(":"):  # of two variables that are not set: it would be root, whatever the image says
            raise BadInput(f"-u {printable(options.user, 80)!r}", "write USER or USER:GROUP")
        check_user(options.user, "-u")
    for key, value in (("workdir", options.workdir), ("user", options.user)):
        if value:
            records.append((key, os.fsencode(value)))
    return records + [("cmd", os.fsencode(word)) for word in options.program]


def _variable(text: bytes) -> list[Record]:
    """Return the record for NAME=VALUE, or for NAME with this process's value; nothing if it has none."""
    name, equals, _ = text.partition(b"=")
    if not name:
        raise BadInput(f"-e {os.fsdecode(text)!r:.80}", "write NAME=VALUE or NAME")
    if equals:
        return [("env", text)]
    value = os.environb.get(name)
    return [] if value is None else [("env", name + b"=" + value)]


def read_small(path: Path, option: str) -> bytes:
    """Read a small file that an option names; BadInput if it cannot be read or is too large."""
    return read_small_file(path, SMALL_FILE_MAX_BYTES, option=option)
