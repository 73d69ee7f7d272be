"""Random layer stacks by seed: everything a layer's tar may hold, in combinations nobody thinks of.

Links to directories move between two writes through them. Kept out is only what runtimes do not agree on: hard links
whose header differs from their file (umoci leaves the file's metadata, containerd and Docker apply the link's), empty
extended attributes (umoci drops them), and whiteouts of what their own layer holds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.support.tars import directory, file, hard_link, header, pax, symlink

NAMES = [b"a", b"b", b"c", b"long-name-" * 20, "ünï".encode(), b"\xff\xfe", b"with space", b"q'uote"]


@dataclass
class _Layer:
    """One layer while it is made; `kinds` is what all layers up to here show, by path."""

    chance: random.Random
    kinds: dict[bytes, str]
    own: set[bytes] = field(default_factory=set)
    headers: dict[bytes, dict[str, int]] = field(default_factory=dict)
    # What b"m" leads to, a link that moves or a directory; b"" for nothing. Then the files there by directory.
    leads_to: bytes = b""
    there: dict[bytes, set[bytes]] = field(default_factory=lambda: {b"m1": set(), b"m2": set(), b"m": set()})
    tar: bytes = b""

    def move(self) -> None:
        """Write through a link, and lead it elsewhere: one path in the tar, several places on the disk."""
        chance = self.chance
        kind = chance.choice("llllfffffffhhdw")
        name = chance.choice([b"f", b"g"])
        if kind == "l":
            self.leads_to = chance.choice([b"m1", b"m2"])
            self.there[b"m"].clear()
            self.tar += symlink(b"m", chance.choice([b"", b"/", b"./", b"m1/../"]) + self.leads_to)
        elif kind == "d":
            self.leads_to = b"m"
            self.tar += directory(b"m")
        elif kind == "w":
            if self.leads_to and b"m" not in self.own:
                self.leads_to = b""
                self.there[b"m"].clear()
                self.tar += file(b".wh.m")
            return
        elif self.leads_to and kind == "f":
            where = chance.choice([b"m", self.leads_to])
            self.there[self.leads_to].add(name)
            self.tar += file(where + b"/" + name, chance.randbytes(chance.choice([0, 7, 5000])))
        elif self.leads_to and kind == "h" and name in self.there[self.leads_to]:
            self.tar += hard_link(chance.choice([b"m1", b"m2"]) + b"/h", b"m/" + name)
        if self.leads_to:
            self.own.add(b"m")

    def put(self) -> None:
        chance = self.chance
        parents = [b"", *(path + b"/" for path, kind in self.kinds.items() if kind == "d" and path.count(b"/") < 5)]
        path = chance.choice(parents) + chance.choice(NAMES)
        kind = chance.choice("ffffffdddllhhcbpsw")
        if kind == "w":
            self.whiteout(path)
            return
        if path in self.own or any(path.startswith(own + b"/") for own in self.own if self.kinds.get(own) != "d"):
            return
        old = self.kinds.get(path)
        if old == "d" and kind != "d":
            if any(own.startswith(path + b"/") for own in self.own):
                return
            self.kinds = {p: k for p, k in self.kinds.items() if not p.startswith(path + b"/")}
        meta = {
            "mode": chance.choice([0, 0o644, 0o755, 0o4711, 0o2750, 0o1777, 0o600]),
            "uid": chance.choice([0, 1, 1000, 70000, 4_294_967_294]),
            "gid": chance.choice([0, 5, 65534, 100_000]),
            "mtime": chance.choice([0, 1, -5, 1_700_000_000, 1 << 33]),
        }
        records = self.xattrs(kind) if chance.random() < 0.25 and kind in "fdcb" else []
        if kind == "h":
            if not self.link(path):
                return
        elif kind == "f":
            size = chance.choice([0, 1, 100, 4096, 5000, 70_000, 1_500_000 if chance.random() < 0.1 else 9])
            self.add(path, records, file(b"?", chance.randbytes(size), **meta))
            self.headers[path] = meta
        elif kind == "s":
            starts = sorted(chance.sample(range(190), 4))
            text = b",".join(b"%d,5" % (start * 5000) for start in starts)
            records = [(b"GNU.sparse.size", b"1000000"), (b"GNU.sparse.numblocks", b"4"), (b"GNU.sparse.map", text)]
            self.add(path, records, file(b"?", chance.randbytes(20), **meta))
        elif kind == "d":
            self.add(path, records, directory(b"?", **meta))
        elif kind == "l":
            target = chance.choice([b"a", b"../b", b"/c", b"t" * chance.choice([59, 60, 61, 90])])
            self.add(path, [], symlink(b"?", target))
        elif kind in "cb":
            major, minor = chance.choice([(1, 3), (0, 5), (259, 70_000)])
            self.add(path, records, header(b"?", b"3" if kind == "c" else b"4", major=major, minor=minor, **meta))  # type: ignore[arg-type]
        elif kind == "p":
            self.add(path, [], header(b"?", b"6", **meta))  # type: ignore[arg-type]
        self.kinds[path] = "f" if kind in "sh" else kind
        self.own.add(path)

    def link(self, path: bytes) -> bool:
        """A hard link to a file of this layer, its header the same."""
        targets = [target for target in self.headers if target in self.own and target != path]
        if not targets:
            return False
        target = self.chance.choice(targets)
        self.add(path, [(b"linkpath", target)], hard_link(b"?", b"?", **self.headers[target]))
        return True

    def add(self, path: bytes, records: list[tuple[bytes, bytes]], entry: bytes) -> None:
        self.tar += pax([(b"path", path), *records]) + entry

    def whiteout(self, path: bytes) -> None:
        if path in self.own or any(own.startswith(path + b"/") for own in self.own) or path not in self.kinds:
            return
        parent, _, name = path.rpartition(b"/")
        prefix = parent + b"/" if parent else b""
        below = [p for p in self.kinds if p.startswith(path + b"/")]
        if self.kinds[path] == "d" and self.chance.random() < 0.4:
            self.add(path + b"/.wh..wh..opq", [], file(b"?"))
        elif len(name) < 250:
            self.add(prefix + b".wh." + name, [], file(b"?"))
            del self.kinds[path]
        for gone in below:
            del self.kinds[gone]
        self.own.add(path)

    def xattrs(self, kind: str) -> list[tuple[bytes, bytes]]:
        chance = self.chance
        found = [(b"SCHILY.xattr.trusted.t", chance.randbytes(chance.choice([1, 5, 300, 2000])))]
        if kind in "fd":
            found.append(
                (b"SCHILY.xattr.user.k" + b"x" * chance.randrange(60), chance.randbytes(chance.randrange(1, 400)))
            )
        if kind == "f":
            found.append((b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4" + bytes(14)))
        return found


def random_stack(seed: int, entries: int = 40) -> list[bytes]:
    """Two to four layers, as tars without their ends."""
    chance = random.Random(seed)
    kinds: dict[bytes, str] = {}
    leads_to, there = b"", {b"m1": set[bytes](), b"m2": set[bytes](), b"m": set[bytes]()}
    layers = []
    for _ in range(chance.randrange(2, 5)):
        layer = _Layer(chance, kinds)
        layer.tar += directory(b"./", 0o755, mtime=chance.randrange(1000))
        layer.leads_to, layer.there = leads_to, there
        layer.tar += directory(b"m1") + directory(b"m2")
        for _ in range(chance.randrange(1, entries)):
            layer.put()
            if chance.random() < 0.3:
                layer.move()
        kinds, leads_to, there = layer.kinds, layer.leads_to, layer.there
        layers.append(layer.tar)
    return layers
