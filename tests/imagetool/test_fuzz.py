"""Random damage by seed against what reads untrusted bytes: layers' tars, archives of images, manifests and configs,
and ext4 disks.

Every input ends in a value or in one of our errors, within bounded time. `./quickstart nightly` gives each reader
FUZZ_SECONDS (200) of new seeds; whatever they find is kept in SEEDS, which every run of the tests tries again.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from imagetool.ext4.reader import Reader
from imagetool.oci.archives import ArchiveRepository, DockerArchive, TarArchive
from imagetool.oci.image import ImageConfig
from imagetool.tree.index import TarIndex
from imagetool.tree.merge import merge
from runner.artifact import INDEX_ENTRY, INDEX_HEADER, INDEX_MAGIC, ArtifactConfig, ArtifactManifest, ChunkIndex
from runner.errors import BadInput, RootdiskError
from runner.oci import Digest, Index, Manifest, Platform
from runner.reference import parse_reference
from runner.repository import read_blob, resolve_manifest
from tests.support.disks import PATH, needs_e2fsck
from tests.support.layouts import write_layout
from tests.support.stacks import random_stack
from tests.support.tars import END, file, index, pax, symlink

pytestmark = needs_e2fsck
SECONDS = float(os.environ.get("FUZZ_SECONDS", "200"))
# (reader, seed) of inputs that once did harm
SEEDS = [
    ("document", 2291242328021740039),  # a size of 1e999
]

INTERESTING = (0, 1, 0x7F, 0xFF, 0x80, 0xFFFF, 0x7FFF, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, 1 << 63, (1 << 64) - 1)


def mutated(chance: random.Random, data: bytearray, low: int = 0, high: int | None = None) -> None:
    """A few changes in place between `low` and `high`: bits, numbers at their edges, copied and swapped runs."""
    high = len(data) if high is None else high
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(low, high)
        match chance.randrange(5):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                size = chance.choice((1, 2, 4, 8))
                value = chance.choice(INTERESTING) & ((1 << 8 * size) - 1)
                if at + size <= high:
                    data[at : at + size] = value.to_bytes(size, "little")
            case 3:
                size = min(chance.choice((4, 12, 32, 256)), high - at)
                source = chance.randrange(low, high - size + 1)
                data[at : at + size] = data[source : source + size]
            case _:
                size = min(chance.choice((4, 16, 512)), high - at)
                data[at : at + size] = bytes(size)


def fix_checksums(data: bytearray, chance: random.Random) -> None:
    """With right ones, most of the time, damage gets further."""
    for block in range(0, len(data) - 511, 512):
        if data[block + 257 : block + 262] == b"ustar" and chance.random() < 0.95:
            total = sum(data[block : block + 148]) + sum(data[block + 156 : block + 512]) + 256
            data[block + 148 : block + 156] = b"%06o\0 " % total


def tar(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(b"".join(random_stack(seed % 500, 12)) + END)
    mutated(chance, data)
    fix_checksums(data, chance)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    found = index(bytes(data))
    assert TarIndex.unpack(found.pack(), "test") == found
    merge([("a", found), ("b", found)])


def archive(seed: int) -> None:
    """What `docker save` writes and an OCI layout in a tar, damaged, up to the layers' bytes."""
    chance = random.Random(seed)
    kind = chance.choice(("oci", "docker"))
    data = bytearray(_archives[kind])
    low, high = chance.choice(_parts[kind])
    mutated(chance, data, low, high)
    fix_checksums(data, chance)
    fd = os.memfd_create("archive")
    with os.fdopen(fd, "r+b") as file:
        file.write(data)
        file.flush()
        opened = TarArchive(file, "test")
        if kind == "docker":
            image = DockerArchive(opened, "")
            for layer in image.manifest.layers:
                for _ in image.layer(layer):
                    pass
        else:
            repository = ArchiveRepository(opened)
            reference = parse_reference("oci-archive:test")
            _, raw = resolve_manifest(repository, reference, Platform("linux", "amd64"))
            manifest = Manifest.parse(raw)
            ImageConfig.parse(read_blob(repository, manifest.config, 1 << 20))
            for layer in manifest.layers:
                read_blob(repository, layer, 1 << 20)


def archives(folder: Path) -> None:
    """A small image as both kinds, and where their members lie: damage of a layer alone says little."""
    if _archives:
        return
    write_layout(folder / "l", "t", [b"".join(random_stack(1, 3)) + END], compression="plain")
    config = next(p for p in (folder / "l/blobs/sha256").iterdir() if b"diff_ids" in p.read_bytes())
    layer = next(p for p in (folder / "l/blobs/sha256").iterdir() if p.stat().st_size % 512 == 0)
    members = {
        "manifest.json": json.dumps([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["d/layer.tar", "e/layer.tar"]}]).encode(),
        "c.json": config.read_bytes().replace(b'"diff_ids": [', b'"diff_ids": [' + json.dumps(str(Digest.of(layer.read_bytes()))).encode() + b","),
        "d/layer.tar": layer.read_bytes(),
    }  # fmt: skip
    docker = b"".join(file(name.encode(), value) for name, value in members.items())
    docker += symlink(b"e/layer.tar", b"../d/layer.tar") + END
    names = [p for p in sorted((folder / "l").rglob("*")) if p.is_file()]
    oci = b"".join(
        pax([(b"path", os.fsencode(p.relative_to(folder / "l")))]) + file(b"x", p.read_bytes()) for p in names
    )
    for kind, data in (("docker", docker), ("oci", oci + END)):
        _archives[kind] = data
        documents = [at for at in range(0, len(data), 512) if data[at : at + 1] in (b"{", b"[")]
        headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        _parts[kind] = [(at, min(at + 512, len(data))) for at in documents + headers]


_archives: dict[str, bytes] = {}
_parts: dict[str, list[tuple[int, int]]] = {}

DOCUMENTS = [
    {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "a/b",
     "config": {"mediaType": "x/y", "digest": "sha256:" + "0" * 64, "size": 2},
     "layers": [{"mediaType": "x/z", "digest": "sha256:" + "1" * 64, "size": 9, "annotations": {"a": "b"}}],
     "annotations": {"k": "v"}},
    {"schemaVersion": 2, "manifests": [{"mediaType": "x/y", "digest": "sha256:" + "2" * 64, "size": 3,
     "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}]},
    {"os": "linux", "architecture": "amd64", "config": {"Env": ["A=1"], "Cmd": ["x"], "WorkingDir": "/", "Labels": {"a": "b"}},
     "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "3" * 64]}},
    {"format": 1, "layout": 1, "platform": {"os": "linux", "architecture": "amd64"}, "labels": {}, "writer": {"a": "1"},
     "disk": {"size": 1 << 20, "digest": "sha256:" + "4" * 64, "uuid": "u", "layers": [{"diff_id": "d", "first_inode": 11}],
              "slots": [{"name": "slot", "offset": 65536, "length": 65536}]}, "process": {"entrypoint": ["a"], "user": "b"},
     "boot": {"cmdline": "c", "memory_mib": 1, "cpus": 1, "chunks": [1]}, "derivation": {"key": "k", "inputs": {}},
     "source": {"reference": "r", "digest": "d"}},
]  # fmt: skip
VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1 << 70,
    1.5,
    "",
    "x" * 300,
    "sha256:zz",
    [],
    {},
    [[]],
    {"a": {}},
    "\0",
    "\ud800",
)


def document(seed: int) -> None:
    """JSON with values replaced anywhere in it, then bytes; read as every kind of document, and as a chunk index."""
    chance = random.Random(seed)
    value = json.loads(json.dumps(chance.choice(DOCUMENTS)))
    for _ in range(chance.randrange(1, 4)):
        place: object = value
        while isinstance(place, (dict, list)) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
            below = place[key]  # type: ignore[index]
            if not isinstance(below, (dict, list)) or not below or chance.random() < 0.3:
                if chance.random() < 0.3 and isinstance(place, dict):
                    del place[key]
                else:
                    place[key] = json.loads(json.dumps(chance.choice(VALUES)))  # type: ignore[index]
                break
            place = below
    data = bytearray(json.dumps(value).encode())
    if chance.random() < 0.3:
        mutated(chance, data)
    raw = bytes(data)
    for parse in (Manifest.parse, Index.parse, ImageConfig.parse, ArtifactConfig.parse):
        try:
            parse(raw)
        except RootdiskError:
            continue
    try:
        ArtifactManifest.of(Manifest.parse(raw))
    except RootdiskError:
        pass
    entries = bytearray(INDEX_HEADER.pack(INDEX_MAGIC, 8192, 2, 0))
    entries += INDEX_ENTRY.pack(0, 0, 4096, 14, 1, 0, bytes(32))
    entries += INDEX_ENTRY.pack(4096, 14, 4096, 100, 0, 0, b"h" * 32)
    mutated(chance, entries)
    ChunkIndex.parse(bytes(entries))


class Memory:
    """A disk in memory that counts what is read, to find readers that go on without end."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.size = len(data)
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        assert self.read_bytes < 2000 * self.size, "it reads the disk again and again"
        data = bytes(self.data[offset : offset + length])
        if len(data) != length:
            raise BadInput("past the end")
        return data

    def close(self) -> None: ...


_images: list[bytes] = []


def images(folder: Path) -> list[bytes]:
    """Small disks: mke2fs's without checksums, so that damage gets past them, in two block sizes."""
    if not _images:
        tree = folder / "tree"
        (tree / "d/e").mkdir(parents=True)
        for n in range(150):
            (tree / f"d/file-{n:03}").write_bytes(b"x" * n)
        (tree / "long").symlink_to("t" * 90)
        (tree / "short").symlink_to("d")
        os.link(tree / "d/file-001", tree / "hard")
        with (tree / "sparse").open("wb") as file:
            for n in range(8):
                file.seek(n * 20_000)
                file.write(b"data")
        for n in (10, 500):
            os.setxattr(tree / f"d/file-{n // 10:03}", "user.k", b"v" * n)
        for block in (1024, 4096):
            path = folder / f"disk-{block}"
            argv = ["mke2fs", "-q", "-t", "ext4", "-b", str(block), "-O", "^metadata_csum,^has_journal,^resize_inode"]
            argv += ["-N", "256", "-d", str(tree), str(path), "1M"]
            subprocess.run(argv, check=True, env={"PATH": PATH}, stdin=subprocess.DEVNULL)
            _images.append(path.read_bytes())
    return _images


def disk(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(chance.choice(_images))
    # Most of a disk is empty: damage goes where something is.
    places = [at for at in range(1024, len(data), 1024) if any(data[at : at + 1024])]
    for _ in range(chance.choice((1, 2, 4))):
        at = chance.choice(places)
        mutated(chance, data, at, at + 1024)
    with Reader(Memory(data)) as reader:
        for count, (_, node) in enumerate(reader.walk()):
            assert count < 100_000
            try:
                reader.xattrs(node)
                if stat.S_ISLNK(node.mode):
                    reader.target(node)
                elif stat.S_ISREG(node.mode):
                    for _ in reader.data(node):
                        pass
            except RootdiskError:
                continue


READERS: dict[str, Callable[[int], None]] = {"tar": tar, "archive": archive, "document": document, "disk": disk}


def attempt(reader: str, seed: int) -> None:
    started = time.monotonic()
    try:
        READERS[reader](seed)
    except RootdiskError as err:
        assert "\n" not in str(err), (reader, seed)  # noqa: PT017 - an error is allowed, not required
    except Exception as err:
        raise AssertionError(f"reader {reader}, seed {seed}") from err
    assert time.monotonic() - started < 20, (reader, seed)


@pytest.mark.parametrize("reader", READERS)
def test_some(reader: str, tmp_path: Path) -> None:
    images(tmp_path)
    archives(tmp_path)
    for seed in range(400 if reader != "disk" else 150):
        attempt(reader, seed)
    for name, seed in SEEDS:
        if name == reader:
            attempt(name, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("reader", READERS)
def test_many(reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path)
    archives(tmp_path)
    first = int(os.environ.get("FUZZ_SEED", zlib.crc32(os.urandom(4)))) << 32
    end = time.monotonic() + SECONDS
    count = 0
    while time.monotonic() < end:
        attempt(reader, first + count)
        count += 1
    with capsys.disabled():
        print(f"\n{reader}: {count} inputs from seed {first}, nothing found")


def test_damage_is_done(tmp_path: Path) -> None:
    """The inputs are neither all refused nor all read."""
    images(tmp_path)
    archives(tmp_path)
    refused = dict.fromkeys(READERS, 0)
    for reader, read in READERS.items():
        for seed in range(60):
            try:
                read(seed)
            except RootdiskError:
                refused[reader] += 1
    assert all(0 < count < 60 for count in refused.values()), refused
