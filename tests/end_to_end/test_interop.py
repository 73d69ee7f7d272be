"""Other people's clients with our artifacts: oras in Go and in Python, skopeo, zstd, e2fsck, debugfs and the kernel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.peers import Missing, Peers
from imagetool.ext4.reader import Reader
from imagetool.targets.attach import attach
from imagetool.targets.copy import copy
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
from tests.support.commands import ROOT
from tests.support.disks import PATH, complaints, host_view, mounted, needs_root, reader_view
from tests.support.registry import RunningRegistry, needs_registry

pytestmark = needs_registry


@pytest.fixture(scope="module")
def published(demo: str, registry: RunningRegistry) -> tuple[str, Digest]:
    """The demo's artifact in a registry, and its digest."""
    name = f"{registry.name}/interop/demo:1"
    return name, copy(demo, name, registry.options)


def oras(*arguments: str, cwd: Path | None = None) -> bytes:
    try:
        program = Peers(ROOT / "cache/bench/peers").oras()
    except Missing as err:
        pytest.skip(str(err))
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def check_disk(blobs: Path, disk: Path) -> None:
    """The files are the disk, by zstd alone; and the disk is sound."""
    parts = b"".join(path.read_bytes() for path in sorted(blobs.glob("rootfs.ext4.zst*")))
    subprocess.run(["zstd", "-dq", "--sparse", "-o", disk], input=parts, check=True)
    assert disk.stat().st_size == 8 << 30
    assert disk.stat().st_blocks * 512 < 1 << 30  # zstd makes holes
    assert complaints(disk) == []
    argv = ["debugfs", "-R", "stat /sandbox", str(disk)]
    said = subprocess.run(argv, env={"PATH": PATH}, capture_output=True, text=True, check=True).stdout
    assert re.search(r"User:\s+10001\s+Group:\s+10001\b", said), said
    with Reader.open(disk) as reader:
        assert len(reader_view(reader).records) > 5000


def test_oras_and_zstd_make_the_disk(published: tuple[str, Digest], tmp_path: Path) -> None:
    name, digest = published
    oras("pull", "--plain-http", name, "-o", str(tmp_path / "pulled"))
    names = {path.name for path in (tmp_path / "pulled").iterdir()}
    assert {"rootfs.ext4.zst.000", "rootfs.ext4.chunks", "vmlinuz", "initramfs"} <= names
    check_disk(tmp_path / "pulled", tmp_path / "disk")
    raw = oras("manifest", "fetch", "--plain-http", name)
    assert Digest.of(raw) == digest
    assert json.loads(raw)["artifactType"] == "application/vnd.rootdisk.v1"
    assert str(digest).encode() in oras("discover", "--plain-http", name)
    config = json.loads(oras("manifest", "fetch-config", "--plain-http", name))
    assert config["disk"]["size"] == 8 << 30


def test_oras_py_and_zstd_make_the_disk(published: tuple[str, Digest], tmp_path: Path) -> None:
    from oras.client import OrasClient

    name, _ = published
    OrasClient(insecure=True).pull(target=name, outdir=str(tmp_path / "pulled"))
    check_disk(tmp_path / "pulled", tmp_path / "disk")


def test_oras_discovers_what_is_attached(
    published: tuple[str, Digest], registry: RunningRegistry, tmp_path: Path
) -> None:
    """In a registry without the referrers API, and in a layout."""
    name, _ = published
    (tmp_path / "sbom.json").write_text('{"spdxVersion": "SPDX-2.3"}')
    copy(name, f"oci:{tmp_path}/layout:1", registry.options)
    for target, how in (
        (name, ["--plain-http", name]),
        (f"oci:{tmp_path}/layout:1", ["--oci-layout", f"{tmp_path}/layout:1"]),
    ):
        made = attach(target, tmp_path / "sbom.json", "application/spdx+json", registry.options)
        said = oras("discover", "--format", "json", *how)
        listed = [(item["artifactType"], item["digest"]) for item in json.loads(said)["manifests"]]
        # The README attaches something else to the demo.
        assert [digest for kind, digest in listed if kind == "application/spdx+json"] == [str(made)]
    oras("pull", "--plain-http", f"{name.rpartition(':')[0]}@{made}", "-o", str(tmp_path / "pulled"))
    assert (tmp_path / "pulled/sbom.json").read_bytes() == (tmp_path / "sbom.json").read_bytes()


@needs_root
def test_the_kernel_sees_what_our_reader_sees(published: tuple[str, Digest], demo: str, tmp_path: Path) -> None:
    layout = Path(demo.removeprefix("oci:").rpartition(":")[0])
    manifest = open_repository(parse_reference(demo)).manifest(published[1])
    blobs = [layer for layer in json.loads(manifest)["layers"] if layer["mediaType"].endswith("ext4+zstd")]
    data = b"".join((layout / "blobs" / blob["digest"].replace(":", "/")).read_bytes() for blob in blobs)
    subprocess.run(["zstd", "-dq", "--sparse", "-o", tmp_path / "disk"], input=data, check=True)
    with mounted(tmp_path / "disk") as place, Reader.open(tmp_path / "disk") as reader:
        assert host_view(place).differences(reader_view(reader)) == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_moves_it(published: tuple[str, Digest], registry: RunningRegistry, tmp_path: Path) -> None:
    """Registry to layout to archive and back to another repository: the same digest everywhere."""
    name, digest = published
    ways = [
        (f"docker://{name}", f"oci:{tmp_path}/layout:1"),
        (f"oci:{tmp_path}/layout:1", f"oci-archive:{tmp_path}/archive.tar:1"),
        (f"oci-archive:{tmp_path}/archive.tar:1", f"docker://{registry.name}/interop/again:1"),
    ]
    for source, target in ways:
        argv = ["skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]
        done = subprocess.run([*argv, source, target], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", target], capture_output=True, check=True
        )
        assert Digest.of(raw.stdout) == digest
    assert copy(f"oci-archive:{tmp_path}/archive.tar:1", f"oci:{tmp_path}/ours:1") == digest
