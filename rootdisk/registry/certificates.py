"""Certificates for single registries, where podman, skopeo and docker have them: containers-certs.d(5).

    /etc/containers/certs.d/registry.example:5000/ca.crt         whom to believe that they are this registry
                                                 /client.cert    what to show to it, and
                                                 /client.key     the key for that

The first directory with the host's name counts: the user's, the system's, docker's. Nothing of it is used for another host, and
a client certificate is shown to the registry alone: not to where it redirects to, as with other credentials.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput
from rootdisk.system.folders import home, named_folder
from rootdisk.text import printable

if TYPE_CHECKING:  # and loaded where TLS is used
    import ssl

SYSTEM = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))


def certificates_folder(host: str) -> Path | None:
    """Return the directory for `host`, HOST or HOST:PORT; None if there is none."""
    user = home()
    config = named_folder("XDG_CONFIG_HOME") or (user and user / ".config")
    own = (config / "containers/certs.d",) if config is not None else ()
    return next((place / host for place in (*own, *SYSTEM) if (place / host).is_dir()), None)


def load_certificates(context: ssl.SSLContext, folder: Path, *, is_client: bool) -> None:
    """Load the authorities (*.crt) and, if `is_client`, client certificates (*.cert with *.key) of `folder` into `context`.

    Raises:
        BadInput: A file cannot be used, or a certificate has no key.
    """
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert" and is_client:
                context.load_cert_chain(path, path.with_suffix(".key"), password=lambda: b"")
    except OSError as err:  # ssl.SSLError is one
        import ssl

        why = "not a PEM certificate, or its key does not fit" if isinstance(err, ssl.SSLError) else err.strerror
        hint = "NAME.crt is an authority; NAME.cert and NAME.key are shown to the registry; PEM, without a password"
        raise BadInput(f"{printable(path)}: {why}", hint) from err
