"""Write to a repository of a registry: distribution-spec 1.1, "Push". upload.py sends blobs."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import urlencode

from imagetool.sources.content import Content
from imagetool.targets.target import manifest_digest, tag_taken
from imagetool.targets.upload import Upload
from rootdisk.errors import BadInput, DigestMismatch, RegistryError, Unsupported
from rootdisk.oci.documents import (
    MANIFEST_MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    canonical_json,
    parse_json,
)
from rootdisk.oci.fields import Fields
from rootdisk.oci.reference import is_tag
from rootdisk.oci.referrers import referrers_tag
from rootdisk.oci.repository import RegistryOptions, check_manifest, describe_manifest
from rootdisk.registry.client import RegistryClient
from rootdisk.registry.pages import pages
from rootdisk.registry.repository import ACCEPT, RegistryRepository
from rootdisk.text import printable

SETTLE_S = 1.5
TAGS_PAGE = 1000
TAGS_MAX_COUNT = 100_000
TAGS_PAGES_MAX = 1000  # some registries send fewer tags than are asked for


class RegistryTarget:
    """A repository of a registry. See the protocol `Target`."""

    def __init__(self, registry: str, repository: str, options: RegistryOptions) -> None:
        self.client = RegistryClient(registry, repository, options)
        self._place = registry, repository, options

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    def interrupt(self) -> None:
        """Abort requests in other threads."""
        self.client.interrupt()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the registry has a blob.

        Raises:
            DigestMismatch: It has another size there.
        """

        def once() -> bool:
            """Ask with HEAD, else with GET."""
            try:
                return self._has("HEAD", descriptor, {})
            except RegistryError as err:
                # A URL signed for GET answers HEAD with 403, and some servers do not support HEAD.
                if err.status not in (403, 405, 501) and not (err.temporary and err.status == 401):
                    raise
            return self._has("GET", descriptor, {"Range": "bytes=0-0"} if descriptor.size else {})

        return self.client.retry().run(once)

    def _has(self, method: str, descriptor: Descriptor, headers: Mapping[str, str]) -> bool:
        path = f"blobs/{descriptor.digest}"
        with self.client.request(method, path, expect=(200, 206, 404), headers=headers) as response:
            length = response.headers.get("Content-Length")
            if response.status == 206:
                length = response.headers.get("Content-Range").rpartition("/")[2]
                length = length if length.isdigit() else ""
            if response.status != 404 and length and length != str(descriptor.size):
                raise DigestMismatch(
                    f"{self.client.name}: blob {descriptor.digest} has {printable(length, 20)} bytes, "
                    f"not {descriptor.size}",
                    "the copy in the registry is damaged",
                )
            return response.status != 404

    def push_blob(self, descriptor: Descriptor, content: Content, *, mount: str = "") -> None:
        """Write a blob, unless it exists. Try to mount it from the repository `mount` first."""
        if self.has_blob(descriptor) or (mount and self._mount(descriptor, mount)):
            return
        Upload(self.client, descriptor, content).run()

    def _mount(self, descriptor: Descriptor, repository: str) -> bool:
        """Mount a blob from another repository; distribution-spec, "Mounting a blob from another repository".

        Return False if the registry does not do it.
        """
        query = urlencode({"mount": str(descriptor.digest), "from": repository})
        try:
            with self.client.request("POST", f"blobs/uploads/?{query}", expect=(201, 202)) as response:
                return response.status == 201
        except RegistryError:
            return False  # not allowed, or not supported: send the blob

    def push_manifest(self, raw: bytes, media_type: str, tags: Sequence[str], *, fixed: Collection[str] = ()) -> Digest:
        """Write a manifest or index and point `tags` to it; those in `fixed` do not move.

        Raises:
            BadInput: It is too large, or a tag in `fixed` names something else.
        """
        digest = manifest_digest(raw)
        for name in [tag for tag in tags if tag] or [str(digest)]:
            if name in fixed:
                self._refuse_taken(name, digest)
            accepted_subject = self._put_manifest(name, raw, media_type, digest)
        new = [name for name in fixed if name in tags]
        if new:
            time.sleep(SETTLE_S)
            for name in new:
                self._refuse_taken(name, digest)
        subject = Manifest.parse(raw).subject if media_type == OCI_MANIFEST else None
        if subject is not None and accepted_subject != str(subject.digest):
            self._list_referrer(subject.digest, describe_manifest(raw, digest, self.client.name))
        return digest

    def _refuse_taken(self, tag: str, digest: Digest) -> None:
        """Raise BadInput if `tag` names something else.

        A registry knows no compare and swap. So a tag is looked at just before it is written and again a while after, which is
        longer than anybody takes from looking to writing: of several who write it at once the last has it, and all see that.
        """
        with contextlib.closing(RegistryRepository(*self._place)) as repository:
            found = repository.current(tag)
        if found is not None and found != digest:
            raise tag_taken(f"{self.client.name}:{tag}", found, digest)

    def _list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """Add an entry to the tag that lists referrers, for registries without the referrers API.

        See distribution-spec 1.1, "Pushing Manifests with Subject".
        """
        tag = referrers_tag(subject)
        with contextlib.closing(RegistryRepository(*self._place)) as repository:
            try:
                listed = Index.parse(repository.manifest(repository.resolve(tag))).manifests
            except RegistryError as err:
                if err.status != 404:
                    raise
                listed = ()
        if all(item.digest != referrer.digest for item in listed):
            raw = canonical_json(Index(OCI_INDEX, (*listed, referrer), {}).to_json())
            self.push_manifest(raw, OCI_INDEX, (tag,))

    def tags(self) -> dict[str, Digest]:
        """Return every tag and the manifest that it names; distribution-spec, "Listing tags".

        Raises:
            BadInput: The list is too long or not valid.
        """
        names: list[str] = []
        for raw in pages(self.client, f"tags/list?n={TAGS_PAGE}", {}, "the list of tags", TAGS_PAGES_MAX):
            fields = Fields(parse_json(raw, f"{self.client.name}: tags"), f"{self.client.name}: list of tags")
            more = fields.texts("tags", TAGS_MAX_COUNT - len(names), limit=128)
            for name in more:
                if not is_tag(name):
                    raise BadInput(f"{self.client.name}: tag {printable(name, 128)!r} is not valid")
            names += more
        with contextlib.closing(RegistryRepository(*self._place)) as repository:
            return {name: repository.resolve(name).digest for name in names}

    def published(self, tags: Collection[str]) -> dict[str, float]:
        """Return when each of `tags` was written, if the registry says so of all: `Last-Modified`, RFC 9110, section 8.8.2."""
        from email.utils import parsedate_to_datetime  # for pruning alone

        times: dict[str, float] = {}

        def once(tag: str) -> str:
            """Ask for the headers of one manifest; return the time's text, "" if there is none."""
            with self.client.request("HEAD", f"manifests/{tag}", expect=(200, 404, 405, 501), headers=ACCEPT) as answer:
                return answer.headers.get("Last-Modified")

        for tag in tags:
            try:
                times[tag] = parsedate_to_datetime(self.client.retry().run(functools.partial(once, tag))).timestamp()
            except (ValueError, OverflowError):
                return {}  # most registries say it of none
        return times

    def sweep(self) -> int:
        """Leave blobs to the registry, which collects them itself."""
        return 0

    def remove(self, digest: Digest) -> None:
        """Delete a manifest and its tags.

        Raises:
            Unsupported: The registry does not delete.
        """

        def once() -> int:
            """Delete it; return the status, 405 if it is still there."""
            with self.client.request("DELETE", f"manifests/{digest}", expect=(200, 202, 204, 404, 405)) as response:
                status = response.status
            if status == 404:  # already deleted, or deleting is not supported
                with self.client.request("HEAD", f"manifests/{digest}", expect=(200, 404), headers=ACCEPT) as response:
                    return 405 if response.status == 200 else 404
            return status

        if self.client.retry().run(once) == 405:
            raise Unsupported(
                f"{self.client.name}: this registry does not delete manifests",
                "use its web interface, or change its configuration",
            )

    def _put_manifest(self, name: str, raw: bytes, media_type: str, digest: Digest) -> str:
        """Write a manifest. Return the digest of its subject if the registry has processed it, else ""."""

        def once() -> tuple[str, str]:
            """Send it; return the digest and the subject of the answer."""
            headers = {"Content-Type": media_type}
            # The specification says 201. Some registries answer 200, or 202 before the manifest is visible.
            with self.client.request(
                "PUT", f"manifests/{name}", expect=(200, 201, 202), headers=headers, data=raw
            ) as response:
                answer = response.headers
                return answer.get("Docker-Content-Digest"), answer.get("OCI-Subject")

        stored, subject = self.client.retry().run(once)
        if stored != str(digest):
            # The header is optional before distribution-spec 1.1: read the manifest back.
            retry = self.client.retry()
            while True:
                try:
                    present, _ = self.client.get(f"manifests/{name}", MANIFEST_MAX_BYTES, ACCEPT)
                    break
                except RegistryError as err:
                    err.temporary |= err.status == 404
                    retry.wait(err)
            check_manifest(present, digest, f"{self.client.name}:{name}")
        return subject
