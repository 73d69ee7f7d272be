"""Who we are to a registry: what docker, podman and skopeo have saved, found for one host and never sent to another.

Reads docker's config.json (`auths`, `identitytoken`, `credsStore`, `credHelpers`) and containers-auth.json(5). Secrets
stay out of error messages and out of repr().
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from runner import process
from runner.errors import BadInput, RegistryError
from runner.fields import parse_value
from runner.oci import parse_json
from runner.places import home, named_folder
from runner.reference import DOCKER_HUB

FILE_MAX_BYTES = 1 << 20
HELPER_TIMEOUT_S = 60  # some ask the user to unlock a key ring

_HUB_KEY = "https://index.docker.io/v1/"  # what docker login writes for Docker Hub
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Credentials(NamedTuple):
    """A name and password, or an OAuth2 refresh token ("identity token")."""

    username: str
    password: str = ""
    identity_token: str = ""

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
    helpers = _mapping(config, "credHelpers", path)
    server = _HUB_KEY if registry == DOCKER_HUB else registry
    for key, helper in helpers.items():
        if _host(key) == registry:
            return _ask_helper(str(helper), server, path)
    auths = _mapping(config, "auths", path)
    # containers-auth.json: the most specific of host/namespace/repository, host/namespace, host.
    parts = f"{registry}/{repository}".split("/")
    for count in range(len(parts), 0, -1):
        wanted = "/".join(parts[:count])
        for key, value in auths.items():
            matches = key == wanted if count > 1 else _host(key) == registry
            if matches and isinstance(value, dict) and (found := _inline(value, key, path)):
                return found
    if store := config.get("credsStore"):
        return _ask_helper(str(store), server, path)
    return None


def _host(key: str) -> str:
    """The registry a key is for: `https://host/v1/`, `https://host` and `host` are the same; Docker Hub has names."""
    host = re.sub(r"^https?://", "", key)
    if host != key:
        host = host.partition("/")[0]
    return DOCKER_HUB if host in _HUB_NAMES else host


def _inline(value: Mapping[str, Any], key: str, path: Path) -> Credentials | None:
    """The entry of `auths`; None for an empty one, which docker writes when a store holds the secret."""
    identity = str(value.get("identitytoken") or "")
    username, password = str(value.get("username") or ""), str(value.get("password") or "")
    if auth := value.get("auth"):
        try:
            username, _, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except ValueError:
            raise BadInput(f"credentials {path}: entry {key!r:.200} is not base64", "log in again") from None
        password = password.rstrip("\0")  # as docker's own reader
    if not identity and not username:
        return None
    return Credentials(username, password, identity)


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
        answer = parse_value(done.out, program, FILE_MAX_BYTES)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (BadInput, KeyError, TypeError):
        raise RegistryError(f"{program} does not answer with JSON", f"try it: echo {server} | {program} get") from None
    if username == "<token>":
        return Credentials("", identity_token=secret)
    return Credentials(username, secret) if username or secret else None


def _mapping(config: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise BadInput(f"credentials {path}: {key} is not a mapping")
    return value
