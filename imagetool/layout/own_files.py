"""Files that images.toml adds, and paths that it removes: one more layer on top of the image's, as a tar made here.

    of_text(…), of_path(…) -> OwnFile            what images.toml asks for, hashed and searched for private keys
    own_layer(files, removed) -> LayerBlob       plain tar: whiteouts, then the files; no clock, no owner, no umask in it

In the tar, files have time 0 and belong to root. Their owners are looked up in the image's accounts later.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagetool.layout import secrets
from imagetool.sources.open import LayerBlob
from imagetool.tree.model import Directory, Tree
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.text import printable

NEAR_MAX_COUNT = 10_000  # names in the image that a wrong one is compared with
FILES_MAX_COUNT = 10_000  # each is listed in the artifact's config
PIECE_BYTES = 1 << 20
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
NEST_MAX = 200  # depth of directories


class OwnFile(NamedTuple):
    """An entry to put on the disk: a regular file, a directory or a symbolic link.

    `path` is absolute. `mode` is the complete st_mode. `owner` is user[:group], or "" for root. `size` (bytes) and `digest`
    are those of a file's `content`; `target` is that of a link.
    """

    path: str
    mode: int
    owner: str = ""
    size: int = 0
    digest: str = ""
    target: str = ""
    content: Path | bytes = b""
    secret: str = ""  # the private key in it, in words
    unread: str = ""  # why not all of it was searched for one

    def to_json(self) -> dict[str, Any]:
        """Return the fields that decide the disk."""
        optional = {"digest": self.digest, "target": self.target, "owner": self.owner}
        return {"path": self.path, "mode": f"{self.mode:06o}", **{key: text for key, text in optional.items() if text}}


def of_text(path: str, text: str, mode: int | None, owner: str) -> OwnFile:
    """Return a file that holds `text` as UTF-8."""
    data = text.encode()
    permissions = 0o644 if mode is None else mode
    digest = str(Digest.of(data))
    unread: list[str] = []
    secret = secrets.in_bytes(data, unread=unread)
    kind = stat.S_IFREG | permissions
    return OwnFile(path, kind, owner, len(data), digest, content=data, secret=secret, unread="".join(unread[:1]))


def leads_out(source: Path, folder: Path) -> str:
    """Return the target of a link on the path to `source` that leads out of `folder`, or out of its own directory."""
    named = Path(os.path.normpath(source))
    base = folder if named.is_relative_to(os.path.normpath(folder)) else named.parent
    real = Path(os.path.realpath(source))
    return "" if real.is_relative_to(os.path.realpath(base)) else str(real)


def of_path(path: str, source: Path, mode: int | None, owner: str, folder: Path, *, follow: bool) -> Iterator[OwnFile]:
    """Yield the file `source` as `path`, or a directory with everything below it.

    Without `mode`, files are 0755 if their owner may execute them, else 0644, as in git; directories are 0755.
    `source` must not be a link out of `folder`, and links below it stay links. With `follow`, a link is replaced by
    its target, wherever that is.

    Raises:
        BadInput: `source` cannot be read, or is not a file, directory or symbolic link.
    """
    try:
        if not follow and (out := leads_out(source, folder)):
            raise BadInput(
                f"{printable(source)} is a link to {printable(out)}, out of its directory",
                "write follow = true to add its target",
            )
        yield from _of_path(path, source, source.stat(), mode, owner, follow, ())
    except OSError as err:
        raise BadInput(f"cannot read {printable(err.filename or source)}: {err.strerror}") from err


def _of_path(
    path: str,
    source: Path,
    info: os.stat_result,
    mode: int | None,
    owner: str,
    follow: bool,
    above: tuple[tuple[int, int], ...],
) -> Iterator[OwnFile]:
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(source)
        _check_text(target, source)
        yield OwnFile(path, stat.S_IFLNK | 0o777, owner, target=target)
    elif stat.S_ISDIR(info.st_mode):
        identity = info.st_dev, info.st_ino
        if identity in above or len(above) > NEST_MAX:
            raise BadInput(f"{printable(source)}: links in circles, or more than {NEST_MAX} directories in each other")
        yield OwnFile(path, stat.S_IFDIR | 0o755, owner)
        for name in sorted(os.listdir(source)):
            inner = source / name
            if name.startswith(".wh."):
                raise BadInput(f"{printable(inner)}: a name that begins with .wh. is a whiteout", "use remove = […]")
            _check_text(name, inner)
            inner_info = os.stat(inner, follow_symlinks=follow)
            yield from _of_path(
                f"{path.rstrip('/')}/{name}", inner, inner_info, mode, owner, follow, (*above, identity)
            )
    elif stat.S_ISREG(info.st_mode):
        permissions = mode if mode is not None else 0o755 if info.st_mode & stat.S_IXUSR else 0o644
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            size = file.tell()
            file.seek(0)
            unread: list[str] = []
            secret = secrets.in_stream(file, unread=unread)
        digest_text = str(Digest("sha256", digest.hexdigest()))
        kind = stat.S_IFREG | permissions
        yield OwnFile(path, kind, owner, size, digest_text, content=source, secret=secret, unread="".join(unread[:1]))
    else:
        raise BadInput(
            f"{printable(source)} is not a file, directory or symbolic link", "make device files in the image"
        )


def _check_text(name: str, source: Path) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{printable(source)}: its name or target is not UTF-8") from None


def own_layer(files: Sequence[OwnFile], removed: Sequence[str]) -> LayerBlob:
    """Return a layer with `files`, and whiteouts for the paths `removed`; RootdiskError if a file has changed."""
    digest, size = hashlib.sha256(), 0
    for piece in _tar(files, removed):
        digest.update(piece)
        size += len(piece)
    diff_id = Digest("sha256", digest.hexdigest())
    return LayerBlob(Descriptor(PLAIN_LAYER, diff_id, size), diff_id, lambda: _tar(files, removed))


def check_removed(tree: Tree, removed: Iterable[str]) -> None:
    """Raise BadInput if the image does not have a path that is to be removed."""
    for path in removed:
        above, _, name = path.encode().rpartition(b"/")
        parent = tree.resolve(above)
        names = parent.children if isinstance(parent, Directory) else {}
        if name not in names:
            candidates = [os.fsdecode(other) for other in itertools.islice(names, NEAR_MAX_COUNT)]
            near = difflib.get_close_matches(name.decode(), candidates, n=1)
            above_text = path.rpartition("/")[0]
            hint = f"did you mean {above_text}/{printable(near[0])}?" if near else "fix the path, or omit it"
            raise BadInput(f"remove: the image has no {path}", hint)


def _tar(files: Sequence[OwnFile], removed: Sequence[str]) -> Iterator[bytes]:
    for path in removed:
        parent, _, name = path.strip("/").rpartition("/")
        yield _header(f"{parent}/.wh.{name}".lstrip("/"), stat.S_IFREG)
    for file in files:
        yield _header(file.path.strip("/"), file.mode, file.size, file.target)
        if file.size:
            yield from _content(file)
            yield bytes(-file.size % 512)
    yield bytes(1024)


def _header(path: str, mode: int, size: int = 0, target: str = "") -> bytes:
    import tarfile

    types = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.size, entry.linkname = types[stat.S_IFMT(mode)], stat.S_IMODE(mode), size, target
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _content(file: OwnFile) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    for piece in [file.content] if isinstance(file.content, bytes) else _pieces(file.content):
        digest.update(piece)
        size += len(piece)
        yield piece
    if size != file.size or f"sha256:{digest.hexdigest()}" != file.digest:
        raise RootdiskError(f"{file.content!s}: changed while it was built", "start the build again")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
