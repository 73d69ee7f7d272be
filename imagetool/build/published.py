"""Check that targets still have the published artifact. doit asks before each build, so this module imports little."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from imagetool.build.receipts import PublishedReceipt
from imagetool.config.images import Image
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.places import open_repository


def find_published(place: Reference, image: Image, name: str | Digest) -> Digest | None:
    """Ask `place` which manifest `name` refers to; None if it does not have it.

    Raises:
        RegistryError: the registry does not answer the question.
    """
    if place.path is not None and not (place.path / "oci-layout").exists():
        return None
    with contextlib.closing(
        open_repository(place, RegistryOptions(plain_http=image.plain_http, ca_file=image.ca_file))
    ) as repository:
        return repository.current(name)


def check_published(images: Sequence[Image], receipt: PublishedReceipt) -> None:
    """Ask every target whether it still has what `receipt` says; `images` is one image, or all of a group with an index.

    Raises:
        RootdiskError: a target no longer has it, or does not answer.
    """
    image = images[0]
    by_digest = len(images) == 1 and image.group
    for place in image.publish:
        name = receipt.digest if by_digest else image.version
        if find_published(place, image, name) != receipt.digest:
            raise RootdiskError(f"{place.place}:{name} is not {receipt.digest.short} any more")
