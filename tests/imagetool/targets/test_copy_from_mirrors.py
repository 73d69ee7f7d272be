"""`imagetool copy` and `export` read from mirrors: one that lies costs nothing but its own answers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from imagetool.cli import main
from rootdisk.registry import mirrors
from tests.support.artifacts import noise, publish, sample, with_boot
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.registry import RunningRegistry, needs_registry

MADE = with_boot(sample(noise(8, 128 << 10)), initramfs=gzip.compress(b"rootdisk.console=", mtime=0))


@needs_registry
@pytest.mark.usefixtures("nobody")
def test_a_lying_mirror(
    registry: RunningRegistry, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_silent", {})
    monkeypatch.setenv("ROOTDISK_STORE_TRUSTED", "1")
    publish(MADE, f"{registry.name}/mirrored/copied:1", registry.options)
    proxy.add(Fault("wrong", path="/blobs/", times=ALWAYS))
    with run_faults(registry.name) as origin:
        conf = tmp_path / "registries.conf"
        conf.write_text(
            f'[[registry]]\nlocation = "{origin.name}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "{proxy.name}"\ninsecure = true\n'
        )
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
        name = f"{origin.name}/mirrored/copied:1"
        assert main(["copy", "-q", name, f"oci:{tmp_path}/copy:1"]) == 0
        for blob in MADE.artifact.blobs:
            digest = blob.descriptor.digest
            assert (tmp_path / "copy/blobs/sha256" / digest.hex).read_bytes() == blob.data
        assert main(["export", "-q", name, "--to", f"dir:{tmp_path}/vm"]) == 0
        assert (tmp_path / "vm/disk.raw").read_bytes() == MADE.disk
        origin.add(Fault("wrong", path=MADE.path, times=ALWAYS))
        assert main(["copy", "-q", name, f"oci:{tmp_path}/other:1"]) == 1
        assert main(["export", "-q", name, "--to", f"dir:{tmp_path}/other-vm"]) == 1
        assert not (tmp_path / "other-vm").exists()
