"""Who we are to a registry: what docker, podman and skopeo have saved, found for one host and never sent to another.

Reads docker's config.json (`auths`, `identitytoken`, `credsStore`, `credHelpers`) and containers-auth.json(5). Secrets
stay out of error messages and out of repr().
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import parse_json
from rootdisk.oci.reference import DOCKER_HUB
from rootdisk.system import process
from rootdisk.system.folders import home, named_folder
from rootdisk.text import printable

FILE_MAX_BYTES = 1 << 20
HELPER_TIMEOUT_S = 60  # some ask the user to unlock a key ring

_HUB_KEY = "https://index.docker.io/v1/"  # what docker login writes for Docker Hub
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Credentials(NamedTuple):
    """A name and password, an OAuth2 refresh token ("identity token"), or a bearer token of the registry's own."""

    username: str
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""  # sent to the registry as it is

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, …)"

    @property
    def basic(self) -> str:
        """The value of an Authorization header; RFC 7617."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def find_credentials(registry: str, repository: str) -> Credentials | None:
    """What the first file that knows `registry` (host or host:port) says; None means anonymous.

    A file named by the environment has to be readable; BadInput otherwise, and for a damaged one.
    """
    registry = registry.lower()
    for path, required in _files():
        try:
            with path.open("rb") as stream:
                raw = stream.read(FILE_MAX_BYTES + 1)
        except OSError as err:
            # Not there, or below a home we may not look into: as if nobody had logged in.
            if required and not isinstance(err, FileNotFoundError):
                raise BadInput(f"credentials {path}: {err.strerror}") from err
            continue
        config = parse_json(raw, f"credentials {path}", FILE_MAX_BYTES)
        if found := _in_config(config, registry, repository, path):
            return found
    return None


def _files() -> Iterator[tuple[Path, bool]]:
    """Files to look into, and whether the user named them; the order of containers-auth.json(5), docker's first."""
    env = os.environ
    if named := env.get("REGISTRY_AUTH_FILE"):
        yield Path(named), True
        return
    if folder := env.get("DOCKER_CONFIG"):
        yield Path(folder, "config.json"), True
    if runtime := named_folder("XDG_RUNTIME_DIR"):
        yield runtime / "containers/auth.json", False
    config, user = named_folder("XDG_CONFIG_HOME"), home()
    config = config or (user and user / ".config")
    if config is not None:
        yield config / "containers/auth.json", False
    if user is not None and not folder:
        yield user / ".docker/config.json", False


def _in_config(config: Mapping[str, Any], registry: str, repository: str, path: Path) -> Credentials | None:
    server = _HUB_KEY if registry == DOCKER_HUB else registry
    store = _string(config, "credsStore", path)
    helpers = _mapping(config, "credHelpers", path)
    for key in _exact_first(helpers, registry):
        if _place(key)[0] == registry:
            # An empty name is docker's way to say: this file, though others are in a store.
            store = _string(helpers, key, path)
            if store:
                return _ask_helper(store, server, path)
            break
    auths = _mapping(config, "auths", path)
    # containers-auth.json: the most specific of host/namespace/repository, host/namespace, host.
    parts = repository.split("/")
    for count in range(len(parts), -1, -1):
        namespace = "/".join(parts[:count])
        for key in _exact_first(auths, registry):
            value = auths[key]
            if _place(key) != (registry, namespace) or not isinstance(value, dict):
                continue
            if found := _inline(value, key, path):
                return found
    return _ask_helper(store, server, path) if store else None


def _exact_first(keys: Iterable[str], registry: str) -> list[str]:
    """The registry's own name before other spellings of it, as docker."""
    return sorted(keys, key=lambda key: key != registry)


def _place(key: str) -> tuple[str, str]:
    """The registry that a key is for, and the namespace in it: `https://host/v1/`, `host/` and `host` are the same.

    docker writes hosts, once with a scheme and a path; podman also `host/namespace`. Docker Hub has several names.
    """
    text = re.sub(r"^https?://", "", key, flags=re.IGNORECASE)
    host, _, namespace = text.partition("/")
    namespace = namespace.strip("/")
    if text != key or namespace in ("v1", "v2"):
        namespace = ""
    host = host.lower()
    return DOCKER_HUB if host in _HUB_NAMES else host, namespace


def _inline(value: Mapping[str, Any], key: str, path: Path) -> Credentials | None:
    """The entry of `auths`; None for an empty one, which docker writes when a store holds the secret."""
    what = f"{path}: entry {printable(key, 200)!r}"
    identity, token = _string(value, "identitytoken", what), _string(value, "registrytoken", what)
    username, password = _string(value, "username", what), _string(value, "password", what)
    if auth := _string(value, "auth", what):
        try:
            username, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except ValueError:
            raise BadInput(f"credentials {what} is not base64", "log in again") from None
        password = password.rstrip("\0")  # as docker's own reader
    if token and not re.fullmatch(r"[!-~]+", token):
        raise BadInput(f"credentials {what}: its registrytoken is not a token", "log in again")
    if not identity and not username and not token:
        return None
    return Credentials(username, password, identity, token)


def _ask_helper(name: str, server: str, path: Path) -> Credentials | None:
    """What docker-credential-NAME says; docker-credential-helpers' protocol: the server on stdin, JSON on stdout."""
    if not _HELPER.match(name):
        raise BadInput(f"credentials {path}: {name!r:.80} is no credential helper")
    program = f"docker-credential-{name}"
    try:
        # Its stdout may hold secrets, also when it fails: never shown.
        done = process.run([program, "get"], given=server.encode(), timeout_s=HELPER_TIMEOUT_S)
    except FileNotFoundError:
        raise BadInput(
            f"{program}, which {path} asks for, is not installed", "install it, or remove it there"
        ) from None
    except OSError as err:
        raise RegistryError(f"{program}: {type(err).__name__}", f"try it: echo {server} | {program} get") from None
    if done.status:
        if b"credentials not found" in done.out.lower():
            return None
        raise RegistryError(f"{program} ended with {done.status}", f"try it: echo {server} | {program} get")
    try:
        answer = parse_json(done.out, program, FILE_MAX_BYTES)
        username, secret = answer["Username"], answer["Secret"]
        if not isinstance(username, str) or not isinstance(secret, str):
            raise TypeError
    except (BadInput, KeyError, TypeError):
        raise RegistryError(f"{program} does not answer with JSON", f"try it: echo {server} | {program} get") from None
    if username == "<token>":
        return Credentials("", identity_token=secret)
    return Credentials(username, secret) if username or secret else None


def _string(value: Mapping[str, Any], key: str, what: object) -> str:
    text = value.get(key)
    if not isinstance(text, str | None):
        raise BadInput(f"credentials {what}: {printable(key, 80)} is not text", "log in again")
    return text or ""


def _mapping(config: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict | None):
        raise BadInput(f"credentials {path}: {key} is not a mapping")
    return value or {}
