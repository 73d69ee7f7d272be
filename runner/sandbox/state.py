"""The content of `state.json`: parsed once, and checked field by field.

A newer release may add fields. An unknown field is kept when the file is written again, and every digest in it, even in its
name, counts as in use. If an older runner must not ignore a change, raise `VERSION`: the older runner then refuses the
sandbox and leaves it alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.durable import parse_json
from rootdisk.limits import PATH_MAX
from rootdisk.parsing.digests import HEX_DIGEST, HEX_SHA256
from rootdisk.system.versions import check_version
from rootdisk.text import printable

VERSION = 1
STOP_S = 10  # for a program to end after the stop signal
MAX_BYTES = 1 << 20
_WORD_MAX = 1000
BY_USER, BY_HOST = "user", "host"  # who has ended a sandbox; "" if its program has
_REQUIRED = object()
_HEX = re.compile(rf"{HEX_DIGEST}\Z")
_DIGEST = re.compile(rf"(?:sha256:)?{HEX_SHA256}\Z|(?:sha512:)?[0-9a-f]{{128}}\Z")
_ANY_DIGEST = re.compile(rf"(?<![0-9a-f]){HEX_DIGEST}(?![0-9a-f])")


class Spec(NamedTuple):
    """The specification of a sandbox as requested, for `start` and `inspect`. No secrets."""

    name: str
    reference: str
    artifact: str  # digest of the manifest, with its algorithm
    disk: str  # hex digest of the base disk; the others are hex too, as in file names of the store
    config: str
    kernel: str | None
    initramfs: str | None
    disk_size: int  # bytes; of the clone
    memory_mib: int
    cpus: int
    network: str = "user"
    # With rules the guest has no network card (`network` is none, also for an older runner): its connections go through the keeper.
    allow: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()  # NAME=SOURCE@HOST: where each is read at a start, never what it is
    ca_file: str | None = None  # PEM; trusted with the hosts of secrets, beside this host's authorities
    forwards: tuple[tuple[str, str, int, int], ...] = ()
    volumes: tuple[tuple[str, str, bool], ...] = ()  # host path, guest path, read-only
    volume_rights: tuple[tuple[str, str], ...] = ()  # guest path, right: dev or suid
    labels: tuple[tuple[str, str], ...] = ()
    keep: bool = False
    detached: bool = False
    interactive: bool = False
    terminal: bool = False
    accelerator: str | None = None
    backend: str | None = None
    clone: str | None = None
    timeout_s: float | None = None
    verity: str | None = None  # hex digest of the dm-verity tree
    vmlinux: str | None = None  # hex digest of the kernel as an ELF file
    cold: bool = False  # never restored from a template
    restart: str = "no"  # policy of restart.py
    plain_http: bool = False  # how the registry is reached, if the disk was not complete when the sandbox was made
    registry_ca_file: str | None = None

    @property
    def uses(self) -> set[str]:
        """The hex digests that must stay in the store while the sandbox exists."""
        manifest = self.artifact.partition(":")[2]
        digests = (manifest, self.disk, self.config, self.kernel, self.initramfs, self.verity, self.vmlinux)
        return {digest for digest in digests if digest}


class State(NamedTuple):
    """A sandbox at the moment it was read."""

    folder: Path
    spec: Spec
    running: bool
    pid: int  # of the keeper; 0 if it has ended
    created: float  # Unix time, like the next two
    started: float
    ended: float | None
    status: int | None  # exit status of the last run; None if it runs or was interrupted
    error: str  # why the last run failed
    ended_by: str = ""  # BY_USER, BY_HOST
    in_use: Mapping[str, str] = {}  # what this run has, or the last one had: accelerator, way of copying the disk
    raw: Mapping[str, Any] = {}  # the complete file, with fields that we do not know

    @property
    def name(self) -> str:
        """The name of the sandbox."""
        return self.spec.name

    @property
    def uses(self) -> set[str]:
        """The hex digests that must stay in the store, including all that occur in unknown fields."""
        return self.spec.uses | set(_ANY_DIGEST.findall(json.dumps(self.raw, ensure_ascii=False).lower()))

    @property
    def is_cut_off(self) -> bool:
        """Return whether its keeper was killed: in a run, or before the next one of a sandbox that starts again."""
        return not self.running and bool(self.raw.get("pid"))

    @property
    def text(self) -> str:
        """The state for people: running, restarting, cut off, or exited with its status."""
        if self.running:
            return "running" if self.status is None else f"restarting ({self.status})"
        return "cut off" if self.status is None else f"exited ({self.status})"

    def to_json(self) -> dict[str, Any]:
        """Return the value for `ps --json` and `inspect`."""
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
    """A sandbox whose state cannot be read. Its needs are unknown, so nothing is pruned while it exists."""

    folder: Path
    reason: str
    running: bool
    other_version: bool = False  # not damaged, but of an older or newer release

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.folder.name

    @property
    def remedy(self) -> str:
        """Command that deletes the sandbox, for hints."""
        force = "--force " if self.running or self.other_version else ""
        return f"to delete it: runner rm {force}{printable(self.name)}"

    def to_json(self) -> dict[str, Any]:
        """Return the value for `ps --json` and `inspect`."""
        return {"name": self.name, "state": "unreadable", "reason": self.reason, "running": self.running}


def parse(raw: bytes, folder: Path, running: bool) -> State:
    """Parse the state `raw` of the sandbox in `folder`.

    Raises:
        OtherVersion: It has another version.
        ValueError: It is damaged. The message continues a sentence that names the file.
    """
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    check_version(value, VERSION)
    spec = _take(value, "spec", _object)
    fields = {
        name: _take(spec, name, check, Spec._field_defaults.get(name, _REQUIRED)) for name, check in _SPEC.items()
    }
    if not folder.name.startswith("."):
        fields["name"] = folder.name  # the directory may have been moved or copied
    pid = _take(value, "pid", _whole(0, (1 << 31) - 1))
    return State(
        folder,
        Spec(**fields),
        running,
        pid if running else 0,
        _take(value, "created", _time),
        _take(value, "started", _time),
        _take(value, "ended", _or_none(_time), None),
        _take(value, "status", _or_none(_whole(0, 255)), None),
        _take(value, "error", _text(MAX_BYTES), ""),
        _take(value, "ended_by", _one_of("", BY_USER, BY_HOST), ""),
        _take(value, "in_use", _texts, {}),
        value,
    )


def state_json(raw: Mapping[str, Any], spec: Spec, **fields: object) -> dict[str, Any]:
    """Return the value of a state file. Unknown fields of `raw`, the previous value, are kept."""
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
        """Return `value` if it is a short enough string."""
        if not isinstance(value, str) or len(value) > max_chars or "\0" in value:
            raise ValueError("is not a string of allowed length")
        return value

    return check


def _whole(low: int, high: int) -> Check:
    def check(value: object) -> int:
        """Return `value` if it is a whole number in the range."""
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"is not a number from {low} to {high}")
        return value

    return check


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("is not a time")
    return float(value)


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 62:
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
        """Return `value` if it is one of the words."""
        if value not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return str(value)

    return check


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _list_of(each: Check) -> Check:
    """Check a list, each item with `each`."""

    def check(value: object) -> tuple[Any, ...]:
        """Return `value` as a tuple, each item checked."""
        if not isinstance(value, list):
            raise ValueError("is not a list")
        return tuple(map(each, value))

    return check


def _rows(*checks: Check) -> Check:
    """Check a list of lists: one check for each column."""

    def check(value: object) -> tuple[tuple[Any, ...], ...]:
        """Return `value` as tuples, each column checked."""
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
    "allow": _list_of(_text(_WORD_MAX)),
    "secrets": _list_of(_text(PATH_MAX)),
    "ca_file": _or_none(_text(PATH_MAX)),
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
    "verity": _or_none(_hex),
    "vmlinux": _or_none(_hex),
    "cold": _truth,
    "restart": _text(_WORD_MAX),
    "plain_http": _truth,
    "registry_ca_file": _or_none(_text(PATH_MAX)),
}
