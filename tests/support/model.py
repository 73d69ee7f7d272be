"""Layer semantics as plainly as possible: a dict of paths, slow, to compare imagetool.tree.merge with. No symlinked parents.

A layer is a list of (kind, path, value): file, dir, symlink, link, whiteout, opaque; `value` is the mode, or the target.
"""

from __future__ import annotations

Step = tuple[str, str, str]


def apply(layers: list[list[Step]]) -> dict[str, tuple[str, object]] | None:
    """path -> (kind, identity or value); None where an entry cannot be applied."""
    tree: dict[str, tuple[str, object]] = {}
    for number, layer in enumerate(layers):
        own: set[str] = set()
        for position, (kind, path, value) in enumerate(layer):
            parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
            if kind in ("whiteout", "opaque"):
                if any(tree.get(p, ("dir", 0))[0] != "dir" for p in parents):
                    continue
                for name in list(tree):
                    below = name.startswith(path + "/") or (kind == "whiteout" and name == path)
                    if below and name not in own:
                        del tree[name]
                continue
            if any(tree.get(p, ("dir", 0))[0] != "dir" for p in parents):
                return None
            for parent in parents:
                tree.setdefault(parent, ("dir", "755"))
            if kind == "dir" and tree.get(path, ("", 0))[0] == "dir":
                tree[path] = ("dir", value)
            else:
                for name in list(tree):
                    if name == path or name.startswith(path + "/"):
                        del tree[name]
                if kind == "link":
                    if value not in tree or tree[value][0] == "dir":
                        return None
                    tree[path] = tree[value]
                elif kind == "file":
                    tree[path] = ("file", (number, position))
                else:
                    tree[path] = (kind, value)
            own.update([path, *parents])
    return tree
