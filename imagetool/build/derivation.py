"""The inputs that decide an artifact's bytes, and the derivation key made of them: equal keys, equal bytes.

Version and places of publication are not inputs: they name an artifact, but do not change its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imagetool.config.images import Image
from imagetool.guest.programs import Guest
from rootdisk.artifact.format import LAYOUT_VERSION
from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.text import one_line

_DEPTH_MAX = 16  # nesting that explain() compares; our inputs have far less
# The kernel's tests of its own ciphers take a third of its boot, and nothing of the guest's depends on them.
_CMDLINE = "console={} reboot=t panic=-1 quiet cryptomgr.notests rdinit=/init"
WRITER_VERSION = 6  # raise it whenever the same inputs give other bytes


def settings(image: Image) -> dict[str, Any]:
    """The part of the inputs that images.toml decides, and our own version: known before a registry is asked or a file is read."""
    certificates = {"ca": image.tls_ca, "client": image.tls_client}
    optional: dict[str, Any] = {
        "files": [file.to_json() for file in image.files],
        "remove": list(image.remove),
        "max_blob": image.max_blob,
        "verity": image.verity,
        "boot_trace": str(Digest.of("\n".join(image.boot_trace).encode())) if image.boot_trace else "",
        "network": {"allow": list(image.allow)} if image.allow else {},
        # An owner of "/" once got our own directory too. Only those disks changed, so only they get another key.
        "spared": any(not owner.path.strip("/.") for owner in image.owners),
    }
    return {
        "platform": str(image.platform),
        "cmdline": _CMDLINE,
        "layout": LAYOUT_VERSION,
        "writer": WRITER_VERSION,
        "recipe": {
            "size": image.size,
            "memory": image.memory,
            "cpus": image.cpus,
            "env": list(image.env),
            "tls": {name: str(Digest.of(data)) for name, data in certificates.items() if data is not None},
            "owners": [
                {"path": o.path, "user": o.user, "group": o.group, "uid": o.uid, "gid": o.gid, "create": o.create}
                for o in image.owners
            ],
            "process": image.process.to_json(),
            "labels": dict(image.labels),
            **{name: value for name, value in optional.items() if value},
        },
    }


def cmdline(image: Image) -> str:
    """Return the kernel's command line, to which the runner adds what a boot needs."""
    return _CMDLINE.format("ttyS0" if image.platform.architecture == "amd64" else "ttyAMA0")


def inputs(image: Image, source: Digest, guest: Guest, compressor: Mapping[str, str]) -> dict[str, Any]:
    """Return the inputs: the settings, the source's manifest digest, the guest's programs, the compressor's versions and level."""
    return {**settings(image), "source": str(source), "guest": guest.to_json(), "compressor": dict(compressor)}


def derivation_key(inputs: Mapping[str, Any]) -> str:
    """Return the derivation key: the sha256 of the inputs as canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(inputs)).hexdigest()


class Change(NamedTuple):
    """An input by name, with its value before and after; "" if it is missing. Values of variables are never included."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        if self.before == self.after:
            return one_line(f"{self.name}: another value")
        return one_line(f"{self.name}: {self.before or '(none)'} -> {self.after or '(none)'}")


def explain(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two JSON values, for example `recipe.size: 1073741824 -> 8589934592`.

    Files and owners are named by path, variables by name. Values of variables are never shown.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not names and before != after:
        return [Change("order", "one", "another")]
    return [Change(name, _shown(old.get(name)), _shown(new.get(name))) for name in names]


class _Hidden(NamedTuple):
    value: str


def _shown(leaf: str | _Hidden | None) -> str:
    return "(a value)" if isinstance(leaf, _Hidden) else leaf or ""


def _leaves(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, str | _Hidden]]:
    items: list[tuple[object, object]]
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and name.endswith("env"):
        pairs = (str(text).partition("=") for text in value)
        items = [(key, _Hidden(text)) for key, _, text in pairs]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) and "path" in item for item in value):
        items = [(item["path"], item) for item in value]
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield name, value if isinstance(value, str | _Hidden) else _text(value)
        return
    if depth == _DEPTH_MAX:
        yield name, _Hidden(_text(value))
        return
    for key, inner in items:
        yield from _leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)


def _text(value: object) -> str:
    """Any JSON value as text, also one that we never write: NaN, or a thousand nested lists."""
    try:
        return canonical_json(value).decode()
    except (ValueError, RecursionError):
        return "(not plain JSON)"
