"""OCI documents as frozen values: digests, descriptors, manifests and indexes, parsed once from raw bytes.

Follows the OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md). Docker's image manifest version 2,
schema 2, is read too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.fields import INTEGER_MAX, Fields, parse_value
from rootdisk.text import printable

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

DESCRIPTORS_MAX_COUNT = 50_000
ANNOTATIONS_MAX_COUNT = 10_000
FEATURES_MAX_COUNT, FEATURE_MAX = 64, 64
UNLISTED_MAX_COUNT = 100  # entries of an index without a platform, for each of which two documents are read
ANNOTATION_MAX = 1 << 20  # characters; signatures have about 10,000

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")
_PLATFORM_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}\Z"  # compiled at first use


class Digest(NamedTuple):
    """A content digest, `sha256:<64 lower-case hex>` or `sha512:<128>`; image-spec descriptor.md#digests."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Parse `sha256:HEX` or `sha512:HEX`. The result is safe to use as a file name.

        Raises:
            BadInput: `text` is not such a digest.
        """
        if not isinstance(text, str):
            raise BadInput(f"digest is not a string: {text!r:.80}")
        algorithm, _, hex_ = text.partition(":")
        if _HEX_LENGTH.get(algorithm) != len(hex_) or not _HEX.match(hex_):
            raise BadInput(f"not a sha256 or sha512 digest: {text!r:.160}")
        return cls(algorithm, hex_)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """Return the sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 hex digits, for messages."""
        return self.hex[:12]


class Platform(NamedTuple):
    """Operating system, architecture and variant; `platform` in image-index.md."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `linux/amd64`, `linux/arm64/v8`, or an architecture alone. `linux` alone is this machine's.

        Raises:
            BadInput: `text` is not a platform.
        """
        if text == "linux":
            return cls.host()
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(re.match(_PLATFORM_PART, part) for part in parts):
            raise BadInput(f"platform {text!r:.80}", "write os/architecture[/variant], for example linux/amd64")
        return cls(parts[0], *_normal(parts[1], parts[2] if len(parts) == 3 else ""))

    @classmethod
    def host(cls) -> Platform:
        """Return Linux on the architecture of this machine: guests are always Linux."""
        return cls("linux", *_normal(os.uname().machine, ""))

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Platform:
        """Read `os`, `architecture` and `variant` of a descriptor or an image config.

        Raises:
            BadInput: A field is not valid.
        """
        fields = Fields(value, "platform")
        os_, architecture, variant = (
            fields.text(key, "", limit=64, pattern=r"[A-Za-z0-9_.+-]*") for key in ("os", "architecture", "variant")
        )
        return cls(os_.lower(), *_normal(architecture, variant.lower()))

    def __str__(self) -> str:
        return "/".join(p for p in (self.os, self.architecture, self.variant) if p)


def _normal(architecture: str, variant: str) -> tuple[str, str]:
    """Normalize like containerd (platforms/database.go): x86_64 becomes amd64, arm64/v8 becomes arm64."""
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
    """Type, size and digest of a blob or manifest; descriptor.md."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = MappingProxyType({})
    platform: Platform | None = None
    artifact_type: str = ""
    os_features: tuple[str, ...] = ()  # of the platform: what the system must have, and no guest of ours has
    cpu_features: tuple[str, ...] = ()  # the same of the processor, in Docker's lists

    @classmethod
    def parse(cls, value: object, what: str = "descriptor", *, untyped: bool = False) -> Descriptor:
        """Read a descriptor from its JSON value; errors name it `what`. If `untyped`, it may have no media type.

        Raises:
            BadInput: `value` is not a descriptor.
        """
        item = Fields.of(value, what)
        platform = item.inner("platform") if item.value.get("platform") is not None else Fields({}, what)
        listed = Platform.of(platform.value)
        return cls(
            _media_type(item, "mediaType", "" if untyped else None),
            Digest.parse(item.text("digest")),
            item.integer("size", 0, INTEGER_MAX),
            _annotations(item),
            listed if platform.value else None,
            _media_type(item, "artifactType", ""),
            platform.texts("os.features", FEATURES_MAX_COUNT, limit=FEATURE_MAX),
            platform.texts("features", FEATURES_MAX_COUNT, limit=FEATURE_MAX),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value, for manifests and indexes."""
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
        """The annotation with the file name, or ""."""
        return self.annotations.get("org.opencontainers.image.title", "")


class Manifest(NamedTuple):
    """An image manifest: config and layers, or the blobs of an artifact; manifest.md."""

    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        """Parse a manifest.

        Raises:
            BadInput: `raw` is not an image manifest, or could be read as an index too.
            Unsupported: Its schema version is not 2.
        """
        value = Fields(parse_json(raw, "manifest"), "manifest", "is this an image manifest?")
        _schema_2(value)
        _only_one_kind(value, INDEX_TYPES, ("manifests",))
        subject = value.value.get("subject")
        return cls(
            _media_type(value, "mediaType", OCI_MANIFEST),
            _media_type(value, "artifactType", ""),
            Descriptor.parse(value.value.get("config"), "manifest: config", untyped=True),
            _descriptors(value, "layers", "manifest: layer"),
            _annotations(value),
            Descriptor.parse(subject, "manifest: subject") if subject is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
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
    """An image index: the same image for several platforms; image-index.md."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> Index:
        """Parse an index.

        Raises:
            BadInput: `raw` is not an image index, or could be read as a manifest too.
            Unsupported: Its schema version is not 2.
        """
        value = Fields(parse_json(raw, "index"), "index")
        _schema_2(value)
        _only_one_kind(value, MANIFEST_TYPES, ("config", "layers", "fsLayers"))
        return cls(
            _media_type(value, "mediaType", OCI_INDEX),
            _descriptors(value, "manifests", "index: manifest"),
            _annotations(value),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [item.to_json() for item in self.manifests],
        }
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return value

    def choose(self, platform: Platform, ask: Callable[[Descriptor], Platform | None] | None = None) -> Descriptor:
        """Return the manifest for exactly `platform`, never a similar one.

        `ask` tells the platform of an entry that lists none; None if it is not an image.

        Raises:
            BadInput: There is none. The message lists the platforms of the index, the hint says what to type.
        """
        # BuildKit lists attestations, which are not images, as unknown/unknown.
        listed = [item for item in self.manifests if item.platform is not None and item.platform.os != "unknown"]
        unlisted = [item for item in self.manifests if not _is_platform(item.platform)] if ask is not None else []
        fitting = [item for item in listed if item.platform == platform and not item.os_features]
        if fitting:
            # What is attached to an image, such as an index of its files, may be listed beside it.
            return min(fitting, key=lambda item: (bool(item.artifact_type), bool(item.cpu_features)))
        others = [(item.platform, item.os_features) for item in listed if item.platform and item not in unlisted]
        if len(unlisted) > UNLISTED_MAX_COUNT:
            raise BadInput(
                f"the index has more than {UNLISTED_MAX_COUNT} entries without a platform", "choose one by its digest"
            )
        for item in unlisted:
            actual = ask(item) if ask is not None else None
            if actual == platform and not item.os_features:
                return item
            if actual is not None:
                others.append((actual, item.os_features))
        raise no_variant(platform, others)


def no_variant(platform: Platform, others: Sequence[tuple[Platform, Sequence[str]]]) -> BadInput:
    """Return the error for a platform that an image does not have; `others` are those it has, with their OS features."""
    names = sorted({f"{one}{' with ' + ', '.join(needs) if needs else ''}" for one, needs in others})
    usable = sorted({one for one, needs in others if one.os == "linux" and one.architecture and not needs}, key=str)
    if not names:
        return BadInput(f"no {platform} variant: the index lists no image", "is it an image?")
    nearest = [one for one in usable if one.architecture == platform.architecture] or usable
    hint = f"use --platform {nearest[0]}" if nearest else "guests are Linux, without special features"
    return BadInput(f"no {platform} variant (only {printable(', '.join(names), 400)})", hint)


def _is_platform(platform: Platform | None) -> bool:
    """Return whether the two fields are there that image-index.md requires."""
    return platform is not None and bool(platform.os and platform.architecture)


def canonical_json(value: object) -> bytes:
    """Encode `value` in its only canonical form, for digests: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_json(raw: bytes, what: str, max_bytes: int = MANIFEST_MAX_BYTES) -> Mapping[str, Any]:
    """Parse a JSON object. Errors name it `what`.

    Raises:
        BadInput: It is too large, too deeply nested, ambiguous, or not an object.
    """
    return Fields.of(parse_value(raw, what, max_bytes), what).value


def _schema_2(value: Fields) -> None:
    version = value.value.get("schemaVersion")
    if type(version) is not int or version != 2:
        raise Unsupported(f"{value.what}: schemaVersion {printable(repr(version), 20)}", "only version 2 is supported")


def _only_one_kind(value: Fields, others: tuple[str, ...], keys: tuple[str, ...]) -> None:
    """Refuse a document that somebody else could take for the other kind: one digest, two images (CVE-2021-41190)."""
    if value.value.get("mediaType") in others:
        raise value.wrong("mediaType", f"{value.value['mediaType']}, and it was named as the other kind")
    if any(value.value.get(key) is not None for key in keys):
        raise BadInput(f"{value.what}: both an index and an image", "the image is damaged or hostile")


def _descriptors(value: Fields, key: str, what: str) -> tuple[Descriptor, ...]:
    items = value.items(key, DESCRIPTORS_MAX_COUNT)
    return tuple(Descriptor.parse(item, f"{what} {number}") for number, item in enumerate(items, 1))


def _media_type(value: Fields, key: str, default: str | None = None) -> str:
    """Read a media type: RFC 6838, or any other text that fits in an HTTP header unchanged."""
    return value.text(key, default, limit=255, pattern=r"[!-~]+(?: ?; ?[!-~]+)*")


def _annotations(value: Fields) -> Mapping[str, str]:
    return value.strings("annotations", ANNOTATIONS_MAX_COUNT, limit=ANNOTATION_MAX)
