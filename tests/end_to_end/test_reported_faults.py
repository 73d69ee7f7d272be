"""Faults that users have reported, each by the command that showed it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import imagetool.cli
import runner.cli
from imagetool.guest import kernel
from rootdisk.errors import RootdiskError
from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file
from tests.support.terminals import read_terminal


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_layout(tmp_path / "layout", "t", [directory(b"etc") + file(b"etc/f", b"1" * 9000) + END])
    (tmp_path / "images.toml").write_text(
        '[image.app]\nsource = "oci:layout:t"\n[image.web]\nsource = "oci:layout:t"\n'
    )
    return tmp_path


def test_a_full_disk_while_the_kernel_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called a missing network; a missing network is."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "dpkg-deb"
    program.write_text("#!/bin/sh\necho 'dpkg-deb: error: failed to write (No space left on device)' >&2; exit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(RootdiskError) as caught:
        kernel._run(["dpkg-deb", "-x", "kernel.deb"], "kernel.deb")
    assert str(caught.value).endswith("No space left on device): make room where the cache is")
    program.write_text("#!/bin/sh\necho 'Could not resolve host' >&2; exit 100\n")
    with pytest.raises(RootdiskError, match="check the network"):
        kernel._run(["dpkg-deb", "-x", "kernel.deb"], "kernel.deb")


def test_list_shows_the_images(place: Path) -> None:
    done = run("imagetool", "doit", "list", cwd=place)
    assert "one image with build:NAME (app, web)" in done.stdout


def test_no_traceback_for_a_wrong_date(place: Path) -> None:
    (place / "images.toml").write_text('[image.app]\nsource = "oci:layout:t"\nversion = "{date}"\n')
    done = run("imagetool", "doit", "list", cwd=place, SOURCE_DATE_EPOCH="abc")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "SOURCE_DATE_EPOCH" in done.stderr


def test_sizes_that_are_advised_are_taken(place: Path) -> None:
    for size in ("8", '"8"', '"8GB?"'):
        (place / "images.toml").write_text(f'[image.app]\nsource = "oci:layout:t"\nsize = {size}\n')
        said = run("imagetool", "doit", "list", cwd=place).stderr
        assert "8GiB" in said
    (place / "images.toml").write_text('[image.app]\nsource = "oci:layout:t"\nsize = "8GiB"\n')
    assert run("imagetool", "doit", "list", cwd=place).returncode == 0


def test_a_platform_that_is_not_there(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The error names the platform that was wanted and the one that is there, not this machine's."""
    assert imagetool.cli.main(["inspect", "--platform", "linux/arm64", f"oci:{place}/layout:t"]) != 0
    assert "no linux/arm64 variant (only linux/amd64): use --platform linux/amd64" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["--debug", "ls", "oci:nosuch:1"], ["--quiet", "--json", "ls", "oci:nosuch:1"]])
def test_options_before_the_command(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert imagetool.cli.main(words) != 0
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("imagetool: oci:nosuch: No such file or directory")
    assert "did you mean" not in said


def test_boot_alone_misses_an_artifact(capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.cli.main(["boot"]) == 125
    assert capfd.readouterr().err == "runner: missing: ARTIFACT: see runner boot --help\n"


def test_numbers_that_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["boot", "--timeout", "nan", "oci:x:1"], ["prune", "--older-than", "nan"]):
        assert runner.cli.main(words) == 125
        assert "'nan' is not a number" in capfd.readouterr().err


def test_an_output_that_cannot_be_made(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert imagetool.cli.main(["map", f"{place}/images.toml", "-o", "/nosuch-directory/x"]) != 0
    assert capfd.readouterr().err == "imagetool: /nosuch-directory is not a directory: create it first\n"


def test_a_directory_that_is_gone(place: Path) -> None:
    gone = str(place / "gone")
    script = f"import os, sys, imagetool.cli as c; os.mkdir({gone!r}); os.chdir({gone!r}); os.rmdir({gone!r}); sys.exit(c.main())"
    command = [sys.executable, "-c", script]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "inspect", f"oci:{place}/layout:t"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([*command, "inspect", "oci:layout:t"], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("imagetool: oci:layout: No such file or directory")
    assert "Traceback" not in done.stderr


def test_inspect_is_readable_on_a_terminal(place: Path) -> None:
    command = [sys.executable, "-m", "imagetool", "inspect", f"oci:{place}/layout:t"]
    outer, inner = pty.openpty()
    with subprocess.Popen(command, stdout=inner, cwd=ROOT) as process:
        os.close(inner)
        said = read_terminal(outer).decode()
    os.close(outer)
    assert process.returncode == 0
    assert "{" not in said
    assert "linux/amd64" in said
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert json.loads(piped.stdout)
