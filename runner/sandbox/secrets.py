"""Read the secrets of a sandbox from their sources, at each start. They are never written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.cli.files import read_small_file
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.records import Record
from rootdisk.system import process
from rootdisk.text import printable

if TYPE_CHECKING:
    from runner.network.secrets import Secrets, SecretSpec

_COMMAND_S = 60.0
_FILE_MAX_BYTES = 64 << 10
_FOLDER = "/run/rootdisk"
# Variables by which programs find certificates: all of the image's with ours, and ours alone.
_BUNDLES = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE"),
    "CARGO_HTTP_CAINFO",
)
_ALONE = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")


def read(texts: Sequence[str], settings: Sequence[Record]) -> Secrets | None:
    """Return the secrets of --secret `texts` for a sandbox with `settings`; None if there are none.

    Raises:
        RootdiskError: A source has none, or the settings have one.
    """
    if not texts:
        return None
    from runner.network import authority
    from runner.network.secrets import Secret, Secrets, check_value, parse_secret, placeholder

    authority.check_installed()
    specs = list(map(parse_secret, texts))
    secrets = []
    for spec in specs:
        value = check_value(spec.name, _value(spec))
        check_settings(spec, settings, value)
        secrets.append(Secret(spec.name, spec.places, placeholder(len(value), os.urandom(len(value))), value))
    names = [str(place.target.host) for spec in specs for place in spec.places if place.is_tls]
    certificate, server = authority.make(names) if names else ("", b"")
    return Secrets(tuple(secrets), certificate, server, tuple(spec.source for spec in specs if spec.kind == "env"))


def check_settings(spec: SecretSpec, settings: Sequence[Record], value: str = "") -> None:
    """Refuse settings by which the guest would have the secret; BadInput says how."""
    for key, content in settings:
        name = os.fsdecode(content.partition(b"=")[0])
        if key in ("env", "env-default") and name == spec.name:
            raise BadInput(f"--secret {spec.name} and -e {spec.name}", "use one of them: the guest gets a placeholder")
        if value and value.encode() in content:
            where = f"-e {printable(name, 60)}" if key == "env" else f"the command or another option ({key})"
            raise BadInput(f"--secret {spec.name}: its value is also in {where}", "the guest would have it: omit that")


def _value(spec: SecretSpec) -> bytes:
    if spec.kind == "env":
        value = os.environb.get(os.fsencode(spec.source))
        if value is None:
            raise BadInput(
                f"--secret {spec.name}: the variable {printable(spec.source, 60)} is not set", "export it first"
            )
        return value
    if spec.kind == "file":
        return read_small_file(Path(spec.source), _FILE_MAX_BYTES, option=f"--secret {spec.name}")
    try:
        done = process.run(["/bin/sh", "-c", spec.source], timeout_s=_COMMAND_S, max_bytes=_FILE_MAX_BYTES)
    except (OSError, TimeoutError) as err:
        raise RootdiskError(f"--secret {spec.name}: its command: {err.strerror}") from err
    if done.status:
        last = done.err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise RootdiskError(
            f"--secret {spec.name}: its command failed with status {done.status}"
            + (last and f": {printable(last, 200)}"),
            "run it by hand",
        )
    return done.out


def records(secrets: Secrets) -> list[Record]:
    """Return what the slot says of secrets: placeholders, and the certificate to trust."""
    found = [("env", f"{secret.name}={secret.placeholder}".encode()) for secret in secrets.secrets]
    if secrets.certificate:
        found.append(("authority", secrets.certificate.encode()))
        for names, path in ((_BUNDLES, "authorities.pem"), (_ALONE, "authority.pem")):
            found += [("env-default", f"{name}={_FOLDER}/{path}".encode()) for name in names]
    return found
