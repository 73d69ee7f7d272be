"""images.toml, what to build, parsed once into frozen values; README.md shows every key.

    load(path) -> tuple of Image        errors name the file, the line and the key, and say what is expected

`[defaults]` has the same keys as an image; tables in it (env, owners, …) are merged name by name. Relative paths are
relative to the file. Certificates are read here, so what is checked is what is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from imagetool.layout.additions import Owner
from imagetool.layout.certificates import PEM_MAX_BYTES, holds_private_key
from imagetool.toml_lines import Where
from runner.artifact import DISK_MAX_BYTES, Process
from runner.errors import BadInput
from runner.oci import Platform
from runner.reference import Reference, parse_reference

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")  # a file's, a task's and a repository's name
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")  # distribution-spec, "Pulling manifests"
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]iB)\Z")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

MIB = 1 << 20


class ProcessChange(NamedTuple):
    """What an image runs, changed: None keeps the image's own. A new entrypoint drops the image's cmd, as `docker run`."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    workdir: str | None = None
    user: str | None = None

    def apply(self, process: Process) -> Process:
        """The image's `process` with these changes."""
        own_cmd = process.cmd if self.entrypoint is None else ()
        return Process(
            process.entrypoint if self.entrypoint is None else self.entrypoint,
            own_cmd if self.cmd is None else self.cmd,
            process.workdir if self.workdir is None else self.workdir,
            process.user if self.user is None else self.user,
            process.stop_signal,
        )

    def to_json(self) -> dict[str, Any]:
        """Only what is changed."""
        lists = {"entrypoint": self.entrypoint, "cmd": self.cmd}
        changed: dict[str, Any] = {key: list(value) for key, value in lists.items() if value is not None}
        texts = {"workdir": self.workdir, "user": self.user}
        return changed | {key: value for key, value in texts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Image:
    """One image to build. Sizes are bytes; paths in references are absolute; certificates are PEM bytes as they were."""

    name: str
    source: Reference
    publish: tuple[Reference, ...]
    version: str = "1"
    platform: Platform = field(default_factory=Platform.host)
    plain_http: bool = False
    ca_file: Path | None = None  # PEM, trusted beside the system's own
    size: int = 8 << 30
    kernel: str = "debian"  # or "none", or an absolute path
    memory: int = 512 * MIB
    cpus: int = 1
    env: tuple[str, ...] = ()  # NAME=value, in the file's order
    tls_ca: bytes | None = None
    tls_client: bytes | None = None
    owners: tuple[Owner, ...] = ()
    process: ProcessChange = field(default_factory=ProcessChange)
    labels: Mapping[str, str] = field(default_factory=dict)


def load(path: Path) -> tuple[Image, ...]:
    """Every image of the file, in its order; BadInput on anything that is not exactly understood."""
    try:
        text = path.read_text("utf-8")
    except OSError as err:
        raise BadInput(f"cannot read {path}: {err.strerror}", "is this the project's directory?") from err
    except UnicodeDecodeError as err:
        raise BadInput(f"{path} is not UTF-8 text") from err
    return parse(text, path)


def parse(text: str, path: Path) -> tuple[Image, ...]:
    """As `load`, of the file's text; `path` is for errors and for relative paths."""
    top = Where.parse(text, path)
    _known(top, ("defaults", "image"))
    defaults = top / "defaults" if "defaults" in top.table() else None
    if defaults is not None:
        _known(defaults, _KEYS)
    images = (top / "image") if "image" in top.table() else None
    if images is None or not images.table():
        raise BadInput(f"{path.name}: no image", 'write [image.NAME] and source = "…" below it')
    return tuple(_image(images / name, defaults) for name in images.table())


def of_command_line(name: str, values: Mapping[str, Any]) -> Image:
    """An image described by `values` as images.toml would; paths are relative to the working directory."""
    top = Where({"image": {name: dict(values)}}, Path("command line").absolute(), "")
    return _image(top / "image" / name, None)


def _image(image: Where, defaults: Where | None) -> Image:
    name = image.key
    if not _NAME.match(name):
        raise image.error("is no name for an image", "use lower-case letters, digits, '-', '_' and '.', at most 63")
    _known(image, _KEYS)

    def get(key: str, parse: Callable[[Where], T], default: T) -> T:
        found = _find(image, defaults, key)
        return default if found is None else parse(found)

    def table(key: str, names: tuple[str, ...] | None = None) -> dict[str, Where]:
        merged: dict[str, Where] = {}
        for place in (defaults, image):
            if place is not None and key in place.table():
                if names is not None:
                    _known(place / key, names)
                merged |= {name: place / key / name for name in (place / key).table()}
        return merged

    source = _find(image, defaults, "source")
    if source is None:
        raise image.error("has no source", 'write source = "registry/repository:tag" or "oci:DIR:TAG"')
    tls = {key: _certificates(where) for key, where in table("tls", ("ca", "client")).items()}
    process = table("process", ("entrypoint", "cmd", "workdir", "user"))
    changes = ProcessChange(
        _strings(process["entrypoint"]) if "entrypoint" in process else None,
        _strings(process["cmd"]) if "cmd" in process else None,
        _absolute(process["workdir"]) if "workdir" in process else None,
        process["user"].string() if "user" in process else None,
    )
    reference = _reference(source)
    if reference.kind == "tar" and not (changes.entrypoint or changes.cmd):
        raise image.error(
            "has a tar: source, which says not what to run", f"write [image.{name}.process] with cmd = […]"
        )
    own_layout = Reference("oci", path=(image.file.parent / "cache" / "artifacts" / name).absolute())
    return Image(
        name,
        reference,
        get("publish", _targets, (own_layout,)),
        get("version", _version, "1"),
        get("platform", _platform, Platform.host()),
        get("plain_http", Where.boolean, False),
        get("ca_file", Where.path, None),
        get("size", _disk_size, 8 << 30),
        get("kernel", _kernel, "debian"),
        get("memory", _memory, 512 * MIB),
        get("cpus", _cpus, 1),
        tuple(_variable(where) for where in table("env").values()),
        tls.get("ca"),
        tls.get("client"),
        tuple(_owner(where) for where in table("owners").values()),
        changes,
        {name: where.string() for name, where in table("labels").items()},
    )


_KEYS = (
    *("source", "platform", "version", "publish", "plain_http", "ca_file", "size", "kernel", "memory", "cpus"),
    *("env", "tls", "owners", "process", "labels"),
)


def _find(image: Where, defaults: Where | None, key: str) -> Where | None:
    for place in (image, defaults):
        if place is not None and key in place.table():
            return place / key
    return None


def _known(where: Where, names: tuple[str, ...]) -> None:
    for key in where.table():
        if key not in names:
            raise (where / key).unknown(names)


def _reference(where: Where) -> Reference:
    text = where.string()
    try:
        reference = parse_reference(text)
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    return where.anchored(reference)


def _targets(where: Where) -> tuple[Reference, ...]:
    """Places without tags: the version is the tag."""
    targets = []
    for text in [where.value] if isinstance(where.value, str) else _strings(where):
        try:
            reference = parse_reference(text)
        except BadInput as err:
            raise where.error(err.message, err.hint) from err
        if reference.kind not in ("registry", "oci"):
            raise where.error(f"{text!r:.200} cannot be published to", "write registry/repository or oci:DIR")
        # A registry's reference without tag means :latest; only a tag that was written is wrong here.
        if reference.digest or (reference.tag and text.endswith(":" + reference.tag)):
            raise where.error(f"{text!r:.200} has a tag or digest", 'leave it out: the tag is version = "…"')
        targets.append(where.anchored(reference))
    if not targets:
        raise where.error("is empty", "leave the key out for an OCI layout at cache/artifacts/NAME")
    return tuple(targets)


def _version(where: Where) -> str:
    text = where.string()
    if not _TAG.match(text):
        raise where.error(f"{text!r:.80} is no tag", "use letters, digits, '_', '.' and '-', at most 128")
    if text.startswith("key-"):
        raise where.error(f"{text!r:.80} is taken", "tags that begin with key- are the build cache's")
    return text


def _platform(where: Where) -> Platform:
    text = where.string()
    try:
        platform = Platform.parse(text)
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    if platform.os != "linux":
        raise where.error(f"{platform} is not Linux", "guests are always Linux: linux/amd64, linux/arm64")
    return platform


def parse_size(text: str) -> int:
    """The bytes of a disk's size as "8GiB". BadInput where it is none."""
    size = _bytes(text)
    if size % MIB or not MIB <= size <= DISK_MAX_BYTES:
        raise BadInput(f"{text!r:.80} is no size of a disk", "whole MiB, at most 16TiB")
    return size


def _bytes(text: str) -> int:
    found = _SIZE.match(text)
    if not found:
        raise BadInput(f"{text!r:.80} is no size", 'write a number and KiB, MiB, GiB or TiB, as "8GiB"')
    return int(found[1]) * _UNITS[found[2]]


def _disk_size(where: Where) -> int:
    try:
        return parse_size(where.string())
    except BadInput as err:
        raise where.error(err.message, err.hint) from err


def _memory(where: Where) -> int:
    try:
        size = _bytes(where.string())
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    if size % MIB or not 32 * MIB <= size <= 16 << 40:
        raise where.error(f"{where.value!r:.80} is no size of a memory", "whole MiB, 32MiB to 16TiB")
    return size


def _cpus(where: Where) -> int:
    count = where.integer()
    if not 1 <= count <= 255:
        raise where.error(f"{count} processors", "1 to 255")
    return count


def _kernel(where: Where) -> str:
    text = where.string()
    return text if text in ("debian", "none") else str(where.path())


def _variable(where: Where) -> str:
    name, value = where.key, where.value
    if not name or "=" in name or "\0" in name:
        raise where.error("is no name of a variable")
    if isinstance(value, dict) and value.get("secret") is True:
        raise where.error(
            "is secret, and a build is published",
            f"leave it out and give it to each sandbox: runner boot -e {name}, or --env-file FILE",
        )
    text = where.string()
    if "\0" in text:
        raise where.error("holds a NUL byte", "no program could be given it")
    if holds_private_key(text.encode()):
        raise where.error(
            "holds a private key, and a build is published",
            f"leave it out and give it to each sandbox: runner boot -e {name}, or --tls-key FILE",
        )
    return f"{name}={text}"


def _certificates(where: Where) -> bytes:
    path = where.path()
    try:
        with path.open("rb") as file:
            data = file.read(PEM_MAX_BYTES + 1)
    except OSError as err:
        raise where.error(f"cannot read {where.value}: {err.strerror}") from err
    if holds_private_key(data):
        raise where.error(
            f"{where.value} holds a private key, and a build is published",
            "leave it out and give it to each sandbox: runner boot --tls-key FILE",
        )
    return data


def _owner(where: Where) -> Owner:
    path = where.key
    if not path.startswith("/") or ".." in path.split("/"):
        raise where.error("is no absolute path in the image", 'write "/path" = "user"')
    if isinstance(where.value, str):
        user, colon, group = where.value.partition(":")
        if not user or (colon and not group):
            raise where.error(f"{where.value!r:.80} is no owner", "write user, user:group or uid:gid")
        return Owner(path, user, group)
    _known(where, ("user", "uid", "gid", "create"))
    table = where.table()
    uid = _id(where / "uid") if "uid" in table else None
    gid = _id(where / "gid") if "gid" in table else None
    create = (where / "create").boolean() if "create" in table else False
    if "user" not in table and uid is None:
        raise where.error("has neither user nor uid", "write user, user:group, uid:gid or {user = …, create = true}")
    user = (where / "user").string() if "user" in table else str(uid)
    if not user:
        raise (where / "user").error("is empty")
    return Owner(path, user, "", uid, gid, create)


def _id(where: Where) -> int:
    number = where.integer()
    if not 0 <= number < 0xFFFF_FFFF:
        raise where.error(f"{number} is no user or group number", "0 to 4294967294")
    return number


def _strings(where: Where) -> tuple[str, ...]:
    if not isinstance(where.value, list) or not all(isinstance(item, str) and "\0" not in item for item in where.value):
        raise where.error(f"is {where.kind()}", 'expected a list of strings, as ["python3", "app.py"]')
    return tuple(where.value)


def _absolute(where: Where) -> str:
    text = where.string()
    if not text.startswith("/"):
        raise where.error(f"{text!r:.80} is not an absolute path")
    return text
