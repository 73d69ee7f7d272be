"""Whether a registry has what its manifest names, or only knows its digest.

The store is one for all registries, so an artifact could name another registry's private disk by its digest, bring a
kernel of its own, and read that disk. So the store is no answer to a repository that has not served a blob itself: it has
to serve each once, and of a disk the chunk index and one chunk, chosen at random. What a repository has served before is
known by the names/ of the store: they are written last, and all that they lead to was fetched from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rootdisk.errors import RootdiskError
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.names import Name, absolute, files_of, read_name
from runner.store.store import Store


def served(store: Store, reference: Reference, options: RegistryOptions) -> frozenset[str]:
    """Hex digests of manifests, blobs and disks that the repository of `reference` has served to this store."""
    found: set[str] = set()
    for name in _names(store, reference, options):
        with contextlib.suppress(OSError, RootdiskError):
            found |= files_of(store, name)
    return frozenset(found)


def _names(store: Store, reference: Reference, options: RegistryOptions) -> Iterator[Name]:
    """What is remembered of the same repository, asked in the same way: whoever is on the way of plain HTTP is not it."""
    place = absolute(reference).place
    for path in (store.root / "names").iterdir():
        name = read_name(path)
        if name is not None and name.plain_http == options.plain_http and name.reference.startswith(place):
            with contextlib.suppress(RootdiskError):
                if parse_reference(name.reference).place == place:
                    yield name
