"""Ask a Docker (or Podman) daemon for an image: GET /images/NAME/get of its HTTP interface, the stream of `docker save`."""

from __future__ import annotations

import http.client
import os
import re
import socket
import tempfile
from typing import IO
from urllib.parse import quote

from imagetool.sources.archives import ARCHIVE_MAX_BYTES, PIECE_BYTES
from rootdisk.errors import BadInput, RegistryError, Unsupported
from rootdisk.oci.reference import Reference
from rootdisk.parsing.urls import parse_url
from rootdisk.text import printable

DEFAULT_HOST = "unix:///var/run/docker.sock"
TIMEOUT_S = 300  # a daemon packs a large image before its first byte


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the daemon's socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def save_image(reference: Reference) -> IO[bytes]:
    """Save `reference` to an unnamed temporary file, and return it at its start. Asks the daemon that DOCKER_HOST names."""
    name = str(reference.digest) if not reference.repository else str(reference).removeprefix("docker-daemon:")
    archive = tempfile.TemporaryFile()  # noqa: SIM115  the caller's to close
    connection = _connect(os.environ.get("DOCKER_HOST") or DEFAULT_HOST)
    try:
        connection.request("GET", f"/images/{quote(name, safe='/:@')}/get")
        with connection.getresponse() as response:
            if response.status != 200:
                said = response.read(2000).decode(errors="replace")
                hint = "see what it has: docker images" if response.status == 404 else printable(said, 200)
                raise BadInput(f"{reference}: the Docker daemon answers {response.status}", hint)
            count = 0
            while piece := response.read(PIECE_BYTES):
                count += len(piece)
                if count > ARCHIVE_MAX_BYTES:
                    raise BadInput(f"{reference}: more than {ARCHIVE_MAX_BYTES} bytes")
                archive.write(piece)
            if response.length:  # http.client says nothing when a body of known length is cut
                raise RegistryError(
                    f"{reference}: the Docker daemon ended {response.length} bytes too early", "try again"
                )
        archive.flush()
        archive.seek(0)
    except (OSError, http.client.HTTPException) as err:
        archive.close()
        why = printable(getattr(err, "strerror", None) or err)
        raise RegistryError(
            f"{reference}: no Docker daemon answers: {why}",
            "is it running, and may you use its socket?",
        ) from err
    except BaseException:
        archive.close()
        raise
    finally:
        connection.close()
    return archive


def _connect(host: str) -> http.client.HTTPConnection:
    scheme, _, place = host.partition("://")
    if scheme == "unix":
        return _UnixConnection(place)
    if scheme in ("tcp", "http") and not os.environ.get("DOCKER_TLS_VERIFY"):
        try:
            url = parse_url(f"http://{place}")
        except RegistryError as err:
            raise BadInput(f"DOCKER_HOST {err.message}", "write unix:///PATH or tcp://HOST:PORT") from None
        port = url.port if re.search(r":[0-9]+/?\Z", place) else 2375
        return http.client.HTTPConnection(url.host, port, timeout=TIMEOUT_S)
    raise Unsupported(
        f"DOCKER_HOST {printable(scheme, 40)}:// (or with TLS)",
        "use a unix socket, or docker save and docker-archive:FILE",
    )
