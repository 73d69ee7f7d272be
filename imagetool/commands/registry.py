"""Commands on what is published: push, pull, tags, rm, discover."""

from __future__ import annotations

import argparse
import contextlib

from imagetool.commands import options as option_values
from imagetool.progress import reported
from rootdisk.artifact.format import KEY_TAG_PREFIX
from rootdisk.cli.rows import write_rows
from rootdisk.cli.table import table
from rootdisk.errors import BadInput
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.text import printable


def push_command(options: argparse.Namespace) -> int:
    """Copy an artifact or image from this machine to a registry."""
    if parse_reference(options.target).kind != "registry":
        raise BadInput(
            f"push to {printable(options.target, 120)}", "TO is registry/repository:tag; else: imagetool copy"
        )
    return _copy(options, options.source, options.target)


def pull_command(options: argparse.Namespace) -> int:
    """Copy an artifact or image from a registry to this machine."""
    source = parse_reference(options.source)
    if source.kind != "registry":
        raise BadInput(f"pull from {printable(source, 120)}", "FROM is registry/repository:tag; else: imagetool copy")
    target = options.target or f"oci:{source.repository.rpartition('/')[2]}:{source.tag or source.digest.hex[:12]}"  # type: ignore[union-attr]
    if parse_reference(target).kind == "registry":
        raise BadInput(
            f"pull to {printable(target, 120)}", "TO is oci:DIR:TAG or oci-archive:FILE:TAG; else: imagetool copy"
        )
    return _copy(options, options.source, target)


def _copy(options: argparse.Namespace, source: str, target: str) -> int:
    from imagetool.targets.copy import copy

    with reported(quiet=options.quiet) as report:
        digest = copy(source, target, option_values.registry(options), report, referrers=not options.no_referrers)
    if options.json:
        write_rows([{"digest": str(digest), "target": target}])
    else:
        print(f"{digest} {printable(target)}")
    return 0


def tags_command(options: argparse.Namespace) -> int:
    """List the tags of a repository."""
    from imagetool.targets.open import open_target

    place = _place(options.place)
    with contextlib.closing(open_target(place, option_values.registry(options))) as target:
        found = sorted(target.tags().items())
    rows = [{"tag": tag, "digest": str(digest)} for tag, digest in found]
    if options.json:
        write_rows(rows)
    else:
        for row in rows:
            print(printable(row["tag"]))
    return 0


def rm_command(options: argparse.Namespace) -> int:
    """Delete artifacts, with the tags that name them."""
    from imagetool.targets.open import open_target

    rows: list[dict[str, object]] = []
    for text in options.artifact:
        reference = parse_reference(text)
        if reference.path is not None and not reference.path.is_dir():
            raise BadInput(f"{printable(reference)} is not there", "see imagetool tags")
        with contextlib.closing(open_target(reference, option_values.registry(options))) as target:
            tags = target.tags()
            digest = reference.digest or tags.get(reference.tag)
            if digest is None:
                raise BadInput(f"{printable(reference)}: the tag does not exist", "see imagetool tags")
            others = sorted(tag for tag, named in tags.items() if named == digest and tag != reference.tag)
            versions = [
                tag for tag in others if not tag.startswith(KEY_TAG_PREFIX)
            ]  # its entry in the build cache goes along
            if versions and not options.force:
                shown = printable(", ".join(versions), 200)
                raise BadInput(f"{printable(reference)} is also tagged {shown}", "--force deletes all of these tags")
            target.remove(digest)
            gone = sorted({*others, reference.tag} - {""})
            rows.append({"digest": str(digest), "tags": gone})
            if not options.json:
                print("deleted", digest, printable(", ".join(gone), 200))
    if options.json:
        write_rows(rows)
    return 0


def discover_command(options: argparse.Namespace) -> int:
    """List what is attached to an artifact or image: signatures, SBOMs and other files."""
    from rootdisk.places import open_repository

    reference = parse_reference(options.what)
    with contextlib.closing(open_repository(reference, option_values.registry(options))) as repository:
        subject = repository.resolve(reference.name).digest
        found = repository.referrers(subject)
    rows = [
        {
            "digest": str(item.digest),
            "type": item.artifact_type,
            "size": item.size,
            "annotations": dict(item.annotations),
        }
        for item in found
    ]
    if options.json:
        write_rows(rows)
    elif rows:
        cells = [(printable(item.artifact_type, 80), str(item.digest), str(item.size)) for item in found]
        for line in table(("TYPE", "DIGEST", "BYTES"), cells, right=("BYTES",)):
            print(line)
    elif not options.quiet:
        print(f"nothing is attached to {subject}")
    return 0


def _place(text: str) -> Reference:
    """A repository; a tag or digest behind it is an error, as all tags are listed."""
    place = parse_reference(text)
    if place.digest is not None or (place.tag and (place.kind != "registry" or text.endswith(f":{place.tag}"))):
        raise BadInput(f"{printable(text, 120)} names one tag", "write registry/repository or oci:DIR")
    if place.path is not None and not place.path.is_dir():
        raise BadInput(f"{printable(place)} is not there", "is it the directory of an OCI layout?")
    return place
