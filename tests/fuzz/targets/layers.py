"""Layers of images: compression, tars and their extended headers, accounts, certificates, and a layer's kept index."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import os
import zipfile
from functools import cache

import zstandard

from imagetool.ext4.plan import DiskOptions, plan
from imagetool.layout import secrets
from imagetool.layout.additions import Additions, Owner, add
from imagetool.layout.certificates import check_certificates
from imagetool.tree.index import TarIndex
from imagetool.tree.inflate import inflate
from imagetool.tree.merge import merge
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.system.crew import Crew
from tests.fuzz.target import Target, in_file
from tests.support.stacks import random_stack
from tests.support.tars import END, directory, file, hard_link, header, index, pax, symlink


def tar(data: bytes) -> None:
    """A layer over itself, and the plan of its disk."""
    found = index(_summed(data))
    assert TarIndex.unpack(found.pack(), "test") == found
    tree = merge([("sha256:a", found), ("sha256:b", found)])
    plan(tree, DiskOptions(64 << 20, bytes(16)))


def _summed(data: bytes) -> bytes:
    """Right checksums, but for one header in sixteen."""
    found = bytearray(data)
    for block in range(0, len(found) - 511, 512):
        if found[block + 257 : block + 262] == b"ustar" and found[block + 511] != 0xF0:
            total = sum(found[block : block + 148]) + sum(found[block + 156 : block + 512]) + 256
            found[block + 148 : block + 156] = b"%06o\0 " % total
    return bytes(found)


def extended(data: bytes) -> None:
    """An extended header, and a global one before it; the first byte says for what kind of entry."""
    kind, text = data[:1], data[1:]
    if kind not in b"01234567S" or not kind:
        kind = b"0"
    own, _, common = text.partition(b"\0--\0")
    heads = [header(b"g", b"g", size=len(common)) + common + bytes(-len(common) % 512)] if common else []
    heads.append(header(b"x", b"x", size=len(own)) + own + bytes(-len(own) % 512))
    entry = header(b"name", kind, size=512 if kind in b"07S" else 0, target=b"t")
    whole = b"".join([*heads, entry, b"1\n0\n0\n".ljust(512, b"\0") if kind in b"07S" else b"", END])
    index(whole, bare=True)  # in which global headers count


def compressed(data: bytes) -> None:
    fd = in_file(b"")
    try:
        blob = Descriptor("x/y", Digest.of(data), len(data))
        inflate(iter([data[at : at + 100] for at in range(0, len(data), 100)]), fd, Crew(1), expected=blob, diff_id=None, name="test", max_bytes=16 << 20)  # fmt: skip
    finally:
        os.close(fd)


def accounts(data: bytes) -> None:
    """An image's passwd, group and shadow, and owners by them."""
    passwd, group, shadow = (data + b"\n--\n\n--\n").split(b"\n--\n")[:3]
    layer = index(
        directory(b"etc")
        + file(b"etc/passwd", passwd)
        + file(b"etc/group", group)
        + file(b"etc/shadow", shadow)
        + directory(b"d/e")
        + END
    )
    tree = merge([("sha256:a", layer)])
    contents = {b"passwd": passwd, b"group": group, b"shadow": shadow}
    by_offset = {inode.offset: contents[name] for name, inode in tree.root.children[b"etc"].children.items()}  # type: ignore[attr-defined]
    owners = (
        Owner.parse("/d", "app"),
        Owner.parse("/d/e", "app:staff"),
        Owner("/new", "new", "", None, None, create=True),
    )
    add(
        tree,
        lambda inode: by_offset[inode.offset],
        Additions(b"init", Process(("x",)), owners=owners[: 1 + len(data) % 3]),
    )


def certificates(data: bytes) -> None:
    assert not secrets.in_bytes(check_certificates(data, "test"))


def keys(data: bytes) -> None:
    """What a build adds, looked through for private keys."""
    if found := secrets.in_bytes(data):
        raise BadInput(found)


def tars() -> list[bytes]:
    small = directory(b"./") + directory(b"d/") + file(b"d/f", b"text") + symlink(b"l", b"d") + hard_link(b"h", b"d/f")
    special = header(b"c", b"3", major=1, minor=3) + header(b"p", b"6") + file(b"d/.wh.f") + file(b"d/.wh..wh..opq")
    sparse = pax([(b"GNU.sparse.size", b"1000000"), (b"GNU.sparse.map", b"0,5,5000,5")]) + file(b"s", b"0123456789")
    xattrs = pax(
        [
            (b"SCHILY.xattr.user.k", b"v"),
            (b"SCHILY.acl.access", b"u::rw-,u:1:r--,g::r--,m::r--,o::r--"),
            (b"mtime", b"1.5"),
        ]
    )
    one = pax(
        [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"9000"),
            (b"GNU.sparse.name", b"t"),
        ]
    )
    one += file(b"s1", b"1\n4096\n4\n".ljust(512, b"\0") + b"data")
    long = (
        header(b"././@LongLink", b"L", size=200, magic=b"ustar  \0")
        + (b"n" * 150 + b"/x").ljust(512, b"\0")
        + file(b"n")
    )
    stacks = [layer + END for seed in range(4) for layer in random_stack(seed, 4) if len(layer) < 12000]
    return [small + END, small + special + END, sparse + xattrs + file(b"a", b"b") + one + END, long + END, *stacks]  # fmt: skip


def secret_files() -> list[bytes]:
    pem = b"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY/PuoAoGCCqGSM49\n-----END EC PRIVATE KEY-----\n"
    der = b"\x30\x26\x02\x01\x01\x04\x20" + bytes(range(32)) + b"\xa0\x05" + bytes(5)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/key", pem)
    return [
        b"text", pem, der, base64.b64encode(pem), gzip.compress(pem, mtime=0), bz2.compress(pem), lzma.compress(pem), zstandard.compress(pem),
        file(b"d/key", pem) + END, gzip.compress(file(b"k", der) + END, mtime=0), packed.getvalue(), b'{"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAA"}',
        b"PuTTY-User-Key-File-2: ssh-rsa\n", b"AGE-SECRET-KEY-1" + b"Q" * 58, b"openssh-key-v1\0" + bytes(3) + b"\4none", b"\x95\x01\x04\x04" + bytes(20),
    ]  # fmt: skip


def records(*pairs: tuple[bytes, bytes]) -> bytes:
    data = pax(list(pairs))[512:]
    return data.rstrip(b"\0")


def headers() -> list[bytes]:
    return [
        b"0" + records((b"path", b"a/b"), (b"mtime", b"1.5"), (b"uid", b"5"), (b"size", b"512"), (b"SCHILY.xattr.user.k", b"v")),
        b"0" + records((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")),
        b"0" + records((b"GNU.sparse.size", b"4096"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"512")),
        b"0" + records((b"GNU.sparse.realsize", b"4096"), (b"GNU.sparse.map", b"0,256,1024,256")),
        b"2" + records((b"linkpath", b"/x")) + b"\0--\0" + records((b"uid", b"7"), (b"path", b"")),
        b"5" + records((b"SCHILY.acl.default", b"user::rwx,user:1000:r-x:1000,other::---"), (b"LIBARCHIVE.xattr.user.a%20b", b"YQ")),
        b"3" + records((b"SCHILY.devmajor", b"8"), (b"SCHILY.devminor", b"1")),
    ]  # fmt: skip


def streams() -> list[bytes]:
    text = b"text" * 300 + bytes(3000)
    framed = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True).compress(text)
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0abcd"
    return [
        text,
        gzip.compress(text, 9, mtime=0),
        gzip.compress(text, 1, mtime=0) * 2,
        framed,
        framed + skippable + framed,
        skippable + framed,
    ]


def files_of_accounts() -> list[bytes]:
    passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/app:/bin/sh\n"
    return [
        passwd + b"\n--\nroot:x:0:\nstaff:x:50:app,root\n\n--\nroot:*:1:0:99999:7:::\n",
        b"app:x:5:6::/:\n--\nstaff:x:7:",
        b"",
    ]


@cache
def _pem() -> bytes:
    der = b"\x30\x0d\x30\x03\x02\x01\x05\x30\x02\x05\x00\x03\x02\x00\x01"
    return b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"


def pems() -> list[bytes]:
    return [_pem(), b"text\n" + _pem() * 2, b"-----BEGIN EC PRIVATE KEY-----\n", b"", _pem().replace(b"\n", b"\r\n")]


TAR_WORDS = (b"ustar\x0000", b"ustar  \0", b".wh.", b".wh..wh..opq", b"../", b"./", b"\x80" + bytes(11), b"\xff" * 12, b"x", b"g", b"L", b"K", b"S")  # fmt: skip
PAX_WORDS = (
    b"path=", b"linkpath=", b"size=", b"uid=", b"gid=", b"mtime=", b"GNU.sparse.map=", b"GNU.sparse.size=", b"GNU.sparse.realsize=", b"GNU.sparse.name=",
    b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.offset=", b"GNU.sparse.numbytes=", b"SCHILY.xattr.", b"SCHILY.acl.access=",
    b"LIBARCHIVE.xattr.", b"\n", b"20 ", b"\0--\0", b"-1", b"9" * 19,
)  # fmt: skip
TARGETS = {
    "tar": Target(tar, tars, (*TAR_WORDS, *PAX_WORDS), max_bytes=16384),
    "pax": Target(extended, headers, PAX_WORDS),
    "inflate": Target(compressed, streams, (b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"BZh")),
    "accounts": Target(accounts, files_of_accounts, (b"app:x:", b"new:x:1:", b":", b"\n", b"9" * 5000, b"staff", b"\xff", b"\n--\n")),
    "secrets": Target(keys, secret_files, (b"PRIVATE KEY", b"-----BEGIN ", b"\x30\x82", b"\x02\x01\0", b"PK\x03\x04", b"MII", b"kty", b"\xfd7zXZ\0"), max_bytes=8192),
    "certificates": Target(certificates, pems, (b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"PRIVATE KEY", b"\x30\x84", b"MIIB")),
}  # fmt: skip
