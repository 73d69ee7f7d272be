"""A few small documents that mean very many: indexes that list each other's entries again and again, chains of referrers.

How often a document is parsed is what is counted.
"""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import pytest

from imagetool.sources.open import open_source
from imagetool.targets.copy import copy
from rootdisk.errors import BadInput
from rootdisk.oci.documents import UNLISTED_MAX_COUNT, Descriptor, Digest, Index, Platform, canonical_json
from rootdisk.oci.repository import INDEX_MAX_DEPTH, RegistryOptions
from tests.support.documents import Documents

PLAIN = RegistryOptions(plain_http=True)
CONFIG = {"architecture": "riscv64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {}}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """The digests of all indexes that are parsed."""
    digests: list[Digest] = []
    parse = Index.parse

    def counted(raw: bytes) -> Index:
        digests.append(Digest.of(raw))
        return parse(raw)

    monkeypatch.setattr(Index, "parse", counted)
    return digests


def look(name: str, image: Descriptor) -> None:
    with open_source(f"{name}@{image.digest}", Platform("linux", "amd64"), PLAIN):
        pass


def test_entries_without_a_platform_are_looked_at_once(parsed: list[Digest]) -> None:
    """Before, each was parsed, and its config fetched, as often as it was listed: 10,000 times here."""
    documents = Documents()
    inner = documents.index(*[documents.manifest(CONFIG)] * UNLISTED_MAX_COUNT)
    outer = documents.index(*[inner] * UNLISTED_MAX_COUNT)
    with documents.served() as name, pytest.raises(BadInput, match="no linux/amd64 variant"):
        look(name, outer)
    assert len(parsed) <= 2
    assert len(documents.asked) <= 4


def test_entries_without_a_platform_are_bounded_in_all(parsed: list[Digest]) -> None:
    documents = Documents()
    numbers = itertools.count()
    inner = [
        documents.index(*(documents.manifest({**CONFIG, "number": next(numbers)}) for _ in range(UNLISTED_MAX_COUNT)))
        for _ in range(5)
    ]
    outer = documents.index(*inner)
    with documents.served() as name, pytest.raises(BadInput, match=f"more than {UNLISTED_MAX_COUNT} entries"):
        look(name, outer)
    assert len(documents.asked) <= 2 * UNLISTED_MAX_COUNT + len(inner) + 1


@pytest.mark.parametrize("referrers", [True, False])
def test_a_copy_of_an_index_that_lists_the_same_again(tmp_path: Path, parsed: list[Digest], referrers: bool) -> None:
    documents = Documents()
    item: Descriptor = documents.manifest(CONFIG)
    for _ in range(INDEX_MAX_DEPTH):
        item = documents.index(*[item] * 1000)
    with documents.served() as name:
        copy(f"{name}@{item.digest}", f"oci:{tmp_path}/copy:1", PLAIN, referrers=referrers)
    assert len(parsed) < 50
    assert len(documents.asked) < 50


def test_a_chain_of_referrers_without_end(tmp_path: Path) -> None:
    """A registry that names another referrer for each one, as it is asked."""

    class Chain(Documents):
        def answer(self, path: str) -> bytes | None:
            if "/referrers/" not in path:
                return super().answer(path)
            next_one = self.manifest(CONFIG, annotations={"after": path})
            return canonical_json({"schemaVersion": 2, "manifests": [next_one.to_json()]})

    documents = Chain()
    image = documents.manifest(CONFIG)
    with documents.served() as name, pytest.raises(BadInput, match="more than 1000 referrers"):
        copy(f"{name}@{image.digest}", f"oci:{tmp_path}/copy:1", PLAIN)


def test_referrers_of_referrers_come_first(tmp_path: Path) -> None:
    """What is attached to a signature is there before the signature, and that before the image."""

    class Attached(Documents):
        def answer(self, path: str) -> bytes | None:
            if "/referrers/" not in path:
                return super().answer(path)
            entries = listed.get(path.rpartition("/")[2], [])
            return canonical_json({"schemaVersion": 2, "manifests": [entry.to_json() for entry in entries]})

    listed: dict[str, list[Descriptor]]
    documents = Attached()
    image = documents.manifest(CONFIG)
    signatures = [documents.manifest(CONFIG, subject=image.to_json(), annotations={"n": n}) for n in "ab"]
    inner = documents.manifest(CONFIG, subject=signatures[0].to_json())
    listed = {str(image.digest): signatures, str(signatures[0].digest): [inner]}
    with documents.served() as name:
        copy(f"{name}@{image.digest}", f"oci:{tmp_path}/copy:1", PLAIN)
    read = [path.rpartition("/")[2] for path in documents.asked if "/manifests/sha256:" in path]
    order = [str(item.digest) for item in (image, inner, *signatures)]  # the image is read first, and written last
    assert [digest for digest in dict.fromkeys(read) if digest in order] == order
    entries = [item.digest for item in Index.parse((tmp_path / "copy/index.json").read_bytes()).manifests]
    assert entries == [inner.digest, *(item.digest for item in signatures), image.digest]


def test_manifests_that_are_large_together(tmp_path: Path) -> None:
    """An index of large manifests is copied with the memory of a few."""
    documents = Documents()
    image = documents.index(*(documents.manifest(CONFIG, annotations={"a": f"{n:02}" * (1 << 19)}) for n in range(60)))
    with documents.served() as name:
        tracemalloc.start()
        try:
            copy(f"{name}@{image.digest}", f"oci:{tmp_path}/copy:1", PLAIN, referrers=False)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 40 << 20
