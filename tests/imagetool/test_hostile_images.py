"""Whole images made to do harm, through the command a user runs: no host file is touched, memory and time are bounded,
and what is wrong is said in one line that names the layer and the entry."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.support.commands import ROOT, without_progress
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, hard_link, header, pax, symlink

MEMORY_MAX_MIB = 300

# Runs imagetool, notes every path it opens, and its peak memory; the audit hook sees what any part of it opens.
WATCHER = """
import json, os, sys
opened = []
def watch(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.chmod", "os.chown", "os.mknod"):
        path = arguments[0]
        if isinstance(path, (str, bytes)):
            write = event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            opened.append((os.path.abspath(os.fsdecode(path)), write))
sys.addaudithook(watch)
from imagetool.cli import main
status = main(sys.argv[1:])
peak = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) >> 10  # getrusage's outlives exec
print(json.dumps({"status": status, "peak": peak, "opened": sorted(set(opened))}))
"""


def build(tmp_path: Path, *arguments: str) -> dict[str, object]:
    """`imagetool disk` of the image in tmp_path/oci: its status, error, opened files and peak memory in MiB."""
    place = tmp_path / "out"
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, "disk", "--plain", *arguments, f"oci:{tmp_path}/oci:t", str(place / "disk")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ROOTDISK_CACHE": str(tmp_path / "cache"), "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    done.stderr = without_progress(done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    value: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    value["error"] = done.stderr
    if value["status"]:
        assert done.stderr.count("\n") == 1, done.stderr
        assert not list(place.iterdir())
    assert value["peak"] < MEMORY_MAX_MIB, value  # type: ignore[operator]
    return value


def test_no_name_of_an_image_is_opened_on_the_host(tmp_path: Path) -> None:
    """Climbing names, absolute names, links out of the root and entries through them stay in the tree."""
    (tmp_path / "victim").mkdir()
    escape = b"../" * 40 + os.fsencode(str(tmp_path / "victim"))[1:]
    absolute = os.fsencode(str(tmp_path / "victim"))
    layers = [
        pax([(b"path", escape + b"/by-name")])
        + file(b"x", b"1")
        + pax([(b"path", absolute + b"/by-root")])
        + file(b"x", b"2")
        + pax([(b"linkpath", escape)])
        + symlink(b"out", b"x")
        + pax([(b"linkpath", absolute)])
        + symlink(b"out2", b"x"),
        file(b"out/by-link", b"3")
        + file(b"out2/by-link-2", b"4")
        + file(b"out/.wh.by-name")
        + hard_link(b"passwd", b"out2/by-root")
        + header(b"null", b"3", major=1, minor=3),
    ]
    write_layout(tmp_path / "oci", "t", [layer + END for layer in layers])
    found = build(tmp_path)
    assert found["status"] == 0, found["error"]
    assert not list((tmp_path / "victim").iterdir())
    touched = [path for path, write in found["opened"] if write]  # type: ignore[attr-defined]
    allowed = tuple(str(tmp_path / name) for name in ("out", "cache"))
    assert touched
    assert [path for path in touched if not path.startswith(allowed)] == []
    assert [path for path, _ in found["opened"] if "victim" in path] == []  # type: ignore[attr-defined]


def test_the_watch_that_can_fail(tmp_path: Path) -> None:
    """What is written is seen: here, the disk itself."""
    write_layout(tmp_path / "oci", "t", [file(b"a") + END])
    opened: list[list[object]] = build(tmp_path)["opened"]  # type: ignore[assignment]
    assert [path for path, write in opened if write and str(path).startswith(f"{tmp_path}/out/.disk-")]


def test_half_a_gigabyte_of_zeros(tmp_path: Path) -> None:
    """A thousandfold gzip and a ten thousandfold zstd: a large file of zeros is a hole, and memory stays flat."""
    for compression in ("gzip", "zstd"):
        write_layout(tmp_path / "oci", "t", [header(b"zeros", size=1 << 29) + bytes(1 << 29) + END], None, compression)
        found = build(tmp_path, "--size", "2GiB")
        assert found["status"] == 0, found["error"]
        assert (tmp_path / "out/disk").stat().st_blocks * 512 < 16 << 20
        (tmp_path / "out/disk").unlink()


def test_a_size_that_lies(tmp_path: Path) -> None:
    write_layout(tmp_path / "oci", "t", [directory(b"d") + header(b"d/huge", size=1 << 50) + END])
    found = build(tmp_path)
    assert found["status"] == 2
    assert "'d/huge'" in str(found["error"])
    assert "do not fit into the tar" in str(found["error"])


@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_a_hundred_thousand_pax_headers(tmp_path: Path, kind: bytes) -> None:
    """In linear time, and no more memory than one of them takes."""
    one = pax([(b"comment", b"c" * 400), (b"uid", b"5")], kind)
    write_layout(tmp_path / "oci", "t", [one * 100_000 + file(b"f", b"1") + END])
    found = build(tmp_path)
    assert found["status"] == 0, found["error"]


@pytest.mark.nightly
def test_a_million_pax_headers(tmp_path: Path) -> None:
    one = pax([(b"comment", b"c" * 400), (b"uid", b"5")])
    write_layout(tmp_path / "oci", "t", [one * 1_000_000 + file(b"f", b"1") + END])
    found = build(tmp_path)
    assert found["status"] == 0, found["error"]


def test_many_attributes_and_long_values(tmp_path: Path) -> None:
    records = [(b"SCHILY.xattr.user.%d" % n, b"v" * 60_000) for n in range(15)]
    write_layout(tmp_path / "oci", "t", [pax(records) + file(b"f") + END])
    assert build(tmp_path)["status"] == 0  # they are left out, with one remark
    (tmp_path / "out/disk").unlink()
    found = build(tmp_path, "--strict")
    assert found["status"] == 2
    assert "strict: /f " in str(found["error"])


def test_links_in_circles(tmp_path: Path) -> None:
    layer = symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/f")
    write_layout(tmp_path / "oci", "t", [layer + END])
    found = build(tmp_path)
    assert found["status"] == 2
    assert "symbolic links on its path" in str(found["error"])
    write_layout(tmp_path / "oci", "t", [symlink(b"a", b"b") + symlink(b"b", b"a") + END])
    assert build(tmp_path)["status"] == 0  # alone they harm nobody


def test_a_nest_of_directories(tmp_path: Path) -> None:
    layer = pax([(b"path", b"d/" * 30_000 + b"f")]) + file(b"x")
    write_layout(tmp_path / "oci", "t", [layer + END])
    assert build(tmp_path, "--size", "256MiB")["status"] == 0


def test_a_document_in_a_thousand_brackets(tmp_path: Path) -> None:
    write_layout(tmp_path / "oci", "t", [file(b"f") + END])
    for text in (
        b"[" * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"manifests": ' + b"9" * 1_000_000 + b"}",
    ):
        (tmp_path / "oci/index.json").write_bytes(text)
        assert build(tmp_path)["status"] in (1, 2)


WIDE = b"/".join(b"n" * 250 for _ in range(15))


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        # a megabyte of tar that names 600,000 directories
        (
            "directories that no entry describes",
            b"".join(pax([(b"path", b"%02d/" % n + b"d/" * 30_000 + b"f")]) + file(b"x") for n in range(20)),
        ),
        # each name goes through 200 links to long paths, and its real path has a megabyte
        (
            "steps through its directories",
            b"".join(pax([(b"linkpath", b"l%d/" % (n - 1) * (n > 0) + b"a/../" * 700)]) + symlink(b"l%d" % n, b"x") for n in range(200))
            + b"".join(file(b"l199/%d/f" % n) for n in range(2000)),
        ),
        # to nowhere is the same for hard links
        (
            "which is not there|steps through its directories",
            b"".join(pax([(b"linkpath", (b"l%d/" % (n - 1) if n else b"") + WIDE)]) + symlink(b"l%d" % n, b"x") for n in range(250))
            + file(b"l249/f")
            + b"".join(file(b"l249/%d/.wh.f" % n) for n in range(3000))
            + hard_link(b"h", b"l249/g"),
        ),
        # thousands of markers over a directory of thousands
        (
            "steps through its directories",
            b"".join(file(b"d/%d" % n) for n in range(20_000)) + file(b"d/.wh..wh..opq") * 20_000,
        ),
    ],
    ids=["deep", "links", "wide", "opaque"],
)  # fmt: skip
def test_small_tars_that_mean_much(tmp_path: Path, words: str, layer: bytes) -> None:
    write_layout(tmp_path / "oci", "t", [layer + END])
    found = build(tmp_path)
    assert found["status"] == 2
    assert re.search(words, str(found["error"])), found["error"]
    assert "layer 1 of 1: entry" in str(found["error"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "bomb"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_damaged_layers(tmp_path: Path, damage: str, compression: str) -> None:
    """Named by their number or digest, and nothing is left of them."""
    layer = file(b"f", os.urandom(200_000)) + END
    write_layout(tmp_path / "oci", "t", [file(b"g") + END, layer], compression=compression)
    manifest = json.loads((tmp_path / "oci/index.json").read_bytes())["manifests"][0]["digest"]
    described = json.loads((tmp_path / "oci/blobs" / manifest.replace(":", "/")).read_bytes())["layers"][1]
    path = tmp_path / "oci/blobs" / described["digest"].replace(":", "/")
    data = bytearray(path.read_bytes())
    pack = {"gzip": lambda d: gzip.compress(d, 1), "zstd": zstandard.compress, "plain": bytes}[compression]
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-100] if damage == "cut" else pack(bytes(50 << 20)) if damage == "bomb" else data)  # type: ignore[no-untyped-call]
    found = build(tmp_path)
    assert found["status"] in (1, 2)
    assert "layer 2" in str(found["error"]) or described["digest"][:19] in str(found["error"])
