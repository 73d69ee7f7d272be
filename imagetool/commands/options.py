"""Options that several commands have, as the values they mean."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions

if TYPE_CHECKING:
    from imagetool.config.images import Image


def image_of(options: argparse.Namespace) -> Image:
    """Turn the source and options of the command line into an image, as images.toml would."""
    from imagetool.config.images import of_command_line

    values: dict[str, Any] = {"source": options.source, "plain_http": options.plain_http, "strict": options.strict}
    for key in ("platform", "size"):
        if getattr(options, key):
            values[key] = getattr(options, key)
    if getattr(options, "verity", False):
        values["verity"] = True
    if options.ca_file:
        values["ca_file"] = str(options.ca_file)
    if getattr(options, "policy", None):
        values["policy"] = str(options.policy)
    values["env"] = pairs(options.env, "-e", "NAME=VALUE")
    values["owners"] = pairs(options.owner, "--owner", "PATH=USER[:GROUP]")
    if options.allow_secret:
        values["allow_secret"] = pairs(options.allow_secret, "--allow-secret", "NAME=REASON")
    values["tls"] = {"ca": str(options.tls_ca)} if options.tls_ca else {}
    values["process"] = _process(options)
    return of_command_line(name_of(parse_reference(options.source)), values)


def _process(options: argparse.Namespace) -> dict[str, list[str]]:
    """--entrypoint and --cmd."""
    found: dict[str, list[str]] = {}
    if options.entrypoint is not None:
        found["entrypoint"] = [options.entrypoint] if options.entrypoint else []
    if options.cmd is not None:
        import shlex

        try:
            found["cmd"] = shlex.split(options.cmd)
        except ValueError as err:
            raise BadInput(f"--cmd {options.cmd!r:.80}: {err}", "quote it as for a shell") from None
    return found


def name_of(source: Reference) -> str:
    """Derive the name that images.toml could use for a source."""
    last = source.place.rpartition("/")[2] if source.path is None else source.path.absolute().name
    name = re.sub(r"[^a-z0-9._-]", "-", re.sub(r"\.(tar|tgz|tar\.\w+)$", "", last.lower()))
    return name.strip("._-")[:63] or "image"


def pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    """Split NAME=VALUE texts; BadInput shows the form of `option`."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise BadInput(f"{option} {name + equals!r:.80}", f"write {option} {form}")
    return {name: value for name, _, value in pairs}


def registry(options: argparse.Namespace) -> RegistryOptions:
    """Return how to reach the registries of the command line."""
    return RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file)


def looked_at(options: argparse.Namespace) -> tuple[Platform, RegistryOptions]:
    """The platform to look at (default: this machine), and how to speak to registries."""
    platform = Platform.parse(options.platform) if options.platform else Platform.host()
    return platform, registry(options)


_in_use: list[int] = []  # locks, held until the process ends


def user_cache() -> Path:
    """Find or make the directory that keeps indexes, kernels, the init and disks between runs; `clean` leaves it until we end."""
    from rootdisk.system import locks  # copies need no cache

    cache = find_user_cache()
    _in_use.append(locks.take(cache / ".lock", shared=True, what=f"the cache {cache}"))
    return cache


def find_user_cache() -> Path:
    """Find or make the user's cache."""
    from rootdisk.system.folders import user_folder
    from rootdisk.system.ownership import check_cache

    named = os.environ.get("ROOTDISK_CACHE")
    cache = Path(named) if named else user_folder("XDG_CACHE_HOME", ".cache", "ROOTDISK_CACHE") / "rootdisk"
    cache.mkdir(parents=True, exist_ok=True)
    if os.environ.get("ROOTDISK_STORE_TRUSTED") != "1":  # as for the store: in a container nobody else may be there
        check_cache(cache)
    return cache.absolute()
