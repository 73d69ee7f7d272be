"""One blob's way into a registry: POST, then a PUT of all of it; a broken one goes on where the registry is.

distribution-spec 1.1, "Pushing blobs". A registry that does not say how far it is, or takes no rest, is sent the blob again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import requests

from imagetool.content import Content, pieces
from rootdisk.errors import RegistryError
from rootdisk.oci.documents import Descriptor
from rootdisk.oci.repository import verified
from rootdisk.registry.client import RegistryClient
from rootdisk.urls import parse_url

SLOW_BYTES_PER_S = 1 << 20
PROGRESS_BYTES = 1 << 20  # after so many more an upload may break again
_TAKEN = re.compile(r"(?:bytes=)?0-(\d{1,19})\Z")


class Upload:
    """`content` into the repository of `client`, as `descriptor` says: DigestMismatch where it is something else."""

    def __init__(self, client: RegistryClient, descriptor: Descriptor, content: Content) -> None:
        self._client, self._descriptor, self._content = client, descriptor, content
        self._place = ""  # where to upload to; changes with each answer
        self._taken = 0  # bytes that are there
        self._goes_on = True  # so far as is known

    def run(self) -> None:
        # An upload that broke late may start over, so the time it took counts as well.
        retry = self._client.retry(self._client.options.give_up_s + self._descriptor.size / SLOW_BYTES_PER_S)
        most = 0
        while True:
            try:
                self._send()
                return
            except RegistryError as err:
                if self._taken and not err.temporary:
                    self._goes_on = False  # the blob itself may be welcome
                else:
                    retry.wait(err)
            self._look()
            if self._taken >= most + PROGRESS_BYTES:
                most = self._taken
                retry.progress()

    def _send(self) -> None:
        """All that is missing, in one request, which ends the upload."""
        if not self._place:
            with self._client.request("POST", "blobs/uploads/", expect=(202,)) as response:
                self._place = _location(response)
            if not self._place:
                raise RegistryError(f"{self._client.name}: no place to upload to", temporary=True)
        size = self._descriptor.size
        headers = {"Content-Type": "application/octet-stream"}
        if self._taken:
            headers["Content-Range"] = f"{self._taken}-{size - 1}"  # the specification's form, which is not RFC 9110's
        place = self._client.url(self._place).with_query(f"digest={self._descriptor.digest}")
        # An empty body object would be sent chunked; many registries refuse that.
        body = Body(self._descriptor, self._content, self._taken) if self._taken < size else b""
        with self._client.request("PUT", str(place), expect=(200, 201, 202, 204), headers=headers, data=body):
            pass

    def _look(self) -> None:
        """Find out where to go on; from the start where that is not to be known."""
        place, self._place, self._taken = self._place, "", 0
        if not place or not self._goes_on:
            return

        def once() -> tuple[str, str]:
            with self._client.request("GET", place, expect=(204,)) as response:
                return response.headers.get("Range", ""), _location(response)

        try:
            said, where = self._client.retry().run(once)
        except RegistryError:
            return
        found = _TAKEN.match(said)
        taken = int(found[1]) + 1 if found else 0
        if 1 < taken <= self._descriptor.size:  # "0-0" is said where there is nothing
            self._place, self._taken = where or place, taken


class Body:
    """A request body with a known length that starts over each time it is sent, and fails where it is not the blob.

    From byte `start` on; what comes before is read too, as the digest is of all.
    """

    def __init__(self, descriptor: Descriptor, content: Content, start: int = 0) -> None:
        self._descriptor, self._content, self._start = descriptor, content, start
        self.whole_bytes = descriptor.size

    def __len__(self) -> int:
        return self._descriptor.size - self._start

    def __iter__(self) -> Iterator[bytes]:
        skip = self._start
        for piece in verified(pieces(self._content), self._descriptor):
            if skip < len(piece):
                yield piece[skip:]
            skip = max(skip - len(piece), 0)


def _location(response: requests.Response) -> str:
    """Relative to where the request went; the specification allows both forms. "" where there is none."""
    location = response.headers.get("Location", "")
    return str(parse_url(str(response.url)).join(location)) if location else ""
