"""The magic numbers with which compressed data begins."""

from __future__ import annotations

GZIP = b"\x1f\x8b"  # RFC 1952
ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878
XZ = b"\xfd7zXZ\0"
_LZ4 = b"\x04\x22\x4d\x18"
BZIP2 = b"BZh"
_BZIP2_BLOCK, _BZIP2_END = b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"

HEAD_BYTES = 10  # enough for compression()
ZSTD_WINDOW_MAX_BYTES = 128 << 20  # what zstd -d takes without being asked to; --ultra's windows


def compression(head: bytes) -> str:
    """Return what data that begins with `head` is compressed with: gzip, zstd, bzip2, xz, lzma or lz4; "" if with nothing.

    A tar begins with a name, so the short magics of bzip2 and lzma are not believed alone: `BZh` and `]` are names too.
    """
    if head.startswith(GZIP):
        return "gzip"
    if head.startswith(ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):  # or a skippable frame
        return "zstd"
    if head.startswith(XZ):
        return "xz"
    if head.startswith(_LZ4):
        return "lz4"
    if head.startswith(BZIP2) and head[3:4] in tuple(b"%d" % n for n in range(1, 10)):
        block = head[4:HEAD_BYTES]
        return "bzip2" if _BZIP2_BLOCK.startswith(block) or _BZIP2_END.startswith(block) else ""
    # LZMA alone: properties, then the dictionary's size, 64 KiB or more
    return "lzma" if head.startswith(b"\x5d\0\0") and any(head[3:5]) else ""
