"""Talk to the process that fills a disk and serves it meanwhile: runner/lazy/server.py.

    ROOT/lazy/HEX.lock     held by the server of disk HEX as long as it lives
    ROOT/lazy/HEX.socket   its control socket
    ROOT/lazy/HEX.log      what went wrong in it

A message is a packet with a JSON object. A client sends `do`, the server answers with `is`. There is a server only while
a disk is incomplete, or while machines that were started on an incomplete disk still run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.artifact.format import ArtifactConfig, ArtifactManifest, ChunkIndex
from rootdisk.cli.progress import Progress
from rootdisk.durable import socket_address
from rootdisk.errors import Busy, RegistryError, RootdiskError
from rootdisk.oci.documents import Descriptor, Digest, Platform
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.text import printable
from runner.store.store import Store, read_index

VERSION = 1  # of the messages
MESSAGE_MAX_BYTES = 64 << 10
FOLDER = "lazy"  # of the store
ANSWER_S = 10.0  # for a server to answer a question
_SILENT_S = 60.0  # a server that is joined says four times a second how far it is


class DiskSource(NamedTuple):
    """The origin of the chunks of an incomplete disk."""

    reference: Reference  # as the user wrote it, with an absolute path
    platform: Platform
    options: RegistryOptions
    manifest: bytes  # of the artifact
    digest: Digest  # of the disk
    blobs: tuple[Descriptor, ...]
    chunk_index: ChunkIndex
    first_chunks: tuple[int, ...]  # numbers, in the order in which a traced boot read them

    @classmethod
    def stored(
        cls,
        store: Store,
        manifest: bytes,
        config: ArtifactConfig,
        reference: Reference,
        platform: Platform,
        options: RegistryOptions,
    ) -> DiskSource:
        """Return the source of a disk whose chunk index is in the store.

        Raises:
            FileNotFoundError: The index is not in the store, or is not that of the disk.
        """
        path = store.index(config.disk_digest)
        try:
            index = read_index(store.disk(config.disk_digest))
        except (ValueError, RootdiskError) as err:
            raise FileNotFoundError(path) from err
        blobs = ArtifactManifest.parse(manifest).disk
        if index.disk_digest() != config.disk_digest or index.blob_end > sum(blob.size for blob in blobs):
            raise FileNotFoundError(path)
        return cls(
            reference,
            platform,
            options,
            manifest,
            config.disk_digest,
            blobs,
            index,
            _in_range(config, len(index.chunks)),
        )

    @property
    def place(self) -> str:
        """The repository, and whether it is asked without TLS: it may be another one then."""
        return f"{'http' if self.options.plain_http else 'https'} {self.reference.place}"


def _in_range(config: ArtifactConfig, count: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(number for number in config.boot_chunks if number < count))


class FillStatus(NamedTuple):
    """The state of a disk, as its server describes it."""

    place: str  # where it fetches from
    is_proven: bool  # that place has shown that it has the disk
    is_complete: bool
    filled_bytes: int  # of the disk, without holes
    data_bytes: int  # of the whole disk, without holes
    fetched_bytes: int  # compressed, by this server
    reads: int  # of guests
    reads_waited: int  # of these, the ones that had to wait for a chunk
    longest_wait_s: float
    problem: str  # why reads wait at the moment; "" if nothing is wrong

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> FillStatus:
        """Read a message. ValueError if a field is missing."""
        try:
            return cls(*(message[field] for field in cls._fields))
        except KeyError as err:
            raise ValueError(f"has no {err}") from None

    @property
    def share(self) -> float:
        """The filled part of the disk, 0 to 1."""
        return self.filled_bytes / self.data_bytes if self.data_bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the value for `ps --json` and `inspect`."""
        return {
            "filled_bytes": self.filled_bytes,
            "data_bytes": self.data_bytes,
            "fetched_bytes": self.fetched_bytes,
            "reads": self.reads,
            "reads_waited": self.reads_waited,
            "longest_wait_s": round(self.longest_wait_s, 3),
            "problem": self.problem,
        }


def folder(store: Store) -> Path:
    """Return the directory of sockets and locks of servers. It may not exist."""
    return store.root / FOLDER


def connect(store: Store, digest: Digest) -> socket.socket | None:
    """Connect to the server of a disk; None if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with socket_address(folder(store), f"{digest.hex}.socket") as address:
            sock.connect(address)
    except OSError:
        sock.close()
        return None
    sock.settimeout(ANSWER_S)
    return sock


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send a message, with descriptors.

    Raises:
        OSError: The other side is gone, or does not read.
    """
    socket.send_fds(sock, [json.dumps({"version": VERSION, **message}).encode()], list(fds))


def receive(sock: socket.socket, max_fds: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next message and its descriptors; None if the other side is gone or sends something else.

    Raises:
        TimeoutError: Nothing came in time.
        BlockingIOError: Nothing has come, and the socket does not block.
    """
    try:
        data, fds, _, _ = socket.recv_fds(sock, MESSAGE_MAX_BYTES, max_fds)
    except (TimeoutError, BlockingIOError):
        raise
    except OSError:
        return None
    try:
        message = json.loads(data) if data else None
        if isinstance(message, dict) and message.get("version") == VERSION:
            return message, fds
    except (ValueError, RecursionError):
        pass
    for fd in fds:
        os.close(fd)
    return None


def ask(sock: socket.socket, message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Send a question and return the answer; None if the server is gone."""
    with contextlib.suppress(OSError):
        send(sock, message)
        answer = receive(sock)
        return answer[0] if answer is not None else None
    return None


class Silent(NamedTuple):
    """Stands for a status: the server of a disk does not answer."""

    problem: str = "the server of the disk does not answer"
    is_complete: bool = False
    share: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the value for `ps --json` and `inspect`."""
        return {"problem": self.problem}


def silence(store: Store, digest: Digest) -> Busy:
    """Return the error for a server that does not answer."""
    hint = f"end it: its process number is in {printable(folder(store) / f'{digest.hex}.lock')}"
    return Busy(f"the server of disk {digest.short} does not answer", hint)


def status(store: Store, digest: Digest) -> FillStatus | None:
    """Return the status of the server of a disk; None if there is none or it does not answer."""
    found = look(store, digest)
    return None if isinstance(found, Silent) else found


def look(store: Store, digest: Digest, timeout_s: float | None = None) -> FillStatus | Silent | None:
    """Return the status of the server of a disk, which has `timeout_s`, by default ANSWER_S, to answer; None if there is none."""
    sock = connect(store, digest)
    if sock is None:
        return None
    with sock:
        sock.settimeout(ANSWER_S if timeout_s is None else timeout_s)
        try:
            send(sock, {"do": "status"})
            answer = receive(sock)
            return FillStatus.of(answer[0]) if answer is not None else None
        except TimeoutError:
            return Silent()
        except (OSError, ValueError):
            return None


def end(store: Store, digest: Digest) -> None:
    """Have the server of a disk end, unless a sandbox or a pull uses it, and wait for that.

    Raises:
        Busy: It does not answer.
    """
    sock = connect(store, digest)
    if sock is not None:
        with sock:
            try:
                send(sock, {"do": "end"})
                receive(sock)  # the answer is that the connection ends
            except TimeoutError as err:
                raise silence(store, digest) from err
            except OSError:
                pass


def take_over(sock: socket.socket) -> int | None:
    """Have the server of a disk end, though it is used, because the registry fails from which it fetches.

    Return its lock: nobody starts another server until that is closed. None if it goes on, or has ended already.
    """
    with contextlib.suppress(OSError):
        send(sock, {"do": "yield"})
        while (answer := receive(sock, 1)) is not None:
            message, fds = answer
            if fds:
                return fds[0]
            if message.get("is") == "status":  # not what all keepers are told
                break
    return None


def join(store: Store, digest: Digest, progress: Progress | None) -> FillStatus | None:
    """Have the server of a disk complete it as quickly as it can, and wait for that.

    Return its last status. None: the disk has no server, or its server has gone before the disk was complete.

    Raises:
        RegistryError: The server cannot complete the disk.
        Busy: It does not answer.
    """
    sock = connect(store, digest)
    if sock is None:
        return None
    with sock:
        try:
            send(sock, {"do": "pull"})
            sock.settimeout(_SILENT_S)  # it ends with an error if nothing moves
            while (answer := receive(sock)) is not None:
                message, _ = answer
                if message["is"] == "failed":
                    raise RegistryError(str(message["error"]), str(message["hint"]))
                last = FillStatus.of(message)
                if progress is not None:
                    progress(last.filled_bytes, last.data_bytes)
                if last.is_complete:
                    return last
        except TimeoutError as err:
            raise silence(store, digest) from err
        except (OSError, ValueError, KeyError):
            return None
    return None
