"""Read the options of commands: artifacts, records of the slot, sizes, ports, volumes."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rootdisk import env_file
from rootdisk.cli.rows import write_rows
from rootdisk.cli.sizes import HINT, parse_size
from rootdisk.errors import BadInput
from rootdisk.ids import check_user
from rootdisk.limits import SMALL_FILE_MAX_BYTES
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.records import Record
from rootdisk.text import printable
from runner.machine.model import Forward, Share
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
LABELS_MAX_CHARACTERS = 64 << 10
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # sethostname(2): 64 bytes
_FORWARD = re.compile(
    r"(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?"
)


def write_json(rows: Iterable[object]) -> None:
    """Print results for programs: always an array, also of one."""
    write_rows(rows)


def write_value(value: object) -> None:
    """Print one result as indented JSON."""
    print(json.dumps(value, indent=1))


def sandbox_name(text: str, option: str) -> str:
    """A sandbox's name; BadInput if it cannot be one."""
    if not _NAME.match(text):
        raise BadInput(f"{option} {text!r:.80}", "lower-case letters, digits, - _ and . only, 63 at most")
    return text


def program(words: Sequence[str], parser_options: Collection[str], usage: str) -> list[str]:
    """The words behind ARTIFACT or NAME: all of them are the command; one -- before it is left out.

    BadInput for options of ours that stand there with a -- after them, as older runners took them.
    """
    if words[:1] == ["--"]:
        return list(words[1:])
    if "--" in words and words[0].partition("=")[0] in parser_options:
        raise BadInput(f"{words[0]!r:.60} stands after {usage}", f"put options before {usage}, the command after it")
    return list(words)


def platform(options: argparse.Namespace) -> Platform:
    """The platform of --platform, else this machine's."""
    return Platform.parse(options.platform) if options.platform else Platform.host()


def registry(options: argparse.Namespace) -> RegistryOptions:
    """Return how to reach registries."""
    return RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file)


def local(store: Store, options: argparse.Namespace, *, repair: bool = False) -> StoredArtifact:
    """The artifact of the command line, fetched as --pull says, and if it is damaged and `repair` is true."""
    from rootdisk.cli.progress import shown_progress

    reference = parse_reference(options.artifact)
    with shown_progress(f"fetching {printable(reference)}", quiet=options.quiet) as progress:
        return pull(
            store,
            reference,
            registry(options),
            platform(options),
            progress,
            ask=options.pull == "always",
            repair=repair,
            fetch=options.pull != "never",
            policy=options.policy,
        )


def size_bytes(text: str, option: str, least: int = 1) -> int:
    """Return the bytes of a size as 512m, 1.5g or 20GiB, at least `least`. BadInput names the option."""
    try:
        size = parse_size(text)
    except BadInput as err:
        raise BadInput(f"{option}: {err.message}", err.hint) from None
    if size < least:
        raise BadInput(f"{option} {text!r:.40}: too small", HINT)
    return size


def program_records(options: argparse.Namespace) -> list[Record]:
    """Variables, working directory and user: of a sandbox's main program, and of exec's."""
    records: list[Record] = []
    if options.tty and "TERM" in os.environ:
        records.append(("term", os.fsencode(os.environ["TERM"])))
    for path in options.env_file:
        for variable in env_file.parse(read(path, "--env-file"), f"--env-file {printable(path)}"):
            records += _variable(variable)
    for text in options.env:
        records += _variable(os.fsencode(text))
    if options.user:
        check_user(options.user, "-u")
    for key, value in (("workdir", options.workdir), ("user", options.user)):
        if value:
            records.append((key, os.fsencode(value)))
    return records + [("cmd", os.fsencode(word)) for word in options.program]


def boot_records(options: argparse.Namespace, name: str) -> list[Record]:
    """The slot's records of a whole `boot` command line."""
    records = program_records(options)
    for key, path in (("tls-ca", options.tls_ca), ("tls-cert", options.tls_cert), ("tls-key", options.tls_key)):
        if path is not None:
            records.append((key, read(path, f"--{key}")))
    if options.entrypoint is not None:
        records.append(
            ("entrypoint", os.fsencode(options.entrypoint)) if options.entrypoint else ("noentrypoint", b"1")
        )
    records.append(("hostname", hostname(name if options.hostname is None else options.hostname).encode()))
    if options.read_only:
        records.append(("read-only", b"1"))
    return records


def _variable(text: bytes) -> list[Record]:
    """NAME=VALUE; or NAME, with this process's value, and nothing where it has none."""
    name, equals, _ = text.partition(b"=")
    if not name:
        raise BadInput(f"-e {os.fsdecode(text)!r:.80}", "write NAME=VALUE or NAME")
    if equals:
        return [("env", text)]
    value = os.environb.get(name)
    return [] if value is None else [("env", name + b"=" + value)]


def read(path: Path, option: str) -> bytes:
    """A small file that an option names."""
    try:
        with path.open("rb") as file:
            data = file.read(SMALL_FILE_MAX_BYTES + 1)
    except OSError as err:
        raise BadInput(f"{option}: cannot read {printable(path)}: {err.strerror}") from err
    if len(data) > SMALL_FILE_MAX_BYTES:
        raise BadInput(f"{option}: {printable(path)} is larger than 1 MiB", "is it the right file?")
    return data


def labels(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE each, or NAME; the last of a name counts."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name:
            raise BadInput(f"--label {text!r:.80}", "write NAME=VALUE")
        found[name] = value
    if sum(len(name) + len(value) for name, value in found.items()) > LABELS_MAX_CHARACTERS:
        raise BadInput(f"--label: more than {LABELS_MAX_CHARACTERS} characters in all", "labels are for short words")
    return tuple(sorted(found.items()))


def hostname(text: str) -> str:
    """A name for the guest; BadInput if Linux or a resolver does not take it."""
    if not _HOST_NAME.fullmatch(text):
        raise BadInput(
            f"--hostname {text!r:.80}", "letters, digits, - _ and ., at most 64, the first a letter or digit"
        )
    return text


def forwards(texts: Sequence[str]) -> tuple[Forward, ...]:
    """[ADDRESS:]HOST:GUEST[/udp] each, as docker has it, but for the default address: this machine only."""
    found = tuple(map(_forward, texts))
    for number, (one, text) in enumerate(zip(found, texts, strict=True)):
        if any(_overlap(one, other) for other in found[:number]):
            raise BadInput(f"--publish {text!r:.60}", f"port {one.host} of {one.address} is published twice")
    return found


def _overlap(one: Forward, other: Forward) -> bool:
    """Whether two forwards want the same port: of one address, or one of all addresses of its kind."""
    same_port = (one.protocol, one.host) == (other.protocol, other.host)
    same_kind = (":" in one.address) == (":" in other.address)
    return (
        same_port
        and same_kind
        and (one.address == other.address or bool({one.address, other.address} & {"0.0.0.0", "::"}))
    )


def _forward(text: str) -> Forward:
    found = _FORWARD.fullmatch(text)
    address = _address(found[1] or "127.0.0.1") if found else ""
    if not found or not address or not all(0 < int(port) < 1 << 16 for port in (found[2], found[3])):
        raise BadInput(
            f"--publish {text!r:.60}", "write HOST:GUEST or ADDRESS:HOST:GUEST, as 8080:80, [::1]:8080:80 or 53:53/udp"
        )
    return Forward(found[4] or "tcp", address, int(found[2]), int(found[3]))


def _address(text: str) -> str:
    """Return an address as everybody reads it; "" if it is none. inet_aton(3) reads 010 as 8."""
    family = socket.AF_INET6 if text.startswith("[") else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text.strip("[]")))
    except OSError:
        return ""


def volumes(texts: Sequence[str]) -> tuple[Share, ...]:
    """HOST:GUEST[:MODE] each; BadInput."""
    if not texts:
        return ()
    from runner.machine.virtiofsd import parse

    return parse(texts)
