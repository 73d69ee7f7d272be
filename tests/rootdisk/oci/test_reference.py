"""Names, as people write them."""

from __future__ import annotations

import pytest

from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference

SHA = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("some/name", "docker.io/some/name:latest"),
        ("index.docker.io/library/x", "docker.io/library/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("Host/x", "Host/x:latest"),  # a capital makes it a registry, as with docker
        ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
        ("Registry.Example:5000/a", "registry.example:5000/a:latest"),
        ("LocalHost/a", "localhost/a:latest"),
        ("[::1]:5000/a:v1", "[::1]:5000/a:v1"),
        ("ghcr.io/a/b__c/d-e.f", "ghcr.io/a/b__c/d-e.f:latest"),
        (f"ghcr.io/a/b@{SHA}", f"ghcr.io/a/b@{SHA}"),
        (f"ghcr.io/a/b:t@{SHA}", f"ghcr.io/a/b:t@{SHA}"),
        ("oci:/d/e:v1", "oci:/d/e:v1"),
        ("oci:d", "oci:d"),
        (f"oci:d@{SHA}", f"oci:d@{SHA}"),
        ("oci-archive:f.tar:v1", "oci-archive:f.tar:v1"),
        ("docker-archive:f.tar:a/b:v1", "docker-archive:f.tar:a/b:v1"),
        ("docker-daemon:a/b:v1", "docker-daemon:docker.io/a/b:v1"),
        ("tar:/x:y.tar", "tar:/x:y.tar"),
    ],
)
def test_names(text: str, expected: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == expected
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", ":", "Alpine", "a b", "a:", "a@", "a@sha256:00", "a/../b", "-x/y.z:", "https://ghcr.io/a", "oci:", "oci::v1",
     "x.y:99999999/a", "a:" + "t" * 129, "ghcr.io/" + "a" * 256, "ghcr.io/a?b", "host.name/", "tar:", "oci:d:a b"],
)  # fmt: skip
def test_bad_names_have_a_hint(text: str) -> None:
    with pytest.raises(BadInput):
        parse_reference(text)
