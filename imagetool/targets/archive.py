"""Write an OCI layout in a tar file (oci-archive). A temporary layout is filled first, then packed into the tar.

The same content gives the same bytes: sorted members, no times, no owners. skopeo and podman can read the file.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path

from imagetool.sources.content import Content
from imagetool.targets.layout import LayoutTarget
from rootdisk.durable import fsync_dir
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest, Manifest
from rootdisk.oci.referrers import belongs_to_digest
from rootdisk.system.scratch import scratch


class ArchiveTarget:
    """A new archive file. It appears, complete, when a manifest with a tag is written. See the protocol `Target`."""

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        self._path = path.absolute()
        if path.exists() and not replace:
            raise BadInput(f"oci-archive:{path} exists already", "remove it, or choose another file")
        self._end = contextlib.ExitStack()
        try:
            self._work = self._end.enter_context(scratch(self._path.parent, ".archive-"))
        except OSError as err:
            raise BadInput(f"oci-archive:{path}: {err.strerror}", "choose a file that you can write") from err
        self._layout = LayoutTarget(self._work / "layout")

    def interrupt(self) -> None:
        """Do nothing: writes to files end soon."""

    def close(self) -> None:
        """Remove the temporary layout."""
        self._layout.close()
        self._end.close()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob has been written."""
        return self._layout.has_blob(descriptor)

    def tags(self) -> dict[str, Digest]:
        """Return no tags: the archive is new."""
        return {}

    def published(self, tags: Collection[str]) -> dict[str, float]:
        """Return nothing: an archive is new."""
        return {}

    def sweep(self) -> int:
        """Remove nothing."""
        return 0

    def remove(self, digest: Digest) -> None:
        """Refuse to remove anything.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f"oci-archive:{self._path}: an archive cannot be changed", "create a new one")

    def push_blob(self, descriptor: Descriptor, content: Content, *, mount: str = "") -> None:
        """Write a blob."""
        self._layout.push_blob(descriptor, content)

    def push_manifest(self, raw: bytes, media_type: str, tags: Sequence[str], *, fixed: Collection[str] = ()) -> Digest:
        """Write a manifest. With a tag, finish the archive."""
        digest = self._layout.push_manifest(raw, media_type, tags)
        attached = media_type == OCI_MANIFEST and Manifest.parse(raw).subject is not None
        if tags and not attached and not any(map(belongs_to_digest, tags)):
            self.finish()
        return digest

    @property
    def layout(self) -> Path:
        """The layout that becomes the archive."""
        return self._work / "layout"

    def finish(self) -> None:
        """Write the archive of all that has been pushed."""
        layout, partial = self.layout, self._work / "tar"
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for path in sorted(layout.rglob("*")):
                    tar.add(path, str(path.relative_to(layout)), recursive=False, filter=_plain)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._path)
        fsync_dir(self._path.parent)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member
