"""No command opens a file for writing, or makes, moves or removes a name, outside of store, target and temporary directory.

strace is the witness: it sees every process that a command starts, QEMU too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import beyond, changes
from tests.support.commands import Runner
from tests.support.compilers import real_path
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, hard_link, symlink


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that nothing may touch, with a file in it."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "precious").write_text("precious")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the command may write: a directory with home, temporary directory and store."""
    for name in ("home", "tmp", "cwd"):
        (tmp_path / "place" / name).mkdir(parents=True)
    return tmp_path / "place"


def environment(place: Path) -> dict[str, Any]:
    return {
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "XDG_CACHE_HOME": str(place / "home/cache"),
        "ROOTDISK_STORE": str(place / "store"),
        "PATH": real_path(),  # the others keep what they have made elsewhere
    }


def is_untouched(outside: Path) -> bool:
    return [path.name for path in outside.iterdir()] == ["precious"] and (
        outside / "precious"
    ).read_text() == "precious"


def test_the_audit_sees_what_it_should(tmp_path: Path, place: Path, outside: Path) -> None:
    """A program that does all that is forbidden, by every kind of call and through links: each is found."""
    (place / "cwd/link").symlink_to(outside)
    program = tmp_path / "culprit.py"
    program.write_text(
        "import os, sys\n"
        f"o = {str(outside)!r}\n"
        "open('link/by-link', 'w').close()\n"
        "os.mkdir(o + '/dir'); os.rename(o + '/dir', o + '/moved'); os.symlink('x', o + '/sym'); os.mkfifo(o + '/fifo')\n"
        "os.link(o + '/by-link', o + '/hard'); os.chmod(o + '/by-link', 0o600); os.utime(o + '/hard')\n"
        "d = os.open(o, os.O_RDONLY); os.close(os.open('at', os.O_WRONLY | os.O_CREAT, dir_fd=d)); os.unlink('at', dir_fd=d)\n"
        "os.close(os.open(o + '/odd \\n name', os.O_WRONLY | os.O_CREAT))\n"
        "open('allowed', 'w').close()\n"
    )
    status, errors, paths = changes([str(program)], tmp_path / "log", place / "cwd")
    assert status == 0, errors
    names = {Path(path).name for path in beyond(paths, place)}
    assert names == {"by-link", "dir", "moved", "sym", "fifo", "hard", "at", "odd \n name"}


HOSTILE = (
    directory(b"a/")
    + symlink(b"a/up", b"../../../../../../..")
    + symlink(b"root", b"/")
    + file(b"a/up/../../escaped", b"x")
    + file(b"root/OUTSIDE/new", b"x")
    + file(b"../../../OUTSIDE/dots", b"x")
    + file(b"/OUTSIDE/absolute", b"x")
    + symlink(b"precious", b"OUTSIDE/precious")
    + hard_link(b"hard", b"precious")
    + file(b"precious/../over", b"x")
    + file(b"root/OUTSIDE/.wh.precious", b"")
    + file(b"root/OUTSIDE/.wh..wh..opq", b"")
)


def test_build_of_a_hostile_image(tmp_path: Path, place: Path, outside: Path, demo: str) -> None:
    """`imagetool build` and `disk` of an image whose names, links and whiteouts lead out."""
    layers = []
    for part in (HOSTILE, HOSTILE[: len(HOSTILE) // 2 // 512 * 512]):
        name = os.fsencode(str(outside)).lstrip(b"/")
        # Long names go by links: the short word stands for the directory outside.
        layers.append(symlink(b"OUTSIDE", b"/" + name) + part + END)
    write_layout(tmp_path / "image", "bad", layers, {"Env": ["A=b"], "WorkingDir": str(outside), "User": "../../x"})
    for number, layer in enumerate(layers):
        write_layout(tmp_path / "image", f"one{number}", [layer])
    for tag in ("bad", "one0", "one1"):
        build = ["-m", "imagetool", "build", f"oci:{tmp_path}/image:{tag}", f"oci:{place}/disks:{tag}"]
        disk = ["-m", "imagetool", "disk", f"oci:{tmp_path}/image:{tag}", f"{place}/{tag}.ext4"]
        for command in {"bad": [build, disk], "one0": [build], "one1": [disk]}[tag]:
            status, errors, paths = changes(command, tmp_path / "log", place / "cwd", **environment(place))
            assert status in (0, 1, 2), errors
            assert "Traceback" not in errors
            assert beyond(paths, place) == []
            assert is_untouched(outside)


def test_pull_of_a_hostile_artifact(tmp_path: Path, place: Path, outside: Path, demo: str) -> None:
    """`runner pull` of layouts whose digests, tags, annotations and files are names of files outside."""
    folder = tmp_path / "layout"
    write_layout(folder, "v1", [file(b"a", b"b") + END])
    index = json.loads((folder / "index.json").read_bytes())
    (entry,) = index["manifests"]
    blob = folder / "blobs/sha256" / entry["digest"].partition(":")[2]
    for change in (
        {"digest": f"sha256:../../../../{outside}/precious"},
        {"digest": f"../..{outside}:precious"},
        {"annotations": {"org.opencontainers.image.ref.name": f"../../{outside}/new"}},
        {"mediaType": f"{outside}/new"},
    ):
        (folder / "index.json").write_text(json.dumps({**index, "manifests": [{**entry, **change}]}))
        status, errors, paths = changes(
            ["-m", "runner", "pull", f"oci:{folder}"], tmp_path / "log", place / "cwd", **environment(place)
        )
        assert status == 125, errors
        assert "Traceback" not in errors
        assert beyond(paths, place) == []
    (folder / "index.json").write_text(json.dumps(index))
    blob.unlink()
    blob.symlink_to(outside / "precious")
    status, errors, paths = changes(
        ["-m", "runner", "pull", f"oci:{folder}:v1"], tmp_path / "log", place / "cwd", **environment(place)
    )
    assert status == 125, errors
    assert beyond(paths, place) == []
    assert is_untouched(outside)


@pytest.mark.vm
def test_boot_writes_in_the_store_only(tmp_path: Path, place: Path, outside: Path, demo: str) -> None:
    status, errors, paths = changes(
        ["-m", "runner", "boot", "--entrypoint", "/bin/sh", demo, "--", "-c", "echo x > /sandbox/x; sync"],
        tmp_path / "log",
        place / "cwd",
        **environment(place),
    )
    assert status == 0, errors
    assert beyond(paths, place) == []
    assert any(path.startswith(f"{place}/store/sandboxes/") for path in paths)


# What takes the place of a guest's init: it answers for /x/NAME with the stream NAME of the version of VERSION.
HOSTILE_INIT = """#!/usr/bin/python3
import os, struct, sys
VERSION = int(open("/tmp/version").read())
OUTSIDE = os.fsencode(open("/tmp/outside").read())

def e(kind, name, target=b""):
    data = b"x" if kind == b"f" else b""
    head = struct.pack("<cxHHIqQ", kind, len(name), len(target), 0o644, 0, len(data)) + name + target
    if kind != b"f" or VERSION == 1:
        return head + data
    return head + struct.pack("<IQQ", 1, 0, 1) + data + bytes(4)

root, a = e(b"d", b""), e(b"d", b"a")
STREAMS = {
    "fine": root + e(b"f", b"escaped"),
    "root": e(b"l", b"", OUTSIDE) + e(b"f", b"escaped"),
    "roots": e(b"l", b"", OUTSIDE) + root + e(b"f", b"escaped"),
    "dots": root + e(b"f", b"../outside/escaped"),
    "deep": root + a + e(b"f", b"a/../../../outside/escaped"),
    "absolute": root + e(b"f", OUTSIDE + b"/escaped"),
    "through": root + e(b"l", b"a", OUTSIDE) + e(b"f", b"a/escaped"),
    "swapped": root + a + e(b"l", b"a", OUTSIDE) + e(b"f", b"a/escaped"),
    "known": root + e(b"d", b"link") + e(b"f", b"link/escaped"),
    "over": root + e(b"f", b"precious"),
}
name = sys.argv[-1].removeprefix("/x/").removesuffix("/.")
if sys.argv[1] == "pack2" and VERSION == 1:
    sys.exit(125)
hello, end = (b"RDCOPY2\\n", e(b"e", b"").replace(struct.pack("<I", 0o644), bytes(4))) if VERSION > 1 else (b"", b"")
os.write(1, hello + STREAMS[name] + end)
"""


@pytest.mark.vm
@pytest.mark.parametrize("every", [pytest.param(True, marks=pytest.mark.nightly), False], ids=["every", "some"])
def test_cp_from_a_hostile_guest(tmp_path: Path, place: Path, outside: Path, demo: str, every: bool) -> None:
    """A guest's root puts a program in the place of the init that answers `cp`: nothing changes outside of the target.

    Each copy runs under strace. In the main job each stream is of one version, and goes to one kind of target.
    """
    runner = Runner(place / "store")
    here = place / "here"
    here.mkdir()
    # A copy's own directory may have links already, as an earlier copy brings them.
    for folder in (here, here / "known", here / "over"):
        folder.mkdir(exist_ok=True)
        (folder / "link").symlink_to(outside)
        (folder / "precious").symlink_to(outside / "precious")
    assert runner.boot(demo, "while :; do sleep 1; done", "-d", "--name", "box", "-u", "0").returncode == 0
    try:
        (tmp_path / "init").write_text(HOSTILE_INIT)
        (tmp_path / "init").chmod(0o755)
        (tmp_path / "path").write_text(str(outside))
        assert runner("cp", str(tmp_path / "init"), "box:/tmp/init").returncode == 0
        assert runner("cp", str(tmp_path / "path"), "box:/tmp/outside").returncode == 0
        script = "mount --bind /tmp/init /.rootdisk/init"
        assert runner("exec", "-u", "0", "box", "sh", "-c", script).returncode == 0
        for version in (1, 2):
            script = f"echo {version} > /tmp/version"
            assert runner("exec", "-u", "0", "box", "sh", "-c", script).returncode == 0
            for number, name in enumerate(
                ("root", "roots", "dots", "deep", "absolute", "through", "swapped", "known", "over", "fine")
            ):
                if not every and name != "fine" and (number + version) % 2:
                    continue
                kinds = [(f"/x/{name}", here), (f"/x/{name}/.", here), (f"/x/{name}", "-")]
                if name not in ("root", "dots", "through", "fine"):
                    kinds.pop()
                for source, target in kinds if every or name == "fine" else [kinds[number % len(kinds)]]:
                    status, errors, paths = changes(
                        ["-m", "runner", "cp", f"box:{source}", str(target)],
                        tmp_path / "log",
                        place / "cwd",
                        **environment(place),
                    )
                    assert status == (0 if name == "fine" else 125), (version, source, errors)
                    assert "Traceback" not in errors
                    assert beyond(paths, here) == []
                    assert is_untouched(outside)
        assert (here / "fine/escaped").read_text() == (here / "escaped").read_text() == "x"
    finally:
        runner("rm", "-f", "box")
