"""A guest grows its mounted disk online, fills it, is stopped: the kernel agrees with our geometry, and e2fsck after."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runner import boot
from runner.local import pull
from runner.oci import Platform
from runner.reference import parse_reference
from runner.repository import RegistryOptions
from runner.sandbox import Spec
from runner.store import Store
from runner.tsc import Counter
from tests.support.disks import complaints, needs_e2fsck

GROW = """
import fcntl, os, struct
root = os.open("/", os.O_RDONLY)
fcntl.ioctl(root, 0x40086610, struct.pack("Q", (20 << 30) // 4096))  # EXT4_IOC_RESIZE_FS
with open("/filled", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, 15 << 30)
for number in range(2000):
    with open(f"/sandbox/file-{number}", "wb") as file:
        file.write(b"x" * number)
os.unlink("/sandbox/file-7")
print(os.statvfs("/").f_blocks * 4096 >> 30)
"""


@pytest.mark.vm
@needs_e2fsck
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_a_guest_grows_its_disk(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    store = Store.open()
    local = pull(store, parse_reference(demo), RegistryOptions(), Platform.host())
    assert local.kernel is not None
    assert local.initramfs is not None
    records = [("entrypoint", b"python3"), ("cmd", b"-c"), ("cmd", GROW.encode()), ("user", b"0")]
    spec = Spec(
        "grown", demo, str(local.digest), local.disk.stem, local.config_digest.hex, local.kernel.name,
        local.initramfs.name, 20 << 30, 512, 1, network="none", timeout_s=200, keep=True,
    )  # fmt: skip
    assert boot.launch(boot.create(store, local, spec, records), store, Counter()) == 0
    assert capfd.readouterr().out.strip() in ("19", "20")
    overlay, raw = store.sandboxes / "grown/disk.qcow2", tmp_path / "raw"
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(overlay), str(raw)]
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=os.environ)
    assert complaints(raw) == []
