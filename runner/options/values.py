"""Read options: artifacts, records of the slot, sizes, ports, volumes."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Collection, Sequence

from rootdisk.cli.sizes import HINT, parse_size
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.records import Record
from rootdisk.text import printable
from runner.machine.model import Forward, Share
from runner.options.programs import program_records, read_small
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
LABELS_MAX_CHARACTERS = 64 << 10
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # sethostname(2): 64 bytes
_FORWARD = re.compile(
    r"(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]):)?([0-9]{1,5}):([0-9]{1,5})(?:/((?i:tcp|udp)))?"
)


def sandbox_name(text: str, option: str) -> str:
    """Check a sandbox's name and return it; BadInput if it is not valid."""
    if not _NAME.match(text):
        raise BadInput(f"{option} {text!r:.80}", "lower-case letters, digits, - _ and . only, 63 at most")
    return text


def program(words: Sequence[str], parser_options: Collection[str], usage: str) -> list[str]:
    """Return the command, which is all words after ARTIFACT or NAME; a -- before it is dropped.

    BadInput if there is an option of ours before a --: older runners accepted options there.
    """
    if words[:1] == ["--"]:
        return list(words[1:])
    if "--" in words and words[0].partition("=")[0] in parser_options:
        raise BadInput(f"{words[0]!r:.60} stands after {usage}", f"put options before {usage}, the command after it")
    return list(words)


def platform(options: argparse.Namespace) -> Platform:
    """Return the platform of --platform, or this machine's if it is not given."""
    return Platform.parse(options.platform) if options.platform else Platform.host()


def registry(options: argparse.Namespace) -> RegistryOptions:
    """Return how to reach registries."""
    return RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file)


def artifact(store: Store, options: argparse.Namespace, *, repair: bool = False) -> StoredArtifact:
    """Return the artifact that the command line names, fetched as --pull says.

    If it is damaged and `repair` is true, it is fetched again.
    """
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
            lazily=options.pull == "lazy",
            meanwhile=_load,
        )


def _load() -> None:
    """Load what starts a machine on an incomplete disk, before the processes that need it are forked."""
    from runner.lazy import served, server
    from runner.sandbox.keeper import feed, run

    assert all((served, server, feed, run))


WITH_UNIT = 1 << 20  # bytes: less without a unit is taken for a mistake


def size_bytes(text: str, option: str, least: int = 1, *, bare_least: int = WITH_UNIT) -> int:
    """Return the bytes of a size as 512m, 1.5g or 20GiB, at least `least`. BadInput names the option.

    A number without a unit is bytes, as for docker and qemu-img; but fewer than `bare_least` are not what somebody means who
    types 20.
    """
    try:
        size = parse_size(text)
    except BadInput as err:
        raise BadInput(f"{option}: {err.message}", err.hint) from None
    if size < least:
        raise BadInput(f"{option} {text!r:.40}: too small", HINT)
    if text.isdecimal() and 0 < size < bare_least:
        raise BadInput(f"{option} {text!r:.40} is {size} bytes", f"write a unit, as {text}m or {text}g")
    return size


def boot_records(options: argparse.Namespace, name: str) -> list[Record]:
    """Return the slot's records for a `boot` command line."""
    records = program_records(options)
    records += tls_records(options)
    if options.entrypoint is not None:
        records.append(
            ("entrypoint", os.fsencode(options.entrypoint)) if options.entrypoint else ("noentrypoint", b"1")
        )
    records.append(("hostname", hostname(name if options.hostname is None else options.hostname).encode()))
    if options.read_only:
        records.append(("read-only", b"1"))
    return records


def tls_records(options: argparse.Namespace) -> list[Record]:
    """Return the records of the guest's TLS files; BadInput if one has not what its option says, or if key and certificate differ."""
    import time

    from rootdisk.parsing import pem
    from rootdisk.system.notices import notice

    found = {}
    for key, path in (("tls-ca", options.tls_ca), ("tls-cert", options.tls_cert), ("tls-key", options.tls_key)):
        if path is not None:
            data = read_small(path, f"--{key}")
            lack = pem.lack_of_key if key == "tls-key" else pem.lack_of_certificate
            if fault := lack(data):
                raise BadInput(f"--{key} {printable(path)} {fault.what}", fault.hint)
            if key != "tls-key" and (why := pem.out_of_date(data, time.time())):
                notice(f"--{key} {path}: {why}")
            found[key] = data
    if "tls-cert" in found and "tls-key" in found and not pem.belong(found["tls-cert"], found["tls-key"]):
        raise BadInput(
            "--tls-key is not the key of the certificate of --tls-cert", "name the two files that belong together"
        )
    return list(found.items())


def labels(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Parse labels, each NAME=VALUE or NAME. If a name is repeated, the last one counts."""
    labels_by_name = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name:
            raise BadInput(f"--label {text!r:.80}", "write NAME=VALUE")
        labels_by_name[name] = value
    if sum(len(name) + len(value) for name, value in labels_by_name.items()) > LABELS_MAX_CHARACTERS:
        raise BadInput(f"--label: more than {LABELS_MAX_CHARACTERS} characters in all", "labels are for short words")
    return tuple(sorted(labels_by_name.items()))


def hostname(text: str) -> str:
    """Check a host name for the guest and return it; BadInput if Linux or a resolver would not accept it."""
    if not _HOST_NAME.fullmatch(text):
        raise BadInput(
            f"--hostname {text!r:.80}", "letters, digits, - _ and ., at most 64, the first a letter or digit"
        )
    return text


def forwards(texts: Sequence[str]) -> tuple[Forward, ...]:
    """Parse ports, each [ADDRESS:]HOST:GUEST[/udp], as in docker. But the default address is this machine only."""
    parsed = tuple(map(_forward, texts))
    for number, (forward, text) in enumerate(zip(parsed, texts, strict=True)):
        if any(_overlap(forward, other) for other in parsed[:number]):
            raise BadInput(f"--publish {text!r:.60}", f"port {forward.host} of {forward.address} is published twice")
    return parsed


def _overlap(first: Forward, second: Forward) -> bool:
    """Return whether two forwards use the same port of the same address, or of an address and all addresses."""
    same_port = (first.protocol, first.host) == (second.protocol, second.host)
    same_kind = (":" in first.address) == (":" in second.address)
    return (
        same_port
        and same_kind
        and (first.address == second.address or bool({first.address, second.address} & {"0.0.0.0", "::"}))
    )


def _forward(text: str) -> Forward:
    match = _FORWARD.fullmatch(text)
    address = _address(match[1] or "127.0.0.1") if match else ""
    if match and address and not all(0 < int(port) < 1 << 16 for port in (match[2], match[3])):
        raise BadInput(f"--publish {text!r:.60}", "a port is a number from 1 to 65535")
    if not match or not address:
        hint = "write HOST:GUEST or ADDRESS:HOST:GUEST, as 8080:80, [::1]:8080:80 or 53:53/udp"
        if text.partition("/")[2].lower() not in ("", "tcp", "udp"):
            hint = "a port is one of tcp, as 8080:80, or of udp, as 53:53/udp"
        elif re.fullmatch(r"(?:.*:)?[0-9]{1,5}-[0-9]{1,5}(?::[0-9]{1,5}(?:-[0-9]{1,5})?)?(?:/\w+)?", text):
            hint = "a range of ports is written port by port: -p 8080:80 -p 8081:81"
        elif re.fullmatch(r"(?:[0-9.]+::?)?[0-9]{1,5}(?:/\w+)?", text):
            hint = "say which port of this host too, as 8080:80"
        elif re.fullmatch(r"[A-Za-z][\w.-]*:[0-9]{1,5}:[0-9]{1,5}(?:/\w+)?", text):
            hint = "write the address as a number, as 127.0.0.1:8080:80"
        raise BadInput(f"--publish {text!r:.60}", hint)
    return Forward((match[4] or "tcp").lower(), address, int(match[2]), int(match[3]))


def _address(text: str) -> str:
    """Return an address in its usual form; "" if it is not one. inet_aton(3) would read 010 as 8."""
    family = socket.AF_INET6 if text.startswith("[") else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text.strip("[]")))
    except OSError:
        return ""


def volumes(texts: Sequence[str]) -> tuple[Share, ...]:
    """Parse volumes, each HOST:GUEST[:MODE]; BadInput names the wrong one."""
    if not texts:
        return ()
    from runner.machine.virtiofsd import parse

    return parse(texts)
