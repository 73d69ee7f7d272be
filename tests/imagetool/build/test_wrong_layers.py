"""Layers that are found wrong at their end, when their blobs are written: nothing has a name that a later build would believe."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from imagetool.build.artifact import publish_artifact
from imagetool.config.images import Image
from imagetool.guest.programs import BootFiles, Guest
from imagetool.packing import parts
from imagetool.sources.open import open_source
from rootdisk.errors import DigestMismatch
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from tests.support.layouts import write_layout
from tests.support.tars import END, file

MIB = 1 << 20
CHANCE = random.Random(7)
TAR = file(b"large", CHANCE.randbytes(8 * MIB)) + file(b"small", b"a word") + END


def test_a_wrong_diff_id_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MIN_BYTES", MIB)
    monkeypatch.setattr(parts, "MEAN_CHUNKS", 2)
    write_layout(tmp_path / "layout", "1", [TAR])
    source, target = (parse_reference(f"oci:{tmp_path}/{name}:1") for name in ("layout", "out"))
    image = Image("app", source, (), platform=Platform("linux", "amd64"), size=64 * MIB)
    init, cache = tmp_path / "init", tmp_path / "cache"
    init.write_bytes(b"init")
    boot = BootFiles(Guest(Digest.of(b"init")), init, None, None)
    with open_source(str(source), image.platform) as right:
        wrong = right._replace(layers=(replace(right.layers[0], diff_id=Digest.of(b"another")),))
        with pytest.raises(DigestMismatch, match=r"its tar is sha256:.*, the image's config says"):
            publish_artifact(image, wrong, boot, cache, (target,), "1")
        assert not [path for path in cache.rglob("*") if path.is_file()]
        assert not (tmp_path / "out").exists()
        publish_artifact(image, right, boot, cache, (target,), "1")
    assert (tmp_path / "out/index.json").exists()
