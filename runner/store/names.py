"""Remember which manifest a reference named at the last request: the files in names/ of the store.

A name is kept when its repository has served everything that it leads to. Until then, while a disk is being fetched for
`boot --pull lazy`, the same file is in asked/: for people, who see the artifact by its name, and for the disk's server,
which keeps the name in the end. Nothing is found or trusted by a file in asked/.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import ArtifactManifest
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Digest, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system.debug import debug
from rootdisk.system.versions import read_versioned, write_versioned
from runner.store.boot_blobs import boot_blobs
from runner.store.store import Damaged, Store

VERSION = 1


class Name(NamedTuple):
    """The manifest that a reference named at the last request, and how the registry was reached."""

    reference: str
    platform: str
    manifest: str  # hex digest
    plain_http: bool
    ca_file: str | None

    @property
    def options(self) -> RegistryOptions:
        """The options with which the registry is reached."""
        return RegistryOptions(plain_http=self.plain_http, ca_file=Path(self.ca_file) if self.ca_file else None)


def absolute(reference: Reference) -> Reference:
    """Return the reference with an absolute path, if it has a path."""
    return reference if reference.path is None else reference._replace(path=reference.path.absolute())


def _name_path(store: Store, reference: Reference, platform: Platform) -> Path:
    return store.root / "names" / hashlib.sha256(os.fsencode(f"{reference} {platform}")).hexdigest()


def _name(reference: Reference, platform: Platform, options: RegistryOptions, digest: Digest) -> Name:
    ca_file = str(options.ca_file.absolute()) if options.ca_file else None
    return Name(str(absolute(reference)), str(platform), digest.hex, options.plain_http, ca_file)


def remember(
    store: Store, reference: Reference, platform: Platform, options: RegistryOptions, digest: Digest, raw: bytes
) -> None:
    """Keep the manifest `raw`, and that `reference` names it.

    A name of another version is left alone. Then the registry is asked each time.
    """
    name = _name(reference, platform, options, digest)
    path = _name_path(store, reference, platform)
    if not _is_kept(store, path, name, raw):
        store.write_blob(digest, raw)
        if not write_versioned(path, name._asdict(), VERSION, durable=False):
            debug(f"{path}: written by another version of rootdisk, left alone")
    _asked_path(store, path).unlink(missing_ok=True)


def _is_kept(store: Store, path: Path, name: Name, raw: bytes) -> bool:
    with contextlib.suppress(OSError, Damaged):
        return name == read_name(path) and store.read_blob(name.manifest, MANIFEST_MAX_BYTES) == raw
    return False


def note_asked(
    store: Store, reference: Reference, platform: Platform, options: RegistryOptions, digest: Digest, raw: bytes
) -> None:
    """Note that `reference` named the manifest `raw`, which is in the store, for as long as the rest is being fetched."""
    name = _name(reference, platform, options, digest)
    path = _name_path(store, reference, platform)
    if not _is_kept(store, path, name, raw):
        store.made_folder("asked")
        write_versioned(_asked_path(store, path), name._asdict(), VERSION, durable=False)


def _asked_path(store: Store, name: Path) -> Path:
    return store.root / "asked" / name.name


def asked(store: Store) -> Iterator[tuple[Path, Name]]:
    """Yield the files and names of artifacts that are being fetched."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted((store.root / "asked").iterdir()):
            if (name := read_name(path)) is not None:
                yield path, name


def asked_for(store: Store, reference: Reference, platform: Platform) -> bytes | None:
    """Return the manifest that `reference` named when it was asked for, if it is being fetched."""
    return _manifest(store, _asked_path(store, _name_path(store, reference, platform)))


def read_name(path: Path) -> Name | None:
    """Read a file of names/. Return None if it is missing, damaged, of another version, or one that a killed process was writing.

    Unknown fields are ignored.
    """
    if path.name.startswith("."):
        return None
    try:
        value = read_versioned(path, VERSION)
        name = Name(**{field: value[field] for field in Name._fields})
        Digest.parse(f"sha256:{name.manifest}")
        Platform.parse(name.platform)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RootdiskError):
        return None
    is_valid = isinstance(name.reference, str) and isinstance(name.plain_http, bool)
    return name if is_valid and isinstance(name.ca_file, str | None) else None


def name_of(store: Store, place: str, manifest: Digest) -> Name | None:
    """Return a name of the manifest in the repository `place`, or one by which it was asked for; None if the store knows none."""
    return next((name for name in _names_of(store, manifest) if name.reference.startswith(place)), None)


def placed(store: Store, reference: Reference, manifest: Digest) -> Reference:
    """Make a layout's path absolute as it was when a sandbox was made of the manifest: the names of the store have it."""
    if reference.path is not None and not reference.path.is_absolute():
        wanted = f"/{str(reference).removeprefix('oci:')}"
        for name in _names_of(store, manifest):
            if name.reference.endswith(wanted):
                return parse_reference(name.reference)
    return absolute(reference)


def _names_of(store: Store, manifest: Digest) -> Iterator[Name]:
    names = map(read_name, sorted((store.root / "names").iterdir()))
    for name in (*(name for name in names if name is not None), *(name for _, name in asked(store))):
        if name.manifest == manifest.hex:
            yield name


def files_of(store: Store, manifest: str) -> set[str]:
    """Return the hex digests of a manifest, and of the blobs and the disk that it leads to, as far as the store knows them."""
    digests = {manifest}
    with contextlib.suppress(OSError, ValueError, RootdiskError):
        roles = ArtifactManifest.parse(store.read_blob(manifest, MANIFEST_MAX_BYTES))
        digests.add(roles.config.digest.hex)
        config = store.read_config(roles.config.digest.hex)
        digests.add(config.disk_digest.hex)
        digests |= {blob.content.digest.hex for blob in boot_blobs(roles, config)}
    return digests


def known(store: Store, reference: Reference, platform: Platform) -> bytes | None:
    """Return the manifest that `reference` named at the last request, or None if unknown."""
    return _manifest(store, _name_path(store, reference, platform))


def _manifest(store: Store, path: Path) -> bytes | None:
    name = read_name(path)
    if name is None:
        return None
    try:
        return store.read_blob(name.manifest, MANIFEST_MAX_BYTES)
    except (OSError, RootdiskError):
        return None
