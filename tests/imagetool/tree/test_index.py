"""An entry's xattrs are kept packed if they are few; either way they are what was packed."""

from __future__ import annotations

import pytest

from imagetool.tree.index import FEW, FILE, FewXattrs, IndexWriter, Segments, pack_extra


@pytest.mark.parametrize("count", [1, FEW, FEW + 1])
@pytest.mark.parametrize("segments", [None, ((0, 512, 10), (4096, 1024, 20))])
def test_xattrs_come_back(count: int, segments: Segments | None) -> None:
    xattrs = {b"user.%d" % n: b"value %d" % n for n in range(count)}
    writer = IndexWriter()
    writer.add(FILE, 0o644, 0, 0, 0, 512, 30, b"f", extra=pack_extra(xattrs, segments))
    writer.add(FILE, 0o644, 0, 0, 0, 1024, 30, b"g")
    (entry, plain) = writer.finish("1")
    kept = entry[9]
    assert isinstance(kept, FewXattrs) == (count <= FEW and segments is None)
    assert kept == xattrs
    assert kept is not None
    assert (len(kept), list(kept), list(kept.items())) == (count, list(xattrs), list(xattrs.items()))
    assert kept[b"user.0"] == b"value 0"
    assert b"user.none" not in kept
    assert entry[10] == segments
    assert plain[9:] == (None, None)
