"""Provenance says what an artifact was built from, and no value of a variable."""

from __future__ import annotations

import pytest

from imagetool.signing.provenance import PREDICATE, statement
from rootdisk.artifact.format import ArtifactConfig
from rootdisk.oci.documents import Digest
from rootdisk.trust.bundle import IN_TOTO_TYPE, Statement
from tests.support.artifacts import noise, sample

MADE = sample(noise(1, 4096))
CONFIG = ArtifactConfig.parse(
    next(bytes(b.data) for b in MADE.artifact.blobs if b.descriptor.media_type.endswith("json"))
)
ZERO = "sha256:" + "0" * 64
BUILT = CONFIG._replace(
    inputs={"guest": {"init": ZERO, "kernel": None}, "recipe": {"env": ["TOKEN=s3cret"]}},
    source="registry.example/web:2",
    source_digest=ZERO,
    derivation_key="1" * 64,
    labels={"note": "l4bel"},
)
GITHUB = {
    "GITHUB_SERVER_URL": "https://git.example",
    "GITHUB_REPOSITORY": "me/web",
    "GITHUB_WORKFLOW_REF": "me/web/.github/workflows/disk.yml@refs/heads/main",
    "GITHUB_RUN_ID": "7",
    "GITHUB_RUN_ATTEMPT": "2",
    "GITHUB_TOKEN": "t0ken",
}


def test_what_it_was_built_from() -> None:
    made = statement(BUILT, Digest.of(b"x"), "registry.example/disk:1", GITHUB)
    assert made.predicate_type == PREDICATE
    definition, run = made.predicate["buildDefinition"], made.predicate["runDetails"]
    assert definition["externalParameters"] == {"platform": str(BUILT.platform), "derivationKey": "1" * 64}
    assert definition["resolvedDependencies"] == [
        {"name": "source", "digest": {"sha256": "0" * 64}, "uri": "oci://registry.example/web:2"},
        {"name": "init", "digest": {"sha256": "0" * 64}},
    ]
    assert run["builder"]["id"] == "https://git.example/me/web/.github/workflows/disk.yml@refs/heads/main"
    assert run["metadata"]["invocationId"] == "https://git.example/me/web/actions/runs/7/attempts/2"
    text = made.to_json()
    assert Statement.parse(IN_TOTO_TYPE, text) == made
    for secret in (b"s3cret", b"TOKEN", b"t0ken", b"l4bel"):
        assert secret not in text


@pytest.mark.parametrize(
    ("environment", "builder"),
    [
        ({}, "https://rootdisk.invalid/builder/unknown"),
        ({"CI_PROJECT_URL": "https://lab.example/me/web"}, "https://lab.example/me/web"),
        ({"CI_PROJECT_URL": "https://user:s3cret@lab.example/me"}, "https://rootdisk.invalid/builder/unknown"),
        ({"CI_PROJECT_URL": "https://lab.example/me?token=s3cret"}, "https://rootdisk.invalid/builder/unknown"),
        ({"CI_PROJECT_URL": "https://lab.example/\x1b[31m"}, "https://rootdisk.invalid/builder/unknown"),
    ],
)
def test_who_built_it(environment: dict[str, str], builder: str) -> None:
    made = statement(BUILT, Digest.of(b"x"), "", environment)
    assert made.predicate["runDetails"]["builder"]["id"] == builder
    assert b"s3cret" not in made.to_json()
