"""Track what each repository has served: proof that it has the content, and not only knows the digest.

All registries share one store. Without proof, a hostile artifact could name a private disk of another registry by its
digest, bring its own kernel, and read that disk. So content in the store is used for a repository only after the repository
has served it once: each blob, and for a disk the chunk index and one random chunk. The files in names/ record this. They
are written last, when everything they lead to has been fetched from that repository.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.names import Name, absolute, asked, files_of, read_name, remember
from runner.store.store import Store


def served(store: Store, reference: Reference, options: RegistryOptions) -> frozenset[str]:
    """Return the hex digests of manifests, blobs and disks that the repository of `reference` has served."""
    digests: set[str] = set()
    names = map(read_name, (store.root / "names").iterdir())
    for name, _ in _of((name for name in names if name is not None), reference, options):
        digests |= files_of(store, name.manifest)
    return frozenset(digests)


def asked_with(store: Store, reference: Reference, options: RegistryOptions, disk: Digest) -> set[str]:
    """Return the hex digests of manifests with `disk` that were asked for in the repository of `reference`, and have no name."""
    names = (name for _, name in asked(store))
    return {name.manifest for name, _ in _of(names, reference, options) if disk.hex in files_of(store, name.manifest)}


def keep_asked(store: Store, reference: Reference, options: RegistryOptions, manifest: bytes) -> None:
    """Keep the names by which `manifest` was asked for in the repository of `reference`, which has served all of it.

    A name that was removed since, or that has got another manifest, is not made again.
    """
    digest = Digest.of(manifest)
    for name, its_reference in _of([name for _, name in asked(store)], reference, options):
        if name.manifest == digest.hex:
            remember(store, its_reference, Platform.parse(name.platform), name.options, digest, manifest)


def _of(names: Iterable[Name], reference: Reference, options: RegistryOptions) -> Iterator[tuple[Name, Reference]]:
    """Yield the names of the same repository. With plain HTTP it may be another server, so that must be equal too."""
    place = absolute(reference).place
    for name in names:
        if name.plain_http == options.plain_http and name.reference.startswith(place):
            with contextlib.suppress(RootdiskError):
                its_reference = parse_reference(name.reference)
                if its_reference.place == place:
                    yield name, its_reference
