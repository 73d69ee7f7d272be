"""Parse the single values of images.toml. Each function takes a value with its position, and returns it or raises BadInput."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from imagetool.config import schema
from imagetool.config.toml_lines import Where
from imagetool.ext4.geometry import DISK_MIN_BYTES
from imagetool.layout.additions import Owner
from imagetool.layout.certificates import check_certificates
from imagetool.sbom.formats import FORMATS, Format
from rootdisk.artifact.format import CPUS_MAX, DISK_MAX_BYTES, KEY_TAG_PREFIX, MEMORY_MAX_MIB, MEMORY_MIN_MIB
from rootdisk.cli.files import read_small_file
from rootdisk.cli.sizes import SIZE_MAX_BYTES, parse_size, size_text
from rootdisk.errors import BadInput
from rootdisk.limits import ALLOW_MAX_COUNT
from rootdisk.network.rules import parse_rule
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import Reference, is_tag, parse_reference
from rootdisk.parsing import pem
from rootdisk.parsing.ids import RANGE, check_user, is_id
from rootdisk.system.notices import notice
from rootdisk.text import printable

TRACE_MAX_BYTES = 8 << 20
MIB = 1 << 20

MODE = "0?[0-7]{3,4}"
_UNITS = (("MiB", 1 << 20), ("GiB", 1 << 30))
_TEMPLATES = ("git", "date", "source_tag")


def a_reference(where: Where) -> Reference:
    """Read a reference."""
    text = where.string()
    try:
        reference = parse_reference(text)
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    return where.anchored(reference)


def targets(where: Where) -> tuple[Reference, ...]:
    """Read places without tags: the version is the tag."""
    found = []
    for text in (str(where.value),) if isinstance(where.value, str) else strings(where, '["registry.example/app"]'):
        try:
            reference = parse_reference(text)
        except BadInput as err:
            raise where.error(err.message, err.hint) from err
        if reference.kind not in ("registry", "oci"):
            raise where.error(f"{text!r:.200} cannot be published to", "write registry/repository or oci:DIR")
        # A registry's reference without tag means :latest; only a tag that was written is wrong here.
        if reference.digest or (reference.tag and text.endswith(":" + reference.tag)):
            raise where.error(f"{text!r:.200} has a tag or digest", 'leave it out: the tag is version = "…"')
        found.append(where.anchored(reference))
    if not found:
        raise where.error("is empty", "leave the key out for an OCI layout at cache/artifacts/NAME")
    return tuple(found)


def version(where: Where, source: Reference) -> str:
    """A tag. `{git}` in it is what git describes, `{date}` today in UTC, `{source_tag}` the tag of `source`."""
    text = where.string()

    def value(found: re.Match[str]) -> str:
        """Return what a {…} stands for."""
        name = found[1]
        if name == "git":
            return _git(where)
        if name == "date":
            now = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
            if not re.fullmatch("[0-9]{1,11}", now):
                raise where.error(f"{{date}}: SOURCE_DATE_EPOCH is {now!r:.40}", "set it to seconds since 1970")
            return time.strftime("%Y-%m-%d", time.gmtime(int(now)))
        if name == "source_tag":
            if not source.tag:
                raise where.error("{source_tag}: the source has no tag", "write the version, or name a tag")
            return source.tag
        raise where.error(f"{found[0]}: unknown", "known are {git}, {date}, {source_tag}")

    made = re.sub(r"\{([^{}]*)\}", value, text)
    if not is_tag(made):
        raise where.error(f"{made!r:.80} is not a valid tag", "use letters, digits, '_', '.' and '-', at most 128")
    if made.startswith(KEY_TAG_PREFIX):
        raise where.error(f"{made!r:.80} is taken", f"tags that begin with {KEY_TAG_PREFIX} are the build cache's")
    return made


def _git(where: Where) -> str:
    """Return the output of git describe: the last tag, the number of commits since then, and `-dirty` if files have changed."""
    from rootdisk.system import process

    command = ["git", "-C", str(where.file.parent), "describe", "--tags", "--always", "--dirty"]
    try:
        done = process.run(command)
    except OSError as err:
        raise where.error(f"{{git}}: cannot run git: {err.strerror}", "install git") from err
    if done.status:
        reason = done.complaint.strip().removeprefix("fatal: ").splitlines()[:1] or ["it failed"]
        raise where.error(
            f"{{git}}: git describe: {printable(reason[0], 200)}", "commit something, or write the version"
        )
    return done.text.strip()


def platforms(where: Where) -> tuple[Platform, ...]:
    """Read a list of different platforms."""
    found = tuple(map(a_platform, where.items()))
    if not found or len(set(found)) < len(found):
        raise where.error("names no platform, or one twice", 'write platforms = ["linux/amd64", "linux/arm64"]')
    return found


def a_platform(where: Where) -> Platform:
    """Read a Linux platform."""
    text = where.string()
    try:
        platform = Platform.parse(text)
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    if platform.os != "linux":
        raise where.error(f"{platform} is not Linux", "guests are always Linux: linux/amd64, linux/arm64")
    return platform


def disk_size(where: Where) -> int:
    """Return a disk's bytes."""
    return _size(where, "disk", DISK_MIN_BYTES, DISK_MAX_BYTES)


def memory(where: Where) -> int:
    """Return the bytes of a virtual machine's memory."""
    return _size(where, "memory", MEMORY_MIN_MIB * MIB, MEMORY_MAX_MIB * MIB)


def blob_size(where: Where) -> int | None:
    """Return the most bytes of a blob; None if no blob is ever so large (imagetool/packing/parts.py): it decides nothing."""
    size = _size(where, "blob", MIB, SIZE_MAX_BYTES)
    return size if size < 2 << 30 else None


def _size(where: Where, what: str, least: int, most: int) -> int:
    """Return whole MiB from `least` to `most`, in bytes. BadInput advises only what is accepted."""
    limits = (
        f"write whole MiB, {size_text(least)} to {size_text(most)}, as 8GiB"
        if most < SIZE_MAX_BYTES
        else "write whole MiB, 1MiB or more, as 8GiB"
    )
    if isinstance(where.value, int | float) and not isinstance(where.value, bool):
        value = where.value
        sizes = [
            f'"{value}{unit}"'
            for unit, factor in _UNITS
            if least <= value * factor <= most and not value * factor % MIB and "e" not in str(value)
        ]
        raise where.error("is a number, expected a size", f"write {' or '.join(sizes)}" if sizes else limits)
    if isinstance(where.value, bool):
        raise where.error(f"is {where.kind()}, expected a size", limits)
    text = where.string()
    try:
        size = parse_size(text)
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    if least <= size <= most and not size % MIB:
        return size
    near = -(-size // MIB) * MIB
    hint = f'write "{size_text(near)}" (whole MiB)' if least <= near <= most else limits
    raise where.error(f"{where.value!r:.80} is not a valid {what} size", hint)


def cpus(where: Where) -> int:
    """Read a number of processors."""
    count = where.integer()
    if not 1 <= count <= CPUS_MAX:
        raise where.error(f"{count} processors", f"1 to {CPUS_MAX}")
    return count


def kernel(where: Where) -> str:
    """Read "debian", "none" or a path."""
    text = where.string()
    return text if text in ("debian", "none") else str(where.path())


def bill(where: Where) -> Format | None:
    """Read which bill of material to attach: true stands for SPDX."""
    if isinstance(where.value, bool) or where.value in ("true", "false"):
        return "spdx" if where.boolean() else None
    form = FORMATS.get(where.string())
    if form is None:
        raise where.error(f"is {printable(where.string(), 40)!r}", "write true, spdx or cyclonedx")
    return form


def certificates(where: Where) -> bytes:
    """Read the certificates of a PEM file, and nothing else in it."""
    data = small_file(where, pem.PEM_MAX_BYTES)
    try:
        found = check_certificates(data, str(where.value))
    except BadInput as err:
        raise where.error(err.message, err.hint) from err
    if why := pem.out_of_date(found, time.time()):
        notice(f"{where.value}: {why}")
    return found


def rules(where: Where) -> tuple[str, ...]:
    """Read rules of --allow: what sandboxes may reach by default."""
    found: dict[str, None] = {}
    for item in where.items():
        try:
            found[parse_rule(item.string()).text] = None
        except BadInput as err:
            raise item.error(err.message.removeprefix("--allow "), err.hint) from err
    if not found:
        raise where.error(
            "allows nothing", "runner boot --network none is without a network; omit network for no limit"
        )
    if len(found) > ALLOW_MAX_COUNT:
        raise where.error(
            f"has {len(found)} rules", f"{ALLOW_MAX_COUNT} at most; *.example.org and networks cover many"
        )
    return tuple(found)


def boot_trace(where: Where) -> tuple[str, ...]:
    """Read the paths of a boot trace."""
    from imagetool.packing.boot_trace import parse  # with the reader of disks, which other images do not need

    data = small_file(where, TRACE_MAX_BYTES)
    try:
        return parse(data.decode("utf-8", "surrogateescape"), str(where.value))
    except BadInput as err:
        raise where.error(err.message, err.hint) from err


def small_file(where: Where, max_bytes: int) -> bytes:
    """Return the content of the file that is named."""
    path = where.path()
    try:
        return read_small_file(path, max_bytes, shown=str(where.value))
    except BadInput as err:
        raise where.error(err.message, err.hint) from err


def owners(table: Mapping[str, Where]) -> tuple[Owner, ...]:
    """Read owners by path. Two keys cannot mean the same path, as the order of keys means nothing."""
    found: dict[tuple[str, ...], str] = {}
    for path, where in table.items():
        names = tuple(name for name in path.split("/") if name not in ("", "."))
        other = found.setdefault(names, path)
        if other != path:
            raise where.error(f"is the same path as {printable(other)}", "write it once")
    return tuple(map(owner, table.values()))


def owner(where: Where) -> Owner:
    """Read the owner of the path that is the key."""
    path = where.key
    if not path.startswith("/") or ".." in path.split("/"):
        raise where.error("is not an absolute path in the image", 'write "/path" = "user"')
    if isinstance(where.value, str):
        return owner_text(where, path)
    where.known(schema.keys("owner"))
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


def owner_text(where: Where, path: str) -> Owner:
    """Read an owner that is written as a string."""
    text = where.string()
    try:
        return Owner.parse(path, text)
    except BadInput as err:
        raise where.error(err.message, err.hint) from err


def _id(where: Where) -> int:
    number = where.integer()
    if not is_id(number):
        raise where.error(f"{number} is not a user or group number", RANGE)
    return number


def a_user(where: Where) -> str:
    """Return USER[:GROUP], by name or number."""
    text = where.string()
    try:
        return check_user(text, "user")
    except BadInput as err:
        raise where.error(err.message, err.hint) from err


def a_mode(where: Where) -> int:
    """Read permission bits, written in octal as for chmod."""
    if type(where.value) is int and 0 <= where.value <= 0o7777:
        # TOML's 0o644 is the number 420: nobody can tell it from 420, which may mean 0644 or 0420.
        raise where.error("is a number, expected a string", 'write it in octal, as "0644"')
    text = where.string()
    if not re.fullmatch(MODE, text):
        raise where.error(f"{text!r:.80} is not a mode", 'write it in octal, as "0644"')
    return int(text, 8)


def strings(where: Where, example: str = '["python3", "app.py"]') -> tuple[str, ...]:
    """Read a list of strings; `example` is for the hint."""
    if not isinstance(where.value, list) or not all(isinstance(item, str) and "\0" not in item for item in where.value):
        raise where.error(f"is {where.kind()}", f"expected a list of strings, as {example}")
    items = tuple(str(item.value) for item in where.items())
    for item in items:
        where.check_text(item)
    return items


def command(where: Where) -> tuple[str, ...]:
    """Read a program and its arguments."""
    words = strings(where)
    if not words or not words[0]:
        raise where.error("names no program", 'write it as ["/usr/bin/app", "--version"]')
    return words


def absolute(where: Where) -> str:
    """Read an absolute path."""
    text = where.string()
    if not text.startswith("/"):
        raise where.error(f"{text!r:.80} is not an absolute path")
    return text


def path_in_image(where: Where) -> str:
    """Read the absolute path of a file that may be added or removed, without a slash at the end."""
    text = absolute(where).rstrip("/")
    parts = text.split("/")[1:]
    if not parts or not all(parts) or {".", ".."} & set(parts) or "\0" in text:
        raise where.error(f"{where.value!r:.80} names nothing in the image", 'write it as "/etc/name"')
    if parts[0] == ".rootdisk":
        raise where.error(f"{text} is rootdisk's own place")
    if any(part.startswith(".wh.") for part in parts):
        raise where.error(f"{text!r:.80}: a name that begins with .wh. is a whiteout", "use remove = […]")
    return text
