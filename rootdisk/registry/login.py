"""Saving a name and password for a registry where docker does, and removing them: docker's config.json or its helpers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from rootdisk.durable import atomic_write, read_file
from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import parse_json
from rootdisk.oci.reference import DOCKER_HUB, HUB_NAMES, registry_of
from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry.challenges import Auth
from rootdisk.registry.client import RegistryClient
from rootdisk.registry.credentials import FILE_MAX_BYTES, Credentials, helper_of, keys_of, run_helper, server_of
from rootdisk.system.folders import home
from rootdisk.system.locks import held
from rootdisk.text import printable

PASSWORD_MAX = 64 << 10


def parse_registry(text: str) -> str:
    """Return the registry that `text` names, HOST or HOST:PORT. BadInput if it is not one."""
    name = text.removeprefix("https://").removesuffix("/v1/").removesuffix("/")
    return DOCKER_HUB if name in HUB_NAMES else registry_of(name).lower()


def check(registry: str, credentials: Credentials, options: RegistryOptions) -> None:
    """Ask the registry whether it takes `credentials`. BadInput if it does not; RegistryError if it cannot be asked."""

    class GivenAuth(Auth):
        """Answers with the credentials to check, not with saved ones."""

        def _credentials(self) -> Credentials | None:
            return credentials

    class Client(RegistryClient):
        """Sends requests with the credentials to check."""

        def _make_auth(self, registry: str, repository: str) -> Auth:
            return GivenAuth(registry, repository, self.session, self.options)

    client = Client(registry, "name", options)
    try:
        client.request("GET", "/v2/", expect=(200,)).close()
    except RegistryError as err:
        if err.status in (401, 403):
            raise BadInput(f"{registry} refused this name and password", "check both, and try again") from None
        raise
    finally:
        client.close()


def save(registry: str, credentials: Credentials) -> str:
    """Save `credentials` for `registry`; return where, in words."""
    path = config_path()
    with _locked(path):
        config = _read(path)
        helper = helper_of(config, registry, path)
        if helper:
            login = {"ServerURL": server_of(registry), "Username": credentials.username, "Secret": credentials.password}
            _ask(helper, "store", json.dumps(login).encode(), path)
        auths = config.setdefault("auths", {})
        for key in keys_of(auths, registry):
            del auths[key]
        secret = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
        auths[server_of(registry)] = {} if helper else {"auth": secret}
        _write(path, config)
    return f"docker-credential-{helper}" if helper else printable(path)


def remove(registry: str) -> str:
    """Remove the credentials saved for `registry`. Return where they were, in words; "" if there were none."""
    path = config_path()
    if not path.exists():
        return ""
    with _locked(path):
        config = _read(path)
        place = ""
        helper = helper_of(config, registry, path)
        if helper:
            _ask(helper, "erase", server_of(registry).encode(), path)
            place = f"docker-credential-{helper}"
        auths = config.get("auths") or {}
        keys = keys_of(auths, registry)
        for key in keys:
            del auths[key]
        if keys:
            _write(path, config)
            place = place or printable(path)
    return place


def config_path() -> Path:
    """Return the file that credentials are saved in."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named).absolute()
    if folder := os.environ.get("DOCKER_CONFIG"):
        return Path(folder, "config.json").absolute()
    user = home()
    if user is None:
        raise BadInput("you have no home directory", "set DOCKER_CONFIG to a directory")
    return user / ".docker/config.json"


def _locked(path: Path) -> Any:
    """Hold the file's lock, so that two logins at the same time both stay."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise BadInput(f"cannot make {printable(path.parent)}: {err.strerror}", "set DOCKER_CONFIG") from err
    return held(path.with_name(f".{path.name}.lock"), what=printable(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = read_file(_behind(path), FILE_MAX_BYTES)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        raise BadInput(f"credentials {printable(path)}: {why}") from err
    config = dict(parse_json(raw, f"credentials {printable(path)}", FILE_MAX_BYTES)) if raw.strip() else {}
    if config.get("auths", {}) is None:
        del config["auths"]
    if not isinstance(config.get("auths", {}), dict):
        raise BadInput(f"credentials {printable(path)}: auths is not a mapping", "fix the file or move it away")
    return config


def _behind(path: Path) -> Path:
    """Return the file that a link leads to. To open links in a circle is an error."""
    return Path(os.path.realpath(path))


def _write(path: Path, config: dict[str, Any]) -> None:
    atomic_write(_behind(path), json.dumps(config, indent="\t").encode() + b"\n", 0o600)


def _ask(helper: str, order: str, stdin: bytes, path: Path) -> None:
    done = run_helper(helper, order, stdin, path)
    if done.status and not (order == "erase" and b"not found" in done.out.lower() + done.err.lower()):
        raise RegistryError(
            f"docker-credential-{helper} {order} ended with {done.status}", "see what it needs: is its key ring open?"
        )
