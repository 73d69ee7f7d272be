"""Provenance: from what an artifact was built, by whom; SLSA provenance v1 in an in-toto statement.

What it says is the artifact's own config: digests of the source, of the guest's parts, and the derivation key. Recipe and
variables are not in it, as their values could be secrets; the derivation key stands for them. Who built it is taken from the
variables that CI systems set, and only what is a plain URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rootdisk.artifact.format import ArtifactConfig
from rootdisk.oci.documents import Digest
from rootdisk.trust.bundle import Statement

PREDICATE = "https://slsa.dev/provenance/v1"
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?/[A-Za-z0-9._~/@:+%-]{1,1000}\Z")
_ELSEWHERE = "https://rootdisk.invalid/builder/unknown"  # a URI that is nobody's


def statement(config: ArtifactConfig, digest: Digest, name: str, environment: Mapping[str, str]) -> Statement:
    """Say from what the artifact `digest`, published as `name`, was built."""
    builder, invocation = _builder(environment)
    guest = config.inputs.get("guest")
    parts = guest if isinstance(guest, Mapping) else {}
    dependencies: list[dict[str, Any]] = [_dependency("source", config.source_digest, config.source)]
    dependencies += [_dependency(part, text) for part, text in sorted(parts.items()) if isinstance(text, str)]
    predicate: dict[str, Any] = {
        "buildDefinition": {
            "buildType": "https://rootdisk.invalid/build/v1",
            "externalParameters": {"platform": str(config.platform), "derivationKey": config.derivation_key},
            "internalParameters": {},
            "resolvedDependencies": [item for item in dependencies if item["digest"]],
        },
        "runDetails": {"builder": {"id": builder, "version": dict(config.writer)}},
    }
    if invocation:
        predicate["runDetails"]["metadata"] = {"invocationId": invocation}
    return Statement(digest, name, PREDICATE, predicate)


def _dependency(name: str, text: str, uri: str = "") -> dict[str, Any]:
    algorithm, _, hex_ = text.partition(":")
    value: dict[str, Any] = {"name": name, "digest": {algorithm: hex_} if hex_ else {}}
    return value | ({"uri": f"oci://{uri}"} if uri else {})


def _builder(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the builder's id and the invocation's, from GitHub's or GitLab's variables."""

    def url(*names: str) -> str:
        """Join variables to a URL; "" if one is missing or the result is not a plain URL."""
        words = [environment.get(name, "") for name in names]
        text = "/".join(word.strip("/") for word in words)
        return text if all(words) and _URL.match(text) else ""

    run = url("GITHUB_SERVER_URL", "GITHUB_REPOSITORY")
    if run:
        number = environment.get("GITHUB_RUN_ID", "")
        attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
        invocation = f"{run}/actions/runs/{number}/attempts/{attempt}"
        return url("GITHUB_SERVER_URL", "GITHUB_WORKFLOW_REF") or run, invocation if _URL.match(invocation) else ""
    return url("CI_PROJECT_URL") or _ELSEWHERE, url("CI_JOB_URL")
