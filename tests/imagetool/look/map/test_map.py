"""imagetool map: what it says of a disk is so, and the page is one that can be read."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from imagetool.look.map import page as pages
from imagetool.look.map import survey as s
from imagetool.look.map.grid import Run
from rootdisk.oci.documents import Platform
from rootdisk.oci.repository import RegistryOptions
from tests.support.browser import measured, needs_browser, screenshot
from tests.support.commands import run
from tests.support.disks import debugfs, disk_of, needs_e2fsck
from tests.support.tars import directory, file

HOSTILE = b"d/<script>alert(1)</script>\"'&\xff\n"
LAYERS = (
    directory(b"d") + file(b"d/hidden", b"h" * 200_000) + file(b"d/big", b"b" * 3_000_000) + file(HOSTILE, b"x" * 90_000),
    file(b"d/.wh.hidden") + file(b"d/upper", b"u" * 700_000),
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk_of(tmp_path_factory.mktemp("map") / "disk", *LAYERS)


@pytest.fixture(scope="module")
def drawn(demo: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's page with everything on it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "trace").write_text("# a boot\n0,4096\n1024 1024\n71303168,1000000 # some more\n")
    done = run(
        "imagetool", "map", demo, "--against", demo, "--trace", str(folder / "trace"), "-o", str(folder / "map.html")
    )
    assert done.returncode == 0, done.stderr
    return folder / "map.html"


def surveyed(what: str | Path) -> s.Survey:
    with s.opened(str(what), Platform.host(), RegistryOptions()) as disk:
        return s.survey(disk)


@needs_e2fsck
def test_blocks_are_what_debugfs_says(raw: Path) -> None:
    found = surveyed(raw)
    ends = [0, *(run.end for run in found.runs)]
    assert all(run.offset >= end for run, end in zip(found.runs, ends, strict=False)), "runs overlap"
    for place in found.runs:
        for block in {max(1, place.offset // 4096), place.end // 4096 - 1}:  # debugfs has no block 0
            used = "marked in use" in debugfs(raw, f"testb {block}")
            assert used == (place.kind != s.UNUSED), (place, block)
            owner = debugfs(raw, f"icheck {block}").splitlines()[-1].split("\t")[-1]
            if place.kind == s.JOURNAL:
                assert owner == "8"
            if place.kind == s.FIRST_LAYER:
                assert int(owner) > 10


def test_files_are_all_there_once(raw: Path) -> None:
    sizes = {file.path: (file.size, file.room) for file in surveyed(raw).files}
    assert sizes["/d/big"] == (3_000_000, 733 * 4096)
    assert sizes["/d/upper"] == (700_000, 171 * 4096)
    assert len(sizes) == 3


def test_layers_of_an_artifact(demo: str) -> None:
    with s.opened(demo, Platform.host(), RegistryOptions()) as disk:
        found = s.survey(disk)
        for entry in found.files[:50]:
            node = disk.contents.reader.lookup(entry.path.encode())
            assert found.kinds[entry.kind].detail == disk.contents.layer(node)
    assert {run.kind for run in found.runs} >= {s.METADATA, s.JOURNAL, s.SLOT, s.FIRST_LAYER, s.FIRST_LAYER + 1}
    assert sum(run.length for run in found.runs if run.kind == s.SLOT) == 256 << 10


def test_the_same_disk_is_the_same_page(drawn: Path, demo: str) -> None:
    trace = str(drawn.with_name("trace"))
    argv = ["imagetool", "map", demo, "--against", demo, "--trace", trace]
    again = run(*argv, PYTHONHASHSEED="7", LC_ALL="C")
    assert again.stdout == drawn.read_text()
    assert drawn.stat().st_size < 200_000


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_names_of_an_image_are_only_text(raw: Path) -> None:
    done = run("imagetool", "map", str(raw))
    elements = Elements(done.stdout).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert not [a for _, attributes in elements for a in attributes if a.startswith("on") or a in ("src", "href")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in done.stdout
    assert "\\xff" in done.stdout
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("text", ["nonsense", "1,2,3", "-5,4", "99999999999999,1"])
def test_a_trace_that_is_none(raw: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "trace").write_text(f"0,4096\n{text}\n")
    done = run("imagetool", "map", str(raw), "--trace", str(tmp_path / "trace"), "-o", str(tmp_path / "out.html"))
    assert done.returncode == 2
    assert re.fullmatch(r"imagetool: .*, line 2: .*\n", done.stderr)
    assert not (tmp_path / "out.html").exists()


def test_a_boot_trace(raw: Path, tmp_path: Path) -> None:
    """Paths, as `imagetool trace` writes them: their data, inodes and directories. Others are skipped."""
    (tmp_path / "web.trace").write_text("# rootdisk boot trace\n(metadata)\n/no/such/file\n/\n")
    with s.opened(str(raw), Platform.host(), RegistryOptions()) as disk:
        runs = s.traced(tmp_path / "web.trace", disk)
        reader = disk.contents.reader
        (root,) = (e for e in reader.extents(reader.root))
        assert Run(root.physical * reader.block_size, root.count * reader.block_size, 0) in runs
        assert runs[0].offset == 0
    done = run("imagetool", "map", str(raw), "--trace", str(tmp_path / "web.trace"))
    assert done.returncode == 0, done.stderr
    assert f"{len(runs)} reads of " in done.stdout
    (tmp_path / "web.trace").write_text("# rootdisk boot trace\n/etc/passwd\nnonsense\n")
    done = run("imagetool", "map", str(raw), "--trace", str(tmp_path / "web.trace"))
    assert done.returncode == 2
    assert re.fullmatch(r"imagetool: .*, line 3: .*\n", done.stderr)


def test_a_raw_disk_has_no_chunks_to_compare(raw: Path, demo: str) -> None:
    done = run("imagetool", "map", str(raw), "--against", demo)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no chunks" in done.stderr


def test_an_artifact_of_a_variable_that_is_not_set(demo: str) -> None:
    """Not left out: the answer would look as if it had been compared."""
    for argv in (("map", demo, "--against", ""), ("verify", demo, "--source", "")):
        done = run("imagetool", *argv)
        assert done.returncode == 2, argv
        assert "reference ''" in done.stderr


def test_json_says_where_it_is(raw: Path, tmp_path: Path) -> None:
    done = run("imagetool", "map", "--json", str(raw), "-o", str(tmp_path / "m.html"))
    assert json.loads(done.stdout)[0] == {
        "file": str(tmp_path / "m.html"),
        "size": (tmp_path / "m.html").stat().st_size,
    }


def test_amounts() -> None:
    amounts = {
        0: "0 B",
        1023: "1023 B",
        1024: "1.0 KiB",
        101 << 10: "101 KiB",
        (1 << 20) - 1: "1.0 MiB",
        8 << 30: "8.0 GiB",
    }
    assert {count: pages.amount(count) for count in amounts} == amounts
    assert pages.amount(16 << 40) == "16.0 TiB"


def test_names_are_cut_to_their_room() -> None:
    assert pages.fitted("libcrypto.so.3", 14) == "libcrypto.so.3"
    assert pages.fitted("libcrypto.so.3", 10) == "libcrypto…"
    assert pages.fitted("漢字漢字漢字", 8) == "漢字漢…"
    assert pages.fitted("libcrypto", 3) == ""


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_finds_nothing_wrong(drawn: Path, tmp_path: Path, dark: bool) -> None:
    found = measured(drawn, tmp_path, widths=[320, 390, 1280], dark=dark)
    assert [one["faults"] for one in found] == [[], [], []]
    assert all(one["texts"] > 40 and 100 < one["tiles"] < 3000 for one in found)
    level = int(re.findall(r"\d+", found[0]["background"])[0])
    assert level < 60 if dark else level > 200


@needs_browser
def test_a_picture_in_light_and_dark(drawn: Path, tmp_path: Path) -> None:
    pictures = [screenshot(drawn, tmp_path, width=1280, height=2400, dark=dark) for dark in (False, True)]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 50_000 for picture in pictures)
    assert pictures[0] != pictures[1]


@needs_browser
def test_the_browser_does_find_faults(drawn: Path, tmp_path: Path) -> None:
    """The checker itself: a wide table, a long word in a tile, pale letters, a picture without words, a dead script."""
    text = drawn.read_text()
    bad = text.replace("<main>", '<main><p style="width:2000px;color:#eee;background:#fff">wide</p>')
    bad = re.sub(r'(font-size="11">)[a-z]', r"\1a name that is far longer than its tile has room", bad)
    bad = bad.replace('id="blocks-title"', "").replace('addEventListener("click"', 'addEventListener("none"')
    (tmp_path / "bad.html").write_text(bad)
    (found,) = measured(tmp_path / "bad.html", tmp_path, widths=[390], dark=False)
    for words in (
        "wider than",
        "past the edge",
        "out of its tile",
        "hard to read",
        "without title",
        "a tap says nothing",
    ):
        assert any(fault.startswith(words) or words in fault for fault in found["faults"]), words
