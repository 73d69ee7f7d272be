"""Find the credentials that docker, podman and skopeo have saved for a registry.

Reads docker's config.json (`auths`, `identitytoken`, `credsStore`, `credHelpers`) and containers-auth.json(5). Secrets never
appear in errors and repr().
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rootdisk.durable import open_config
from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import parse_json
from rootdisk.oci.fields import decode_base64
from rootdisk.oci.reference import DOCKER_HUB, HUB_NAMES
from rootdisk.system.folders import home, named_folder
from rootdisk.text import printable

if TYPE_CHECKING:
    from rootdisk.system import process

FILE_MAX_BYTES = 1 << 20
HELPER_TIMEOUT_S = 60  # a helper may ask the user to unlock a key ring

_HUB_KEY = "https://index.docker.io/v1/"  # the key of Docker Hub in files of docker login
_HELPER = r"[A-Za-z0-9][A-Za-z0-9._-]*\Z"  # compiled at first use


class Credentials(NamedTuple):
    """User name and password, an OAuth2 refresh token ("identity token"), or a bearer token of the registry."""

    username: str
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""  # sent to the registry unchanged
    where: str = ""  # the file that has them or names their helper

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, …)"

    @property
    def basic(self) -> str:
        """The value of an Authorization header for Basic authentication; RFC 7617."""
        from base64 import b64encode  # most registries are asked without a password

        return "Basic " + b64encode(f"{self.username}:{self.password}".encode()).decode()


def find_credentials(registry: str, repository: str) -> Credentials | None:
    """Return the credentials for `registry` (host or host:port) from the first file that has them, or None.

    Raises:
        BadInput: A file is damaged, or a file that the environment names cannot be read.
        RegistryError: A credential helper failed.
    """
    registry = registry.lower()
    for path, required in _files():
        try:
            is_named = bool(os.environ.get("REGISTRY_AUTH_FILE"))
            with open(open_config(path, may_be_pipe=is_named), "rb") as stream:
                raw = stream.read(FILE_MAX_BYTES + 1)
        except OSError as err:
            # Missing, or in a home directory that we may not read: nothing is saved.
            if required and not isinstance(err, FileNotFoundError):
                raise BadInput(f"credentials {path}: {err.strerror}") from err
            continue
        config = parse_json(raw, f"credentials {path}", FILE_MAX_BYTES)
        if credentials := _in_config(config, registry, repository, path):
            return credentials._replace(where=str(path))
    return None


def _files() -> Iterator[tuple[Path, bool]]:
    """Yield the files to search, and whether the user named them: docker's first, then as in containers-auth.json(5)."""
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
    server = server_of(registry)
    store = helper_of(config, registry, path)
    if store and any(_place(key)[0] == registry for key in _mapping(config, "credHelpers", path)):
        return _ask_helper(store, server, path)
    auths = _mapping(config, "auths", path)
    # containers-auth.json: the most specific of host/namespace/repository, host/namespace, host.
    parts = repository.split("/")
    for count in range(len(parts), -1, -1):
        namespace = "/".join(parts[:count])
        for key in _exact_first(auths, registry):
            value = auths[key]
            if _place(key) != (registry, namespace) or not isinstance(value, dict):
                continue
            if credentials := _inline(value, key, path):
                return credentials
    return _ask_helper(store, server, path) if store else None


def server_of(registry: str) -> str:
    """Return the name of a registry in docker's config.json and for its helpers."""
    return _HUB_KEY if registry == DOCKER_HUB else registry


def helper_of(config: Mapping[str, Any], registry: str, path: Path) -> str:
    """Return the helper that has a registry's secret, "" if the file itself has it."""
    helpers = _mapping(config, "credHelpers", path)
    for key in _exact_first(helpers, registry):
        if _place(key)[0] == registry:
            # An empty name means: the credentials of this registry are in this file, not in the store.
            return _string(helpers, key, path)
    return _string(config, "credsStore", path)


def keys_of(auths: Mapping[str, Any], registry: str) -> list[str]:
    """Return the keys of `auths` that are for all of a registry."""
    return [key for key in auths if _place(key) == (registry, "")]


def _exact_first(keys: Iterable[str], registry: str) -> list[str]:
    """Sort the exact name of the registry before other spellings, like docker."""
    return sorted(keys, key=lambda key: key != registry)


def _place(key: str) -> tuple[str, str]:
    """Split a key into registry and namespace. `https://host/v1/`, `host/` and `host` are equal.

    docker writes hosts, formerly with scheme and path. podman also writes `host/namespace`. Docker Hub has several names.
    """
    text = re.sub(r"^https?://", "", key, flags=re.IGNORECASE)
    host, _, namespace = text.partition("/")
    namespace = namespace.strip("/")
    if text != key or namespace in ("v1", "v2"):
        namespace = ""
    host = host.lower()
    return DOCKER_HUB if host in HUB_NAMES else host, namespace


def _inline(value: Mapping[str, Any], key: str, path: Path) -> Credentials | None:
    """Read an entry of `auths`. Return None if it is empty: docker writes that if the secret is in a store."""
    what = f"{path}: entry {printable(key, 200)!r}"
    identity, token = _string(value, "identitytoken", what), _string(value, "registrytoken", what)
    username, password = _string(value, "username", what), _string(value, "password", what)
    if auth := _string(value, "auth", what):
        try:
            username, _, password = decode_base64(auth).decode().partition(":")
        except ValueError:
            raise BadInput(f"credentials {what} is not valid base64", "log in again") from None
        password = password.rstrip("\0")  # like docker
    if token and not re.fullmatch(r"[!-~]+", token):
        raise BadInput(f"credentials {what}: its registrytoken is not valid", "log in again")
    if not identity and not username and not token:
        return None
    return Credentials(username, password, identity, token)


def _ask_helper(name: str, server: str, path: Path) -> Credentials | None:
    """Ask docker-credential-NAME. Protocol of docker-credential-helpers: the server on stdin, JSON on stdout."""
    program = f"docker-credential-{name}"
    hint = f"try it: echo {server} | {program} get"
    done = run_helper(name, "get", server.encode(), path, hint)
    if done.status:
        if b"credentials not found" in done.out.lower():
            return None
        raise RegistryError(f"{program} failed with exit status {done.status}", hint)
    try:
        answer = parse_json(done.out, program, FILE_MAX_BYTES)
        username, secret = answer["Username"], answer["Secret"]
        if not isinstance(username, str) or not isinstance(secret, str):
            raise TypeError
    except (BadInput, KeyError, TypeError):
        raise RegistryError(f"{program} did not answer with valid JSON", hint) from None
    if username == "<token>":
        return Credentials("", identity_token=secret)
    return Credentials(username, secret) if username or secret else None


def run_helper(name: str, order: str, stdin: bytes, path: Path, hint: str = "") -> process.Done:
    """Give docker-credential-NAME, which the file `path` names, an order. Never show its input and output: secrets.

    Raises:
        BadInput: It is not installed, or `name` is not a helper's.
        RegistryError: It cannot be started, or does not answer; `hint` says what to do.
    """
    if not re.match(_HELPER, name):
        raise BadInput(f"credentials {path}: {name!r:.80} is not a valid name of a credential helper")
    from rootdisk.system import process  # few have a helper

    program = f"docker-credential-{name}"
    try:
        return process.run([program, order], stdin=stdin, timeout_s=HELPER_TIMEOUT_S, max_bytes=FILE_MAX_BYTES)
    except FileNotFoundError:
        raise BadInput(
            f"{program} is not installed, but {path} requires it", "install it, or remove it from that file"
        ) from None
    except OSError as err:
        raise RegistryError(f"{program} {order}: {err.strerror}", hint) from None


def _string(value: Mapping[str, Any], key: str, what: object) -> str:
    text = value.get(key)
    if not isinstance(text, str | None):
        raise BadInput(f"credentials {what}: {printable(key, 80)} is not a string", "log in again")
    return text or ""


def _mapping(config: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict | None):
        raise BadInput(f"credentials {path}: {key} is not a JSON object")
    return value or {}
