"""Mistakes that newcomers make on imagetool's command line: each is one line that names the thing and what to type."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file
from tests.support.waiting import until


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_layout(tmp_path / "layout", "t", [directory(b"etc") + file(b"etc/f", b"1" * 9000) + END])
    (tmp_path / "text").write_text("no disk" * 1000)
    return tmp_path


MISTAKES = [
    ("run oci:x:1", "'run' is not a command: the runner has it: runner run"),
    ("images", "'images' is not a command: the runner has it: runner images"),
    ("check", "'check' is not a command: it is a task: imagetool doit check"),
    ("build -t web .", "it makes a disk of an image that is built already: imagetool build SOURCE ARTIFACT"),
    ("build --size 8 oci:layout:t oci:o:1", "--size: '8' is not a valid disk size"),
    ("build --platform x oci:layout:t oci:o:1", "use --platform linux/amd64"),
    ("build --tls-ca nosuch oci:layout:t oci:o:1", "--tls-ca: cannot read nosuch"),
    ("doit", "imagetool init SOURCE begins a project here"),
    ("init docker-daemon:a:1", "no Docker daemon answers: No such file or directory: is it running"),
    ("cat text /x", "text: not an ext4 disk"),
    ("index oci:all:1 oci:nosuch:1", "oci:nosuch: No such file or directory"),
    ("sign oci:layout:t", "no key to sign with: give --key FILE or --key-command COMMAND"),
    ("disk oci:layout:t .", ". is a directory: name a file"),
    ("disk oci:layout:t no/such", "is not a directory: create it first"),
    ("disk oci:nosuch:t new.ext4", "nosuch: No such file or directory: is it the directory of an OCI layout?"),
    ("map text -o .", ". is a directory: name a file"),
    ("sbom text -o .", ". is a directory: name a file"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[words.partition(" ")[0] for words, _ in MISTAKES])
def test_one_line_says_what_to_type(place: Path, words: str, said: str) -> None:
    before = sorted(os.listdir(place))
    done = run(
        "imagetool", *words.split(), cwd=place, DOCKER_HOST=f"unix://{place}/none", ROOTDISK_CACHE=str(place / "c")
    )
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "[Errno" not in done.stderr
    assert done.returncode in (1, 2)
    assert sorted({*os.listdir(place)} - {"c"}) == before


def test_a_device_is_not_replaced_by_a_file(place: Path) -> None:
    """As root /dev/sdb or /dev/null would be gone."""
    os.mkfifo(place / "pipe")
    for command in ("disk oci:layout:t pipe", "map text -o pipe", "sbom text -o pipe"):
        done = run("imagetool", *command.split(), cwd=place, ROOTDISK_CACHE=str(place / "c"))
        assert "pipe is a device, pipe or socket: write to a file" in done.stderr
        assert stat.S_ISFIFO((place / "pipe").lstat().st_mode)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_half_made(place: Path, number: signal.Signals) -> None:
    (place / "bin").mkdir()
    compiler = place / "bin/musl-gcc"
    compiler.write_text("#!/bin/sh\nexec sleep 100\n")
    compiler.chmod(0o755)
    argv = [sys.executable, "-m", "imagetool", "disk", "--size=64MiB", "oci:layout:t", "new.ext4"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ROOTDISK_CACHE": str(place / "c"),
        "PATH": f"{compiler.parent}:{os.environ['PATH']}",
    }
    before = sorted(os.listdir(place))
    with subprocess.Popen(argv, cwd=place, env=env, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: any(place.glob(".disk-*")))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == ""
    assert sorted({*os.listdir(place)} - {"c"}) == before
