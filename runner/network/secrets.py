"""Secrets that a guest uses but never has: parse and describe --secret NAME=SOURCE@HOST. Pure.

The guest gets a placeholder of the secret's length. In requests to the secret's hosts, and nowhere else, the keeper puts the
secret in its place, in the values of fields; and in answers the placeholder in place of the secret.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.network.hosts import Refused, host_text, parse_authority
from rootdisk.text import printable
from runner.network.guards import Target

HTTPS_PORT, HTTP_PORT = 443, 80
VALUE_MIN, VALUE_MAX = 8, 8192
HINT = "write NAME=env:VARIABLE@HOST, NAME=file:PATH@HOST or NAME=cmd:COMMAND@HOST; http://HOST for HTTP without TLS"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SOURCE = re.compile(r"(env|file|cmd):(.+)", re.DOTALL)
_PREFIX = "placeholder-"


class Place(NamedTuple):
    """A host that gets a secret."""

    target: Target
    is_tls: bool


class SecretSpec(NamedTuple):
    """A --secret: where the value comes from, and which hosts get it."""

    name: str
    kind: str  # env, file or cmd
    source: str
    places: tuple[Place, ...]

    @property
    def text(self) -> str:
        """The option in its usual form."""
        hosts = (f"{'' if place.is_tls else 'http://'}{place.target.text}" for place in self.places)
        return f"{self.name}={self.kind}:{self.source}@{','.join(hosts)}"

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of --allow that it implies."""
        return tuple(place.target.text for place in self.places)


def parse_secret(text: str) -> SecretSpec:
    """Parse NAME=SOURCE@HOST[,HOST…]; BadInput says what is wrong."""
    shown = f"--secret '{printable(text, 120)}'"
    name, _, rest = text.partition("=")
    source, _, hosts = rest.rpartition("@")
    match = _SOURCE.fullmatch(source)
    if not _NAME.fullmatch(name) or match is None or "\0" in text:
        raise BadInput(shown, HINT)
    try:
        places = tuple(map(_place, hosts.split(",")))
    except Refused as err:
        raise BadInput(f"{shown}: {err}", HINT) from None
    return SecretSpec(name, match[1], match[2], places)


def _place(text: str) -> Place:
    is_tls = not text.startswith("http://")
    host, port = parse_authority(
        text.removeprefix("http://").removeprefix("https://"), HTTPS_PORT if is_tls else HTTP_PORT
    )
    if not isinstance(host, str):
        raise Refused("a secret is for a host's name, not for an address")
    return Place(Target(host, port), is_tls)


def check_value(name: str, value: bytes) -> str:
    """Return a secret as a field of HTTP can have it, without the line end of its file.

    Raises:
        BadInput: It is too short to be told from other text, or nothing for a field.
    """
    text = value.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
    if not VALUE_MIN <= len(text) <= VALUE_MAX or not re.fullmatch(r"[!-~]+", text):
        raise BadInput(
            f"--secret {name}: its value cannot be used",
            f"{VALUE_MIN} to {VALUE_MAX:,} letters, digits and signs of ASCII, without spaces, on one line",
        )
    return text


def placeholder(length: int, random: bytes) -> str:
    """Return what stands for a secret of that length in the guest. `random` has at least as many bytes."""
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    text = "".join(letters[number % 32] for number in random[:length])
    return (_PREFIX + text)[:length] if length >= len(_PREFIX) + 16 else text


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret, in the memory of runner and keeper alone."""

    name: str
    places: tuple[Place, ...]
    placeholder: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets of a sandbox."""

    secrets: tuple[Secret, ...]
    certificate: str  # PEM, of the sandbox's authority; "" if no host is asked over TLS
    server: bytes = field(repr=False)  # PEM: key and certificate for all hosts of secrets
    variables: tuple[str, ...] = ()  # of the host, that programs of the keeper do not get


def overlapping(secrets: Sequence[SecretSpec]) -> str:
    """Say which --secret cannot be told from another; "" if there is none."""
    names = [secret.name for secret in secrets]
    for name in names:
        if names.count(name) > 1:
            return f"--secret {name} is there twice"
    tls = {(place.target, place.is_tls) for secret in secrets for place in secret.places}
    for target, is_tls in tls:
        if is_tls and (target, False) in tls:
            return f"--secret: {host_text(target.host)}:{target.port} with TLS and without"
    return ""
