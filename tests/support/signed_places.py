"""An artifact in a registry with a log of what is asked for, and signatures for it, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagetool.signing.sign import bundle_of, push_bundle, sign
from imagetool.targets.open import open_target
from rootdisk.oci.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.trust.bundle import BUNDLE_TYPE, SIGN_PREDICATE, Bundle
from rootdisk.trust.signatures import Claim
from runner.cli import main
from tests.support.artifacts import BARE, Sample, noise, publish, sample
from tests.support.faults import FaultProxy
from tests.support.registry import RunningRegistry
from tests.support.signing import Keys, make_keys, signed_by, write_policy

OTHER = sample(noise(3, 64 << 10, seed=9))


class Place:
    """An artifact of its own for each test, behind the proxy; signed as the proxy's users name it."""

    def __init__(self, registry: RunningRegistry, proxy: FaultProxy, name: str, made: Sample, folder: Path) -> None:
        self.registry, self.proxy = registry, proxy
        self.repository = f"trust/{name}"
        self.direct = f"{registry.name}/{self.repository}:1"
        self.name = f"{proxy.name}/{self.repository}:1"
        self.made = made
        self.digest = made.artifact.descriptor.digest
        self.keys = make_keys(folder / "keys")
        self.policy = write_policy(folder / "policy.json", signed_by(self.keys))
        publish(made, self.direct, registry.options)

    def sign(self, keys: Keys | None = None, **options: Any) -> tuple[Digest, ...]:
        signer = (keys or self.keys).signer
        identity = options.pop("identity", self.name)
        return sign(parse_reference(self.direct), signer, self.registry.options, identity=identity, **options)

    def push(self, bundle: Bundle, subject: Digest | None = None) -> Digest:
        """Attach a bundle of one's own making."""
        target = open_target(parse_reference(self.direct), self.registry.options)
        named = Descriptor(OCI_MANIFEST, subject or self.digest, len(self.made.artifact.manifest))
        try:
            return push_bundle(target, named, bundle, SIGN_PREDICATE)
        finally:
            target.close()

    def claim(self, **changes: Any) -> Bundle:
        return bundle_of(Claim(changes.get("digest", self.digest), changes.get("name", self.name)), self.keys.signer)

    def run(self, *arguments: str, command: str = "pull") -> int:
        return main([command, "--plain-http", "--policy", str(self.policy), *(arguments or (self.name,))])

    def asked(self) -> list[str]:
        """Blobs of the artifact that were asked for."""
        blobs = {str(blob.descriptor.digest) for blob in self.made.artifact.blobs}
        blobs |= {str(blob.descriptor.digest) for blob in BARE.artifact.blobs + OTHER.artifact.blobs}
        return [path for _, path, _ in self.proxy.seen if path.rpartition("/")[2] in blobs and "/blobs/" in path]

    def refused(self, capsys: pytest.CaptureFixture[str], *words: str, command: str = "pull") -> str:
        """It is refused in one line, and nothing of it was asked for."""
        capsys.readouterr()
        assert self.run(command=command) == 125
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("runner: ")
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err
        for word in words:
            assert word in said.err, said.err
        assert self.asked() == []
        return said.err


def listing(*items: Descriptor) -> bytes:
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [item.to_json() for item in items]}
    return json.dumps(value).encode()


def referrer(number: int) -> Descriptor:
    return Descriptor(OCI_MANIFEST, Digest.of(b"%d" % number), 700, artifact_type=BUNDLE_TYPE)


def boots_up_to_the_machine(place: Place, capsys: pytest.CaptureFixture[str]) -> bool:
    """The policy lets it through; this artifact's disk has no slot, so it goes no further."""
    capsys.readouterr()
    assert place.run(command="boot") == 125
    return "the disk has no slot" in capsys.readouterr().err
