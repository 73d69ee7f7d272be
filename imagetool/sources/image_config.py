"""An image's config (image-spec config.md; Docker's image specification 1.2 has the same fields)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import DOCKER_CONFIG, MANIFEST_MAX_BYTES, OCI_CONFIG, Digest, Manifest, Platform, parse_json
from rootdisk.text import printable

CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What of an image's config decides a disk; and ports and volumes, which do not: they are shown to people."""

    platform: Platform
    diff_ids: tuple[Digest | None, ...]  # None only for a bare tar, whose config we make up
    env: tuple[str, ...] = ()  # NAME=value
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()  # as 80/tcp
    volumes: tuple[str, ...] = ()
    variant_said: bool = True  # by the config itself; else the platform's is the usual one of its architecture

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """The config in `raw`; BadInput names the field that is wrong."""
        value = parse_json(raw, "image config", MANIFEST_MAX_BYTES)
        rootfs = value.get("rootfs")
        if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids"), list):
            raise BadInput("image config: no rootfs.diff_ids", "is this an image, or another artifact?")
        if rootfs.get("type", "layers") != "layers":
            raise Unsupported(f"image config: rootfs of type {rootfs.get('type')!r:.40}")
        process = value.get("config") or {}
        if not isinstance(process, dict):
            raise BadInput("image config: config is not an object")
        env = _strings(process, "Env")
        for item in env:
            if "=" not in item[1:]:
                raise BadInput(f"image config: Env entry {item.partition('=')[0]!r:.80} has no name or no value")
        labels = process.get("Labels") or {}
        if not isinstance(labels, dict):
            raise BadInput("image config: Labels is not an object")
        return cls(
            Platform.of(value),
            tuple(Digest.parse(item) for item in rootfs["diff_ids"]),
            env,
            _strings(process, "Entrypoint"),
            _strings(process, "Cmd"),
            _text(process, "WorkingDir") or "/",
            _text(process, "User"),
            _text(process, "StopSignal") or "SIGTERM",
            {str(key): str(item) for key, item in sorted(labels.items())},
            _keys(process, "ExposedPorts"),
            _keys(process, "Volumes"),
            bool(value.get("variant")),
        )

    @property
    def process(self) -> Process:
        return Process(self.entrypoint, self.cmd, self.workdir, self.user, self.stop_signal)


def check_image(
    manifest: Manifest, config: ImageConfig, platform: Platform, where: str, listed: Platform | None = None
) -> None:
    """Refuse what is no image for `platform` or whose layers do not fit its config.

    `listed` is what an index says of it, which knows the variant where an older config does not.
    """
    for number, layer in enumerate(manifest.layers, 1):
        if "nondistributable" in layer.media_type or ".foreign." in layer.media_type:
            raise Unsupported(
                f"{where}: layer {number} is of type {printable(layer.media_type, 120)}",
                "its bytes are not in the registry",
            )
    if len(config.diff_ids) != len(manifest.layers):
        raise BadInput(f"{where}: {len(manifest.layers)} layers, and {len(config.diff_ids)} diff_ids in the config")
    own = config.platform
    if (
        listed == platform
        and not config.variant_said
        and (own.os, own.architecture) == (platform.os, platform.architecture)
    ):
        own = platform
    if own != platform:
        raise BadInput(f"{where}: an image for {own or 'no platform'}, not {platform}", "ask for its platform")


def _strings(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    items = value.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadInput(f"image config: {key} is not a list of strings")
    if any("\0" in item for item in items):
        raise BadInput(f"image config: {key} holds a NUL byte")
    return tuple(items)


def _keys(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A set, which Go writes as an object of empty objects."""
    table = value.get(key) or {}
    if not isinstance(table, dict):
        raise BadInput(f"image config: {key} is not an object")
    return tuple(sorted(table))


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key) or ""
    if not isinstance(text, str) or "\0" in text:
        raise BadInput(f"image config: {key} is not a plain string")
    return text
