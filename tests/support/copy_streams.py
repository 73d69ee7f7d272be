"""Copy streams that no init of ours would send."""

from __future__ import annotations

from collections.abc import Callable

from runner.channel.copies.stream import HELLO
from tests.support.guests import END2, entry1, entry2

Make = Callable[..., bytes]
OUTSIDE = b"/outside"  # a link's target; the tests put a real path there


def escapes(e: Make, outside: bytes = OUTSIDE) -> dict[str, bytes]:
    """Streams that no init of ours would send."""
    root, below, link = e(b"d", b""), e(b"f", b"a/escaped", data=b"x"), e(b"l", b"a", outside)
    folder = e(b"d", b"a")
    return {
        "a link as the root, a file below it": e(b"l", b"", outside) + e(b"f", b"escaped", data=b"x"),
        "a link as the root, then a directory": e(b"l", b"", outside) + root + e(b"f", b"escaped", data=b"x"),
        "a directory, then a link as the root": root + e(b"l", b"", outside) + e(b"f", b"escaped", data=b"x"),
        "two roots": root + root + e(b"f", b"escaped", data=b"x"),
        "a file below a link": root + link + below,
        "a directory over a link": root + link + folder + below,
        "a link over a directory": root + folder + link + below,
        "a file below a file": root + e(b"f", b"a") + below,
        "a file below nothing": root + below,
        "a file back in a directory that was left": root + folder + e(b"f", b"b") + below,
        "no root": e(b"f", b"escaped", data=b"x"),
        "the parent": root + e(b"f", b"../outside/escaped", data=b"x"),
        "the parent, from within": root + folder + e(b"f", b"a/../../outside/escaped", data=b"x"),
        "the parent as a directory": root + e(b"d", b"..") + e(b"f", b"../escaped", data=b"x"),
        "dots": root + e(b"f", b"./escaped", data=b"x"),
        "an absolute name": root + e(b"f", outside + b"/escaped", data=b"x"),
        "an empty part": root + folder + e(b"f", b"a//escaped", data=b"x"),
        "a / at the end": root + e(b"f", b"escaped/", data=b"x"),
        "a NUL": root + e(b"f", b"escaped\0x", data=b"x"),
        "a NUL in a link": root + e(b"l", b"a", b"b\0c"),
        "an empty link": root + e(b"l", b"a"),
        "a long link": root + e(b"l", b"a", b"b" * 4097),
        "a file with a link's target": root + e(b"f", b"a", b"b"),
        "a hard link": root + e(b"h", b"a", b"../outside/kept"),
        "a long part": root + e(b"f", b"a" * 256),
        "a long name": root + e(b"f", b"a/" * 2048 + b"a"),
        "another kind": root + e(b"x", b"a"),
        "mode bits": root + e(b"f", b"a", mode=0o104755),
        "a size": root + e(b"f", b"a", size=1 << 63),
        "the same twice": root + e(b"f", b"a") + e(b"f", b"a"),
        "half a head": root + b"f\0\1",
        "half a name": root + e(b"f", b"name")[:24],
        "half a file": root + e(b"f", b"a", size=10, data=b"12345"),
    }


def escapes2() -> dict[str, bytes]:
    """Those that version 2 has more."""
    e, root = entry2, entry2(b"d", b"")
    return {
        "no order": root + e(b"f", b"b") + e(b"f", b"a") + END2,
        "no end": root + e(b"f", b"a"),
        "more than the end": root + END2 + b"x",
        "an end that is more": root + entry2(b"e", b"x"),
        "a part outside": root + e(b"f", b"a", size=4, extents=[(2, 4)], data=b"abcd") + END2,
        "a part far outside": root + e(b"f", b"a", size=4, extents=[((1 << 64) - 2, 4)], data=b"abcd") + END2,
        "an empty part of a file": root + e(b"f", b"a", size=4, extents=[(0, 0)]) + END2,
        "parts that overlap": root + e(b"f", b"a", size=4, extents=[(0, 3), (2, 1)], data=b"abcd") + END2,
        "parts in no order": root + e(b"f", b"a", size=4, extents=[(3, 1), (0, 1)], data=b"ab") + END2,
        "too many parts": root + e(b"f", b"a", size=4)[:-20] + b"\xff\xff\xff\xff" * 5,
        "a long tail": root + e(b"f", b"a", size=(16 << 40), extents=[], tail=[b"x"]) + END2,
        "a tail in one piece": root + e(b"f", b"a", tail=[bytes(1 << 17)]) + END2,
    }


def hostile(outside: bytes = OUTSIDE) -> dict[str, bytes]:
    first = {f"1: {what}": stream for what, stream in escapes(entry1, outside).items()}
    second = {f"2: {what}": HELLO + stream + END2 for what, stream in escapes(entry2, outside).items()}
    return first | second | {f"2: {what}": HELLO + stream for what, stream in escapes2().items()}
