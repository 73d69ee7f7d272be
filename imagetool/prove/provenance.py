"""Compare signed provenance of an artifact with what the artifact says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from imagetool.signing.provenance import PREDICATE, statement
from rootdisk.artifact.published import PublishedArtifact
from rootdisk.artifact.signatures import signatures_of
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.text import printable
from rootdisk.trust.bundle import Bundle, Statement
from rootdisk.trust.judgement import Unusable
from rootdisk.trust.keys import PublicKey


def check(published: PublishedArtifact, key: PublicKey | None) -> str:
    """Compare the provenance that `key` has signed with the artifact's recorded inputs. Return what it is, in words.

    Without a key nothing is checked, and the words say so.

    Raises:
        BadInput: The key has signed no provenance of this artifact.
        RootdiskError: It says something else than the artifact.
    """
    if key is None:
        is_there = any(True for _ in _statements(published, None))
        return "there is some; --key checks it" if is_there else "none"
    digest = published.descriptor.digest
    signed = [found for found in _statements(published, key) if found.digest == digest]
    if not signed:
        raise BadInput(f"{digest}: no provenance is signed by that key", "imagetool signatures shows what is attached")
    expected = statement(published.config, digest, "", {}).predicate["buildDefinition"]
    for found in signed:
        said = found.predicate.get("buildDefinition")
        for name in sorted(expected.keys() | (said.keys() if isinstance(said, Mapping) else ())):
            value = said.get(name) if isinstance(said, Mapping) else None
            if value != expected.get(name):
                raise RootdiskError(
                    f"{digest}: its provenance has another {printable(name, 80)} than the artifact: "
                    f"{printable(repr(value), 200)}",
                    "do not use it",
                )
    return f"signed by {key.hint}, built by {printable(_builder(signed[-1].predicate), 200)}"


def _statements(published: PublishedArtifact, key: PublicKey | None) -> Iterator[Statement]:
    """Yield the provenance that is attached, with a key only what it has signed."""
    for signature in signatures_of(published.repository, published.descriptor.digest):
        if isinstance(signature, Unusable) or signature.format != "bundle":
            continue
        with contextlib.suppress(BadInput):  # something else, or another version of it
            bundle = Bundle.parse(signature.document)
            if key is None or key.verify(bundle.signature, bundle.signed):
                found = Statement.parse(bundle.payload_type, bundle.payload)
                if found.predicate_type == PREDICATE:
                    yield found


def _builder(predicate: Mapping[str, Any]) -> str:
    details = predicate.get("runDetails")
    builder = details.get("builder") if isinstance(details, Mapping) else None
    return str(builder.get("id", "?")) if isinstance(builder, Mapping) else "?"
