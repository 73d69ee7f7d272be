"""docs/compatibility.md: the numbers and fields that it lists are those of the code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import imagetool.build.derivation
import rootdisk.artifact.format
import rootdisk.artifact.verity
import runner.channel.messages
import runner.disk.qcow2
import runner.machine.accelerator
import runner.machine.qemu
import runner.sandbox.snapshots
import runner.sandbox.state
import runner.store.filling
import runner.store.names
import runner.store.store
import runner.store.trust
import runner.template.saved
from imagetool.ext4 import directories
from imagetool.tree import index
from runner.channel.copies import stream
from runner.disk import slot
from runner.sandbox.state import Spec
from tests.support.commands import ROOT

PAGE = ROOT / "docs/compatibility.md"
NAME = re.compile("(VERSION|FORMAT|[A-Z]+_VERSION)\\Z")
# By the first words of the line that says it.
NUMBERS = {
    "artifact": rootdisk.artifact.format.FORMAT_VERSION,
    "layout of the disk": rootdisk.artifact.format.LAYOUT_VERSION,
    "channel": runner.channel.messages.CHANNEL_VERSION,
    "derivation key": imagetool.build.derivation.WRITER_VERSION,
    "`format` (the store)": runner.store.store.FORMAT,
    "`sandboxes/NAME/state.json`": runner.sandbox.state.VERSION,
    "`names/HEX`": runner.store.names.VERSION,
    "`asked/HEX`": runner.store.names.VERSION,
    "`trust/HEX.json`": runner.store.trust.VERSION,
    "`snapshots/NAME/snapshot.json`": runner.sandbox.snapshots.VERSION,
    "`templates/KEY/template.json`": runner.template.saved.VERSION,
    "`kvm.json`, `qemu.json`": runner.machine.accelerator.VERSION,
    "`lazy/HEX.socket`": runner.store.filling.VERSION,
}
MAGICS = [
    slot._MAGIC.rstrip(b"\0"),
    rootdisk.artifact.format.INDEX_MAGIC,
    stream.HELLO,
    index._MAGIC,
    directories._MAGIC,
]
# Of other people's formats, or said by a number above.
OTHER = {
    ("rootdisk/artifact/verity.py", "VERSION"),
    ("runner/machine/qemu.py", "VERSION"),
    ("runner/channel/messages.py", "HOLD_VERSION"),
    ("runner/channel/messages.py", "OPTIONS_VERSION"),
    ("imagetool/receipts.py", "FORMAT"),
    ("imagetool/demo/image.py", "VERSION"),
}


def rows() -> Iterator[list[str]]:
    for line in PAGE.read_text().splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_numbers_are_those_of_the_code() -> None:
    for name, number in NUMBERS.items():
        (row,) = (row for row in rows() if row[0] == name or row[0].startswith(f"{name},"))
        assert re.match(r"\d+", row[2]), row
        assert re.split(r"[^\d]", row[2])[0] == str(number), row
    assert runner.machine.qemu.VERSION == runner.machine.accelerator.VERSION
    for magic in MAGICS:
        assert f"`{magic.decode().strip()}`" in PAGE.read_text()


def versions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (target.id for target in targets if isinstance(target, ast.Name) and NAME.match(target.id))


def test_no_number_of_the_code_is_missing() -> None:
    """A new format needs a line on the page, and in NUMBERS."""
    found = set()
    for package in ("rootdisk", "runner", "imagetool"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found |= {(str(path.relative_to(ROOT)), name) for name in versions(ast.parse(path.read_text()))}
    ours = {
        ("rootdisk/artifact/format.py", "FORMAT_VERSION"),
        ("rootdisk/artifact/format.py", "LAYOUT_VERSION"),
        ("runner/channel/messages.py", "CHANNEL_VERSION"),
        ("imagetool/build/derivation.py", "WRITER_VERSION"),
        ("runner/store/store.py", "FORMAT"),
        *(
            (f"runner/{place}.py", "VERSION")
            for place in (
                "sandbox/state", "store/names", "store/trust", "sandbox/snapshots", "template/saved",
                "machine/accelerator", "store/filling",
            )
        ),
    }  # fmt: skip
    assert found - OTHER == ours


def test_every_field_of_a_state_that_may_be_missing_is_listed() -> None:
    listed = {
        row[0]: row[1].split("`")[1] for row in rows() if len(row) == 2 and all(cell.startswith("`") for cell in row)
    }
    wanted = {name: json.dumps(value) for name, value in Spec._field_defaults.items()}
    assert {f"`{name}`": value for name, value in wanted.items()} == listed
    assert list(listed) == [f"`{name}`" for name in wanted]
