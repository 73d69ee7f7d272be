"""A disk made with all that earlier builds have left is, to the byte, the disk a clean machine makes."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from imagetool.build import disk as build
from imagetool.build.layer_locks import LayerLocks
from imagetool.config.images import Image
from imagetool.layout.additions import Owner
from imagetool.sources.open import open_source
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from tests.support.layouts import write_layout
from tests.support.stacks import random_stack
from tests.support.tars import END, directory, file, hard_link, header, pax

INIT = b"\x7fELF" + bytes(range(256)) * 300
PASSWD = file(b"etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:7:7::/:/bin/sh\n") + file(b"etc/group", b"app:x:7:\n")
PASSWD += file(b"etc/gshadow") + file(b"etc/shadow", b"root:*::::::\n") + hard_link(b"etc/also-shadow", b"etc/shadow")
CAPABLE = pax([(b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4" + bytes(14))])
BIG_ATTRIBUTE = pax([(b"SCHILY.xattr.user.large", b"v" * 900)])
SANDBOX = (
    directory(b"sandbox")
    + CAPABLE
    + header(b"sandbox/program", mode=0o4755)
    + BIG_ATTRIBUTE
    + file(b"sandbox/large", b"x" * 5000)
    + file(b"sandbox/other", b"y" * 5000, uid=5, gid=5)
)
# So many inodes that whole tables hold none of what is added, and one whose extents need a block behind all data.
MANY = b"".join(file(b"zz-many/%04d" % n) for n in range(1200))
SCATTERED = pax(
    [(b"GNU.sparse.size", b"900000"), (b"GNU.sparse.map", b",".join(b"%d,1" % (n * 100_000) for n in range(9)))]
)
MANY += SCATTERED + file(b"a-scattered-file", b"123456789")
CERTIFICATES = [trustme.CA().cert_pem.bytes() for _ in range(2)]


def image(layout: Path, **changes: object) -> Image:
    plain = Image("app", parse_reference(f"oci:{layout}:t"), (), platform=Platform("linux", "amd64"), size=256 << 20)
    return replace(plain, **changes)  # type: ignore[arg-type]


def made(wanted: Image, out: Path, cache: Path) -> tuple[object, dict[str, bytes], int]:
    out.mkdir(parents=True)
    cache.mkdir(parents=True, exist_ok=True)
    with open_source(str(wanted.source), wanted.platform) as source, LayerLocks(cache) as locks:
        disk = build.make_disk(wanted, source, INIT, out, cache, locks)
    packed = disk.packed
    told = (packed.index, packed.parts, disk.slots, disk.layers, disk.uuid)
    return told, {path.name: path.read_bytes() for path in out.iterdir()}, packed.new_chunks


CHANGES: list[dict[str, object]] = [
    {},
    {"env": ("A=1",)},
    {"env": ("A=2",)},
    {"env": ("A=a longer value",)},
    {"env": ("A=" + "many blocks " * 2000,)},
    {"env": ("A=1",), "tls_ca": CERTIFICATES[0]},
    {"env": ("A=1",), "tls_ca": CERTIFICATES[1]},
    {"env": ("A=1",), "tls_ca": CERTIFICATES[1] * 300, "tls_client": CERTIFICATES[0]},
    {"owners": (Owner("/sandbox", "app"),)},
    {"owners": (Owner("/sandbox", "1000", "2000"),)},
    {"owners": (Owner("/sandbox", "0"),)},
    {"owners": (Owner("/sandbox", "new", create=True),)},
    {"owners": (Owner("/made/by/us", "new", create=True), Owner("/sandbox", "app"))},
    {"owners": (Owner("/made/by/us", "70000", create=True),)},
    {"size": 512 << 20},
    {"name": "other"},
    {"labels": {"a": "b"}, "memory": 1 << 30},
]


@pytest.mark.parametrize("seed", range(3))
def test_every_way_from_one_to_another(tmp_path: Path, seed: int) -> None:
    """Each change made on top of all before it, in a random order, beside the same on a clean machine."""
    chance = random.Random(seed)
    stack = [random_stack(seed, 60)[0] + PASSWD + SANDBOX + MANY, *random_stack(seed, 60)[1:]]
    write_layout(tmp_path / "l", "t", [layer + END for layer in stack])
    order = [*CHANGES, *chance.sample(CHANGES, 5)]
    chance.shuffle(order)
    few = 0
    for number, changes in enumerate(order):
        try:
            clean = made(image(tmp_path / "l", **changes), tmp_path / f"clean-{number}", tmp_path / f"cache-{number}")
        except Exception as err:  # a random stack may have hidden /sandbox
            with pytest.raises(type(err)):
                made(image(tmp_path / "l", **changes), tmp_path / "cache/disks/fail", tmp_path / "cache")
            (tmp_path / "cache/disks/fail").rmdir()
            continue
        again = made(image(tmp_path / "l", **changes), tmp_path / f"cache/disks/{number:064x}", tmp_path / "cache")
        assert again[0] == clean[0], changes
        assert again[1] == clean[1], changes
        few += again[2] < clean[2]
    assert few > len(order) // 2


@pytest.mark.parametrize("second", [0, 1, 11])
def test_every_one_as_the_first(tmp_path: Path, second: int) -> None:
    """What the first build leaves behind is of no harm to another one."""
    write_layout(tmp_path / "l", "t", [PASSWD + SANDBOX + MANY + END, file(b"top") + END])
    wanted = image(tmp_path / "l", **CHANGES[second])
    clean = made(wanted, tmp_path / "clean", tmp_path / "clean-cache")
    for number, changes in enumerate(CHANGES):
        cache = tmp_path / f"cache-{number}"
        made(image(tmp_path / "l", **changes), cache / f"disks/{1:064x}", cache)
        assert made(wanted, cache / f"disks/{2:064x}", cache)[:2] == clean[:2], changes


def test_what_a_change_of_the_environment_makes_again(tmp_path: Path) -> None:
    """Not the data, nor the tables of the image's own inodes."""
    layers = [PASSWD + SANDBOX + b"".join(file(b"f/%05d" % n, b"%d" % n) for n in range(5000)) + END, file(b"t") + END]
    write_layout(tmp_path / "l", "t", layers)
    first = made(image(tmp_path / "l", env=("A=1",)), tmp_path / f"cache/disks/{1:064x}", tmp_path / "cache")
    second = made(image(tmp_path / "l", env=("A=22",)), tmp_path / f"cache/disks/{2:064x}", tmp_path / "cache")
    owned = image(tmp_path / "l", env=("A=22",), owners=(Owner("/sandbox", "app"),))
    third = made(owned, tmp_path / f"cache/disks/{3:064x}", tmp_path / "cache")
    assert first[2] > 20
    assert second[2] < first[2] - 4
    assert third[2] <= second[2] + 1  # at most one table of inodes is another one
    secure = image(tmp_path / "l", env=("A=22",), tls_ca=CERTIFICATES[0])
    fourth = made(secure, tmp_path / f"cache/disks/{4:064x}", tmp_path / "cache")
    assert fourth[2] < first[2] - 2


def test_a_damaged_memory_is_made_again(tmp_path: Path) -> None:
    """Also one of an older version."""
    write_layout(tmp_path / "l", "t", [PASSWD + SANDBOX + MANY + END])
    clean = made(image(tmp_path / "l"), tmp_path / "clean", tmp_path / "cache")
    (kept,) = (tmp_path / "cache/indexes").glob("directories-*")
    data = kept.read_bytes()
    flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    for number, damaged in enumerate((data[:-1], data[:20], b"", flipped, b"RDNAMES1" + data[8:])):
        kept.write_bytes(damaged)
        assert made(image(tmp_path / "l"), tmp_path / str(number), tmp_path / "cache")[:2] == clean[:2]
    for number, path in enumerate(sorted((tmp_path / "cache/indexes").iterdir())):
        path.unlink()
        os.mkfifo(path)  # reading it would wait for ever
        assert made(image(tmp_path / "l"), tmp_path / f"fifo{number}", tmp_path / "cache")[:2] == clean[:2]
