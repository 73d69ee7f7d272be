"""Write an OCI image layout directory (image-spec image-layout.md). Processes may be killed at any time.

A blob is verified and synced before it gets its final name, and its name before a manifest is listed. index.json is replaced
in the same way, last, under a lock of the directory. skopeo, umoci and oras can read the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imagetool.packing import known_files
from imagetool.sources.content import PIECE_BYTES, Content, pieces
from imagetool.targets.target import manifest_digest, tag_taken
from rootdisk.durable import named_place
from rootdisk.errors import BadInput, DigestMismatch
from rootdisk.oci.documents import (
    INDEX_TYPES,
    MANIFEST_MAX_BYTES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    canonical_json,
    parse_json,
)
from rootdisk.oci.layout import REF_NAME, LayoutRepository
from rootdisk.oci.repository import describe_manifest, verified
from rootdisk.text import printable

PUBLISHED = "io.rootdisk.published"  # of an entry of index.json: when its tag was written, seconds since 1970
_PARTIAL = ".partial-"
_PARTIAL_MAX_AGE_S = 86400  # older ones were left by killed processes


class LayoutTarget:
    """A layout directory, created if it is missing. See the protocol `Target`."""

    def __init__(self, path: Path, *, record_time: bool = False) -> None:
        """Open or make the layout at `path`; with `record_time` it is recorded when each tag is written."""
        self._path, self._record_time, self._use = path, record_time, -1
        self._unsynced: set[str] = set()  # algorithms of blobs whose names a power cut may take
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise BadInput(f"oci:{path}: {err.strerror}", "choose a directory that you can write to") from err
        try:
            with self._locked():
                self._prepare()
            # A sweep does not wait for us; it removes nothing as long as we write.
            _make_directory(self._directory, "blobs")
            self._use = os.open("blobs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
            fcntl.flock(self._use, fcntl.LOCK_SH)
        except BaseException:
            self.close()
            raise

    def interrupt(self) -> None:
        """Do nothing: writes to files end soon."""

    def close(self) -> None:
        """Close the directory."""
        for fd in (self._use, self._directory):
            if fd >= 0:
                os.close(fd)
        self._use = self._directory = -1

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the layout has an intact blob. A damaged one is removed."""
        with self._blobs(descriptor.digest.algorithm) as folder:
            try:
                info = os.stat(descriptor.digest.hex, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return False
            # It was verified when it got its name, but may have changed since then, also through a hard link.
            if info.st_size == descriptor.size and _is_intact(folder, descriptor):
                return True
            with contextlib.suppress(FileNotFoundError):
                os.unlink(descriptor.digest.hex, dir_fd=folder)
            return False

    def push_blob(self, descriptor: Descriptor, content: Content, *, mount: str = "") -> None:
        """Write a blob, unless it exists. A file is linked if possible.

        Raises:
            DigestMismatch: `content` does not match `descriptor`.
        """
        self._unsynced.add(descriptor.digest.algorithm)  # also if another process has just written it
        if self.has_blob(descriptor):
            return
        with self._blobs(descriptor.digest.algorithm) as folder:
            if not isinstance(content, Path) or not _link(folder, descriptor, content):
                _write(folder, descriptor.digest.hex, verified(pieces(content), descriptor))

    def push_manifest(self, raw: bytes, media_type: str, tags: Sequence[str], *, fixed: Collection[str] = ()) -> Digest:
        """Write a manifest or index and point `tags` to it; those in `fixed` do not move.

        Raises:
            BadInput: It is too large, index.json is full, or a tag in `fixed` names something else.
        """
        digest = manifest_digest(raw)
        described = describe_manifest(raw, digest, f"oci:{self._path}", media_type)
        descriptor = Descriptor(media_type, digest, len(raw), artifact_type=described.artifact_type)
        self.push_blob(descriptor, raw)
        self._sync_names()
        if tags:
            with self._locked():
                taken = self.tags()
                for tag in fixed:
                    if taken.get(tag, digest) != digest:
                        raise tag_taken(f"oci:{self._path}:{tag}", taken[tag], digest)
                self._list(descriptor, tags)
        return digest

    def _sync_names(self) -> None:
        """Sync the names of all blobs so far: one sync for all of them takes as long as one for each."""
        while self._unsynced:
            with self._blobs(self._unsynced.pop()) as folder:
                os.fsync(folder)

    def tags(self) -> dict[str, Digest]:
        """Return every tag and the manifest that it names."""
        with contextlib.closing(LayoutRepository(self._path)) as listed:
            return {tag: item.digest for item in listed.index().manifests if (tag := item.annotations.get(REF_NAME))}

    def published(self, tags: Collection[str]) -> dict[str, float]:
        """Return when each of `tags` was written, seconds since 1970, as far as that is recorded."""
        found = {}
        with contextlib.closing(LayoutRepository(self._path)) as listed:
            for item in listed.index().manifests:
                text = item.annotations.get(PUBLISHED, "")
                if (tag := item.annotations.get(REF_NAME, "")) in tags and re.fullmatch(
                    r"[0-9]{1,12}(\.[0-9]{1,9})?", text
                ):
                    found[tag] = float(text)
        return found

    def sweep(self) -> int:
        """Remove blobs that nothing needs; return their bytes. None are removed while another process writes here."""
        with self._locked():
            try:
                fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            try:
                return self._sweep(self._needed())
            finally:
                fcntl.flock(self._use, fcntl.LOCK_SH)

    def _needed(self) -> set[Digest]:
        """Every blob that index.json leads to; BadInput if something cannot be followed, so that nothing is removed."""
        needed: set[Digest] = set()
        with contextlib.closing(LayoutRepository(self._path)) as layout:
            waiting = list(layout.index().manifests)
            while waiting:
                item = waiting.pop()
                if item.digest in needed:
                    continue
                needed.add(item.digest)
                if item.media_type in INDEX_TYPES:
                    waiting += Index.parse(layout.manifest(item.digest)).manifests
                elif item.media_type in MANIFEST_TYPES:
                    manifest = Manifest.parse(layout.manifest(item.digest))
                    needed |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
                else:
                    raise BadInput(f"oci:{self._path}: a manifest of type {printable(item.media_type, 120)}")
        return needed

    def _sweep(self, needed: set[Digest]) -> int:
        freed = 0
        for algorithm in ("sha256", "sha512"):
            folder = self._path / "blobs" / algorithm
            for name in os.listdir(folder) if folder.is_dir() and not folder.is_symlink() else ():
                if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{128}", name) and Digest(algorithm, name) not in needed:
                    freed += (folder / name).lstat().st_size
                    (folder / name).unlink()
        return freed

    def remove(self, digest: Digest) -> None:
        """Remove a manifest and everything attached to it from index.json. Blobs stay until `sweep`."""
        with self._locked(), contextlib.closing(LayoutRepository(self._path)) as layout:
            index = self._read_index()
            index["manifests"] = [item for item in index["manifests"] if not _belongs_to(layout, item, digest)]
            self._replace_index(canonical_json(index))

    def _list(self, descriptor: Descriptor, tags: Sequence[str]) -> None:
        """Point `tags` to `descriptor` in index.json. Other entries and unknown fields are unchanged."""
        index = self._read_index()
        moved = {tag for tag in tags if tag}
        kept = [
            item
            for item in index["manifests"]
            if not (
                (item.get("annotations") or {}).get(REF_NAME) in moved
                or (item.get("digest") == str(descriptor.digest) and REF_NAME not in (item.get("annotations") or {}))
            )
        ]
        named = any(item.get("digest") == str(descriptor.digest) for item in kept)
        for tag in sorted(set(tags)):
            if tag:
                time_s = {PUBLISHED: f"{time.time():.6f}"} if self._record_time else {}
                kept.append({**descriptor.to_json(), "annotations": {REF_NAME: tag, **time_s}})
            elif not moved and not named:
                kept.append(descriptor.to_json())
        index["manifests"] = kept
        raw = canonical_json(index)
        if len(raw) > MANIFEST_MAX_BYTES:
            raise BadInput(f"oci:{self._path}: index.json is full", "write to another layout directory")
        self._replace_index(raw)

    def _replace_index(self, raw: bytes) -> None:
        _write(self._directory, "index.json", [raw])
        os.fsync(self._directory)

    def _read_index(self) -> dict[str, Any]:
        with contextlib.closing(LayoutRepository(self._path)) as layout:
            layout.index()  # check every entry
            return dict(parse_json(layout.index_json(), f"oci:{self._path}: index.json"))

    def _prepare(self) -> None:
        """Create the missing parts of an empty layout. Refuse a directory with other files."""
        names = set(os.listdir(self._directory))
        for name in names:
            if name.startswith(_PARTIAL):
                _remove_stale(self._directory, name)
        if "oci-layout" not in names:
            other_names = {name for name in names if not name.startswith(".")} - {"blobs", "index.json"}
            if other_names:
                raise BadInput(f"oci:{self._path}: not an OCI layout and not empty", "choose a new or empty directory")
            _make_directory(self._directory, "blobs")
            if "index.json" not in names:
                empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
                _write(self._directory, "index.json", [canonical_json(empty)])
            _write(self._directory, "oci-layout", [json.dumps({"imageLayoutVersion": "1.0.0"}).encode()])
            os.fsync(self._directory)
        LayoutRepository(self._path).close()  # check the version

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only writer of index.json in all processes. flock(2) of the directory needs no lock file."""
        lock = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _blobs(self, algorithm: str) -> Iterator[int]:
        """Yield a descriptor of blobs/ALGORITHM, created if missing. Links are not followed."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        _make_directory(self._directory, "blobs")
        blobs = os.open("blobs", flags, dir_fd=self._directory)
        try:
            if _make_directory(blobs, algorithm):
                os.fsync(blobs)
            folder = os.open(algorithm, flags, dir_fd=blobs)
        finally:
            os.close(blobs)
        try:
            yield folder
        finally:
            os.close(folder)


def _belongs_to(layout: LayoutRepository, item: dict[str, Any], digest: Digest) -> bool:
    """Return whether an entry is the manifest `digest` or is attached to it."""
    if item["digest"] == str(digest):
        return True
    if item["mediaType"] != OCI_MANIFEST:
        return False
    subject = Manifest.parse(layout.manifest(Digest.parse(item["digest"]))).subject
    return subject is not None and subject.digest == digest


def _is_intact(folder: int, descriptor: Descriptor) -> bool:
    """Return whether the content of a blob matches its digest."""
    try:
        file = os.open(descriptor.digest.hex, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(file, "rb") as stream:
            for _ in verified(iter(lambda: stream.read(PIECE_BYTES), b""), descriptor):
                pass
    except (OSError, DigestMismatch):
        return False
    return True


def _make_directory(parent: int, name: str) -> bool:
    """Create a directory. Return False if it exists already."""
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _write(folder: int, name: str, content: Iterable[bytes]) -> None:
    """Write the file `name` in `folder` atomically: temporary file, sync, rename. The directory is not synced."""
    for stale in os.listdir(folder) if name != "index.json" else ():
        if stale.startswith(_PARTIAL):
            _remove_stale(folder, stale)
    partial = f"{_PARTIAL}{secrets.token_hex(8)}"
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with os.fdopen(file, "wb", buffering=0) as stream:
            for piece in content:
                view = memoryview(piece)
                with named_place(stream.fileno()):
                    while view:
                        view = view[stream.write(view) :]
            with named_place(stream.fileno()):
                os.fsync(stream.fileno())
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def _link(folder: int, descriptor: Descriptor, file: Path) -> bool:
    """Verify and sync `file`, unless this process has done so, and link it as the blob. Return False if it cannot be linked."""
    with file.open("rb") as stream:
        if not known_files.is_known(stream.fileno(), descriptor):
            for _ in verified(iter(lambda: stream.read(PIECE_BYTES), b""), descriptor):
                pass
            os.fsync(stream.fileno())
            known_files.note(stream.fileno(), descriptor.digest)
        try:
            # Link through the descriptor: the path may name another file by now.
            os.link(f"/proc/self/fd/{stream.fileno()}", descriptor.digest.hex, dst_dir_fd=folder, follow_symlinks=True)
        except FileExistsError:
            return True
        except OSError:  # another file system, or no support for links
            return False
    return True


def _remove_stale(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > _PARTIAL_MAX_AGE_S:
            os.unlink(name, dir_fd=folder)
