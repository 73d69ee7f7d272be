"""What references meant when they were last asked for: the files of names/ in the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import ArtifactManifest
from rootdisk.durable import read_json, write_json
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Digest, Platform
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.store import Damaged, Store

_TRIES = 10  # of finding it all there after fetching it: a prune may run at the same time


class Name(NamedTuple):
    """What a reference meant when it was last asked for, and how that was done."""

    reference: str
    platform: str
    manifest: str  # hex digest
    plain_http: bool
    ca_file: str | None


def absolute(reference: Reference) -> Reference:
    return reference if reference.path is None else reference._replace(path=reference.path.absolute())


def _name_path(store: Store, reference: Reference, platform: Platform) -> Path:
    return store.root / "names" / hashlib.sha256(os.fsencode(f"{reference} {platform}")).hexdigest()


def remember(
    store: Store, reference: Reference, platform: Platform, options: RegistryOptions, digest: Digest, raw: bytes
) -> None:
    ca_file = str(options.ca_file.absolute()) if options.ca_file else None
    name = Name(str(absolute(reference)), str(platform), digest.hex, options.plain_http, ca_file)
    path = _name_path(store, reference, platform)
    with contextlib.suppress(OSError, Damaged):
        if name == read_name(path) and store.read_blob(digest.hex, MANIFEST_MAX_BYTES) == raw:
            return
    store.write_blob(digest, raw)
    write_json(path, name._asdict(), durable=False)


def read_name(path: Path) -> Name | None:
    """Read a file of names/; None if it is not whole. Fields that this version does not know are left alone."""
    try:
        value = read_json(path)
        name = Name(**{field: value[field] for field in Name._fields})
        Digest.parse(f"sha256:{name.manifest}")
        Platform.parse(name.platform)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RootdiskError):
        return None
    sound = isinstance(name.reference, str) and isinstance(name.plain_http, bool)
    return name if sound and isinstance(name.ca_file, str | None) else None


def files_of(store: Store, name: Name) -> set[str]:
    """Return the hex digests of the manifest, blobs and disk that `name` leads to, as far as the store knows them."""
    found = {name.manifest}
    with contextlib.suppress(OSError, ValueError, RootdiskError):
        roles = ArtifactManifest.parse(store.read_blob(name.manifest, MANIFEST_MAX_BYTES))
        found |= {role.digest.hex for role in (roles.config, roles.kernel, roles.initramfs) if role is not None}
        found.add(store.read_config(roles.config.digest.hex).disk_digest.hex)
    return found


def known(store: Store, reference: Reference, platform: Platform) -> bytes | None:
    """The manifest that `reference` named the last time."""
    name = read_name(_name_path(store, reference, platform))
    if name is None:
        return None
    try:
        return store.read_blob(name.manifest, MANIFEST_MAX_BYTES)
    except (OSError, RootdiskError):
        return None
