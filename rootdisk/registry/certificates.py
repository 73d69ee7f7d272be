"""Certificates for single registries, where podman, skopeo and docker have them: containers-certs.d(5).

    /etc/containers/certs.d/registry.example:5000/ca.crt         whom to believe that they are this registry
                                                 /client.cert    what to show to it, and
                                                 /client.key     the key for that

The first directory with the host's name counts: the user's, the system's, docker's. Nothing of it is used for another host, and
a client certificate is shown to the registry alone: not to where it redirects to, as with other credentials.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput
from rootdisk.parsing import pem
from rootdisk.system.folders import home, named_folder
from rootdisk.text import printable

if TYPE_CHECKING:  # and loaded where TLS is used
    import ssl
    from collections.abc import Callable

_TOO_LARGE = pem.Fault("is too large for a file of certificates or keys", "is it the right file?")
_NAMES = "NAME.crt is an authority; NAME.cert and NAME.key are shown to the registry; PEM, without a password"
SYSTEM = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))


def certificates_folder(host: str) -> Path | None:
    """Return the directory for `host`, HOST or HOST:PORT; None if there is none."""
    user = home()
    config = named_folder("XDG_CONFIG_HOME") or (user and user / ".config")
    own = (config / "containers/certs.d",) if config is not None else ()
    return next((place / host for place in (*own, *SYSTEM) if (place / host).is_dir()), None)


def load_authorities(context: ssl.SSLContext, path: Path, what: str) -> None:
    """Load the authorities in the file `path` into `context`; errors call it `what`.

    Raises:
        BadInput: It is not a regular file, as it is read again for later connections, or has no certificates.
    """
    shown = f"{what} {printable(path)}".lstrip()
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BadInput(f"{shown} is not a regular file", "put the PEM certificates into one file")
        if info.st_size > pem.PEM_MAX_BYTES:
            raise BadInput(f"{shown} {_TOO_LARGE.what}", _TOO_LARGE.hint)
        context.load_verify_locations(cafile=path)
    except OSError as err:  # ssl.SSLError is one
        fault = _lack(path, pem.lack_of_certificate) or pem.Fault("is damaged")
        raise BadInput(f"{shown} {fault.what}", fault.hint or "it must contain PEM certificates") from err


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path, names: tuple[str, str] = ("", "")) -> None:
    """Load a certificate and its key into `context`; errors call the files `names`.

    Raises:
        BadInput: One of them cannot be used, or they do not belong together.
    """
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as err:
        name, path, fault = names[0], certificate, _lack(certificate, pem.lack_of_certificate)
        if fault is None:
            name, path, fault = names[1], key, _lack(key, pem.lack_of_key) or _fault_of_key(key, err)
        raise BadInput(f"{name} {printable(path)} {fault.what}".lstrip(), fault.hint) from err


def _fault_of_key(key: Path, err: OSError) -> pem.Fault:
    if getattr(err, "reason", "") == "KEY_VALUES_MISMATCH":
        return pem.Fault("is not the key of the certificate", "name the two files that belong together")
    if b"ENCRYPTED" in key.read_bytes():
        return pem.Fault("has a password", "openssl pkey -in FILE -out FILE.plain")
    return pem.Fault("is damaged, or its certificate is")


def _lack(path: Path, lack: Callable[[bytes], pem.Fault | None]) -> pem.Fault | None:
    """Return what is wrong with a file that TLS does not accept; None if its text does not show it."""
    try:
        with path.open("rb") as file:
            data = file.read(pem.PEM_MAX_BYTES + 1)
    except OSError as err:
        return pem.Fault(f"cannot be read: {err.strerror}")
    return _TOO_LARGE if len(data) > pem.PEM_MAX_BYTES else lack(data)


def load_certificates(context: ssl.SSLContext, folder: Path, *, is_client: bool) -> None:
    """Load the authorities (*.crt) and, if `is_client`, client certificates (*.cert with *.key) of `folder` into `context`.

    Raises:
        BadInput: A file cannot be used, or a certificate has no key.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as err:
        raise BadInput(f"{printable(folder)}: {err.strerror}", _NAMES) from err
    try:
        for path in paths:
            if path.suffix == ".crt":
                load_authorities(context, path, "")
            elif path.suffix == ".cert" and is_client:
                load_pair(context, path, path.with_suffix(".key"))
    except BadInput as err:
        raise BadInput(err.message, _NAMES) from err
