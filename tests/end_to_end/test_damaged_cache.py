"""A flipped byte in anything that the builder keeps: it is made again, with one line, and what is published can be pulled."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from imagetool.guest import kernel as kernels
from imagetool.guest import prebuilt
from imagetool.guest.boot_files import cached_init, check_init, check_kernel
from imagetool.guest.programs import KernelReceipt
from imagetool.receipts import Damaged, read_receipt, write_receipt
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

KERNEL = 'kernel = "own-kernel"\n'


def described(target: str, text: str = "one") -> str:
    return f'[image.app]\nsource = "oci:source:t"\npublish = "oci:{target}"\nsize = "64MiB"\n{KERNEL}[image.app.env]\nA = "{text}"\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("project")
    (place / "cache").mkdir()
    shutil.copy(ROOT / "dodo.py", place)
    layers = [directory(b"etc") + file(b"etc/f", bytes(range(256)) * 400) + END, file(b"app", b"2" * 5000) + END]
    write_layout(place / "source", "t", layers)
    (place / "own-kernel/boot").mkdir(parents=True)
    (place / "own-kernel/boot/vmlinuz-1").write_bytes(b"a kernel" * 1000)
    (place / "images.toml").write_text(described("first"))
    done = run("doit", "build", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def kept(project: Path) -> list[str]:
    """All files of the cache that are read again, but doit's own."""
    files = [path for path in (project / "cache").rglob("*") if path.is_file() and not path.is_symlink()]
    names = [str(path.relative_to(project / "cache")) for path in files]
    return sorted(name for name in names if "doit." not in name and not name.startswith((".lock", "app/disk/")))


def pulled(project: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    local = pull(Store.open(), parse_reference(f"oci:{project}/{target}:1"), RegistryOptions(), Platform.host())
    local.release()
    assert local.kernel is not None
    assert local.kernel.read_bytes() == b"a kernel" * 1000
    return local.disk.read_bytes()


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)  # in place: other names of the same file are as damaged


@pytest.mark.nightly
def test_every_kept_file(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pulled(project, "first", tmp_path / "0", monkeypatch)
    names = kept(project)
    assert {"disks", "guest", "app", "indexes"} <= {name.partition("/")[0] for name in names}
    for suffix in (".chunks", ".keys", ".parts", ".000", "disk.json", "guest/", "vmlinuz", "initramfs", "kernel.json"):
        assert any(suffix in name for name in names), suffix
    for number, name in enumerate(names, 1):
        flip(project / "cache" / name)
        target = f"target-{number}"
        (project / "images.toml").write_text(described(target))
        done = run("doit", "build", cwd=project)
        assert done.returncode == 0, (name, done.stdout + done.stderr)
        assert "Traceback" not in done.stderr
        if not name.startswith("indexes/"):
            assert done.stderr.count("it is made again") >= 1, (name, done.stdout + done.stderr)
        assert pulled(project, target, tmp_path / str(number), monkeypatch) == right, name
        assert json.loads((project / "cache/app/published.json").read_bytes())["targets"] == [
            f"oci:{project}/{target}:1"
        ]
        shutil.rmtree(project / target)


def damaged_receipts(project: Path, how: str) -> int:
    """Change every receipt of the cache in one way; how many there are."""
    count = 0
    for path in sorted((project / "cache").rglob("*.json")):
        if path.is_symlink() or "app/disk/" in str(path) or path.name == "report.json":
            continue
        value = read_receipt(path)
        if how in ("empty", "cut"):
            path.write_bytes(path.read_bytes()[: 0 if how == "empty" else 20])
        elif how == "partial":
            value.pop(
                {"disk.json": "slots" if "slots" in value else "inputs", "source.json": "layers"}.get(
                    path.name, "digest"
                ),
                None,
            )
            write_receipt(path, value)
        else:
            write_receipt(path, {**value, "format": value["format"] + (1 if how == "newer" else -1)})
        count += 1
    return count


@pytest.mark.parametrize(
    "how", ["partial", "newer", *(pytest.param(how, marks=pytest.mark.nightly) for how in ("empty", "cut", "older"))]
)
def test_every_receipt_at_once(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Of every kind: what it is about is made again; and commands that only read them end with a line at most."""
    (project / "images.toml").write_text(described(f"receipts-{how}"))
    assert run("doit", "build", cwd=project).returncode == 0
    right = pulled(project, f"receipts-{how}", tmp_path / "1", monkeypatch)
    assert damaged_receipts(project, how) == 7
    for command in ("explain", "report"):
        done = run("doit", command, cwd=project)
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    done = run("doit", "build", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert pulled(project, f"receipts-{how}", tmp_path / "2", monkeypatch) == right
    shutil.rmtree(project / f"receipts-{how}")


@pytest.mark.nightly
def test_every_file_missing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that was restored in part."""
    (project / "images.toml").write_text(described("first"))
    assert run("doit", "build", cwd=project).returncode == 0
    for number, name in enumerate(kept(project)):
        if not (project / "cache" / name).exists():
            continue
        (project / "cache" / name).unlink()
        target = f"missing-{number}"
        (project / "images.toml").write_text(described(target))
        done = run("doit", "build", cwd=project)
        assert done.returncode == 0, (name, done.stdout + done.stderr)
        assert (project / target / "index.json").exists()
        shutil.rmtree(project / target)
    assert run("doit", "build", cwd=project).returncode == 0
    pulled(project, target, tmp_path, monkeypatch)


def test_the_next_version_takes_nothing_damaged(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and blobs of an earlier disk are used for another one: of a damaged one too, if nobody looked."""
    run("doit", "build", cwd=project)
    for path in (project / "cache/disks").glob("*/*"):
        if path.name != "disk.json":
            flip(path)
    (project / "images.toml").write_text(described("next", "two"))
    done = run("doit", "build", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pulled(project, "next", tmp_path, monkeypatch)


def test_a_layout_that_has_a_damaged_blob(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "images.toml").write_text(described("again", "three"))
    assert run("doit", "build", cwd=project).returncode == 0
    right = pulled(project, "again", tmp_path / "1", monkeypatch)
    for blob in (project / "again/blobs/sha256").iterdir():
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.unlink()
        blob.write_bytes(data)
    (project / "again/index.json").unlink()
    (project / "again/oci-layout").unlink()
    done = run("doit", "build", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pulled(project, "again", tmp_path / "2", monkeypatch) == right


def test_what_imagetool_build_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    init = cached_init(Platform.host(), tmp_path)
    right = init.read_bytes()
    for name in ("init", "init.json"):
        flip(init.with_name(name))
        assert cached_init(Platform.host(), tmp_path).read_bytes() == right
        check_init(init.parent)
    said = capsys.readouterr().err
    assert prebuilt.are_built() or said.count("it is made again") == 2
    monkeypatch.setattr(prebuilt, "sources", lambda: "0" * 64)
    assert cached_init(Platform.host(), tmp_path) != init  # two checkouts may have one cache
    made = KernelReceipt(Digest.of(b"kernel"), Digest.of(b"initramfs"))
    for name, data in (("vmlinuz", b"kernel"), ("initramfs", b"initramfs")):
        (tmp_path / name).write_bytes(data)
    check_kernel(tmp_path, made)
    for name in ("vmlinuz", "initramfs"):
        flip(tmp_path / name)
        with pytest.raises(Damaged, match=name):
            check_kernel(tmp_path, made)
        flip(tmp_path / name)
    check_kernel(tmp_path, KernelReceipt())


def test_a_kept_kernel_package(tmp_path: Path) -> None:
    place = tmp_path / "linux-image"
    (place / "boot").mkdir(parents=True)
    (place / "lib/modules/1/kernel").mkdir(parents=True)
    (place / "boot/vmlinuz-1").write_bytes(b"kernel")
    (place / "lib/modules/1/kernel/virtio.ko").write_bytes(b"module")
    kernels._check(place)  # of an older rootdisk: recorded now
    files = read_receipt(place / kernels.RECEIPT)["files"]
    assert files.keys() == {"boot/vmlinuz-1", "lib/modules/1/kernel/virtio.ko"}
    kernels._check(place)
    for name in (*files, kernels.RECEIPT):
        before = (place / name).read_bytes()
        flip(place / name)
        with pytest.raises(Damaged):
            kernels._check(place)
        (place / name).write_bytes(before)
    kernels._check(place)


def test_every_byte_of_a_receipt(tmp_path: Path) -> None:
    path = tmp_path / "a/receipt.json"
    write_receipt(path, {"a": 1, "b": ["x", None], "labels": {"é": "ü"}})
    raw = path.read_bytes()
    right = read_receipt(path)
    for at in range(len(raw)):
        for bit in (1, 32, 128):
            changed = bytearray(raw)
            changed[at] ^= bit
            path.write_bytes(changed)
            found = right
            with contextlib.suppress(Damaged):
                found = read_receipt(path)
            assert found == right  # white space, or the case of an escape
