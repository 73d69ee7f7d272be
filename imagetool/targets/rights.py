"""Whether a registry lets us push: asked before a build begins, which takes longer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from rootdisk.errors import RegistryError
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions


def check_push(places: Iterable[Reference], options: RegistryOptions) -> None:
    """Begin an upload to each registry of `places`, and cancel it.

    Raises:
        RegistryError: A registry refuses it, or cannot be asked.
    """
    for place in places:
        if place.kind == "registry":
            _begin_upload(place, options)


def _begin_upload(place: Reference, options: RegistryOptions) -> None:
    from rootdisk.registry.client import RegistryClient

    def once() -> str:
        """Begin the upload; return its URL."""
        with client.request("POST", "blobs/uploads/", expect=(201, 202)) as response:
            return response.headers.get("Location")

    with contextlib.closing(RegistryClient(place.registry, place.repository, options)) as client:
        location = client.retry().run(once)
        if location:
            with contextlib.suppress(RegistryError):  # a registry forgets it by itself, later
                client.request("DELETE", location, expect=(200, 202, 204, 404, 405)).close()
