"""Layout version 1: add our files to an image's tree, as docs/layout-1.md describes.

    add(tree, read, additions) -> bytes      the tree is changed in place; the bytes are the last layer's data

Everything added is in a last layer of its own, so that a new environment or certificate changes a few small chunks.
"""

from __future__ import annotations

import hashlib
import stat
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from imagetool.layout.accounts import FILES, Accounts
from imagetool.tree.model import Directory, File, Inode, Layer, Slot, Symlink, Tree
from rootdisk import records
from rootdisk.artifact.format import LAYOUT_VERSION, Process
from rootdisk.errors import BadInput
from rootdisk.parsing.ids import RANGE, check_user, is_id, is_number, parse_id
from rootdisk.text import printable

ROOM = b".rootdisk"
HOOK = b"resumed"  # the only file that an image may have there; docs/layout-1.md, "Snapshots"
SLOT_BYTES = 256 << 10
ACCOUNT_MAX_BYTES = 8 << 20

ReadFile = Callable[[File], bytes]


class Owner(NamedTuple):
    """The owner of `path` and everything below it: user and group, by name or number; "" is the group of the user.

    With `create`, a missing user is added with its group, and a missing `path` is made as a directory.
    """

    path: str
    user: str
    group: str = ""
    uid: int | None = None
    gid: int | None = None
    create: bool = False

    @classmethod
    def parse(cls, path: str, text: str) -> Owner:
        """Parse user, user:group, uid or uid:gid; BadInput if `text` is none of them."""
        user, colon, group = text.partition(":")
        if not user or (colon and not group):
            raise BadInput(f"{text!r:.80} is not an owner", "write user, user:group or uid:gid")
        return cls(path, user, group)


@dataclass(frozen=True, slots=True)
class Additions:
    """Files, settings and certificates added to an image. `env` are `NAME=value` texts, of which later ones win; certificates are PEM bytes."""

    init: bytes
    process: Process
    env: tuple[str, ...] = ()
    tls_ca: bytes | None = None
    tls_client: bytes | None = None
    owners: tuple[Owner, ...] = ()
    file_owners: tuple[Owner, ...] = ()  # of these paths only, not of what is below
    slots: Mapping[str, int] = field(default_factory=lambda: {"slot": SLOT_BYTES})


def add(tree: Tree, read: ReadFile, additions: Additions) -> bytes:
    """Put the additions into `tree`; return the data of its new last layer. `read` returns a file's bytes.

    Raises:
        BadInput: the image already has `/.rootdisk` with more than the hook of snapshots, an owner's path or user is missing, an account file cannot be read.
    """
    own_layer = _OwnLayer(tree, len(tree.layers))
    if ROOM in tree.root.children:
        own_layer.take_hook(tree.root.children[ROOM])
    own_layer.files(additions)
    _set_owners(tree, read, additions, own_layer)
    return own_layer.finish()


def process_record(process: Process) -> bytes:
    """Return the content of /.rootdisk/process."""
    texts = [("entrypoint", value) for value in process.entrypoint]
    texts += [("cmd", value) for value in process.cmd]
    texts += [("workdir", process.workdir), ("stopsignal", process.stop_signal)]
    if process.user:
        texts.append(("user", check_user(process.user, "USER")))
    texts += [("volume", path) for path in process.volumes]
    if process.pid1 is not None:
        texts.append(("pid1", str(int(process.pid1))))
    return _packed("process", texts)


def environment(env: tuple[str, ...]) -> bytes:
    """Return the content of /.rootdisk/env: each name once, in the order of its first appearance, with its last value."""
    values: dict[str, str] = {}
    for text in env:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise BadInput(f"environment: {printable(name, 80)!r} is not NAME=value")
        values[name] = value
    return _packed("environment", values.items())


def _packed(what: str, texts: Iterable[tuple[str, str]]) -> bytes:
    try:
        return records.pack((name, value.encode("utf-8", "surrogateescape")) for name, value in texts)
    except BadInput as err:
        raise BadInput(f"{what}: {err.message}", err.hint) from err


class _OwnLayer:
    """The last layer while it is being built: its bytes, and the files in them."""

    def __init__(self, tree: Tree, number: int) -> None:
        self.tree = tree
        self.number = number
        self.data = bytearray()
        self.files_by_path: dict[bytes, File] = {}
        self.changed: list[Inode] = []
        self.top = Directory(layer=number)

    def put(self, parent: Directory, path: bytes, data: bytes, like: Inode) -> None:
        """Add a file at `path`, which is in the directory `parent`, with the metadata of `like`."""
        file = File(
            like.mode,
            like.uid,
            like.gid,
            like.mtime_ns,
            like.xattrs,
            layer=self.number,
            size=len(data),
            offset=len(self.data),
        )
        self.data += data
        self.files_by_path[path] = file
        name = path.rpartition(b"/")[2]
        if name in parent.children:
            self.changed.append(parent.children[name])
        parent.children[name] = file

    def take_hook(self, room: Inode) -> None:
        """Keep the program that an image has for sandboxes from a snapshot. BadInput if `room` has anything else."""
        files = room.children if isinstance(room, Directory) else {}
        if list(files) != [HOOK] or not isinstance(files[HOOK], File):
            raise BadInput("the image already has /.rootdisk", "use the image that this disk was made from")
        self.top.children[HOOK] = files[HOOK]
        self.changed.append(room)

    def files(self, additions: Additions) -> None:
        """Add our files to the tree."""
        room = self.top
        self.tree.root.children[ROOM] = room
        read_only = Inode(stat.S_IFREG | 0o444)
        self.put(room, ROOM + b"/layout", b"%d\n" % LAYOUT_VERSION, read_only)
        self.put(room, ROOM + b"/init", additions.init, Inode(stat.S_IFREG | 0o555))
        self.put(room, ROOM + b"/process", process_record(additions.process), read_only)
        self.put(room, ROOM + b"/env", environment(additions.env), read_only)
        certificates = {b"ca.pem": additions.tls_ca, b"client.pem": additions.tls_client}
        tls = Directory(layer=self.number)
        for name, data in certificates.items():
            if data is not None:
                room.children[b"tls"] = tls
                self.put(tls, ROOM + b"/tls/" + name, data, read_only)
        for slot, size in additions.slots.items():
            room.children[slot.encode()] = Slot(slot, size)

    def finish(self) -> bytes:
        """Close the layer of our files and return its bytes."""
        data = bytes(self.data)
        names = tuple(sorted(self.files_by_path))
        files = [self.files_by_path[path] for path in names]
        name, cuts = "rootdisk:" + hashlib.sha256(data).hexdigest(), array("I", map(zlib.crc32, names))
        self.tree.layers.append(Layer(name, files, names, self.changed, cuts))
        return data


def _set_owners(tree: Tree, read: ReadFile, additions: Additions, own_layer: _OwnLayer) -> None:
    """Set owners, and add the users that they need. A file may belong to a user that is added for another path."""
    owners, of_files = additions.owners, additions.file_owners
    accounts = Accounts({} if all(map(_numbers_only, (*owners, *of_files))) else account_files(tree, read))
    ids = [_ids(tree, accounts, owner) for owner in (*owners, *of_files)]
    for owner, (uid, gid) in zip(of_files, ids[len(owners) :], strict=True):
        above, _, last = owner.path.encode().rpartition(b"/")
        parent = tree.resolve(above)
        inode = parent.children.get(last) if isinstance(parent, Directory) else None
        if inode is None:  # but the layer of files added it
            raise BadInput(
                f"files: {printable(owner.path)} is not found again", "its path goes through links in circles"
            )
        inode.uid, inode.gid = uid, gid  # its mode was chosen with its owner, so it keeps set-id bits
        own_layer.changed.append(inode)
    for owner, (uid, gid) in zip(owners, ids, strict=False):
        node = _named(tree, owner.path)
        if node is None and owner.create:
            node = _make_directory(tree, owner.path, own_layer.number)
        if node is None:
            raise BadInput(f"owners: the image has no {printable(owner.path)}", "fix the path, or add create = true")
        own_layer.changed += _chown(node, uid, gid, own_layer.top)
    changed = accounts.changed()
    if not changed:
        return
    etc_inode = tree.resolve(b"/etc")
    if etc_inode is own_layer.top:
        raise BadInput("owners: /etc of the image leads to /.rootdisk, which is rootdisk's own place", "give numbers")
    etc = etc_inode if isinstance(etc_inode, Directory) else _make_directory(tree, "/etc", own_layer.number)
    for name, data in changed.items():
        like = tree.resolve(b"/etc/" + name.encode()) or Inode(stat.S_IFREG | 0o644)
        own_layer.put(etc, b"etc/" + name.encode(), data, like)  # a real file, even if a link was there


def _named(tree: Tree, path: str) -> Inode | None:
    """The inode at `path`, or None; BadInput if the path goes through a link of the image: the image could redirect it."""
    node: Inode | None = tree.root
    names = [name for name in path.encode("utf-8", "surrogateescape").split(b"/") if name not in (b"", b".")]
    if names[:1] == [ROOM]:
        raise BadInput(f"owners: {printable(path)} is rootdisk's own place", "omit it")
    for count, name in enumerate(names, 1):
        node = node.children.get(name) if isinstance(node, Directory) else None
        if isinstance(node, Symlink):
            link = printable(b"/" + b"/".join(names[:count]))
            raise BadInput(
                f"owners: {link} is a link to {printable(node.target)} in the image",
                "name the place itself: links are not followed",
            )
    return node


def _numbers_only(owner: Owner) -> bool:
    return is_number(owner.user) and (not owner.group or is_number(owner.group))


def _ids(tree: Tree, accounts: Accounts, owner: Owner) -> tuple[int, int]:
    """Return uid and gid of `owner`. The user is added to the accounts if `owner` asks for it."""
    if is_number(owner.user):
        uid = gid = _id(owner.user, owner)
    elif (ids := accounts.user(owner.user)) is not None:
        uid, gid = ids
        if owner.uid not in (None, uid):
            raise BadInput(f"owners: {owner.user} is uid {uid} in the image, not {owner.uid}", "omit uid")
    elif owner.create:
        shell = "/bin/sh" if tree.resolve(b"/bin/sh") is not None else "/sbin/nologin"
        uid, gid = accounts.add_user(owner.user, owner.uid, owner.gid, owner.path, shell)
    else:
        user = printable(owner.user)
        raise BadInput(f"owners: the image has no user {user}", "give a uid, or add create = true to make it")
    if is_number(owner.group):
        gid = _id(owner.group, owner)
    elif owner.group:
        group_gid = accounts.group_id(owner.group)
        if group_gid is None:
            raise BadInput(f"owners: the image has no group {printable(owner.group)}", "give its number")
        gid = group_gid
    elif owner.gid is not None:
        gid = owner.gid
    if not (is_id(uid) and is_id(gid)):
        raise BadInput(f"owners: {uid}:{gid} for {printable(owner.path)} is out of range", RANGE)
    return uid, gid


def _id(text: str, owner: Owner) -> int:
    try:
        return parse_id(text)
    except BadInput as err:
        raise BadInput(f"owners: {printable(owner.path)}: {err.message}", err.hint) from None


def account_files(tree: Tree, read: ReadFile) -> dict[str, bytes]:
    """Return the account files of the image by name. Links to them are followed inside the image, as in the guest.

    Raises:
        BadInput: One is not a file, or is larger than 8 MiB.
    """
    files: dict[str, bytes] = {}
    for name in FILES:
        inode = tree.resolve(b"/etc/" + name.encode())
        if inode is None:
            continue
        if not isinstance(inode, File) or inode.size > ACCOUNT_MAX_BYTES:
            raise BadInput(
                f"owners: /etc/{name} of the image is not a plain file of at most {ACCOUNT_MAX_BYTES >> 20} MiB"
            )
        files[name] = read(inode)
    return files


def _chown(top: Inode, uid: int, gid: int, excluded: Inode) -> list[Inode]:
    """Change owners like chown -R -h. A program loses its set-id bits and capabilities with its owner (chown(2)).

    Links are not followed. `excluded` is our own directory: it stays root's.
    """
    waiting, changed = [top], []
    while waiting:
        inode = waiting.pop()
        if inode is excluded:
            continue
        changed.append(inode)
        if isinstance(inode, File) and (inode.uid, inode.gid) != (uid, gid):
            if inode.mode & 0o111:
                inode.mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if inode.xattrs and b"security.capability" in inode.xattrs:
                inode.xattrs = {k: v for k, v in inode.xattrs.items() if k != b"security.capability"}
        inode.uid, inode.gid = uid, gid
        if isinstance(inode, Directory):
            waiting.extend(inode.children.values())
    return changed


def _make_directory(tree: Tree, path: str, layer: int) -> Directory:
    node = tree.root
    for name in path.encode("utf-8", "surrogateescape").strip(b"/").split(b"/"):
        child = node.children.get(name)
        if child is None:
            child = node.children[name] = Directory(layer=layer)
        if not isinstance(child, Directory):
            raise BadInput(f"owners: {printable(path)} cannot be created: a part of it is not a directory")
        node = child
    return node
