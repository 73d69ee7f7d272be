"""Boot traces: from reads to paths, and from paths to the chunks that are fetched first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagetool.look.inspection import InspectedDisk
from imagetool.look.map import survey
from imagetool.look.map.grid import Run
from imagetool.look.trace import paths_read, text_of
from imagetool.packing.boot_trace import METADATA, parse
from rootdisk.artifact.published import open_artifact
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from tests.support.commands import run
from tests.support.layouts import write_layout
from tests.support.machines import Machine
from tests.support.tars import END, directory, file

LARGE = os.urandom(3 << 20)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    layers = [
        directory(b"etc") + file(b"etc/f", b"1" * 9000) + END,
        directory(b"usr") + file(b"usr/large", LARGE) + file(b"usr/small", b"2" * 5000) + END,
    ]
    write_layout(tmp_path / "source", "t", layers)
    return Machine(tmp_path / "one", tmp_path / "source", f"oci:{tmp_path}/out")


def config_of(machine: Machine, version: str = "1") -> dict[str, Any]:
    status, said = machine.build()
    assert status == 0, said
    return dict(json.loads(run("imagetool", "inspect", f"oci:{machine.place.parent}/out:{version}").stdout))


def test_a_trace_decides_the_first_chunks_and_nothing_else(machine: Machine) -> None:
    plain = config_of(machine)
    assert plain["boot"]["chunks"] == []
    assert "boot_compressed" not in plain
    assert "boot_trace" not in plain["derivation"]["inputs"]["recipe"]
    (machine.place / "app.trace").write_text(text_of([METADATA, "/usr/small", "/no/such/file", "/etc/f/below", "/usr"]))
    machine.add("", 'boot_trace = "app.trace"\nversion = "2"\n')
    traced = config_of(machine, "2")
    assert traced["disk"] == plain["disk"]
    assert traced["compressed"] == plain["compressed"]
    assert traced["derivation"]["key"] != plain["derivation"]["key"]
    assert 0 < traced["boot_compressed"] < traced["compressed"]
    reference = parse_reference(f"oci:{machine.place.parent}/out:2")
    with open_artifact(reference, Platform.host()) as artifact:
        chunks = [artifact.index.chunks[number] for number in artifact.config.boot_chunks]
        assert chunks[0].offset == 0
        assert not any(chunk.zero for chunk in chunks)
        assert len(set(chunks)) == len(chunks)
        reader = InspectedDisk.of(artifact).reader
        inside = {
            name: [e.physical * 4096 for e in reader.extents(reader.lookup(name))]
            for name in (b"/usr/small", b"/usr/large")
        }
        assert any(chunk.offset <= inside[b"/usr/small"][0] < chunk.end for chunk in chunks)
        assert not all(
            any(c.offset <= at < c.end for c in chunks)
            for at in range(inside[b"/usr/large"][0], inside[b"/usr/large"][0] + len(LARGE), 4096)
        )
    assert run("imagetool", "map", str(reference), "-o", str(machine.place / "map.html")).returncode == 0
    (machine.place / "app.trace").write_text(text_of([METADATA]))
    explained = machine.build("explain:app")[1]
    assert re.search(
        "recipe.boot_trace: sha256:.* -> sha256:.* [(]the artifact's config alone: boot.chunks[)]", explained
    )
    assert "disk: runs, as its settings have changed (boot_trace)" in explained


def test_reads_are_named_by_their_files(machine: Machine) -> None:
    config_of(machine)
    reference = f"oci:{machine.place.parent}/out:1"
    with survey.opened(reference, Platform.host(), RegistryOptions()) as disk:
        reader = disk.contents.reader
        (large,) = reader.extents(reader.lookup(b"/usr/large"))
        (small,) = reader.extents(reader.lookup(b"/usr/small"))
        reads = [
            Run(small.physical * 4096 + 100, 10, 0),
            Run(1024, 1024, 0),
            Run(large.physical * 4096 + 8192, 4096, 0),
            Run(small.physical * 4096, 4096, 0),
        ]
        assert paths_read(reader, reads) == ["/usr/small", METADATA, "/usr/large"]
        everything = paths_read(reader, [Run(0, reader.blocks * 4096, 0)])
        assert set(everything) >= {METADATA, "/usr/large", "/usr/small", "/etc/f"}
    (machine.place / "reads").write_text(f"{small.physical * 4096} 4096\n0,4096\n")
    done = run("imagetool", "trace", reference, "--reads", str(machine.place / "reads"))
    assert done.stdout == text_of(["/usr/small", METADATA])


@pytest.mark.parametrize("line", ["usr/small", "(data)", "/a\0b", "\x1b[2J"])
def test_lines_that_are_no_paths(line: str) -> None:
    with pytest.raises(BadInput, match="line 2") as refused:
        parse(f"/a\n{line}\n", "web.trace")
    assert "\x1b" not in refused.value.message


def test_a_wrong_trace_is_one_line_before_anything_is_built(machine: Machine) -> None:
    (machine.place / "app.trace").write_text("hello\n")
    machine.add("", 'boot_trace = "app.trace"\n')
    status, said = machine.build()
    assert status != 0
    assert "app.trace, line 1" in said
    assert "Traceback" not in said


def test_nothing_is_loaded_without_a_trace() -> None:
    code = "import sys, imagetool.config.images; assert 'imagetool.packing.boot_trace' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_path_counts_once() -> None:
    """A path costs a search of the disk, and the trace is an input of the build; an editor may leave a byte order mark."""
    assert parse(f"\ufeff# a comment\r\n/b\r\n{METADATA}\n\n/a\n/b\n", "web.trace") == ("/b", METADATA, "/a")
