"""The registry as a build cache: what somebody has built from the same inputs is not built again.

Every artifact is published under a tag made of its derivation key. Such a tag is a claim, by whoever may push there: it is
believed only where the config says exactly our inputs and the chunk index is the config's disk.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from imagetool.build import derivation
from imagetool.build.disk import registry
from imagetool.build.publish import refuse_to_move, resolved_tag
from imagetool.config.images import Image
from imagetool.progress import Report, silent
from imagetool.targets.copy import copy_manifest
from imagetool.targets.open import open_target
from imagetool.targets.prune import is_referrers, outdated
from rootdisk.artifact.format import key_tag
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.errors import BadInput, RegistryError, RootdiskError
from rootdisk.oci.documents import INDEX_TYPES, Descriptor, Digest, Index
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, Repository
from rootdisk.places import open_repository
from rootdisk.text import one_line


def find_built(image: Image, inputs: Mapping[str, Any]) -> tuple[Reference, Descriptor] | None:
    """The first of the image's targets that has the artifact of `inputs`, and its manifest's descriptor.

    A target that has it not, or has another thing under its name, counts as a miss; the latter with a warning. RegistryError
    where a target cannot be asked at all: then it could not be published to either.
    """
    tag = key_tag(derivation.derivation_key(inputs))
    for place in image.publish:
        if place.path is not None and not (place.path / "oci-layout").exists():
            continue
        repository = open_repository(place, registry(image))
        try:
            found = _resolved(repository, tag)
            if found is not None:
                _check(repository, found, inputs, image)
                return place, found
        except RegistryError:
            raise
        except RootdiskError as err:
            print(
                f"{image.name}: {place.place}:{tag} is not believed, so it is built: {one_line(str(err))}",
                file=sys.stderr,
            )
        finally:
            repository.close()
    return None


def publish_built(
    image: Image, place: Reference, digest: Digest, key: str, *, force: bool = False, report: Report = silent
) -> None:
    """The artifact `digest`, which lies at `place`, under the tags of imagetool.build.publish.publish in every target."""
    tags = (key_tag(key),) if image.group else (image.version, key_tag(key))
    repository = open_repository(place, registry(image))
    try:
        found = repository.resolve(digest)
        for reference in image.publish:
            if not force and not image.group:
                refuse_to_move(reference, image.version, digest, registry(image))
            target = open_target(reference, registry(image))
            try:
                if reference.place == place.place:
                    target.push_manifest(repository.manifest(found), found.media_type, tags)
                else:
                    copy_manifest(repository, target, found, tags, report=report)
            finally:
                target.close()
    finally:
        repository.close()


def prune(place: Reference, options: RegistryOptions, keep: int | None, *, delete: bool) -> list[tuple[str, Digest]]:
    """Tags of `place` past the policy (imagetool/targets/prune.py), and removed if `delete`."""
    with (
        contextlib.closing(open_repository(place, options)) as repository,
        contextlib.closing(open_target(place, options)) as target,
    ):

        def children(digest: Digest) -> list[Digest]:
            found = repository.resolve(digest)
            if found.media_type not in INDEX_TYPES:
                return []
            return [item.digest for item in Index.parse(repository.manifest(found)).manifests]

        tags = target.tags()
        old = [(tag, tags[tag]) for tag in outdated(tags, children, keep)]
        if delete:
            gone = dict.fromkeys(digest for _, digest in old)
            for tag, digest in old:
                if is_referrers(tag):
                    gone |= dict.fromkeys(children(digest))
            for digest in gone:
                target.remove(digest)
        return old


def _resolved(repository: Repository, tag: str) -> Descriptor | None:
    try:
        return resolved_tag(repository, tag)
    except BadInput:  # a layout's way to say that there is none
        return None


def _check(repository: Repository, found: Descriptor, inputs: Mapping[str, Any], image: Image) -> None:
    """RootdiskError where the manifest is not the artifact of `inputs`."""
    artifact = PublishedArtifact(repository, found, repository.manifest(found))
    config = artifact.config
    if config.derivation_key != derivation.derivation_key(inputs) or dict(config.inputs) != dict(inputs):
        raise BadInput("it was made of other inputs")
    if config.platform != image.platform:
        raise BadInput(f"it is for {config.platform}")
    assert artifact.index  # fetched and compared with the config's disk
