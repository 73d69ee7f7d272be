"""What a sandbox's `state.json` says, parsed once and checked field by field.

A field that this version does not know is left alone: it is kept when the file is written again, and whatever digest
stands in it, its name included, counts as in use. So a newer version may add fields. A change that an older runner must not overlook
raises `VERSION`: then the older one says so, and lets the sandbox be.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.durable import parse_json
from rootdisk.limits import PATH_MAX

VERSION = 1  # files without a version are of version 1
MAX_BYTES = 1 << 20
_WORD_MAX = 1000
_REQUIRED = object()
_HEX = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?\Z")  # sha256 or sha512
_DIGEST = re.compile(r"(?:sha256:)?[0-9a-f]{64}\Z|(?:sha512:)?[0-9a-f]{128}\Z")
_ANY_DIGEST = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{128})(?![0-9a-f])")


class Newer(ValueError):
    """The file is of a version that came after this runner."""


class Spec(NamedTuple):
    """What a sandbox is made of, as its user asked for it; kept for `start` and `inspect`. No secrets."""

    name: str
    reference: str
    artifact: str  # the manifest's digest
    disk: str  # hex digests, as the store names its files: of the base disk
    config: str
    kernel: str | None
    initramfs: str | None
    disk_size: int  # bytes, of the sandbox's own disk
    memory_mib: int
    cpus: int
    network: str = "user"
    forwards: tuple[tuple[str, str, int, int], ...] = ()
    volumes: tuple[tuple[str, str, bool], ...] = ()  # path of the host, of the guest, read-only
    volume_rights: tuple[tuple[str, str], ...] = ()  # path of the guest, and what it may make there: dev or suid
    labels: tuple[tuple[str, str], ...] = ()
    keep: bool = False
    detached: bool = False
    interactive: bool = False
    terminal: bool = False
    accelerator: str | None = None
    backend: str | None = None
    clone: str | None = None
    timeout_s: float | None = None

    @property
    def uses(self) -> set[str]:
        """What must stay in the store as long as the sandbox is there."""
        manifest = self.artifact.partition(":")[2]
        return {digest for digest in (manifest, self.disk, self.config, self.kernel, self.initramfs) if digest}


class State(NamedTuple):
    """A sandbox as it was last seen."""

    folder: Path
    spec: Spec
    running: bool
    pid: int  # the keeper's; 0 when it has ended
    created: float  # Unix time, as the others
    started: float
    ended: float | None
    status: int | None  # exit status of the last run; None when it runs or was cut off
    error: str  # why the last run failed
    in_use: Mapping[str, str] = {}  # what this run has, or the last one had: accelerator, way of copying the disk
    raw: Mapping[str, Any] = {}  # all that the file says, with what we do not know

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def uses(self) -> set[str]:
        """What must stay in the store: also what fields name that only another version knows, in whatever form."""
        return self.spec.uses | set(_ANY_DIGEST.findall(json.dumps(self.raw, ensure_ascii=False).lower()))

    @property
    def text(self) -> str:
        """In a word or two."""
        if self.running:
            return "running"
        return "cut off" if self.status is None else f"exited ({self.status})"

    def to_json(self) -> dict[str, Any]:
        """For programs: of `ps --json` and `inspect`."""
        spec = self.spec._asdict()
        spec["labels"] = dict(self.spec.labels)
        spec["ports"] = [
            {"protocol": protocol, "address": address, "host": host, "guest": guest}
            for protocol, address, host, guest in spec.pop("forwards")
        ]
        rights = set(spec.pop("volume_rights"))
        spec["volumes"] = [
            {"host": a, "guest": b, "read_only": c, "dev": (b, "dev") in rights, "suid": (b, "suid") in rights}
            for a, b, c in self.spec.volumes
        ]
        fields = ("pid", "created", "started", "ended", "status", "error", "running")
        word = self.text.partition(" (")[0]
        more = {name: getattr(self, name) for name in fields}
        return {**spec, **more, "state": word, "in_use": dict(self.in_use)}


class Unreadable(NamedTuple):
    """A sandbox that is there and cannot be read: what it needs is not known, so the store keeps everything."""

    folder: Path
    reason: str
    running: bool

    @property
    def name(self) -> str:
        return self.folder.name

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "state": "unreadable", "reason": self.reason, "running": self.running}


def parse(raw: bytes, folder: Path, running: bool) -> State:
    """The state in `raw`, of the sandbox whose directory is `folder`. ValueError says what is wrong; Newer."""
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    version = _take(value, "version", _whole(0, 1 << 31), 1)
    if version > VERSION:
        raise Newer(f"is of version {version}, and this runner knows {VERSION}: update it")
    spec = _take(value, "spec", _object)
    known = {name: _take(spec, name, check, Spec._field_defaults.get(name, _REQUIRED)) for name, check in _SPEC.items()}
    if not folder.name.startswith("."):
        known["name"] = folder.name  # a directory that was moved or copied has the name that it has now
    pid = _take(value, "pid", _whole(0, (1 << 31) - 1))
    return State(
        folder,
        Spec(**known),
        running,
        pid if running else 0,
        _take(value, "created", _time),
        _take(value, "started", _time),
        _take(value, "ended", _or_none(_time), None),
        _take(value, "status", _or_none(_whole(0, 255)), None),
        _take(value, "error", _text(MAX_BYTES), ""),
        _take(value, "in_use", _texts, {}),
        value,
    )


def state_json(raw: Mapping[str, Any], spec: Spec, **fields: object) -> dict[str, Any]:
    """The value of a state file, with what `raw`, the file's last value, has beyond that."""
    before = raw.get("spec")
    return {
        **raw,
        "version": VERSION,
        "spec": {**(before if isinstance(before, dict) else {}), **spec._asdict()},
        **fields,
    }


Check = Callable[[object], Any]


def _take(value: dict[str, Any], name: str, check: Check, default: object = _REQUIRED) -> Any:
    if name not in value:
        if default is _REQUIRED:
            raise ValueError(f"has no {name}")
        return default
    try:
        return check(value[name])
    except ValueError as err:
        raise ValueError(f"{name} {err}") from None


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("is not an object")
    return value


def _texts(value: object) -> dict[str, str]:
    short = _text(_WORD_MAX)
    return {short(key): short(item) for key, item in _object(value).items()}


def _text(max_chars: int) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > max_chars or "\0" in value:
            raise ValueError("is not a text of the length allowed")
        return value

    return check


def _whole(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"is not a number of {low} to {high}")
        return value

    return check


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("is not a time")
    return float(value)


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError("is not a number of seconds")
    return float(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not true or false")
    return value


def _hex(value: object) -> str:
    if not isinstance(value, str) or not _HEX.match(value):
        raise ValueError("is not a digest")
    return value


def _named_digest(value: object) -> str:
    if not isinstance(value, str) or ":" not in value or not _DIGEST.match(value):
        raise ValueError("is not a digest")
    return value


def _one_of(*words: str) -> Check:
    def check(value: object) -> str:
        if value not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return str(value)

    return check


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _rows(*checks: Check) -> Check:
    """A list of lists, each of which has what `checks` say."""

    def check(value: object) -> tuple[tuple[Any, ...], ...]:
        if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == len(checks) for row in value):
            raise ValueError(f"is not a list of lists of {len(checks)}")
        return tuple(tuple(each(item) for each, item in zip(checks, row, strict=True)) for row in value)

    return check


_SPEC: dict[str, Check] = {
    "name": _text(255),
    "reference": _text(PATH_MAX),
    "artifact": _named_digest,
    "disk": _hex,
    "config": _hex,
    "kernel": _or_none(_hex),
    "initramfs": _or_none(_hex),
    "disk_size": _whole(1, 1 << 62),
    "memory_mib": _whole(1, 1 << 40),
    "cpus": _whole(1, 1 << 16),
    "network": _one_of("user", "none"),
    "forwards": _rows(_one_of("tcp", "udp"), _text(255), _whole(1, 65535), _whole(1, 65535)),
    "volumes": _rows(_text(PATH_MAX), _text(PATH_MAX), _truth),
    "volume_rights": _rows(_text(PATH_MAX), _one_of("dev", "suid")),
    "labels": _rows(_text(MAX_BYTES), _text(MAX_BYTES)),
    "keep": _truth,
    "detached": _truth,
    "interactive": _truth,
    "terminal": _truth,
    "accelerator": _or_none(_one_of("kvm", "tcg")),
    "backend": _or_none(_one_of("qemu", "krun")),
    "clone": _or_none(_one_of("overlay", "reflink", "copy")),
    "timeout_s": _or_none(_seconds),
}
