"""Read registries.conf, version 2, as podman and skopeo do: containers-registries.conf(5) and containers-registries.conf.d(5).

The user's file counts, else that of the system; files of both drop-in directories are added, and replace tables of the same
prefix. Unknown keys are ignored, as podman ignores them; `--debug` names them. Version 1 is read for what it still says:
insecure and blocked registries. Names without a registry are docker's here, so `unqualified-search-registries` and aliases are
not used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.durable import open_config
from rootdisk.errors import BadInput
from rootdisk.oci.reference import Reference, normal_registry, parse_reference
from rootdisk.system.debug import debug
from rootdisk.system.folders import home, named_folder
from rootdisk.text import printable

SYSTEM = Path("/etc/containers")
NAMED_VARIABLE = "CONTAINERS_REGISTRIES_CONF"
FILE_MAX_BYTES = 1 << 20
_FILE, _FOLDER = "registries.conf", "registries.conf.d"
_REGISTRY_KEYS = {"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"}
_MIRROR_KEYS = {"location", "insecure", "pull-from-mirror"}
_TOP_KEYS = {
    *("registry", "registries", "unqualified-search-registries", "short-name-mode", "aliases"),
    *("credential-helpers", "additional-layer-store-auth-helper"),
}
_DIGEST = re.compile("@sha(256|512):[0-9a-f]+$")  # a prefix may name one
ALL, DIGEST_ONLY, TAG_ONLY = "all", "digest-only", "tag-only"


class Place(NamedTuple):
    """A place to ask for a repository."""

    registry: str
    repository: str
    insecure: bool = False  # HTTP, or a certificate that nobody vouches for, is allowed
    use: str = ALL  # of a mirror: for which requests


class Places(NamedTuple):
    """Places to ask, in this order: the mirrors, then the origin."""

    mirrors: tuple[Place, ...]
    origin: Place


class _Endpoint(NamedTuple):
    location: str
    insecure: bool
    use: str = ALL


class Table(NamedTuple):
    """A `[[registry]]` table."""

    prefix: str
    location: str  # "" for that of the reference
    insecure: bool
    blocked: bool
    mirrors: tuple[_Endpoint, ...]
    where: str  # its file


def files() -> list[Path]:
    """Return the configuration files that exist, in the order in which they are read; a named one is there in any case."""
    config, user = named_folder("XDG_CONFIG_HOME"), home()
    folder = config or (user and user / ".config")
    own = folder / "containers" if folder is not None else None
    named = os.environ.get(NAMED_VARIABLE)
    if named:
        first = [Path(named)]
    elif own is not None and (own / _FILE).is_file():
        first = [own / _FILE]
    else:
        first = [path for path in (SYSTEM / _FILE,) if path.is_file()]
    for place in (SYSTEM, own):
        if place is not None:
            first += sorted(path for path in (place / _FOLDER).glob("*.conf") if not path.is_dir())
    return first


def load() -> dict[str, Table]:
    """Return the tables of this host's configuration by their prefix.

    Raises:
        BadInput: A file cannot be read or is malformed; the message names it.
    """
    tables: dict[str, Table] = {}
    paths = files()
    for path in paths:
        try:
            is_named = bool(os.environ.get(NAMED_VARIABLE)) and path is paths[0]
            with open(open_config(path, may_be_pipe=is_named), "rb") as file:
                raw = file.read(FILE_MAX_BYTES + 1)
        except OSError as err:
            raise BadInput(f"{printable(path)}: {err.strerror}", "it says where registries are") from err
        tables |= parse(raw, printable(path))
    return tables


def parse(raw: bytes, where: str) -> dict[str, Table]:
    """Parse a configuration file.

    Raises:
        BadInput: It is malformed; the message names the key.
    """
    import tomllib  # few hosts have such a file with something in it

    if len(raw) > FILE_MAX_BYTES:
        raise BadInput(f"{where}: more than {FILE_MAX_BYTES} bytes")
    try:
        value = tomllib.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as err:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise BadInput(f"{where}: {printable(err, 200)}", "it must be TOML: man containers-registries.conf") from None
    _ignore(value, _TOP_KEYS, where)
    old = _object(value, "registries", where)
    if old and value.get("registry"):
        raise BadInput(f"{where}: has both [registries] of version 1 and [[registry]]", "keep one of them")
    rows = _rows(value, "registry", where)
    tables = [_table(row, f"{where}: registry {number}", where) for number, row in enumerate(rows, 1)]
    for kind, insecure in (("insecure", True), ("block", False)):
        names = _object(old, kind, f"{where}: registries").get("registries", [])
        if not isinstance(names, list):
            raise BadInput(f"{where}: registries.{kind}: registries is not an array", 'write ["HOST"]')
        for name in names:
            location = _location(name, f"{where}: registries.{kind}")
            tables.append(Table(_normal(location), location, insecure, not insecure, (), where))
    return {table.prefix: table for table in tables}


def _table(row: Mapping[str, Any], what: str, where: str) -> Table:
    _ignore(row, _REGISTRY_KEYS, what)
    prefix, location = _text(row, "prefix", what), _text(row, "location", what)
    location = _location(location, f"{what}: location") if location else ""
    if prefix.startswith("*."):
        _location(prefix[2:], f"{what}: prefix")
        prefix = prefix.rstrip("/")
    elif prefix:
        prefix = _location(prefix, f"{what}: prefix")
    elif not location:
        raise BadInput(f"{what}: has neither prefix nor location")
    use = DIGEST_ONLY if _truth(row, "mirror-by-digest-only", what) else ALL
    mirrors = [
        _mirror(mirror, use, f"{what}: mirror {number}") for number, mirror in enumerate(_rows(row, "mirror", what), 1)
    ]
    return Table(
        _normal(prefix or location),
        location,
        _truth(row, "insecure", what),
        _truth(row, "blocked", what),
        tuple(mirrors),
        where,
    )


def _mirror(row: Mapping[str, Any], use: str, what: str) -> _Endpoint:
    _ignore(row, _MIRROR_KEYS, what)
    own = _text(row, "pull-from-mirror", what) or use
    if own not in (ALL, DIGEST_ONLY, TAG_ONLY):
        raise BadInput(f"{what}: pull-from-mirror is {own!r:.40}", f"write {ALL}, {DIGEST_ONLY} or {TAG_ONLY}")
    if use == DIGEST_ONLY and own != use:
        raise BadInput(f"{what}: pull-from-mirror contradicts mirror-by-digest-only", "keep one of them")
    return _Endpoint(_location(_text(row, "location", what), f"{what}: location"), _truth(row, "insecure", what), own)


def places(reference: Reference, tables: Mapping[str, Table]) -> Places:
    """Return where to ask for an image. The table with the longest prefix counts.

    Raises:
        BadInput: Its registry is blocked, or a location makes no valid name.
    """
    name = f"{reference.registry}/{reference.repository}"
    matches = ((length, table) for table in tables.values() if (length := _match(reference, table.prefix)))
    # A prefix without a wildcard is the better match, then the longer one.
    length, table = max(
        matches, key=lambda pair: (pair[0], not pair[1].prefix.startswith("*."), len(pair[1].prefix)), default=(0, None)
    )
    if table is None:
        return Places((), Place(reference.registry, reference.repository))
    if table.blocked:
        raise BadInput(f"{reference}: {table.where} blocks {printable(table.prefix)}", "use another registry")
    rest = name[length:]
    mirrors = tuple(
        _place(mirror.location + rest, table, mirror.insecure, mirror.use)
        for mirror in table.mirrors
        if mirror.use != (TAG_ONLY if reference.digest else "")
    )
    origin = _place((table.location + rest) if table.location else name, table, table.insecure)
    return Places(mirrors, origin)


def _match(reference: Reference, prefix: str) -> int:
    """Return how many characters of HOST/REPOSITORY a prefix stands for; 0 if it does not match."""
    name = str(reference._replace(tag="", digest=None))
    if prefix.startswith("*."):
        wanted, slash, path = prefix[1:].partition("/")
        host = reference.registry if ":" in wanted else reference.registry.partition(":")[0]
        prefix = f"{reference.registry}{slash}{path}" if host.endswith(wanted) else ""
    if prefix and (name == prefix or name.startswith(f"{prefix}/")):
        return len(prefix)
    # A prefix may name one tag or digest of a repository.
    exact = {str(reference._replace(digest=None)), str(reference._replace(tag=""))}
    return len(name) if prefix in exact else 0


def _place(name: str, table: Table, insecure: bool, use: str = ALL) -> Place:
    try:
        reference = parse_reference(name)
    except BadInput as err:
        raise BadInput(f"{table.where}: {printable(table.prefix)}: {err.message}", err.hint) from None
    return Place(reference.registry, reference.repository, insecure, use)


def _location(text: object, what: str) -> str:
    if not isinstance(text, str) or not text.strip("/"):
        raise BadInput(f"{what}: is empty", "write HOST, HOST:PORT or HOST/NAMESPACE")
    if "@" in _DIGEST.sub("", text):  # it is not shown: it may be a password
        raise BadInput(f"{what}: has an @", "credentials belong into auth.json: runner login")
    if "://" in text:
        raise BadInput(
            f"{what}: {printable(text, 80)!r} starts with a scheme", "write it without; insecure = true for HTTP"
        )
    if "*" in text:
        raise BadInput(f"{what}: {printable(text, 80)!r} has a *", "a prefix may begin with *. as *.example.org")
    if not text.isascii() or any(character.isspace() for character in text):
        raise BadInput(f"{what}: {printable(text, 80)!r} is not a name", "write HOST, HOST:PORT or HOST/NAMESPACE")
    return text.rstrip("/")


def _normal(prefix: str) -> str:
    """Return a prefix as references have it: its host in lower case."""
    host, slash, path = prefix.partition("/")
    return f"{normal_registry(host)}{slash}{path}"


def _object(row: Mapping[str, Any], key: str, what: str) -> Mapping[str, Any]:
    value = row.get(key, {})
    if not isinstance(value, dict):
        raise BadInput(f"{what}: {key} is not a table", f"write [{key}]")
    return value


def _ignore(row: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in row.keys() - set(known):
        debug(f"{what}: {printable(key, 60)} is not a known key, and is ignored")


def _rows(row: Mapping[str, Any], key: str, what: str) -> list[Mapping[str, Any]]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadInput(f"{what}: {key} is not an array of tables", f"write [[{key}]]")
    return value


def _text(row: Mapping[str, Any], key: str, what: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise BadInput(f"{what}: {key} is not a string")
    return value


def _truth(row: Mapping[str, Any], key: str, what: str) -> bool:
    value = row.get(key, False)
    if not isinstance(value, bool):
        raise BadInput(f"{what}: {key} is not true or false")
    return value
