"""Track what each repository has served: proof that it has the content, and not only knows the digest.

All registries share one store. Without proof, a hostile artifact could name a private disk of another registry by its
digest, bring its own kernel, and read that disk. So content in the store is used for a repository only after the repository
has served it once: each blob, and for a disk the chunk index and one random chunk. The files in names/ record this. They
are written last, when everything they lead to has been fetched from that repository.
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
    """Return the hex digests of manifests, blobs and disks that the repository of `reference` has served."""
    digests: set[str] = set()
    for name in _names(store, reference, options):
        digests |= files_of(store, name.manifest)
    return frozenset(digests)


def _names(store: Store, reference: Reference, options: RegistryOptions) -> Iterator[Name]:
    """Yield the names of the same repository. With plain HTTP it may be another server, so that must be equal too."""
    place = absolute(reference).place
    for path in (store.root / "names").iterdir():
        name = read_name(path)
        if name is not None and name.plain_http == options.plain_http and name.reference.startswith(place):
            with contextlib.suppress(RootdiskError):
                if parse_reference(name.reference).place == place:
                    yield name
