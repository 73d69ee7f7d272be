"""What a user may get wrong on the whole way: one clear line, the right status, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.support.commands import ROOT, Runner, run


def one_line(text: str, tool: str) -> str:
    """What `tool` said on standard error, which must be one line of its own."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith(f"{tool}: ")
    assert "Traceback" not in text
    return lines[0]


@pytest.fixture
def artifact(demo: str, tmp_path: Path) -> Path:
    """A copy of the demo's OCI layout, to damage; its blobs are files of its own."""
    place = tmp_path / "layout"
    shutil.copytree(demo.removeprefix("oci:").rpartition(":")[0], place)
    return place


def blob(layout: Path, title: str) -> Path:
    """The blob with that title in the layout's artifact `1`."""
    listed = json.loads((layout / "index.json").read_bytes())["manifests"]
    named = next(m for m in listed if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == "1")
    manifest = json.loads(_file(layout, named["digest"]).read_bytes())
    digests = {
        layer.get("annotations", {}).get("org.opencontainers.image.title"): layer["digest"]
        for layer in manifest["layers"]
    }
    return _file(layout, digests[title])


def _file(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def holds_no_disk(store: Path) -> bool:
    return not list((store / "disks").glob("*.raw")) and not list((store / "sandboxes").iterdir())


def test_a_missing_artifact(empty_runner: Runner, tmp_path: Path) -> None:
    done = empty_runner("boot", f"oci:{tmp_path}/none:1")
    assert done.returncode == 125
    assert str(tmp_path / "none") in one_line(done.stderr, "runner")


def test_a_missing_tag_names_those_there_are(demo: str, empty_runner: Runner) -> None:
    done = empty_runner("boot", demo.removesuffix(":1") + ":9")
    assert done.returncode == 125
    assert "9" in one_line(done.stderr, "runner")


@pytest.mark.parametrize(
    "title", ["rootfs.ext4.zst.000", "rootfs.ext4.zst.002", "rootfs.ext4.chunks", "vmlinuz", "initramfs"]
)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_blob_is_found_before_boot(artifact: Path, empty_runner: Runner, title: str, damage: str) -> None:
    path = blob(artifact, title)
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    if damage != "gone":
        path.write_bytes(data[: len(data) - 100] if damage == "cut" else data)
    for _ in range(2):  # a failure is not remembered as a success
        done = empty_runner("boot", f"oci:{artifact}:1")
        assert done.returncode == 125
        one_line(done.stderr, "runner")
    assert holds_no_disk(empty_runner.store) or title in ("vmlinuz", "initramfs")
    assert not list((empty_runner.store / "sandboxes").iterdir())


def test_a_store_that_cannot_be_made(demo: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = Runner(tmp_path / "file" / "store")("boot", demo)
    assert done.returncode == 125
    assert "ROOTDISK_STORE" in one_line(done.stderr, "runner")


def test_no_qemu(demo: str, empty_runner: Runner, tmp_path: Path) -> None:
    """Said before anything is fetched."""
    done = empty_runner("boot", demo, PATH=str(tmp_path))
    assert done.returncode == 125
    assert "apt-get install qemu-system" in one_line(done.stderr, "runner")
    assert not empty_runner.store.exists() or holds_no_disk(empty_runner.store)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bot"], "did you mean boot?"),
        (["boot"], "ARTIFACT"),
        (["boot", "--memory", "much", "oci:x:1"], "512m"),
        (["boot", "--name", "A/b", "oci:x:1"], "lower-case"),
        (["boot", "--env-file", "/none", "oci:x:1"], "/none"),
        (["boot", "-e", "=x", "oci:x:1"], "NAME=VALUE"),
        (["boot", "what is this"], "what is this"),
        (["logs", "nobody"], "nobody"),
    ],
)
def test_wrong_words(empty_runner: Runner, arguments: list[str], words: str) -> None:
    done = empty_runner(*arguments)
    assert done.returncode == 125
    assert words in one_line(done.stderr, "runner")


def test_a_variable_that_does_not_fit(demo: str, empty_runner: Runner) -> None:
    big = ["-e", "BIG=" + "x" * 100_000]
    done = empty_runner("boot", *big, *big, *big, demo)
    assert done.returncode == 125
    assert "the slot has 262144" in one_line(done.stderr, "runner")
    assert not list((empty_runner.store / "sandboxes").iterdir())


def test_a_source_that_changed_or_is_missing(project: Path) -> None:
    (project / "images.toml").write_text('[image.app]\nsource = "oci:nowhere:latest"\n')
    done = run("doit", "build", cwd=project)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert "nowhere" in done.stdout + done.stderr
    assert not list((project / "cache").glob("disks/*"))


def test_too_small_a_disk(project: Path, source: str) -> None:
    (project / "images.toml").write_text(f'[image.app]\nsource = "{source}"\nsize = "64MiB"\n')
    done = run("doit", "build", cwd=project)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in text
    assert "does not fit into 64 MiB: it needs" in text
    assert not [path for path in project.glob("cache/disks/*") if not path.name.startswith(".")]
    assert not list(project.glob("cache/disks/.partial-*"))


def test_a_private_key_is_refused_in_a_build(project: Path, source: str) -> None:
    key = trustme.CA().issue_cert("client.example").private_key_and_cert_chain_pem.bytes()
    (project / "client.pem").write_bytes(key)
    (project / "images.toml").write_text(f'[image.app]\nsource = "{source}"\n[image.app.tls]\nclient = "client.pem"\n')
    done = run("doit", "build", cwd=project)
    assert done.returncode != 0
    line = one_line(done.stderr, "doit")
    assert "--tls-key" in line
    assert key.decode().splitlines()[1] not in line


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_cache(tmp_path: Path, demo: str, source: str) -> None:
    shutil.copy(ROOT / "dodo.py", tmp_path)
    (tmp_path / "images.toml").write_text(f'[image.app]\nsource = "{source}"\n')
    (tmp_path / "cache").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path / "cache")], check=True)
    try:
        done = run("doit", "build", cwd=tmp_path)
        assert done.returncode != 0
        assert "Read-only file system" in one_line(done.stderr, "doit")
    finally:
        subprocess.run(["umount", str(tmp_path / "cache")], check=True)
