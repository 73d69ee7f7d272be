"""A registry of manifests and indexes on the loopback that nobody has pushed, however large they are together.

documents = Documents()
inner = documents.add(OCI_INDEX, {…})                a descriptor of it
with documents.served() as name: …                   name: 127.0.0.1:34567/a/b
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from rootdisk.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Digest, canonical_json
from tests.support.registry import QuietHandler, serve


class Documents:
    """Documents by digest; `asked` has the paths of all requests."""

    def __init__(self) -> None:
        self._raw: dict[str, bytes] = {}
        self.asked: list[str] = []

    def add(self, media_type: str, value: Mapping[str, Any]) -> Descriptor:
        """Serve a document; a manifest or index gets the fields that all have."""
        fields = {} if media_type == OCI_CONFIG else {"schemaVersion": 2, "mediaType": media_type}
        raw = canonical_json({**fields, **value})
        descriptor = Descriptor(media_type, Digest.of(raw), len(raw))
        self._raw[str(descriptor.digest)] = raw
        return descriptor

    def index(self, *entries: Descriptor) -> Descriptor:
        """Serve an index of these."""
        return self.add(OCI_INDEX, {"manifests": [entry.to_json() for entry in entries]})

    def manifest(self, config: Mapping[str, Any], **fields: Any) -> Descriptor:
        """Serve a manifest without layers."""
        return self.add(OCI_MANIFEST, {"config": self.add(OCI_CONFIG, config).to_json(), "layers": [], **fields})

    def answer(self, path: str) -> bytes | None:
        """Return what is at `path`, None if nothing is. A test may do something else."""
        return None if "/referrers/" in path else self._raw.get(path.rpartition("/")[2])

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serve the documents; the name of their repository."""
        documents = self

        class Handler(QuietHandler):
            disable_nagle_algorithm = True

            def do_GET(self) -> None:  # noqa: N802
                path = self.path.partition("?")[0]
                documents.asked.append(path)
                raw = documents.answer(path)
                self.send(404 if raw is None else 200, raw or b"{}")

        with serve(Handler) as url:
            yield f"{url.removeprefix('http://')}/a/b"
