"""The vmlinux of an artifact in the store: decompressed, checked, optional, and removed with its artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from imagetool.packing.manifest import Blob
from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import VMLINUX_TYPE
from rootdisk.errors import BadInput, DigestMismatch, RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.sandbox.upkeep.prune import prune
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Damaged, Store
from runner.store.verify import verify
from tests.support.artifacts import publish, small, with_boot

ELF = b"\x7fELF" * 1000
CONTENT = Content(Digest.of(ELF), len(ELF))


def pulled(store: Store, place: Path, blob: bytes | None = None, content: Content | None = CONTENT) -> StoredArtifact:
    """Publish an artifact with such a vmlinux, and fetch it."""
    more = [Blob.of_bytes(VMLINUX_TYPE, zstandard.compress(ELF) if blob is None else blob)]
    publish(with_boot(small(), *more, vmlinux=content), f"oci:{place}:1", RegistryOptions())
    return again(store, place)


def again(store: Store, place: Path) -> StoredArtifact:
    return pull(store, parse_reference(f"oci:{place}:1"), RegistryOptions(), Platform.host())


def test_it_is_kept_as_it_is_booted(store: Store, tmp_path: Path) -> None:
    artifact = pulled(store, tmp_path / "layout")
    assert artifact.vmlinux is not None
    assert artifact.vmlinux.read_bytes() == ELF
    is_x86 = Platform.host().architecture == "amd64"
    assert artifact.booted_kernel == (artifact.vmlinux if is_x86 else artifact.kernel)
    arm = artifact._replace(config=artifact.config._replace(platform=Platform("linux", "arm64")))
    assert arm.booted_kernel == artifact.kernel
    artifact.release()


def test_without_it_the_bzimage_boots(store: Store, tmp_path: Path) -> None:
    artifact = pulled(store, tmp_path / "layout")
    artifact.release()
    assert artifact.vmlinux is not None
    artifact.vmlinux.unlink()  # as after an older runner
    local = again(store, tmp_path / "layout")
    assert (local.vmlinux, local.booted_kernel) == (None, local.kernel)
    local.release()


def test_a_damaged_one_boots_nothing(store: Store, tmp_path: Path) -> None:
    artifact = pulled(store, tmp_path / "layout")
    artifact.release()
    assert artifact.vmlinux is not None
    artifact.vmlinux.write_bytes(ELF[:-1] + b"x")
    assert [damage.digest for damage in verify(store).damages] == [CONTENT.digest.hex]
    with pytest.raises(Damaged):
        again(store, tmp_path / "layout")
    options = RegistryOptions()
    local = pull(store, parse_reference(f"oci:{tmp_path}/layout:1"), options, Platform.host(), repair=True)
    assert local.vmlinux is not None
    assert local.vmlinux.read_bytes() == ELF
    local.release()


def test_it_goes_with_its_artifact(store: Store, tmp_path: Path) -> None:
    artifact = pulled(store, tmp_path / "layout")
    assert artifact.vmlinux is not None
    prune(store, 0, None, dry_run=False)
    assert artifact.vmlinux.exists()
    artifact.release()
    prune(store, 0, None, dry_run=False)
    assert not artifact.vmlinux.exists()


@pytest.mark.parametrize(
    ("blob", "content", "error"),
    [
        (zstandard.compress(ELF + b"x"), CONTENT, DigestMismatch),
        (zstandard.compress(ELF[:-1] + b"x"), CONTENT, DigestMismatch),
        (zstandard.compress(bytes(1 << 28)), CONTENT, DigestMismatch),
        (ELF, CONTENT, BadInput),
        (zstandard.compress(ELF), CONTENT._replace(size=1), DigestMismatch),
        (zstandard.compress(ELF), CONTENT._replace(size=1 << 40), BadInput),
        (zstandard.compress(ELF), None, BadInput),
    ],
)
def test_another_one_is_refused(
    blob: bytes, content: Content | None, error: type[RootdiskError], store: Store, tmp_path: Path
) -> None:
    with pytest.raises(error):
        pulled(store, tmp_path / "layout", blob, content)
    assert not store.blob_path(CONTENT.digest).exists()
