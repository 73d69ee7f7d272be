"""Text from images, and text for them: what is no Unicode is one error line, what controls a terminal is escaped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootdisk.errors import BadInput
from rootdisk.oci.documents import parse_json
from tests.support.commands import ROOT, without_progress
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, hard_link, header, pax, symlink

LONE = "\ud800"
RAW = b"\xed\xa0\x80"  # the same, as three bytes that are not UTF-8
EVIL = b"\x1b]0;title\x07\n\xe2\x80\xae\xc2\x9b31m\xff"


def imagetool(tmp_path: Path, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "imagetool", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ROOTDISK_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        timeout=100,
    )
    done.stderr = os.fsencode(without_progress(os.fsdecode(done.stderr)))
    return done


def replaced(value: object, change: Callable[[Any], object], at: tuple[str | int, ...] = ()) -> list[object]:
    """Copies of a JSON value, each with one text (keys of tables too) changed."""
    if isinstance(value, str):
        return [change(value)]
    found: list[object] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += [{**value, key: other} for other in replaced(inner, change)]
        found += [{**value, change("key"): "x"}]
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found += [[*value[:number], other, *value[number + 1 :]] for other in replaced(inner, change)]
    return found


CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Env": ["A=1"], "Entrypoint": ["e"], "Cmd": ["c"], "WorkingDir": "/", "User": "u", "Labels": {"a": "b"}},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
    "history": [{"created_by": "sh", "comment": "x"}],
}


def test_lone_surrogates_anywhere_in_a_document() -> None:
    """One parser reads configs, manifests and indexes: keys and values of all of them."""
    cases = replaced(CONFIG, lambda text: text + LONE)
    assert len(cases) > 15
    for case in cases:
        for raw in (json.dumps(case).encode(), json.dumps(case, ensure_ascii=False).encode("utf-8", "surrogatepass")):
            with pytest.raises(BadInput, match="image config: not JSON: ") as caught:
                parse_json(raw, "image config")
            assert str(caught.value).isprintable()
    pairs = json.dumps(CONFIG).replace("sh", "\\ud83d\\ude00").encode()
    assert parse_json(pairs, "x")["history"][0]["created_by"] == "\U0001f600"


@pytest.mark.parametrize("key", ["Env", "Labels", "Cmd", "User", "WorkingDir"])
def test_an_image_with_a_lone_surrogate(tmp_path: Path, key: str) -> None:
    value = {"Labels": {"a": LONE}, "Env": [f"A={LONE}"], "Cmd": [LONE]}.get(key, LONE)
    write_layout(tmp_path / "oci", "t", [file(b"f") + END], {key: value})
    for command in (["inspect"], ["init"], ["disk", "--plain"]):
        out = [str(tmp_path / "out")] if command[0] == "disk" else []
        done = imagetool(tmp_path, *command, f"oci:{tmp_path}/oci:t", *out)
        assert done.returncode in (1, 2)
        assert re.fullmatch(rb"imagetool: [^\n]*not JSON: [^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["-e", "--owner"])
def test_arguments_that_are_no_text(tmp_path: Path, option: str) -> None:
    write_layout(tmp_path / "oci", "t", [file(b"f") + END])
    for text in (b"A=\xff", b"/\xff=root", RAW + b"=1"):
        done = imagetool(tmp_path, "disk", option, text, f"oci:{tmp_path}/oci:t", str(tmp_path / "out"))
        assert done.returncode == 2
        assert re.fullmatch(rb"imagetool: [^\n]*\n", done.stderr), done.stderr


NAMES = {
    "name": file(EVIL.replace(b"\n", b"") + b"\n"),
    "directory": directory(EVIL),
    "link": symlink(b"l", EVIL),
    "attribute": pax([(b"SCHILY.xattr.user." + EVIL, EVIL)]) + file(b"f"),
    "passwd": directory(b"etc") + file(b"etc/passwd", EVIL + b":x:0:0::/:/bin/sh\n"),
}
WRONG = {
    "hard link": hard_link(EVIL, EVIL + b"x"),
    "parent": file(EVIL) + file(EVIL + b"/f"),
    "type": header(EVIL, b"V"),
    "time": file(EVIL, mtime=1 << 40),
    "attribute": pax([(b"SCHILY.xattr." + EVIL, b"")]) + file(EVIL),
    "attributes": pax([(b"SCHILY.xattr.user.a", b"v" * 5000)]) + file(EVIL),
    "acl": pax([(b"SCHILY.acl.access", EVIL)]) + file(EVIL),
    "long": pax([(b"path", EVIL * 100)]) + file(b"x"),
    "size": pax([(b"GNU.sparse.size", b"%d" % (1 << 50)), (b"GNU.sparse.map", b"0,0")]) + file(EVIL),
    "sparse": pax([(b"GNU.sparse.map", EVIL), (b"GNU.sparse.size", b"1")]) + file(EVIL),
    "record": header(EVIL, b"x", size=10) + EVIL[:10].ljust(512, b"\0"),
}


def harmless(output: bytes) -> None:
    """Nothing that a terminal acts on, but line ends; and text."""
    for line in output.decode().split("\n"):
        assert line.isprintable(), output


@pytest.mark.parametrize("case", NAMES)
def test_names_are_shown_escaped(tmp_path: Path, case: str) -> None:
    write_layout(tmp_path / "oci", "t", [NAMES[case] + END])
    write_layout(tmp_path / "oci", "u", [file(b"f", b"1") + END])
    for tag in "tu":
        done = imagetool(
            tmp_path, "disk", "--plain", "--size", "16MiB", f"oci:{tmp_path}/oci:{tag}", str(tmp_path / tag)
        )
        assert done.returncode == 0, done.stderr
    disk, other = str(tmp_path / "t"), str(tmp_path / "u")
    for command in (
        ["ls", "-R", disk], ["ls", "--json", "-R", disk], ["stat", disk, "/"], ["stat", disk, "/l"], ["stat", disk, "/f"],
        ["diff", disk, other], ["diff", other, disk], ["diff", "--json", other, disk], ["map", disk], ["inspect", disk],
        ["stat", disk, b"/" + EVIL], ["cat", disk, b"/no" + EVIL], ["ls", disk, b"/" + EVIL + b"/x"],
    ):  # fmt: skip
        done = imagetool(tmp_path, *command)
        harmless(done.stdout)
        harmless(done.stderr)
        assert done.stderr.count(b"\n") <= 1


@pytest.mark.parametrize("case", WRONG)
def test_errors_show_names_escaped_on_one_line(tmp_path: Path, case: str) -> None:
    """Errors, and remarks about what is left out: without --strict some are that."""
    write_layout(tmp_path / "oci", "t", [WRONG[case] + END])
    command = ("disk", "--plain", "--size", "16MiB", f"oci:{tmp_path}/oci:t", str(tmp_path / "t"))
    for strict in ([], ["--strict"]):
        done = imagetool(tmp_path, *command, *strict)
        assert done.returncode == 2 or (not strict and done.returncode == 0)
        harmless(done.stderr)
        assert done.stderr.count(b"\n") == 1 or done.returncode == 0
        assert len(done.stderr) < 2000
        assert b"title" in done.stderr or case in ("long", "record")


def test_a_config_that_controls_a_terminal(tmp_path: Path) -> None:
    text = EVIL.decode("utf-8", "replace")
    config = {"Env": [f"{text}={text}"], "Labels": {text: text}, "Cmd": [text], "User": text, "StopSignal": text}
    write_layout(tmp_path / "oci", "t", [file(b"f") + END], config)
    for command in (["inspect"], ["inspect", "--json"], ["init"]):
        done = imagetool(tmp_path, *command, f"oci:{tmp_path}/oci:t")
        harmless(done.stdout)
        harmless(done.stderr)
