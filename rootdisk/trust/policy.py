"""policy.json: whose signatures an artifact must have; containers-policy.json(5).

    policy = Policy.parse(raw, "/etc/containers/policy.json")
    policy.requirements(reference)      all of these have to be met

What is not exactly understood is an error, never left out: a field that is not known could be the one that refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.oci.fields import Fields, decode_base64, parse_value
from rootdisk.oci.reference import DOCKER_HUB, HUB_NAMES, Reference, names_registry, normal_registry
from rootdisk.text import printable
from rootdisk.trust.identity import Identity

POLICY_MAX_BYTES = 1 << 20
_SCOPES_MAX = 10_000
_KEYS_MAX = 64
_TRANSPORTS = (
    "atomic", "containers-storage", "dir", "docker", "docker-archive", "docker-daemon", "oci", "oci-archive", "ostree",
    "sif", "tarball",
)  # fmt: skip
_OF_KIND = {"registry": "docker"}
_SIGNED_BY = {"keyType", "keyPath", "keyPaths", "keyData", "signedIdentity"}
_SCOPE = re.compile(r"[A-Za-z0-9._:@/\[\]*-]+")
_KEY_TYPES = ("GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs")
_KEYS = ("keyPath", "keyPaths", "keyData", "keyDatas")
_NOT_HERE = ("fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas")


class Requirement(NamedTuple):
    """Requirement of a policy. Keys are PEM, or files that hold it; a signature of any of them is enough."""

    type: str
    key_paths: tuple[Path, ...] = ()
    key_data: tuple[bytes, ...] = ()
    identity: Identity = Identity()


class Policy(NamedTuple):
    """A whole file: requirements by transport and scope."""

    default: tuple[Requirement, ...]
    transports: dict[str, dict[str, tuple[Requirement, ...]]]
    where: str

    @classmethod
    def parse(cls, raw: bytes, where: str, folder: Path = Path("/")) -> Policy:
        """Parse a policy; relative paths of keys are below `folder`. BadInput names an unknown part."""
        value = Fields.of(parse_value(raw, where, POLICY_MAX_BYTES), where)
        value.only(("default", "transports"), "not a field of a policy")
        default = tuple(_requirements(value, "default", folder))
        transports: dict[str, dict[str, tuple[Requirement, ...]]] = {}
        outer = Fields.of(value.value.get("transports", {}), f"{where}: transports")
        for name in outer.value:
            if name not in _TRANSPORTS:
                raise outer.wrong(printable(name, 80), f"not a transport that is known: {', '.join(_TRANSPORTS)}")
            scopes = outer.inner(name)
            if len(scopes.value) > _SCOPES_MAX:
                raise outer.wrong(name, f"more than {_SCOPES_MAX} scopes")
            transports[name] = {
                _scope(scopes, name, scope): tuple(_requirements(scopes, scope, folder)) for scope in scopes.value
            }
        return cls(default, transports, where)

    def requirements(self, reference: Reference) -> tuple[str, tuple[Requirement, ...]]:
        """Return the most specific scope that covers `reference`, and its requirements."""
        transport = _OF_KIND.get(reference.kind, reference.kind)
        scopes = self.transports.get(transport, {})
        for scope in _candidates(reference):
            if scope in scopes:
                return f"{transport} {printable(scope, 200) or 'default'}", scopes[scope]
        return "default", self.default


def _candidates(reference: Reference) -> Iterator[str]:
    """Yield the scopes that cover `reference`, the most specific first, "" last."""
    if reference.path is not None:
        path = reference.path.absolute().resolve()
        if reference.tag:
            yield f"{path}:{reference.tag}"
        for folder in (path, *path.parents):
            if str(folder) != "/":
                yield str(folder)
        yield ""
        return
    place = reference.place.removeprefix("docker-daemon:")
    yield f"{place}@{reference.digest}" if reference.digest else f"{place}:{reference.tag}"
    parts = place.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])
    # *.example.com covers its subdomains on every port, not itself.
    host = parts[0].partition(":")[0].split(".")
    for count in range(1, len(host)):
        yield ".".join(("*", *host[count:]))
    yield ""


def _scope(value: Fields, transport: str, scope: str) -> str:
    """Check `scope` and return it. A scope that can never match would hide a requirement, so it is an error."""
    if transport == "docker" and scope:
        wild = scope.startswith("*.")
        wrong = "*" in scope.removeprefix("*") or ("*" in scope and not wild) or (wild and re.search("[/:@]", scope))
        if wrong or "//" in scope or scope.endswith("/") or not _SCOPE.fullmatch(scope):
            raise value.wrong(printable(scope, 120), "not a scope: registry[/repository[:tag]] or *.domain")
        registry = scope.partition("/")[0]
        if not wild and not names_registry(registry):
            raise value.wrong(printable(scope, 120), f"names no registry: write {DOCKER_HUB}/library/debian for debian")
        name = DOCKER_HUB if registry.lower() in HUB_NAMES else normal_registry(registry)
        if name != registry:
            raise value.wrong(printable(scope, 120), f"write {printable(name, 120)}, which references are compared by")
    if transport in ("oci", "dir", "oci-archive") and scope:
        path = scope.partition(":")[0]
        if not path.startswith("/") or path == "/" or str(Path(path)) != path or ".." in Path(path).parts:
            raise value.wrong(printable(scope, 120), "not a scope: an absolute path without . and .., not / itself")
    return scope


def _requirements(outer: Fields, key: str, folder: Path) -> Iterator[Requirement]:
    if key not in outer.value:
        raise outer.wrong(key, "missing")
    items = list(outer.objects(key, 100))
    if not items:
        raise outer.wrong(
            printable(key, 120) or '""', "no requirement in it: insecureAcceptAnything, reject or sigstoreSigned"
        )
    for item in items:
        kind = item.text("type", limit=80)
        if kind in ("insecureAcceptAnything", "reject"):
            item.only({"type"}, f"not a field of {kind} that is known")
            yield Requirement(kind)
        elif kind == "signedBy":
            item.only({"type", *_SIGNED_BY}, f"not a field of {kind} that is known")
            if item.text("keyType", limit=80) not in _KEY_TYPES:
                raise item.wrong("keyType", f"not one of {', '.join(_KEY_TYPES)}")
            _keys(item, _SIGNED_BY & set(_KEYS), folder)
            _identity(item)
            yield Requirement(kind)
        elif kind == "sigstoreSigned":
            yield _sigstore_signed(item, folder)
        else:
            raise item.wrong("type", f"{printable(kind, 80)!r} is not known")


def _keys(item: Fields, allowed: set[str], folder: Path) -> tuple[tuple[Path, ...], tuple[bytes, ...]]:
    """Return the keys of a requirement, files and texts, from the one field of `allowed` that it has."""
    used_keys = [key for key in _KEYS if key in item.value]
    if len(used_keys) != 1:
        names = ", ".join(key for key in _KEYS if key in allowed)
        raise item.wrong(item.text("type"), f"exactly one of {names}, not {' and '.join(used_keys) or 'none'}")
    key = used_keys[0]
    texts = item.texts(key, _KEYS_MAX, limit=1 << 16) if key.endswith("s") else (item.text(key, limit=1 << 16),)
    if not texts or not all(texts):
        raise item.wrong(key, "empty")
    if key.startswith("keyPath"):
        return tuple(folder / text for text in texts), ()
    try:
        return (), tuple(map(decode_base64, texts))
    except ValueError:
        raise item.wrong(key, "not base64") from None


def _identity(item: Fields) -> Identity:
    return Identity.parse(item.inner("signedIdentity")) if "signedIdentity" in item.value else Identity()


def _sigstore_signed(item: Fields, folder: Path) -> Requirement:
    for key in item.value:
        if key in _NOT_HERE:
            raise item.wrong(key, "certificates and transparency logs are not checked: name a key")
    item.only({"type", "signedIdentity", *_KEYS}, "not a field of sigstoreSigned that is known")
    return Requirement("sigstoreSigned", *_keys(item, set(_KEYS), folder), _identity(item))


ReadKey = Callable[[Path], bytes]
