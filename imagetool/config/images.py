"""images.toml, what to build, parsed once into frozen values; README.md shows every key.

    load(path) -> tuple of Image        errors name the file, the line and the key, and say what is expected

`[defaults]` has the same keys as an image; tables in it (env, owners, …) are merged name by name, files and removed
paths added up. Relative paths are relative to the file. Certificates and files are read here, so what is checked is what
is built. Which keys there are is in images.schema.json; values.py and published.py say what each may be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imagetool.config import published, schema, values
from imagetool.config.merged import Merged
from imagetool.config.toml_lines import Where
from imagetool.config.values import MIB
from imagetool.layout.additions import Owner
from imagetool.sbom.formats import Format
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import Reference
from rootdisk.text import printable

if TYPE_CHECKING:  # it reads source images, which takes a while to load
    from imagetool.layout.own_files import OwnFile

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")  # a file's, a task's and a repository's name


class ProcessChange(NamedTuple):
    """Changes to the default program of an image. None keeps the value of the image. A new entrypoint drops cmd, as in `docker run`."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    workdir: str | None = None
    user: str | None = None
    pid1: bool | None = None

    def apply(self, process: Process) -> Process:
        """Return the image's `process` with these changes."""
        own_cmd = process.cmd if self.entrypoint is None else ()
        return Process(
            process.entrypoint if self.entrypoint is None else self.entrypoint,
            own_cmd if self.cmd is None else self.cmd,
            process.workdir if self.workdir is None else self.workdir,
            process.user if self.user is None else self.user,
            process.stop_signal,
            process.volumes,
            process.pid1 if self.pid1 is None else self.pid1,
        )

    def to_json(self) -> dict[str, Any]:
        """Return only the changed values."""
        lists = {"entrypoint": self.entrypoint, "cmd": self.cmd}
        changed: dict[str, Any] = {key: list(value) for key, value in lists.items() if value is not None}
        texts = {"workdir": self.workdir, "user": self.user}
        changed |= {key: value for key, value in texts.items() if value is not None}
        return changed | ({"pid1": self.pid1} if self.pid1 is not None else {})


class Signing(NamedTuple):
    """The signing of published artifacts."""

    key: str = ""  # a file, or env://NAME
    passphrase_file: Path | None = None
    key_command: str = ""
    public_key: Path | None = None
    format: str = "bundle"
    identity: str = ""
    provenance: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """An image to build. Sizes are bytes, paths in references are absolute, certificates are checked PEM bytes."""

    name: str
    source: Reference
    publish: tuple[Reference, ...]
    version: str = "1"
    platform: Platform = field(default_factory=Platform.host)
    plain_http: bool = False
    ca_file: Path | None = None  # PEM, trusted in addition to the system's
    size: int = 8 << 30
    max_blob: int | None = None  # largest compressed size of a blob of the disk; None if no blob is ever so large
    kernel: str = "debian"  # or "none", or an absolute path
    verity: bool = False  # whether the artifact has a dm-verity tree of its disk
    vmlinux: bool | None = None  # whether it has the kernel as an ELF file too; None: if that can be had
    boot_trace: tuple[str, ...] = ()  # paths in the order in which a boot reads them
    memory: int = 512 * MIB
    cpus: int = 1
    env: tuple[str, ...] = ()  # NAME=value, in the file's order
    tls_ca: bytes | None = None
    tls_client: bytes | None = None
    owners: tuple[Owner, ...] = ()
    process: ProcessChange = field(default_factory=ProcessChange)
    labels: Mapping[str, str] = field(default_factory=dict)
    files: tuple[OwnFile, ...] = ()  # added to the image or replacing its files, by path
    remove: tuple[str, ...] = ()  # absolute paths
    check: bool = False  # before it is published
    probe: tuple[str, ...] = ()  # the command that a check runs in a sandbox; its status counts
    strict: bool = False  # refuse an image if a part of it has to be changed or left out
    sign: Signing | None = None
    policy: Path | None = None  # for published disks that are used; None: this host's
    source_policy: bool = False
    sbom: Format | None = None  # attached to what is published
    cache: Path | None = None  # the project's own; nobody else uses layouts in it
    allow: tuple[str, ...] = ()  # what sandboxes may reach by default; () without a limit
    group: str = ""  # the name in images.toml if this is one of several platforms; their index gets the version as tag


def file_named() -> Path:
    """The file that describes the images: images.toml here, or what ROOTDISK_IMAGES names."""
    return Path(os.environ.get("ROOTDISK_IMAGES") or "images.toml")


def load(path: Path) -> tuple[Image, ...]:
    """Return the images of the file, in its order. BadInput for anything unknown or wrong."""
    try:
        text = path.read_text("utf-8-sig")  # TOML 1.1: a byte order mark at the start is ignored
    except OSError as err:
        hint = "imagetool init SOURCE begins a project here; -f FILE names another file"
        raise BadInput(f"cannot read {path}: {err.strerror}", hint) from err
    except UnicodeDecodeError as err:
        raise BadInput(f"{path} is not UTF-8 text") from err
    return parse(text, path)


def parse(text: str, path: Path, variables: Mapping[str, str] | None = None) -> tuple[Image, ...]:
    """Parse the text of images.toml. `path` is for errors and for relative paths.

    `variables` are what ${NAME} in a string is; default: the environment.
    """
    top = Where.parse(text, path, os.environ if variables is None else variables)
    for key, value in top.table().items():
        if key not in ("defaults", "image") and isinstance(value, dict) and "source" in value:
            raise (top / key).error("unknown key", f"write [image.{printable(key)}]")
    top.known(("defaults", "image"))
    defaults = top / "defaults" if "defaults" in top.table() else None
    if defaults is not None:
        defaults.known(schema.keys("image"))
    images = (top / "image") if "image" in top.table() else None
    if images is None or not images.table():
        raise BadInput(f"{path.name}: no image", 'write [image.NAME] and source = "…" below it')
    if "source" in images.table():
        raise images.error("has a source and no name", "write [image.NAME]")
    found = [(name, image) for name in images.table() for image in _images(images / name, defaults)]
    taken: set[str] = set(images.table())
    for name, one in found:
        if one.group and one.name in taken:
            raise (images / name).error(f"makes {one.name}, which is an image of its own", "give one another name")
        taken.add(one.name)
    _refuse_shared_targets(images, found)
    return tuple(image for _, image in found)


def _refuse_shared_targets(images: Where, found: list[tuple[str, Image]]) -> None:
    """Raise BadInput if two images are published under the same name: each would take it from the other."""
    names: dict[tuple[str, str], str] = {}
    for key, image in found:
        for place in image.publish:
            where = os.path.realpath(place.path) if place.path is not None else str(place.place)
            other = names.setdefault((where, image.version), key)
            if other != key:
                raise (images / key).error(
                    f"is published as {printable(place.place)}:{image.version}, and so is {other}",
                    "give one another publish or version",
                )


_OPTIONS = {
    "source": "SOURCE",
    "size": "--size",
    "platform": "--platform",
    "env": "-e",
    "owners": "--owner",
    "allow_secret": "--allow-secret",
    "ca_file": "--ca-file",
    "policy": "--policy",
    "tls.ca": "--tls-ca",
    "process.entrypoint": "--entrypoint",
    "process.cmd": "--cmd",
}


def of_command_line(name: str, described: Mapping[str, Any]) -> Image:
    """Return an image `described` as in images.toml; paths are relative to the working directory."""
    top = Where({"image": {name: dict(described)}}, Path("command line").absolute(), "", options=_OPTIONS)
    return _image(top / "image" / name, None, command_line=True)


def _images(image: Where, defaults: Where | None) -> tuple[Image, ...]:
    """Return an image for each platform."""
    made = _image(image, defaults)
    for place in (image, defaults):
        if place is None or not {"platform", "platforms"} & place.table().keys():
            continue
        if "platforms" not in place.table():
            break
        if "platform" in place.table():
            raise place.error("has platform and platforms", "leave one out")
        return tuple(
            replace(
                made,
                name=f"{made.name}-{str(platform).removeprefix('linux/').replace('/', '-')}",
                platform=platform,
                group=made.name,
            )
            for platform in values.platforms(place / "platforms")
        )
    return (made,)


def _image(image: Where, defaults: Where | None, *, command_line: bool = False) -> Image:
    """Return the image that a table describes; with `command_line` a tar: source need not say what to run."""
    name = image.key
    if not _NAME.match(name):
        raise image.error(
            "is not a valid name for an image", "use lower-case letters, digits, '-', '_' and '.', at most 63"
        )
    image.known(schema.keys("image"))
    merged = Merged(image, defaults)
    source = merged.get("source", values.a_reference, None)
    if source is None:
        raise image.error("has no source", 'write source = "registry/repository:tag" or "oci:DIR:TAG"')
    allowed = {secret: published.reason(where) for secret, where in merged.table("allow_secret").items()}
    kernel = merged.get("kernel", values.kernel, "debian")
    tls = {key: values.certificates(where) for key, where in merged.table("tls").items()}
    process = _process(merged.table("process"), allowed)
    if source.kind == "tar" and not (process.entrypoint or process.cmd) and not command_line:
        raise image.error(
            "has a tar: source, which says not what to run", f"write [image.{name}.process] with cmd = […]"
        )
    if kernel == "none":
        _refuse_what_needs_a_kernel(image, merged)
    variables = _variables(merged, allowed)
    labels = {label: published.plain_text(where, label, allowed) for label, where in merged.table("labels").items()}
    files = _files(merged.items("files"), allowed)
    if "allow_secret" in image.table():
        names = {text.partition("=")[0] for text in variables}
        _refuse_unused_reasons(
            image / "allow_secret", {file.path for file in files} | names | labels.keys() | _COMMANDS
        )
    cache = (image.file.parent / "cache").absolute()
    return Image(
        name,
        source,
        publish=merged.get("publish", values.targets, (Reference("oci", path=cache / "artifacts" / name),)),
        version=merged.get("version", lambda where: values.version(where, source), "1"),
        platform=merged.get("platform", values.a_platform, Platform.host()),
        plain_http=merged.get("plain_http", Where.boolean, False),
        ca_file=merged.get("ca_file", Where.path, None),
        size=merged.get("size", values.disk_size, 8 << 30),
        max_blob=merged.get("max_blob", values.blob_size, None),
        kernel=kernel,
        verity=merged.get("verity", Where.boolean, False),
        vmlinux=merged.get("vmlinux", Where.boolean, None),
        boot_trace=merged.get("boot_trace", values.boot_trace, ()),
        memory=merged.get("memory", values.memory, 512 * MIB),
        cpus=merged.get("cpus", values.cpus, 1),
        env=variables,
        tls_ca=tls.get("ca"),
        tls_client=tls.get("client"),
        owners=values.owners(merged.table("owners")),
        process=process,
        labels=labels,
        files=files,
        remove=tuple(sorted({values.path_in_image(where) for where in merged.items("remove")})),
        check=merged.get("check", Where.boolean, False),
        probe=merged.get("probe", values.command, ()),
        strict=merged.get("strict", Where.boolean, False),
        sign=_signing(merged.table("sign"), image),
        policy=merged.get("policy", Where.path, None),
        source_policy=merged.get("source_policy", Where.boolean, False),
        sbom=merged.get("sbom", values.bill, None),
        cache=cache,
        allow=_allowed(merged.table("network")),
    )


def _refuse_what_needs_a_kernel(image: Where, merged: Merged) -> None:
    """Raise BadInput for keys that mean nothing with `kernel = "none"`."""
    if "probe" in image.table():
        raise (image / "probe").error('cannot run, as kernel = "none"', "leave it out, or give the image a kernel")
    if merged.get("verity", Where.boolean, False):
        raise image.error('has verity and kernel = "none"', "leave one out: the guest's kernel checks the disk")
    if merged.get("vmlinux", Where.boolean, None):
        raise image.error('has vmlinux and kernel = "none"', "leave one out: it is taken out of the kernel")


def _variables(merged: Merged, allowed: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables, as NAME=value: those of files first, so that those of `env` count."""
    of_files: tuple[str, ...] = merged.get("env_files", lambda where: published.variables(where, allowed), ())
    return (*of_files, *(published.variable(where, allowed) for where in merged.table("env").values()))


def _refuse_unused_reasons(allow_secret: Where, added: Set[str]) -> None:
    """Raise BadInput if `allow_secret` names something that the image does not add."""
    for name in allow_secret.table():
        if name not in added:
            raise (allow_secret / name).error("is nothing that is added", "name a file's path or a variable")


_COMMANDS = {"process.entrypoint", "process.cmd"}


def _allowed(table: Mapping[str, Where]) -> tuple[str, ...]:
    """Return the rules of `network`, in their usual form."""
    return values.rules(table["allow"]) if "allow" in table else ()


def _signing(table: Mapping[str, Where], image: Where) -> Signing | None:
    if not table:
        return None
    if ("key" in table) == ("key_command" in table):
        raise image.error("has sign without exactly one of key and key_command", "name one of them")
    if ("key_command" in table) != ("public_key" in table):
        raise image.error("has sign with one of key_command and public_key", "name both, or neither")
    key = table["key"].string() if "key" in table else ""
    form = table["format"].string() if "format" in table else "bundle"
    if form not in ("bundle", "simple", "both"):
        raise table["format"].error(f"is {printable(form, 40)!r}", "bundle, simple or both")
    return Signing(
        key if not key or key.startswith("env://") else str(table["key"].path()),
        table["passphrase_file"].path() if "passphrase_file" in table else None,
        table["key_command"].string() if "key_command" in table else "",
        table["public_key"].path() if "public_key" in table else None,
        form,
        table["identity"].string() if "identity" in table else "",
        table["provenance"].boolean() if "provenance" in table else False,
    )


def _process(table: Mapping[str, Where], allowed: Mapping[str, str]) -> ProcessChange:
    return ProcessChange(
        published.plain_texts(table["entrypoint"], "process.entrypoint", allowed) if "entrypoint" in table else None,
        published.plain_texts(table["cmd"], "process.cmd", allowed) if "cmd" in table else None,
        values.absolute(table["workdir"]) if "workdir" in table else None,
        values.a_user(table["user"]) if "user" in table else None,
        table["pid1"].boolean() if "pid1" in table else None,
    )


def _files(items: list[Where], allowed: Mapping[str, str]) -> tuple[OwnFile, ...]:
    """Return all files by path. The last one of a path counts, so an image's file replaces that of the defaults."""
    if not items:
        return ()
    from imagetool.layout import own_files as files

    found: dict[str, OwnFile] = {}
    for item in items:
        item.known(schema.keys("file"))
        table = item.table()
        if "path" not in table:
            raise item.error("has no path", 'write path = "/where/it/goes"')
        if ("from" in table) == ("text" in table):
            what = "has both from and text" if "text" in table else "needs from or text"
            raise item.error(what, 'write from = "FILE or DIRECTORY" or text = "…"')
        path = values.path_in_image(item / "path")
        mode = values.a_mode(item / "mode") if "mode" in table else None
        owner = (item / "owner").string() if "owner" in table else ""
        if "owner" in table:
            values.owner_text(item / "owner", path)
        follow = (item / "follow").boolean() if "follow" in table else False
        if follow and "text" in table:
            raise (item / "follow").error("has no from whose links to follow", "leave it out")
        try:
            if "text" in table:
                made = [files.of_text(path, (item / "text").string(), mode, owner)]
            else:
                source, folder = (item / "from").path(), item.file.parent
                made = list(files.of_path(path, source, mode, owner, folder, follow=follow))
        except BadInput as err:
            raise (item / ("text" if "text" in table else "from")).error(err.message, err.hint) from err
        for file in made:
            what = f"{printable(file.content)}: " if isinstance(file.content, Path) else ""
            key = "text" if "text" in table else "from"
            published.refuse_secret(item / key, file.path, file.secret, allowed, what, file.unread)
        found |= {file.path: file for file in made}
        if len(found) > files.FILES_MAX_COUNT:
            raise item.error(f"more than {files.FILES_MAX_COUNT} files", "put them into the image")
    return tuple(found[path] for path in sorted(found, key=lambda path: path.split("/")))
