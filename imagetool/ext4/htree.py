"""The half-MD4 directory hash; fs/ext4/hash.c, with names as signed bytes (FLAGS_SIGNED_HASH is in the superblock)."""

from __future__ import annotations

import struct

_MASK = 0xFFFF_FFFF
_WORDS = struct.Struct("<IIII")
_EOF = 0x7FFF_FFFF << 1  # EXT4_HTREE_EOF_32BIT: no name's hash, the end of the directory

# (word of the input, shift) in each round's order, and the round's constant; the half-MD4 transform of RFC 1320.
_ROUNDS = (
    (0, ((0, 3), (1, 7), (2, 11), (3, 19), (4, 3), (5, 7), (6, 11), (7, 19))),
    (0x5A827999, ((1, 3), (3, 5), (5, 9), (7, 13), (0, 3), (2, 5), (4, 9), (6, 13))),
    (0x6ED9EBA1, ((3, 3), (7, 9), (2, 11), (6, 15), (1, 3), (5, 9), (0, 11), (4, 15))),
)


def seed_words(seed: bytes) -> tuple[int, int, int, int]:
    """s_hash_seed's 16 bytes as the transform's start; the standard start where they are zero."""
    words = _WORDS.unpack(seed)
    return words if any(words) else (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


def half_md4(name: bytes, seed: tuple[int, int, int, int]) -> int:
    """The major hash of a directory entry's name: even, and never the end-of-directory mark."""
    state = seed
    for start in range(0, len(name), 32):
        state = _transform(state, _words(name[start : start + 32], len(name) - start))
    value = state[1] & ~1
    return value if value != _EOF else (0x7FFF_FFFF - 1) << 1


def _words(part: bytes, remaining: int) -> list[int]:
    """str2hashbuf_signed(): up to 32 bytes as eight words, padded with the length."""
    pad = remaining | remaining << 8
    pad = (pad | pad << 16) & _MASK
    words = []
    value = pad
    for number, byte in enumerate(part):
        value = ((byte - 256 if byte > 127 else byte) + (value << 8)) & _MASK
        if number % 4 == 3:
            words.append(value)
            value = pad
    if len(words) < 8:
        words.append(value)
    words.extend([pad] * (8 - len(words)))
    return words


def _transform(state: tuple[int, int, int, int], words: list[int]) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for number, (constant, steps) in enumerate(_ROUNDS):
        for word, shift in steps:
            if number == 0:
                mixed = d ^ (b & (c ^ d))
            elif number == 1:
                mixed = (b & c) + ((b ^ c) & d)
            else:
                mixed = b ^ c ^ d
            total = (a + mixed + words[word] + constant) & _MASK
            a, b, c, d = d, ((total << shift) | (total >> (32 - shift))) & _MASK, b, c
    return (state[0] + a) & _MASK, (state[1] + b) & _MASK, (state[2] + c) & _MASK, (state[3] + d) & _MASK
