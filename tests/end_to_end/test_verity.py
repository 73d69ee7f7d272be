"""An artifact with a dm-verity tree: what changes on the host's disk after the pull is an error in the guest, and no data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from tests.support.commands import Runner, run
from tests.support.newer_debian import NewerDebian
from tests.support.sandboxes import machines
from tests.support.stores import templates
from tests.support.waiting import until

pytestmark = pytest.mark.vm
FILE = "/usr/lib/os-release"


def built(source: str, folder: Path, *options: str) -> str:
    artifact = f"oci:{folder}/disks:{len(options)}"
    done = run("imagetool", "build", "-q", "--size", "512MiB", *options, source, artifact, timeout=600)
    assert done.returncode == 0, done.stderr
    return artifact


def flip(disk: Path, offset: int) -> None:
    """Change a bit of a file of the store, as a bad disk or a careless administrator does."""
    mode = disk.stat().st_mode
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    disk.chmod(mode)


def test_a_flipped_byte_is_an_error_in_the_guest(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the machine goes on from a template, as the second one here does."""
    monkeypatch.setenv("ROOTDISK_TEMPLATES", "1")
    artifact, runner = built(source, tmp_path, "--verity"), Runner(tmp_path / "store")
    done = runner("pull", artifact)
    assert done.returncode == 0, done.stderr
    with open_artifact(parse_reference(artifact), Platform.host()) as published:
        verity = published.config.verity
    assert verity is not None
    (disk,), tree = (runner.store / "disks").glob("*.raw"), runner.store / "blobs" / verity.tree.digest.hex
    if shutil.which("veritysetup"):
        subprocess.run(["veritysetup", "verify", disk, tree, verity.root_hash], check=True, capture_output=True)

    # Nothing is larger than what was checked.
    done = runner.boot(artifact, "true", "--read-only", "--disk-size", "1g")
    assert done.returncode == 125
    assert "dm-verity checks the disk as it was built" in done.stderr

    script = (
        f"grep -c ^NAME= {FILE}; head -c 7 /.rootdisk/slot; echo; echo new >/etc/motd; cat /etc/motd; ls /dev/dm-*;"
    )
    script += "grep -c rootdisk.template=1 /proc/cmdline"
    done = runner.boot(artifact, script, "--read-only", "--verify", "--keep", "--name", "kept")
    assert done.stdout.split() == ["1", "RDSLOT1", "new", "/dev/dm-0", "/dev/dm-1", "0"], done.stderr
    until(lambda: templates(runner.store), 300)

    # The first start has not written to the disk, so the next one finds what the tree says. Then a bit changes.
    (block, *_) = subprocess.run(
        ["debugfs", "-R", f"blocks {FILE}", disk], check=True, capture_output=True, text=True
    ).stdout.split()
    flip(disk, int(block) * 4096 + 20)
    done = runner("start", "--attach", "kept")
    assert f"{FILE}: Input/output error" in done.stderr
    assert done.stdout.split() == ["0", "RDSLOT1", "new", "/dev/dm-0", "/dev/dm-1", "1"], done.stderr
    # Without --read-only the guest may write, and nobody notices.
    done = runner.boot(artifact, f"grep -c ^NAME= {FILE}; ls /dev/dm-* 2>/dev/null")
    assert done.stdout.split() == ["1"], done.stderr
    done = runner.boot(artifact, "true", "--verify")
    assert done.returncode == 125
    assert "is damaged in the store: the chunk at" in done.stderr
    assert "runner verify --repair" in done.stderr
    assert runner("verify").returncode

    # The tree is part of the artifact in the store: checked, repaired, kept while it is used, and removed with it.
    flip(tree, 100_000)
    damaged = runner("verify")
    assert damaged.returncode
    assert tree.name[:12] in damaged.stdout + damaged.stderr
    done = runner("boot", "--read-only", artifact, "true")
    assert done.returncode == 125
    assert "runner verify --repair" in done.stderr
    assert runner("verify", "--repair").returncode == 0
    assert runner("verify").returncode == 0
    assert runner("prune").returncode == 0
    assert tree.exists()
    runner("rm", "kept")
    assert runner("prune").returncode == 0
    assert not tree.exists()


READ = ("sh", "-c", f"grep -c ^NAME= {FILE}")


@pytest.mark.nightly
@pytest.mark.parametrize("verity", [True, False])
def test_a_byte_flips_after_a_snapshot(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verity: bool
) -> None:
    """What goes on from it reads through the tree too. Without a tree nobody notices, before `verify`."""
    monkeypatch.setenv("ROOTDISK_TEMPLATES", "1")
    runner = Runner(tmp_path / "store")
    artifact = built(source, tmp_path, *(["--verity"] if verity else []))
    options = ("-d", "--name", "first", "--read-only", "--restart", "always")
    done = runner.boot(artifact, "sleep 10000", *options)
    assert done.returncode == 0, done.stderr
    try:
        assert runner("snapshot", "first", "saved").returncode == 0
        (disk,) = (runner.store / "disks").glob("*.raw")
        (block, *_) = subprocess.run(
            ["debugfs", "-R", f"blocks {FILE}", disk], check=True, capture_output=True, text=True
        ).stdout.split()
        at = (int(block) * 4096) + disk.read_bytes()[int(block) * 4096 :][:4096].index(b"\nNAME=") + 2
        flip(disk, at)
        assert runner("boot", "-d", "--name", "second", "--from", "saved").returncode == 0
        os.kill(
            machines(runner, "first")[0], signal.SIGKILL
        )  # its keeper starts it again, from the template if there is one
        until(lambda: runner("exec", "first", "true").returncode == 0, 120)
        for name in ("first", "second"):
            done = runner("exec", name, *READ)
            assert ("Input/output error" in done.stderr) is verity, (name, done.stderr)
            assert done.stdout == "0\n", name  # grep says so after an error too
            assert runner("exec", name, "head", "-c", "7", "/.rootdisk/slot").stdout == "RDSLOT1"
        assert runner("verify").returncode
        assert runner("verify", "--repair").returncode == 0
        assert runner("boot", "-d", "--name", "third", "--from", "saved").returncode == 0
        assert runner("exec", "third", *READ).stdout == "1\n"
    finally:
        runner("rm", "--force", "first", "second", "third")


@pytest.mark.nightly  # fetches a kernel's package
def test_the_kernel_of_a_newer_debian(source: str, project: Path, tmp_path: Path) -> None:
    """Its modules have other needs, and it checks and refuses as the machine's own release does."""
    kernel = NewerDebian(tmp_path / "newer", f"linux-image-cloud-{Platform.host().architecture}").root
    image = f'source = "{source}"\nkernel = "{kernel}"\nverity = true\nsize = "512MiB"'
    (project / "images.toml").write_text(f"[image.newer]\n{image}\n")
    done = run("doit", "build", cwd=project, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    artifact, runner = f"oci:{project}/cache/artifacts/newer:1", Runner(tmp_path / "store")
    script = f"uname -r; grep -c ^NAME= {FILE}; head -c 7 /.rootdisk/slot; echo; ls /dev/dm-*"
    done = runner.boot(artifact, script, "--read-only")
    release, *said = done.stdout.split()
    assert said == ["1", "RDSLOT1", "/dev/dm-0", "/dev/dm-1"], done.stderr
    assert (kernel / f"boot/vmlinuz-{release}").exists()
    (disk,) = (runner.store / "disks").glob("*.raw")
    (block, *_) = subprocess.run(
        ["debugfs", "-R", f"blocks {FILE}", disk], check=True, capture_output=True, text=True
    ).stdout.split()
    flip(disk, int(block) * 4096 + 20)
    done = runner.boot(artifact, f"cat {FILE}", "--read-only")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Input/output error" in done.stderr


def test_without_verity_nothing_of_it_is_there(source: str, tmp_path: Path) -> None:
    """The initramfs has no module of it, and of the same inputs the rest of the artifact is the same."""
    with_tree, without = built(source, tmp_path, "--verity"), built(source, tmp_path)
    with (
        open_artifact(parse_reference(with_tree), Platform.host()) as tree,
        open_artifact(parse_reference(without), Platform.host()) as plain,
    ):
        assert plain.roles.verity is None
        assert plain.config.verity is None
        assert "verity" not in plain.config.inputs["recipe"]
        assert tree.roles.initramfs
        assert plain.roles.initramfs
        assert tree.roles.initramfs.size > plain.roles.initramfs.size
        assert tree.roles.disk == plain.roles.disk
        assert tree.config.inputs["recipe"] == {**plain.config.inputs["recipe"], "verity": True}
