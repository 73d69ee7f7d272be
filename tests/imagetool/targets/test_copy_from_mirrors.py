"""`imagetool copy` and `export` read from mirrors: one that lies costs nothing but its own answers."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import pytest

from imagetool.cli import main
from imagetool.signing.sign import sign
from rootdisk.artifact.signatures import signatures_of
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
from rootdisk.registry import mirrors
from rootdisk.trust.signatures import Signature
from tests.support.artifacts import noise, publish, sample, with_boot
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.signing import make_keys

MADE = with_boot(sample(noise(8, 128 << 10)), initramfs=gzip.compress(b"rootdisk.console=", mtime=0))


@needs_registry
@pytest.mark.usefixtures("nobody")
def test_a_lying_mirror(
    registry: RunningRegistry, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_silent", {})
    monkeypatch.setenv("ROOTDISK_STORE_TRUSTED", "1")
    direct = f"{registry.name}/mirrored/copied:1"
    publish(MADE, direct, registry.options)
    sign(parse_reference(direct), make_keys(tmp_path).signer, registry.options, formats="both")
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
        with contextlib.closing(open_repository(parse_reference(f"oci:{tmp_path}/copy:1"))) as copied:
            found = list(signatures_of(copied, MADE.artifact.descriptor.digest))
        assert [signature.format for signature in found if isinstance(signature, Signature)] == ["bundle", "simple"]
        # A mirror may have the signatures of yesterday: what is attached is the origin's to list.
        attached = f"sha256-{MADE.artifact.descriptor.digest.hex}"
        assert not [path for _, path, _ in proxy.seen if attached in path or "/referrers/" in path]
        assert main(["export", "-q", name, "--to", f"dir:{tmp_path}/vm"]) == 0
        assert (tmp_path / "vm/disk.raw").read_bytes() == MADE.disk
        origin.add(Fault("wrong", path=MADE.path, times=ALWAYS))
        assert main(["copy", "-q", name, f"oci:{tmp_path}/other:1"]) == 1
        assert main(["export", "-q", name, "--to", f"dir:{tmp_path}/other-vm"]) == 1
        assert not (tmp_path / "other-vm").exists()
