"""Read one repository of a registry: distribution-spec 1.1, "Pull", and Range requests of RFC 9110."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from urllib.parse import quote

from rootdisk.errors import BadInput, DigestMismatch, RegistryError
from rootdisk.oci.documents import (
    INDEX_TYPES,
    MANIFEST_MAX_BYTES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Digest,
    Index,
)
from rootdisk.oci.referrers import check_count, of_type, referrers_tag
from rootdisk.oci.repository import RegistryOptions, check_manifest, check_range, describe_manifest
from rootdisk.registry.answers import Pace, check_encoding
from rootdisk.registry.client import RegistryClient
from rootdisk.registry.pages import pages
from rootdisk.text import printable

ACCEPT = {"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}
_PIECE_BYTES = 256 << 10
# A server that sends less of a range than this has failed; else a blob takes requests without end.
_PART_MIN_BYTES = 64 << 10
_KEPT_MAX_BYTES = 4 * MANIFEST_MAX_BYTES  # of manifests that may be asked for again
_PROGRESS_BYTES = 1 << 20  # after this many bytes a transfer may fail again
_REFERRERS_PAGES_MAX = 20
_NO_REFERRERS_API = (400, 404, 405, 501)  # what registries say that do not know it
# Compiled at first use.
_CONTENT_RANGE = r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)\Z"


class RegistryRepository:
    """A repository of a registry, read only. Threads may share it. See the protocol `Repository` for its methods."""

    def __init__(self, registry: str, repository: str, options: RegistryOptions, namespace: str = "") -> None:
        """Open a repository. `namespace` is the registry for which `registry` is a mirror."""
        self.client = RegistryClient(registry, repository, options, namespace)
        self.serves_ranges: bool | None = None
        self._keeping, self._kept_bytes = threading.Lock(), 0
        self._manifests: dict[Digest, bytes] = {}  # that were read, so they are not fetched twice

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    def interrupt(self) -> None:
        """Abort reads in other threads."""
        self.client.interrupt()

    def resolve(self, name: str | Digest) -> Descriptor:
        """Return the manifest or index that a tag or digest names.

        Raises:
            BadInput: `name` is empty.
            DigestMismatch: The content is not that of the digest.
            RegistryError: The registry does not have it or failed.
        """
        if not name:
            raise BadInput(f"{self.client.name}: no tag or digest", "write repository:tag or repository@sha256:…")
        raw, headers = self.client.get(f"manifests/{name}", MANIFEST_MAX_BYTES, ACCEPT)
        where = f"{self.client.name}:{name}"
        digest = name if isinstance(name, Digest) else Digest.of(raw)
        check_manifest(raw, digest, where)
        claimed = headers.get("Docker-Content-Digest")
        if claimed.startswith(f"{digest.algorithm}:") and claimed != str(digest):
            raise DigestMismatch(
                f"{where}: the registry claims {printable(claimed, 80)}, but the content is {digest}", "fetch it again"
            )
        self._keep(digest, raw)
        return describe_manifest(raw, digest, where, headers.get("Content-Type").partition(";")[0].strip())

    def current(self, name: str | Digest) -> Digest | None:
        """A HEAD, which no registry counts as a pull; a GET if the registry knows no HEAD or does not say the digest."""

        def once() -> tuple[int, str]:
            """Ask once; return the status and the digest header."""
            with self.client.request(
                "HEAD", f"manifests/{name}", expect=(200, 404, 405, 501), headers=ACCEPT
            ) as response:
                return response.status, response.headers.get("Docker-Content-Digest")

        status, digest_header = self.client.retry().run(once)
        if status == 404:
            return None
        try:
            with contextlib.suppress(BadInput):
                if status == 200:
                    return Digest.parse(digest_header)
            return self.resolve(name).digest
        except RegistryError as err:
            if err.status == 404:
                return None
            raise

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        """Return a manifest or index, digest checked."""
        digest = wanted.digest if isinstance(wanted, Descriptor) else wanted
        raw = self._manifests.get(digest)
        if raw is None:
            raw, _ = self.client.get(f"manifests/{digest}", MANIFEST_MAX_BYTES, ACCEPT)
            self._keep(digest, check_manifest(raw, digest, self.client.name))
        return raw

    def _keep(self, digest: Digest, raw: bytes) -> None:
        """Keep a manifest, and forget the oldest if all are large: an index may list thousands."""
        with self._keeping:
            if digest in self._manifests:
                return
            self._manifests[digest] = raw
            self._kept_bytes += len(raw)
            while self._kept_bytes > _KEPT_MAX_BYTES:
                self._kept_bytes -= len(self._manifests.pop(next(iter(self._manifests))))

    def referrers(self, subject: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """List what is attached to `subject`: by the referrers API, without it by the tag that replaces it."""
        referrers: list[Descriptor] = []
        path = f"referrers/{subject}" + (f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else "")
        what = f"the list of referrers of {subject.short}"
        has_answered = False
        try:
            for raw in pages(self.client, path, {"Accept": OCI_INDEX}, what, _REFERRERS_PAGES_MAX):
                has_answered = True
                referrers += Index.parse(raw).manifests
                check_count(len(referrers), subject)
        except RegistryError as err:
            if err.status not in _NO_REFERRERS_API or has_answered:
                raise
            return of_type(self._tagged_referrers(subject), artifact_type)
        return of_type(referrers, artifact_type)

    def _tagged_referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        try:
            listed = self.resolve(referrers_tag(subject))
        except RegistryError as err:
            if err.status != 404:
                raise
            return ()
        listed_manifests = Index.parse(self.manifest(listed)).manifests if listed.media_type in INDEX_TYPES else ()
        check_count(len(listed_manifests), subject)
        return listed_manifests

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a blob in pieces, not verified. Continue after temporary failures."""
        stop = check_range(descriptor, start, end)
        retry = self.client.retry()
        position = kept = start
        while position < stop:
            asked_at = position
            try:
                for piece in self._stream(descriptor, position, stop):
                    position += len(piece)
                    if position - kept >= _PROGRESS_BYTES:
                        kept = position
                        retry.progress()
                    yield piece
                if position < stop and position - asked_at < _PART_MIN_BYTES:
                    reason = f"only {position - asked_at} of the {stop - asked_at} bytes that were asked for"
                    raise RegistryError(f"{self._name_of(descriptor)}: {reason}", temporary=True)
            except RegistryError as err:
                retry.wait(err)

    def _name_of(self, descriptor: Descriptor) -> str:
        return f"{self.client.name}: blob {descriptor.digest.short}"

    def _note_ranges(self, *, served: bool) -> None:
        """Note whether a range was served or offered. One that was ignored counts more."""
        self.serves_ranges = served and self.serves_ranges is not False

    def _stream(self, descriptor: Descriptor, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of one request for [start, stop). The server may return fewer."""
        is_complete = start == 0 and stop == descriptor.size
        headers = {} if is_complete else {"Range": f"bytes={start}-{stop - 1}"}
        what = self._name_of(descriptor)
        with self.client.request(
            "GET", f"blobs/{descriptor.digest}", expect=(200,) if is_complete else (200, 206), headers=headers
        ) as response:
            if response.status == 206:
                content_range = response.headers.get("Content-Range")
                match = re.match(_CONTENT_RANGE, content_range)
                if (
                    not match
                    or int(match[1]) != start
                    or not start <= int(match[2]) < stop
                    or match[3] not in ("*", str(descriptor.size))
                ):
                    raise RegistryError(f"{what}: asked for bytes {start}-{stop - 1}, got {content_range!r:.80}")
                skip, count = 0, int(match[2]) + 1 - start
                self._note_ranges(served=True)
            else:
                length = response.headers.get("Content-Length")
                if length != str(descriptor.size):
                    check_encoding(response)  # some storages name one though the bytes are those of the blob
                if length and length != str(descriptor.size):
                    raise DigestMismatch(
                        f"{what} has {printable(length, 20)} bytes, not {descriptor.size}",
                        "the copy in the registry is damaged",
                    )
                skip, count = start, stop - start
                if not is_complete:
                    self._note_ranges(served=False)
                elif response.headers.get("Accept-Ranges").lower() == "bytes":  # RFC 9110, section 14.3
                    self._note_ranges(served=True)
            pace = Pace(response)
            while count:
                piece = pace.read(_PIECE_BYTES)
                if not piece:
                    raise RegistryError(f"{what}: the connection was closed {count} bytes early", temporary=True)
                if skip:
                    cut = min(skip, len(piece))
                    skip -= cut
                    piece = piece[cut:]
                piece = piece[:count]
                count -= len(piece)
                if piece:
                    yield piece
