"""List the signatures of what is published."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from imagetool.signing.keys import read_key_file
from imagetool.sources.archives import ArchiveRepository, TarArchive
from rootdisk.artifact.signatures import signatures_of
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, Repository
from rootdisk.places import open_repository
from rootdisk.text import printable
from rootdisk.trust.judgement import who_signed
from rootdisk.trust.keys import PublicKey


def listed(reference: Reference, key: Path | None, options: RegistryOptions | None = None) -> list[dict[str, Any]]:
    """Describe the signatures of what `reference` names; those that `key` made of its digest are verified."""
    keys = [PublicKey.parse(read_key_file(key), printable(key))] if key is not None else []
    repository: Repository
    if reference.kind == "oci-archive" and reference.path is not None:
        repository = ArchiveRepository(TarArchive.open(reference.path, reference.place))
    else:
        repository = open_repository(reference, options)
    with contextlib.closing(repository):
        digest = repository.resolve(reference.name).digest
        found = list(who_signed(signatures_of(repository, digest), keys))
    for item in found:
        if item["verified"] and item["digest"] != str(digest):
            item |= {"verified": False, "why": "a signature of another digest"}
    return found
