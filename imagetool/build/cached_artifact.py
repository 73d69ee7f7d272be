"""The registry as a build cache: an artifact that was built from the same inputs is not built again.

Every artifact is published under a tag made of its derivation key. Anyone who may push can set such a tag. So it is
accepted only if the config has exactly our inputs and the chunk index matches the disk in the config.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from imagetool.build import derivation
from imagetool.build.disk import registry
from imagetool.build.publish import resolved_tag, signing_key
from imagetool.config.images import Image
from imagetool.targets.open import open_target
from imagetool.targets.prune import outdated, unordered, versions
from rootdisk.artifact.format import key_tag
from rootdisk.artifact.policies import rule_for
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.artifact.signatures import signatures_of
from rootdisk.errors import BadInput, RegistryError, RootdiskError
from rootdisk.oci.documents import INDEX_TYPES, Descriptor, Digest, Index
from rootdisk.oci.reference import Reference
from rootdisk.oci.referrers import belongs_to_digest
from rootdisk.oci.repository import RegistryOptions, Repository
from rootdisk.places import open_repository
from rootdisk.text import one_line
from rootdisk.trust.judgement import Unusable


class FoundArtifact(NamedTuple):
    """A published artifact that was built from the wanted inputs. Sizes are bytes."""

    place: Reference
    descriptor: Descriptor
    disk_size: int
    compressed: int
    chunks: int  # those with data
    left_out: Mapping[str, int]  # counts of what was changed or left out, by kind


def find_built(image: Image, inputs: Mapping[str, Any], targets: Sequence[Reference]) -> FoundArtifact | None:
    """Find the artifact of `inputs` in the first of `targets` that has it; None if none has.

    If a target has something else under the tag of the key, a warning is printed and the next one is tried.

    Raises:
        RegistryError: a target cannot be asked at all, so it could not be published to either.
    """
    tag = key_tag(derivation.derivation_key(inputs))
    for place in targets:
        if place.path is not None and not (place.path / "oci-layout").exists():
            continue
        with contextlib.closing(open_repository(place, registry(image))) as repository:
            try:
                descriptor = resolved_tag(repository, tag)
                if descriptor is not None:
                    return _checked(repository, place, descriptor, inputs, image)
            except RegistryError:
                raise
            except RootdiskError as err:
                warning = (
                    f"{image.name}: {place.place}:{tag} is not accepted, so the disk is built: {one_line(str(err))}"
                )
                print(warning, file=sys.stderr)
    return None


class Pruned(NamedTuple):
    """Tags to remove or removed; how versions were ordered, in words ("" if none can go); bytes freed."""

    tags: list[tuple[str, Digest]]
    order: str
    freed: int = 0

    def remarks(self) -> list[str]:
        """Return lines that say how versions were ordered, and how much was freed."""
        order = [f"versions were ordered {self.order}"] if self.order else []
        return order + ([f"{self.freed / 1e6:.1f} MB freed"] if self.freed else [])


def prune(place: Reference, options: RegistryOptions, keep: int | None, *, delete: bool) -> Pruned:
    """Choose the tags of `place` that are not needed (imagetool/targets/prune.py), and remove them if `delete` is true.

    Raises:
        BadInput: `keep` is below 1.
    """
    if keep is not None and keep < 1:
        raise BadInput(f"--keep {keep}", "give the number of versions to keep, 1 or more")
    with (
        contextlib.closing(open_repository(place, options)) as repository,
        contextlib.closing(open_target(place, options)) as target,
    ):

        def children(digest: Digest) -> list[Digest]:
            """Return what an index lists; nothing for a manifest."""
            descriptor = repository.resolve(digest)
            if descriptor.media_type not in INDEX_TYPES:
                return []
            return [item.digest for item in Index.parse(repository.manifest(descriptor)).manifests]

        tags = target.tags()
        published = target.published(versions(tags)) if keep is not None else {}
        old = [(tag, tags[tag]) for tag in outdated(tags, children, keep, published)]
        order = _order(tags, published) if keep is not None else ""
        freed = 0
        if delete:
            unused = dict.fromkeys(digest for _, digest in old)
            for tag, digest in old:
                if belongs_to_digest(tag):
                    unused |= dict.fromkeys(children(digest))
                else:
                    unused |= dict.fromkeys(item.digest for item in repository.referrers(digest))
            for digest in unused:
                target.remove(digest)
            freed = target.sweep()
        return Pruned(old, order, freed)


def _order(tags: Collection[str], published: Mapping[str, float]) -> str:
    """Say how versions were ordered, and which stay because nobody knows their age."""
    order = "by the time they were published" if published else "by number, as no times are recorded"
    stay = sorted(unordered(tags, published))
    shown = ", ".join(stay[:5]) + (f" and {len(stay) - 5} more" if stay[5:] else "")
    return f"{order}; kept, as their age is not known: {shown}" if stay else order


def _checked(
    repository: Repository, place: Reference, descriptor: Descriptor, inputs: Mapping[str, Any], image: Image
) -> FoundArtifact:
    """Check that the artifact was built from `inputs`; RootdiskError if not."""
    artifact = PublishedArtifact(repository, descriptor, repository.manifest(descriptor))
    config = artifact.config
    if config.derivation_key != derivation.derivation_key(inputs) or dict(config.inputs) != dict(inputs):
        raise BadInput("it was built from other inputs")
    if config.platform != image.platform:
        raise BadInput(f"it is for {config.platform}")
    check_signed(repository, place, descriptor.digest, image)
    chunks = sum(not chunk.zero for chunk in artifact.index.chunks)
    return FoundArtifact(place, descriptor, config.disk_size, artifact.roles.disk_bytes, chunks, config.left_out)


def check_signed(repository: Repository, place: Reference, digest: Digest, image: Image) -> None:
    """Check that a published artifact may be used instead of a build.

    Raises:
        Refused: it is not signed as the policy requires.
        BadInput: this build signs with a key that has not signed the artifact, so anybody may have made it.
    """
    rule = rule_for(place._replace(tag="", digest=digest), image.policy)
    if rule is not None:
        rule.judge(signatures_of(repository, digest), [digest])
    if image.sign is not None:
        key = signing_key(image.sign).public
        for signature in signatures_of(repository, digest):
            with contextlib.suppress(BadInput):
                if not isinstance(signature, Unusable) and (claim := signature.claim(key)) and claim.digest == digest:
                    return
        raise BadInput("it is not signed with this build's key")
