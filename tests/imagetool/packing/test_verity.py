"""The dm-verity tree of a packed disk: what `veritysetup` makes of the raw disk, byte for byte; and what a reader refuses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imagetool.ext4.plan import DiskOptions, plan
from imagetool.packing.pack import pack
from imagetool.packing.verity import MadeTree, make_tree
from rootdisk.artifact.compressed import decompressed
from rootdisk.artifact.verity import SALT, UUID, Verity
from rootdisk.errors import BadInput, DigestMismatch, RootdiskError, Unsupported
from rootdisk.oci.documents import Digest
from rootdisk.oci.fields import Fields
from rootdisk.system.crew import Crew
from tests.support.disks import UUID as DISK_UUID
from tests.support.disks import tree_of
from tests.support.tars import file

MIB = 1 << 20
LAYER = b"".join(file(b"f%03d" % number, bytes([number]) * 9000) for number in range(200)) + file(
    b"zeros", bytes(3 << 20)
)

needs_veritysetup = pytest.mark.skipif(not shutil.which("veritysetup"), reason="needs veritysetup of cryptsetup-bin")


def made(folder: Path, size: int) -> MadeTree:
    """Pack a disk of `size` bytes into `folder`, write it as `folder`/raw too, and make its tree."""
    folder.mkdir()
    tree, sources = tree_of(LAYER)
    disk_plan = plan(tree, DiskOptions(size, DISK_UUID))
    packed = pack(disk_plan, sources, folder, Crew(1))
    with (folder / "raw").open("wb") as raw:
        for chunk in disk_plan.chunks:
            raw.seek(chunk.offset)
            raw.write(chunk.render(sources))
        raw.truncate(size)
    return make_tree(folder, packed.index, len(packed.parts))


@needs_veritysetup
@pytest.mark.parametrize(
    "size", [16 * MIB, 17 * MIB, 64 * MIB, 80 * MIB]
)  # two levels, with a part of a block, and three
def test_the_tree_is_that_of_veritysetup(size: int, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    tree = made(folder, size)
    raw, ours, theirs = folder / "raw", folder / "ours", folder / "theirs"
    ours.write_bytes(b"".join(decompressed([tree.blob], tree.verity.tree, "tree")))
    options = (
        f"--salt={SALT.hex()}",
        f"--uuid={UUID.hex()[:8]}-{UUID.hex()[8:12]}-{UUID.hex()[12:16]}-{UUID.hex()[16:20]}-{UUID.hex()[20:]}",
    )
    subprocess.run(["veritysetup", "format", *options, raw, theirs], check=True, capture_output=True)
    assert ours.read_bytes() == theirs.read_bytes()
    check = ["veritysetup", "verify", str(raw), str(ours), tree.verity.root_hash]
    assert subprocess.run(check, capture_output=True).returncode == 0
    assert made(tmp_path / "again", size) == tree
    with raw.open("r+b") as file:  # a single bit
        file.seek(8 * MIB)
        (byte,) = file.read(1)
        file.seek(8 * MIB)
        file.write(bytes([byte ^ 1]))
    assert subprocess.run(check, capture_output=True).returncode


def test_the_config_says_it_and_is_read_strictly(tmp_path: Path) -> None:
    verity = made(tmp_path / "disk", 16 * MIB).verity
    value = verity.to_json()
    assert Verity.of(Fields(value, "verity", ""), 16 * MIB) == verity
    wrong: list[tuple[dict[str, Any], type[RootdiskError]]] = [
        ({"version": 2}, Unsupported),
        ({"version": True}, Unsupported),
        ({"algorithm": "sha1"}, Unsupported),
        ({"salt": "00"}, Unsupported),
        ({"data_blocks": 4095}, BadInput),
        ({"data_blocks": 1 << 40}, BadInput),
        ({"hash_block_size": 512}, BadInput),
        ({"root_hash": "x" * 64}, BadInput),
        ({"root_hash": verity.root_hash + " init=/bin/sh"}, BadInput),
        ({"tree": {"digest": str(verity.tree.digest), "size": 1 << 50}}, BadInput),
        ({"tree": {"digest": str(verity.tree.digest), "size": verity.tree.size - 1}}, BadInput),
        ({"tree": None}, BadInput),
    ]
    for change, error in wrong:
        with pytest.raises(error):
            Verity.of(Fields(value | change, "verity", ""), 16 * MIB)
    with pytest.raises(BadInput):
        Verity.of(Fields(value, "verity", ""), 32 * MIB)


def test_a_blob_that_holds_another_tree_is_refused(tmp_path: Path) -> None:
    tree = made(tmp_path / "disk", 16 * MIB)
    raw = b"".join(decompressed([tree.blob], tree.verity.tree, "tree"))
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    changed = zstandard.compress(raw[:-1] + b"x")
    for blob in (
        bomb,
        changed,
        zstandard.compress(raw + b"x"),
        zstandard.compress(raw[:-1]),
        tree.blob[:-20],
        b"",
        raw,
    ):
        pieces = [blob[at : at + 70_000] for at in range(0, len(blob), 70_000)]
        with pytest.raises((DigestMismatch, BadInput)):
            assert max(map(len, decompressed(pieces, tree.verity.tree, "tree"))) <= 1 << 20
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27))
    compressor = wide.compressobj()
    with pytest.raises(BadInput, match="memory"):  # a reader would need 128 MiB for it
        list(decompressed([compressor.compress(raw) + compressor.flush()], tree.verity.tree, "tree"))
    assert Digest.of(raw) == tree.verity.tree.digest
