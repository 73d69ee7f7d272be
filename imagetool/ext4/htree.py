"""The half-MD4 directory hash; fs/ext4/hash.c, with names as signed bytes (FLAGS_SIGNED_HASH is in the superblock).

Many names are hashed at once: an int holds one 32-bit number of each, in lanes of 64 bits, so that one operation of the
interpreter does the work of hundreds.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence

_MASK = 0xFFFF_FFFF
_WORDS = struct.Struct("<IIII")
_EIGHT = struct.Struct(">8I")
_EOF = 0x7FFF_FFFF << 1  # EXT4_HTREE_EOF_32BIT: no name's hash, the end of the directory
_PART_BYTES = 32
_LANE_BYTES = 8
_LANES = 512  # names at once: what they need stays in the processor's cache
_PADS = tuple(bytes((n,)) * _PART_BYTES for n in range(256))

# The input's words in the order in which each round of RFC 1320's transform takes them, four at a time.
_ROUND_1 = ((0, 1, 2, 3), (4, 5, 6, 7))
_ROUND_2 = ((1, 3, 5, 7), (0, 2, 4, 6))
_ROUND_3 = ((3, 7, 2, 6), (1, 5, 0, 4))
_K2, _K3 = 0x5A827999, 0x6ED9EBA1

State = tuple[int, int, int, int]


def seed_words(seed: bytes) -> State:
    """Return the transform's start from the 16 bytes of s_hash_seed; RFC 1320's start if they are zero."""
    words = _WORDS.unpack(seed)
    return words if any(words) else (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


def half_md4(names: Iterable[bytes], seed: State) -> list[tuple[int, bytes]]:
    """Return each name with its major hash, by hash and name; ext4fs_dirhash().

    A hash is even, and never the end-of-directory mark.
    """
    by_parts: dict[int, list[bytes]] = {}
    for name in names:
        by_parts.setdefault(-(-len(name) // _PART_BYTES), []).append(name)
    hashed: list[tuple[int, bytes]] = []
    for parts, same in by_parts.items():
        for first in range(0, len(same), _LANES):
            some = same[first : first + _LANES]
            hashed += zip(_hashes(some, parts, seed), some, strict=True)
    hashed.sort()
    return hashed


def _hashes(names: Sequence[bytes], parts: int, seed: State) -> list[int]:
    """Return the hash of each name; all have so many parts of 32 bytes."""
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * len(names), "little")
    state: State = tuple(word * ones for word in seed)  # type: ignore[assignment]
    for start in range(0, parts * _PART_BYTES, _PART_BYTES):
        state = _transform(state, _words(names, start), ones)
    lanes = array("Q", state[1].to_bytes(len(names) * _LANE_BYTES, "little"))
    values = [value & ~1 for value in lanes]
    return values if _EOF not in values else [value if value != _EOF else (0x7FFF_FFFF - 1) << 1 for value in values]


def _words(names: Sequence[bytes], start: int) -> list[int]:
    """Return the eight words of the part at byte `start` of each name, a word of all names in one int."""
    words = array("I", b"".join([_part(name[start : start + _PART_BYTES], len(name) - start) for name in names]))
    words.byteswap()
    return [int.from_bytes(array("Q", words[word::8]).tobytes(), "little") for word in range(8)]


def _part(part: bytes, remaining: int) -> bytes:
    """str2hashbuf_signed(): up to 32 bytes as eight big-endian words, padded with the length."""
    pad = _PADS[remaining & 0xFF]
    full = len(part) & ~3
    if len(part) < _PART_BYTES:
        part = part[:full] + pad[: 4 - len(part) + full] + part[full:] + pad
        part = part[:_PART_BYTES]
    return part if part.isascii() else _with_signs(part)


def _with_signs(part: bytes) -> bytes:
    """Return the words as if each byte were a signed number: one past 127 takes one from what is above it."""
    signed = []
    for number, word in enumerate(_EIGHT.unpack(part)):
        for place, byte in enumerate(part[4 * number : 4 * number + 4]):
            if byte > 127:
                word -= 256 << 8 * (3 - place)
        signed.append(word & _MASK)
    return _EIGHT.pack(*signed)


def _transform(state: State, words: Sequence[int], ones: int) -> State:
    """Return the state of all lanes after a part; `ones` has a 1 in each lane, which has room for carries."""
    mask, k2, k3 = _MASK * ones, _K2 * ones, _K3 * ones
    a, b, c, d = state
    for w, x, y, z in _ROUND_1:
        a = (a + (d ^ (b & (c ^ d))) + words[w]) & mask
        a = (a << 3 | a >> 29) & mask
        d = (d + (c ^ (a & (b ^ c))) + words[x]) & mask
        d = (d << 7 | d >> 25) & mask
        c = (c + (b ^ (d & (a ^ b))) + words[y]) & mask
        c = (c << 11 | c >> 21) & mask
        b = (b + (a ^ (c & (d ^ a))) + words[z]) & mask
        b = (b << 19 | b >> 13) & mask
    for w, x, y, z in _ROUND_2:
        a = (a + (b & c) + ((b ^ c) & d) + words[w] + k2) & mask
        a = (a << 3 | a >> 29) & mask
        d = (d + (a & b) + ((a ^ b) & c) + words[x] + k2) & mask
        d = (d << 5 | d >> 27) & mask
        c = (c + (d & a) + ((d ^ a) & b) + words[y] + k2) & mask
        c = (c << 9 | c >> 23) & mask
        b = (b + (c & d) + ((c ^ d) & a) + words[z] + k2) & mask
        b = (b << 13 | b >> 19) & mask
    for w, x, y, z in _ROUND_3:
        a = (a + (b ^ c ^ d) + words[w] + k3) & mask
        a = (a << 3 | a >> 29) & mask
        d = (d + (a ^ b ^ c) + words[x] + k3) & mask
        d = (d << 9 | d >> 23) & mask
        c = (c + (d ^ a ^ b) + words[y] + k3) & mask
        c = (c << 11 | c >> 21) & mask
        b = (b + (c ^ d ^ a) + words[z] + k3) & mask
        b = (b << 15 | b >> 17) & mask
    return (state[0] + a) & mask, (state[1] + b) & mask, (state[2] + c) & mask, (state[3] + d) & mask
