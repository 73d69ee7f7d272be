"""Upload a blob to a registry: POST, then a PUT of all of it. An interrupted upload is resumed.

See distribution-spec 1.1, "Pushing blobs". If the registry does not tell how much it has, or refuses the rest, the complete
blob is sent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from imagetool.sources.content import Content, pieces
from rootdisk.errors import RegistryError
from rootdisk.oci.documents import Descriptor
from rootdisk.oci.repository import verified
from rootdisk.registry.answers import Response
from rootdisk.registry.client import RegistryClient

SLOW_BYTES_PER_S = 1 << 20
PROGRESS_BYTES = 1 << 20  # after this many more bytes an upload may fail again
_TAKEN = r"(?:bytes=)?0-([0-9]{1,19})\Z"  # compiled at first use


class Upload:
    """The upload of `content` to the repository of `client`, as the blob `descriptor`."""

    def __init__(self, client: RegistryClient, descriptor: Descriptor, content: Content) -> None:
        self._client, self._descriptor, self._content = client, descriptor, content
        self._place = ""  # the URL for the next request; changes with each response
        self._taken = 0  # bytes that the registry has
        self._can_resume = True  # as far as known

    def run(self) -> None:
        """Upload the blob, with retries.

        Raises:
            DigestMismatch: The content does not match the descriptor.
            RegistryError: The registry failed or refused it.
        """
        # An upload may have to start again after a late failure, so allow time for the whole blob.
        retry = self._client.retry(self._client.options.give_up_s + self._descriptor.size / SLOW_BYTES_PER_S)
        most = 0
        while True:
            try:
                self._send()
                return
            except RegistryError as err:
                if self._taken and not err.temporary:
                    self._can_resume = False  # the complete blob may be accepted
                else:
                    retry.wait(err)
            self._look()
            if self._taken >= most + PROGRESS_BYTES:
                most = self._taken
                retry.progress()

    def _send(self) -> None:
        """Send everything that is missing in one request, which ends the upload."""
        if not self._place:
            with self._client.request("POST", "blobs/uploads/", expect=(202,)) as response:
                self._place = _location(response)
            if not self._place:
                raise RegistryError(f"{self._client.name}: the registry sent no URL for the upload", temporary=True)
        size = self._descriptor.size
        headers = {"Content-Type": "application/octet-stream"}
        if self._taken:
            headers["Content-Range"] = (
                f"{self._taken}-{size - 1}"  # the form of the specification, which differs from RFC 9110
            )
        place = self._client.url(self._place).with_query(f"digest={self._descriptor.digest}")
        # An empty Body would be sent chunked, which many registries refuse.
        body = Body(self._descriptor, self._content, self._taken) if self._taken < size else b""
        with self._client.request("PUT", str(place), expect=(200, 201, 202, 204), headers=headers, data=body):
            pass

    def _look(self) -> None:
        """Find out how much the registry has. If that is unknown, start again."""
        place, self._place, self._taken = self._place, "", 0
        if not place or not self._can_resume:
            return

        def once() -> tuple[str, str]:
            """Return the `Range` of what has arrived, and the URL to continue with."""
            with self._client.request("GET", place, expect=(204,)) as response:
                return response.headers.get("Range"), _location(response)

        try:
            range_, location = self._client.retry().run(once)
        except RegistryError:
            return
        match = re.match(_TAKEN, range_)
        taken = int(match[1]) + 1 if match else 0
        if 1 < taken <= self._descriptor.size:  # "0-0" means that there is nothing
            self._place, self._taken = location or place, taken


class Body:
    """A request body of known length that can be sent several times.

    It begins at byte `start`. The bytes before are read too, because the digest covers all. The last piece is held back until
    the digest has been checked, so nobody gets all bytes of a damaged blob.

    Raises:
        DigestMismatch: While iterating, if the content does not match the descriptor.
    """

    def __init__(self, descriptor: Descriptor, content: Content, start: int = 0) -> None:
        self._descriptor, self._content, self._start = descriptor, content, start
        self.whole_bytes = descriptor.size

    def __len__(self) -> int:
        return self._descriptor.size - self._start

    def __iter__(self) -> Iterator[bytes]:
        skip, left, last = self._start, self._descriptor.size, b""
        for piece in verified(pieces(self._content), self._descriptor):
            left -= len(piece)
            rest = piece[skip:]
            skip = max(skip - len(piece), 0)
            if left and rest:
                yield rest
            else:
                last += rest
        yield last


def _location(response: Response) -> str:
    """Return the Location header as an absolute URL, or "". The specification allows relative URLs."""
    location = response.headers.get("Location")
    return str(response.url.join(location)) if location else ""
