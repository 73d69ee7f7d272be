"""imagetool inspect, ls, stat, cat and diff, as a user runs them, on artifacts, raw disks and source images."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from imagetool.look.inspection import shown
from tests.support.commands import ROOT, run
from tests.support.disks import disk_of
from tests.support.registry import needs_registry, run_registry
from tests.support.tars import directory, file, hard_link, header, pax, symlink

BASE = (
    directory(b"etc")
    + file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:70000:7::/:/bin/sh\n")
    + file(b"etc/group", b"staff:x:7:\n")
    + directory(b"d", uid=70000, gid=7)
    + file(b"d/f", b"hello\n", mode=0o640, uid=70000, gid=7)
    + hard_link(b"d/g", b"d/f", mode=0o640, uid=70000, gid=7)
    + symlink(b"l", b"/d")
    + header(b"null", b"3", mode=0o666, major=1, minor=3)
    + pax([(b"SCHILY.xattr.user.k", b"v\n")])
    + file(b"x")
    + file(b"bad\x1b[31m\xff", b"")
    + pax([(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.map", b"5000,3")])
    + file(b"sparse", b"abc")
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk_of(tmp_path_factory.mktemp("disk") / "disk", BASE)


def imagetool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("imagetool", *map(str, arguments))


def test_ls(disk: Path) -> None:
    done = imagetool("ls", disk, "/")
    lines = {line.split(maxsplit=6)[6]: line.split()[:4] for line in done.stdout.splitlines()}
    assert lines["d"] == ["drwxr-xr-x", "2", "70000:7", "4096"]
    assert lines["null"] == ["crw-rw-rw-", "1", "0:0", "1,3"]
    assert "l -> /d" in lines
    assert r"bad\x1b[31m\xff" in lines
    assert imagetool("ls", disk, "/l").stdout == imagetool("ls", disk, "/d").stdout
    assert len(imagetool("ls", "-R", disk).stdout.splitlines()) == 12
    row = json.loads(imagetool("ls", "--json", disk, "/d").stdout)[0]
    assert (row["name"], row["uid"], row["size"]) == ("f", 70000, 6)


def test_stat(disk: Path) -> None:
    value = json.loads(imagetool("stat", "--json", disk, "/d/f").stdout)[0]
    assert (value["user"], value["group"], value["mode"], value["links"]) == ("app", "staff", "0640", 2)
    assert value["sha256"] == hashlib.sha256(b"hello\n").hexdigest()
    assert json.loads(imagetool("stat", "--json", disk, "/x").stdout)[0]["xattrs"] == {"user.k": r"v\n"}
    assert json.loads(imagetool("stat", "--json", disk, "/l").stdout)[0]["target"] == "/d"
    assert "device:     1:3" in imagetool("stat", disk, "null").stdout


def test_cat(disk: Path) -> None:
    assert imagetool("cat", disk, "/l/f").stdout == "hello\n"
    assert imagetool("cat", disk, "sparse").stdout == "\0" * 5000 + "abc" + "\0" * 3997


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("cat", "{disk}", "/d"), "a directory, not a file"),
        (("cat", "{disk}", "/none"), "/none: no such file on the disk"),
        (("stat", "{disk}", "/x/y"), "a part of it is not a directory"),
        (("ls", "/dev/null"), "/dev/null"),
        (("ls", __file__), "not an ext4 disk"),
        (("inspect", "oci:/none:1"), "/none"),
    ],
)
def test_errors(disk: Path, command: tuple[str, ...], words: str) -> None:
    done = imagetool(*(str(disk) if word == "{disk}" else word for word in command))
    assert done.returncode == 2
    assert done.stderr.startswith("imagetool: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_diff(disk: Path, tmp_path: Path) -> None:
    assert imagetool("diff", disk, disk).returncode == 0
    changed = file(b"d/f", b"HELLO\n", mode=0o640, uid=70000, gid=7) + file(b"new") + file(b"x", uid=3) + file(b".wh.l")
    other = disk_of(tmp_path / "other", BASE, changed)
    done = imagetool("diff", disk, other)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("~ /d/f: links 2 -> 1; sha256 ")
    assert lines[1:] == [
        "~ /d/g: links 2 -> 1",
        "- /l",
        "+ /new",
        r"~ /x: owner 0:0 -> 3:0; xattrs user.k=v\n -> (none)",
    ]
    rows = json.loads(imagetool("diff", "--json", disk, other).stdout)
    assert rows[1] == {"path": "/d/g", "kind": "changed", "what": {"links": ["2", "1"]}}


@needs_registry
def test_an_artifact_and_where_its_files_came_from(demo: str, tmp_path: Path) -> None:
    """In an OCI layout and in a registry, of which only what is read is fetched; the same as the raw disk beside it."""
    source = json.loads(imagetool("inspect", f"oci:{ROOT}/cache/demo/source:latest").stdout)
    assert source["kind"] == "image"
    base, python, app = (layer["diff_id"] for layer in source["layers"])
    with run_registry(tmp_path / "registry") as registry:
        name = f"{registry.name}/demo:1"
        assert imagetool("copy", "--plain-http", demo, name).returncode == 0
        for artifact, option in ((demo, []), (name, ["--plain-http"])):
            value = json.loads(imagetool("inspect", *option, artifact).stdout)
            assert (value["kind"], value["disk"]["size"]) == ("artifact", 8 << 30)
            for path, layer in (("/etc/os-release", base), ("/usr/bin/python3.11", python), ("/app/main.py", app)):
                found = json.loads(imagetool("stat", "--json", *option, artifact, path).stdout or "[{}]")[0]
                if found:
                    assert found["layer"] == layer
            owner = json.loads(imagetool("stat", "--json", *option, artifact, "/sandbox").stdout)[0]
            assert (owner["user"], owner["uid"], owner["layer"]) == ("sandbox", 10001, app)
            added = json.loads(imagetool("stat", "--json", *option, artifact, "/.rootdisk/init").stdout)[0]
            assert added["layer"].startswith("rootdisk:")
    raw = tmp_path / "disk"
    blobs = b"".join(path.read_bytes() for path in sorted((ROOT / "cache/demo/disk").glob("*.zst.*")))
    subprocess.run(["zstd", "-dq", "--sparse", "-o", raw], input=blobs, check=True)
    assert imagetool("diff", demo, raw).returncode == 0


def test_names_cannot_control_a_terminal() -> None:
    assert shown(b"a\x1b[0m\n\xc2\x9b\\x\xff\xe2\x80\xae") == r"a\x1b[0m\n\x9b\\x\xff\u202e"
    assert shown("ünï 漢".encode()) == "ünï 漢"
