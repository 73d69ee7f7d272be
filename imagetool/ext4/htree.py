"""The half-MD4 directory hash; fs/ext4/hash.c, with names as signed bytes (FLAGS_SIGNED_HASH is in the superblock)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_MASK = 0xFFFF_FFFF
_WORDS = struct.Struct("<IIII")
_EIGHT = struct.Struct(">8I")
_EOF = 0x7FFF_FFFF << 1  # EXT4_HTREE_EOF_32BIT: no name's hash, the end of the directory

# The input's words in the order in which each round of RFC 1320's transform takes them, four at a time.
_ROUND_1 = ((0, 1, 2, 3), (4, 5, 6, 7))
_ROUND_2 = ((1, 3, 5, 7), (0, 2, 4, 6))
_ROUND_3 = ((3, 7, 2, 6), (1, 5, 0, 4))
_K2, _K3 = 0x5A827999, 0x6ED9EBA1


def seed_words(seed: bytes) -> tuple[int, int, int, int]:
    """Return the transform's start from the 16 bytes of s_hash_seed; RFC 1320's start if they are zero."""
    words = _WORDS.unpack(seed)
    return words if any(words) else (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


def half_md4(name: bytes, seed: tuple[int, int, int, int]) -> int:
    """Return the major hash of a directory entry's name: even, and never the end-of-directory mark; ext4fs_dirhash()."""
    state = seed
    for start in range(0, len(name), 32):
        state = _transform(state, _words(name[start : start + 32], len(name) - start))
    value = state[1] & ~1
    return value if value != _EOF else (0x7FFF_FFFF - 1) << 1


def _words(part: bytes, remaining: int) -> tuple[int, ...]:
    """str2hashbuf_signed(): up to 32 bytes as eight words, padded with the length."""
    pad = bytes((remaining & 0xFF,))
    full = len(part) & ~3
    padded = part[:full] + pad * (4 - len(part) + full) + part[full:] if len(part) < 32 else part
    words = _EIGHT.unpack(padded[:32].ljust(32, pad))
    return words if part.isascii() else _with_signs(padded, words)


def _with_signs(padded: bytes, words: tuple[int, ...]) -> tuple[int, ...]:
    """`words` as if each byte of the name were a signed number: one past 127 takes one from what is above it."""
    signed = []
    for number, word in enumerate(words):
        for place, byte in enumerate(padded[4 * number : 4 * number + 4]):
            if byte > 127:
                word -= 256 << 8 * (3 - place)
        signed.append(word & _MASK)
    return tuple(signed)


def _transform(state: tuple[int, int, int, int], words: Sequence[int]) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for w, x, y, z in _ROUND_1:
        a = (a + (d ^ (b & (c ^ d))) + words[w]) & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = (d + (c ^ (a & (b ^ c))) + words[x]) & _MASK
        d = (d << 7 | d >> 25) & _MASK
        c = (c + (b ^ (d & (a ^ b))) + words[y]) & _MASK
        c = (c << 11 | c >> 21) & _MASK
        b = (b + (a ^ (c & (d ^ a))) + words[z]) & _MASK
        b = (b << 19 | b >> 13) & _MASK
    for w, x, y, z in _ROUND_2:
        a = (a + (b & c) + ((b ^ c) & d) + words[w] + _K2) & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = (d + (a & b) + ((a ^ b) & c) + words[x] + _K2) & _MASK
        d = (d << 5 | d >> 27) & _MASK
        c = (c + (d & a) + ((d ^ a) & b) + words[y] + _K2) & _MASK
        c = (c << 9 | c >> 23) & _MASK
        b = (b + (c & d) + ((c ^ d) & a) + words[z] + _K2) & _MASK
        b = (b << 13 | b >> 19) & _MASK
    for w, x, y, z in _ROUND_3:
        a = (a + (b ^ c ^ d) + words[w] + _K3) & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = (d + (a ^ b ^ c) + words[x] + _K3) & _MASK
        d = (d << 9 | d >> 23) & _MASK
        c = (c + (d ^ a ^ b) + words[y] + _K3) & _MASK
        c = (c << 11 | c >> 21) & _MASK
        b = (b + (c ^ d ^ a) + words[z] + _K3) & _MASK
        b = (b << 15 | b >> 17) & _MASK
    return (state[0] + a) & _MASK, (state[1] + b) & _MASK, (state[2] + c) & _MASK, (state[3] + d) & _MASK
