"""Omit or change parts of an image that an ext4 disk cannot hold, with a remark for each reason.

Runtimes accept such images: Linux refuses an attribute of a foreign namespace with EOPNOTSUPP and they go on, nobody reads
ACLs as text, and a kernel clamps times to what its file system can hold. docs/howto/odd-images.md lists what is done.
"""

from __future__ import annotations

from imagetool.ext4 import xattr
from imagetool.layout.accounts import Accounts
from imagetool.layout.additions import ReadFile, account_files
from imagetool.tree.merge import AFTER_NS, FIRST_NS
from imagetool.tree.model import Inode, Tree
from imagetool.tree.pax import ACLS, LEFT_OUT, Lookup, Malformed, posix_acl
from imagetool.tree.remarks import Remark
from rootdisk.errors import BadInput
from rootdisk.ext4.format import TIME_MAX, TIME_MIN
from rootdisk.text import printable

Fault = tuple[str, str, str]  # kind, the part of the file, and the reason with what is done

_NS = 1_000_000_000
_TOO_MUCH = "with the others it does not fit into an inode and a block: left out"


def fit(tree: Tree, read: ReadFile) -> list[Remark]:
    """Change `tree` so that ext4 can hold it. Return what was changed or left out, for files that have a name.

    Names in ACLs are looked up in the accounts of the image. `read` returns a file's bytes.
    """
    lookup = _Lookup(tree, read)
    faults: dict[Inode, tuple[str, list[Fault]]] = {}
    for layer, inodes in reversed(tree.noted.items()):  # the last layer that has a fault for an inode counts
        for inode in inodes:
            inode_faults = _fit(inode, lookup)
            if inode_faults:
                faults[inode] = layer, inode_faults
    tree.noted.clear()
    if not faults:
        return []
    examples: dict[tuple[str, str], tuple[str, int]] = {}  # by kind and reason: the first file, in words, and a count
    for path, inode in tree.walk():
        layer, inode_faults = faults.pop(inode, ("", []))
        for kind, what, why in inode_faults:
            example, times = examples.get((kind, why), (f"{printable(path)} (layer {layer}): {what}", 0))
            examples[kind, why] = example, times + 1
    return [
        Remark(f"{example}: {why}{f'; and {times - 1} more like it' if times > 1 else ''}", kind, times)
        for (kind, why), (example, times) in examples.items()
    ]


def _fit(inode: Inode, lookup: Lookup) -> list[Fault]:
    """Change one inode; return its faults."""
    faults: list[Fault] = []
    if not FIRST_NS <= inode.mtime_ns < AFTER_NS:
        nearest = TIME_MIN if inode.mtime_ns < 0 else TIME_MAX
        why = f"ext4 holds {TIME_MIN} to {TIME_MAX}, so the nearest is taken"
        faults.append(("time", f"the time {inode.mtime_ns // _NS} s", why))
        inode.mtime_ns = nearest * _NS
    if not inode.xattrs:
        return faults
    kept: dict[bytes, bytes] = {}
    for name, value in inode.xattrs.items():
        shown = printable(name.removeprefix(LEFT_OUT), 80)
        if not name.startswith(LEFT_OUT):
            why = xattr.problem(name, value, inode.mode)
            kind = "acl" if name in ACLS.values() else "xattr"
        elif (key := name[1:]) in ACLS:
            kind, shown, why = "acl", shown.removeprefix("SCHILY."), ""
            try:
                value = posix_acl(value, minimal_is_none=key.endswith(b"access"), lookup=lookup)
            except Malformed as err:
                faults.append(("acl", f"ACL {shown}: {err}", "left out"))
                continue
            name = ACLS[key]
            why = xattr.problem(name, value, inode.mode) if value else ""
        else:
            kind, why = "xattr", value.decode()
        if why:
            faults.append((kind, f"{'ACL' if kind == 'acl' else 'extended attribute'} {shown}", f"{why}: left out"))
            continue
        if name == ACLS[b"SCHILY.acl.access"] and value:
            value = xattr.acl_of_mode(value, inode.mode)
        if value or not name.startswith(b"system.posix_acl_"):
            kept[name] = value
    for name in xattr.too_much(kept):
        del kept[name]
        faults.append(("xattr", f"extended attribute {printable(name, 80)}", _TOO_MUCH))
    if faults or kept != inode.xattrs:
        inode.xattrs = kept or None
    return faults


class _Lookup:
    """Look up names in the accounts of the image, which are read at the first call."""

    def __init__(self, tree: Tree, read: ReadFile) -> None:
        self._tree, self._read = tree, read
        self._accounts: Accounts | None = None

    def __call__(self, kind: str, name: str) -> int | None:
        if self._accounts is None:
            try:
                self._accounts = Accounts(account_files(self._tree, self._read))
            except BadInput:  # the files cannot be read
                self._accounts = Accounts({})
        try:
            if kind == "group":
                number = self._accounts.group_id(name)
            else:
                user = self._accounts.user(name)
                number = user[0] if user else None
        except BadInput:  # its number is out of range
            return None
        return 0 if number is None and name == "root" else number
