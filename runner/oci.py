"""The OCI documents both tools read: digests, descriptors, manifests and indexes, parsed once from raw bytes.

Follows the OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md) and, for reading, Docker's image
manifest version 2, schema 2. Everything here is a frozen value; inside the packages nobody sees a bare mapping.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from runner.errors import BadInput, Unsupported

MANIFEST_MAX_BYTES = 4 << 20  # registries refuse larger ones; distribution-spec "manifest SHOULD be limited to 4 MiB"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


class Digest(NamedTuple):
    """A content digest, `sha256:<64 lower-case hex>` or `sha512:<128>`; image-spec descriptor.md#digests."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Digest from its text form; BadInput on anything else, so a Digest is always safe as a file name."""
        if not isinstance(text, str):
            raise BadInput(f"digest is not a string: {text!r:.80}")
        algorithm, _, hex_ = text.partition(":")
        if _HEX_LENGTH.get(algorithm) != len(hex_) or not _HEX.match(hex_):
            raise BadInput(f"not a sha256 or sha512 digest: {text!r:.160}")
        return cls(algorithm, hex_)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 hex digits, for talking to people."""
        return self.hex[:12]


class Platform(NamedTuple):
    """image-index.md#image-index-property-descriptions, `platform`."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`linux/amd64`, `linux/arm64/v8`, or an architecture alone."""
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(parts):
            raise BadInput(f"platform {text!r}", "write os/architecture[/variant], as linux/amd64")
        return cls(parts[0], *_normal(parts[1], parts[2] if len(parts) == 3 else ""))

    @classmethod
    def host(cls) -> Platform:
        """Linux on this machine's processor: guests are always Linux."""
        return cls("linux", *_normal(os.uname().machine, ""))

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Platform:
        """From a descriptor's or config's `os`, `architecture`, `variant`."""
        return cls(
            str(value.get("os", "")), *_normal(str(value.get("architecture", "")), str(value.get("variant") or ""))
        )

    def __str__(self) -> str:
        return "/".join(p for p in (self.os, self.architecture, self.variant) if p)


def _normal(architecture: str, variant: str) -> tuple[str, str]:
    """Architecture and variant in containerd's normal form (platforms/database.go): x86_64 is amd64, arm64/v8 is arm64."""
    architecture = architecture.lower()
    architecture = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm"}.get(
        architecture, architecture
    )
    if (architecture, variant) in (("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")):
        variant = ""
    if architecture == "arm" and variant in ("", "7"):
        variant = "v7"
    return architecture, variant


class Descriptor(NamedTuple):
    """descriptor.md: what a blob or manifest is, how long, and which bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = MappingProxyType({})
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    def parse(cls, value: object, what: str = "descriptor") -> Descriptor:
        item = _mapping(value, what)
        size = item.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise BadInput(f"{what}: size is {size!r:.40}, not a byte count")
        media_type = item.get("mediaType")
        if not isinstance(media_type, str) or not media_type:
            raise BadInput(f"{what}: no mediaType")
        platform = item.get("platform")
        return cls(
            media_type,
            Digest.parse(item.get("digest")),
            size,
            _strings(item.get("annotations"), f"{what}: annotations"),
            Platform.of(_mapping(platform, f"{what}: platform")) if platform is not None else None,
            str(item.get("artifactType") or ""),
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON value, for manifests and indexes we write."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            value["platform"] = {"os": self.platform.os, "architecture": self.platform.architecture}
            if self.platform.variant:
                value["platform"]["variant"] = self.platform.variant
        return value

    @property
    def title(self) -> str:
        return self.annotations.get("org.opencontainers.image.title", "")


class Manifest(NamedTuple):
    """manifest.md: a config and layers, or an artifact's blobs."""

    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        value = parse_json(raw, "manifest")
        _schema_2(value, "manifest")
        layers = value.get("layers")
        if not isinstance(layers, list):
            raise BadInput("manifest: no layers", "is this an image manifest?")
        subject = value.get("subject")
        return cls(
            str(value.get("mediaType") or OCI_MANIFEST),
            str(value.get("artifactType") or ""),
            Descriptor.parse(value.get("config"), "manifest: config"),
            tuple(Descriptor.parse(layer, f"manifest: layer {n + 1}") for n, layer in enumerate(layers)),
            _strings(value.get("annotations"), "manifest: annotations"),
            Descriptor.parse(subject, "manifest: subject") if subject is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        value["config"] = self.config.to_json()
        value["layers"] = [layer.to_json() for layer in self.layers]
        if self.subject is not None:
            value["subject"] = self.subject.to_json()
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return value


class Index(NamedTuple):
    """image-index.md: the same thing for several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> Index:
        value = parse_json(raw, "index")
        _schema_2(value, "index")
        manifests = value.get("manifests")
        if not isinstance(manifests, list):
            raise BadInput("index: no manifests")
        return cls(
            str(value.get("mediaType") or OCI_INDEX),
            tuple(Descriptor.parse(item, f"index: manifest {n + 1}") for n, item in enumerate(manifests)),
            _strings(value.get("annotations"), "index: annotations"),
        )

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [item.to_json() for item in self.manifests],
        }
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return value

    def choose(self, platform: Platform) -> Descriptor:
        """The one manifest for exactly `platform`; never "any Linux". BadInput lists what there is."""
        # BuildKit's attestations are listed as unknown/unknown and are not images.
        offered = [item for item in self.manifests if item.platform is not None and item.platform.os != "unknown"]
        for item in offered:
            if item.platform == platform:
                return item
        names = ", ".join(sorted({str(item.platform) for item in offered})) or "no platform"
        raise BadInput(f"no image for {platform}", f"the index offers {names}")


def canonical_json(value: object) -> bytes:
    """One value, one text: sorted keys, no spaces, UTF-8. What digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_json(raw: bytes, what: str, max_bytes: int = MANIFEST_MAX_BYTES) -> Mapping[str, Any]:
    """The JSON object in `raw`; BadInput names `what` where it is too large, too deep or not an object."""
    if len(raw) > max_bytes:
        raise BadInput(f"{what}: {len(raw)} bytes are more than the {max_bytes} allowed")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise BadInput(f"{what}: not JSON", str(err)[:120]) from err
    return _mapping(value, what)


def _schema_2(value: Mapping[str, Any], what: str) -> None:
    if value.get("schemaVersion") != 2:
        raise Unsupported(f"{what}: schemaVersion {value.get('schemaVersion')!r:.20}", "only version 2 is read")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{what}: not a JSON object")
    return value


def _strings(value: object, what: str) -> Mapping[str, str]:
    if value is None:
        return {}
    return {str(k): str(v) for k, v in _mapping(value, what).items()}
