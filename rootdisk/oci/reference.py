"""Parse image references.

Registry names follow docker's normalisation (distribution/reference, normalize.go): `alpine` is
`docker.io/library/alpine:latest`, and a first part with a dot, a colon or the name localhost is a registry. The other
kinds follow containers-transports(5): `oci:DIR:TAG`, `oci-archive:FILE:TAG`, `docker-archive:FILE:NAME:TAG`,
`docker-daemon:REF`, and our own `tar:FILE` for a plain root file system.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple, cast

from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest
from rootdisk.parsing.digests import HEX_SHA256
from rootdisk.text import printable

Kind = Literal["registry", "oci", "oci-archive", "docker-archive", "docker-daemon", "tar"]

DOCKER_HUB = "docker.io"
HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_PATH_KINDS = ("oci", "oci-archive", "docker-archive", "tar")
_FILE_ENDINGS = (
    *(".tar", ".tgz", ".txz", ".tbz2", ".tzst", ".gz", ".xz", ".bz2", ".zst", ".zip"),
    *(".ext4", ".img", ".raw", ".iso", ".qcow2", ".vmdk", ".vhd", ".vhdx", ".squashfs", ".cpio"),
)
_HINT = "write registry/repository:tag, registry/repository@sha256:… or oci:DIR:TAG"

# Compiled at first use: compiling is slow, and a boot from a layout needs only two of them.
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?\Z"
_REPOSITORY = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z"
# org.opencontainers.image.ref.name (image-spec annotations.md) also allows complete image names.
_REF_NAME = r"[A-Za-z0-9_][A-Za-z0-9._:@/+-]{0,254}\Z"
_DIGEST_TAIL = r"@(sha[0-9]+:[^/]*)\Z"


class Reference(NamedTuple):
    """An image reference. Registries and the daemon have `registry` and `repository`; everything on disk has `path`.

    `tag` is "" if none was given and none is implied. If both are given, `digest` takes precedence over `tag`.
    """

    kind: Kind
    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: Digest | None = None
    path: Path | None = None

    @property
    def name(self) -> str | Digest:
        """The digest, else the tag, else "", which means the only image there."""
        return self.digest or self.tag

    @property
    def place(self) -> str:
        """The reference without tag and digest: the repository, directory or file."""
        if self.path is not None:
            return f"{self.kind}:{self.path}"
        place = f"{self.registry}/{self.repository}" if self.registry else self.repository
        return place if self.kind == "registry" else f"{self.kind}:{place}"

    def __str__(self) -> str:
        return self.place + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str, *, foreign: bool = False) -> Reference:
    """Parse a reference. With `foreign`, which is for text that no user has typed, no name is searched for on this machine.

    Raises:
        BadInput: `text` is not valid; the message names the part, and the hint says what to write.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _PATH_KINDS:
        return _on_disk(cast(Kind, scheme), rest, text)
    if colon and scheme == "docker-daemon":
        if re.fullmatch(f"sha256:{HEX_SHA256}", rest):
            return Reference("docker-daemon", digest=Digest.parse(rest))
        return _named("docker-daemon", rest, text)
    if _is_path(text) or (not foreign and _is_here(text)):
        shown = printable(text, 200)
        hint = f"write oci:{shown} for an OCI layout; imagetool also reads tar:FILE, docker-archive:FILE and oci-archive:FILE"
        if not text.startswith(("/", ".", "~")):
            hint += f"; if it is an image, name its registry: {DOCKER_HUB}/{'' if '/' in text else 'library/'}{shown}"
        is_here = not foreign and (os.path.lexists(text) or _is_here(text))
        there = "a file or directory" if is_here else "a path, and that file does not exist"
        raise BadInput(f"reference {text!r:.200} is {there}", hint[:600])
    if text.startswith(("http://", "https://", "docker://")):
        raise BadInput(f"reference {text!r:.200} starts with {scheme}://", "write the name without it")
    return _named("registry", text, text)


def _is_path(text: str) -> bool:
    """Return whether `text` is a path rather than an image: a missing local file is never asked for at Docker Hub."""
    if text.startswith(("/", "./", "../", "~/")) or text.endswith("/") or text in (".", ".."):
        return True
    first, slash, _ = text.partition("/")
    if slash and (set(first) & set(".:[") or first == "localhost"):
        return False  # it names a registry
    return text.lower().endswith(_FILE_ENDINGS)


def _is_here(text: str) -> bool:
    """Return whether a name without a registry is that of a file or an OCI layout here, and not meant for Docker Hub.

    A directory of another kind does not count: many projects have a directory with the name of the image that they use.
    """
    place = text.partition("@")[0]
    head, colon, tag = place.rpartition(":")
    place = head if colon and "/" not in tag else place
    first, slash, _ = place.partition("/")
    if not place or "\0" in place or (slash and (set(first) & set(".:[") or first in ("localhost", DOCKER_HUB))):
        return False
    return os.path.isfile(place) or os.path.isfile(os.path.join(place, "oci-layout"))


def _on_disk(kind: Kind, rest: str, text: str) -> Reference:
    digest, tag = None, ""
    path = rest
    if kind != "tar":
        if match := re.search(_DIGEST_TAIL, rest):
            digest = Digest.parse(match[1])
            path = rest[: match.start()]
        path, _, tag = path.partition(":")  # the first colon ends the path, as in containers-transports(5)
        if tag and not re.match(_REF_NAME, tag):
            raise BadInput(
                f"reference {text!r:.200}: {tag!r:.80} is not a valid tag", f"write {kind}:PATH:TAG; PATH has no colon"
            )
    if not path or "\0" in path:
        raise BadInput(f"reference {text!r:.200} has no path", f"write {kind}:PATH" + ("" if kind == "tar" else ":TAG"))
    return Reference(kind, tag=tag, digest=digest, path=Path(path))


def registry_of(text: str) -> str:
    """Return the registry that `text` names, HOST or HOST:PORT. Docker Hub's other names are not taken.

    Raises:
        BadInput: `text` is not a registry.
    """
    with contextlib.suppress(BadInput):
        registry = parse_reference(f"{text}/name", foreign=True).registry
        if registry.lower() == text.lower():
            return registry
    raise BadInput(f"{printable(text, 80)!r} is not a registry", "write HOST or HOST:PORT, as registry.example:5000")


def names_registry(first: str) -> bool:
    """Return whether the first part of a name, before a slash, is a registry; else it belongs to a repository of Docker Hub."""
    return bool(set(first) & set(".:[")) or first == "localhost" or first != first.lower()


def normal_registry(first: str) -> str:
    """Return the one name of a registry, which policies and registries.conf are compared with: hosts are in lower case.

    A host without a dot or port keeps its case, which alone tells it from a part of a repository.
    """
    return first.lower() if names_registry(first.lower()) else first


def is_tag(text: str) -> bool:
    """Return whether `text` is a valid tag; distribution-spec, "Pulling manifests"."""
    return bool(re.match(_TAG, text))


def _is_host(registry: str) -> bool:
    """Return whether the port is in range and text in brackets is an IPv6 address."""
    host, colon, port = registry.rpartition(":")
    if colon and port.isdecimal() and not host.endswith(":") and not 0 < int(port) < 65536:
        return False
    if not registry.startswith("["):
        return True
    from rootdisk.parsing.urls import normal_host

    return normal_host(registry[: registry.index("]") + 1]) is not None


def _named(kind: Kind, name: str, text: str) -> Reference:
    rest, at, digest_text = name.partition("@")
    digest = Digest.parse(digest_text) if at else None
    first, slash, remainder = rest.partition("/")
    if slash and names_registry(first):
        registry, path = first, remainder
    else:
        registry, path = DOCKER_HUB, rest
    if kind == "registry":
        registry = normal_registry(registry)
    if registry in HUB_NAMES:
        registry = DOCKER_HUB
    repository, colon, tag = path.partition(":")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not re.match(_HOST, registry) or not _is_host(registry):
        raise BadInput(f"reference {text!r:.200}: {registry!r:.80} is not a valid registry", _HINT)
    if not re.match(_REPOSITORY, repository) or len(repository) > 255:
        hint = "names are lower case" if repository != repository.lower() else _HINT
        raise BadInput(f"reference {text!r:.200}: {repository!r:.80} is not a valid repository", hint)
    if colon and not re.match(_TAG, tag):
        raise BadInput(f"reference {text!r:.200}: {tag!r:.80} is not a valid tag", _HINT)
    if not tag and digest is None:
        tag = "latest"
    return Reference(kind, registry, repository, tag, digest)
