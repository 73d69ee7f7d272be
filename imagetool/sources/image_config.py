"""An image's config (image-spec config.md; Docker's image specification 1.2 has the same fields)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imagetool.tree.remarks import Remark
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import (
    DOCKER_CONFIG,
    MANIFEST_MAX_BYTES,
    OCI_CONFIG,
    Descriptor,
    Digest,
    Manifest,
    Platform,
    no_variant,
)
from rootdisk.oci.fields import Fields, parse_value
from rootdisk.parsing.ids import parse_signal
from rootdisk.text import printable

# What Docker takes for an image (moby, distribution/registry.go): the last four are what old registries and clients wrote.
CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream", "application/json", "text/html", "")
REMARKS_MAX = 20  # about one config
ENCRYPTED = "org.opencontainers.image.enc."  # annotations of ocicrypt


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image config that decide a disk, and its ports, which are only shown to people."""

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
    remarks: tuple[Remark, ...] = ()  # what of the config is not used as it stands

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """The config in `raw`, read as container runtimes read it; BadInput names the field that is wrong."""
        doubled: dict[str, None] = {}
        document = parse_value(
            _as_go_reads(raw), "image config", MANIFEST_MAX_BYTES, lambda key: doubled.update({key: None})
        )
        value = any_case(Fields.of(document, "image config").value)
        rootfs = any_case(value.get("rootfs"))
        if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids"), list):
            raise BadInput("image config: no rootfs.diff_ids", "is this an image, or another artifact?")
        if rootfs.get("type") not in (None, "", "layers"):
            raise Unsupported(f"image config: rootfs of type {printable(repr(rootfs['type']), 40)}")
        process = any_case(_object(value, "config"))
        remarks = [
            Remark(f"image config: {printable(key, 80)} stands there twice: the last one counts") for key in doubled
        ]
        del remarks[REMARKS_MAX:]
        env = _strings(process, "Env")
        for item in env:
            if "=" not in item[1:]:  # runtimes leave these out too
                name = printable(item.partition("=")[0], 80)
                remarks.append(Remark(f"image config: Env entry {name!r} has no name or no value: left out"))
        stop_signal = _text(process, "StopSignal") or "SIGTERM"
        try:
            parse_signal(stop_signal)
        except BadInput as err:
            remarks.append(Remark(f"image config: StopSignal: {err.message}: SIGTERM is used"))
            stop_signal = "SIGTERM"
        labels = _object(process, "Labels")
        if not all(isinstance(item, str | None) for item in labels.values()):
            raise BadInput("image config: Labels is not an object of strings")
        return cls(
            Platform.of(value),
            tuple(map(Digest.parse, _strings(rootfs, "diff_ids"))),
            tuple(item for item in env if "=" in item[1:]),
            ()
            if (entrypoint := _words(process, "Entrypoint")) == ("",)
            else entrypoint,  # ENTRYPOINT [""] takes it back
            _words(process, "Cmd"),
            _text(process, "WorkingDir") or "/",
            _text(process, "User"),
            stop_signal,
            {key: item or "" for key, item in sorted(labels.items())},
            _keys(process, "ExposedPorts"),
            _keys(process, "Volumes"),
            bool(value.get("variant")),
            tuple(remarks),
        )

    @property
    def process(self) -> Process:
        """The default program of the image."""
        return Process(self.entrypoint, self.cmd, self.workdir, self.user, self.stop_signal, self.volumes)


def check_image(
    manifest: Manifest, config: ImageConfig, platform: Platform, where: str, listed: Platform | None = None
) -> tuple[Remark, ...]:
    """Refuse an image that is not for `platform`, or whose layers are not tars or do not fit its config.

    `listed` is the platform by an index, which is believed if the config says another, as by container runtimes.
    Returns a remark then.

    Raises:
        BadInput: The image is for another platform, or its config and layers do not belong together.
        Unsupported: A layer is encrypted, or is not a tar.
    """
    for number, layer in enumerate(manifest.layers, 1):
        _check_layer(layer, f"{where}: layer {number}")
    if len(config.diff_ids) != len(manifest.layers):
        raise BadInput(f"{where}: {len(manifest.layers)} layers, and {len(config.diff_ids)} diff_ids in the config")
    config_platform = config.platform
    if config_platform == platform:
        return config.remarks
    if listed == platform:
        is_contradiction = (config_platform.os, config_platform.architecture) != (
            platform.os,
            platform.architecture,
        ) or config.variant_said
        text = (
            f"{where}: its index says {platform}, its config {config_platform or 'no platform'}: the index is believed"
        )
        return (*config.remarks, *([Remark(text)] if is_contradiction else []))
    if config_platform in (Platform("", ""), Platform("linux", "")):
        return (*config.remarks, Remark(f"{where}: its config names no platform: {platform} is believed"))
    err = no_variant(platform, [(config_platform, ())])
    raise BadInput(f"{where}: {err.message}", err.hint)


def may_be_absent(layer: Descriptor) -> bool:
    """Return whether a layer need not be where its image is: image-spec, layer.md, "Non-Distributable Layers".

    It is asked for in spite of its type: many tools push such layers too.
    """
    return "nondistributable" in layer.media_type or ".foreign." in layer.media_type


def _check_layer(layer: Descriptor, what: str) -> None:
    """Refuse by its type, before a byte is read, what cannot be a tar."""
    shown = printable(layer.media_type, 120)
    if "+encrypted" in layer.media_type or any(key.startswith(ENCRYPTED) for key in layer.annotations):
        raise Unsupported(
            f"{what} is encrypted ({shown})",
            "decrypt the image first: skopeo copy --decryption-key KEY.pem docker://IMAGE oci:DIR:TAG",
        )
    # Runtimes read the bytes whatever the type says, if it could be a tar.
    if "tar" not in layer.media_type and not re.fullmatch(
        r"application/(octet-stream|(x-)?(gzip|zstd))", layer.media_type
    ):
        raise Unsupported(
            f"{what} is of type {shown}, which is not a tar", "only images of tar layers can be converted"
        )


def _as_go_reads(raw: bytes) -> bytes:
    """Return a JSON document with U+FFFD for each byte that is not UTF-8, such as those of an author's name in Latin-1."""
    return re.sub("[\udc80-\udcff]", "\ufffd", raw.decode("utf-8", "surrogateescape")).encode()


def any_case(value: Any) -> Any:
    """An object whose keys are in lower case: Go takes a field's name in any case, and the last one of a name."""
    return {key.lower(): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _words(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings, or one string, which Docker takes too (strslice)."""
    text = value.get(key.lower())
    return _strings({key.lower(): [text] if text else None} if isinstance(text, str) else value, key)


def _strings(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    items = value.get(key.lower())
    items = [] if items is None else items
    if isinstance(items, list):
        items = ["" if item is None else item for item in items]
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadInput(f"image config: {key} is not a list of strings")
    if any("\0" in item for item in items):
        raise BadInput(f"image config: {key} holds a NUL byte")
    return tuple(items)


def _keys(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A set, which Go writes as an object of empty objects."""
    return tuple(sorted(_object(value, key)))


def _object(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object; an empty one for null, as for Go, and for nothing else."""
    table = value.get(key.lower())
    if table is not None and not isinstance(table, dict):
        raise BadInput(f"image config: {key} is not an object")
    return table or {}


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key.lower())
    text = "" if text is None else text
    if not isinstance(text, str) or "\0" in text:
        raise BadInput(f"image config: {key} is not a plain string")
    return text
