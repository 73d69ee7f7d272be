"""Read a repository from its mirrors first, then from its origin; registries.conf says where they are.

Each place is asked with its own credentials. A mirror that does not answer within a second, or that stalls later, is not asked
again by this process for some minutes. A mirror that does not have something is passed over for that; one that sends something
else than a digest names is told apart by the digest, and not asked for that blob again.

Mirrors are told the registry that they stand for (`?ns=registry.example`), as containerd does it. Spegel and Dragonfly need it,
other registries ignore it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rootdisk.errors import DigestMismatch, RegistryError, RootdiskError
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.reference import Reference
from rootdisk.oci.referrers import belongs_to_digest
from rootdisk.oci.repository import RegistryOptions, check_range
from rootdisk.registry.answers import Stalled
from rootdisk.registry.client import RegistryClient
from rootdisk.registry.configuration import DIGEST_ONLY, Place, Places
from rootdisk.registry.repository import RegistryRepository
from rootdisk.system.debug import debug
from rootdisk.system.notices import notice

ANSWER_S = 1.0  # for a mirror to answer at all
STALL_S, STALL_BYTES = 10.0, 1 << 20  # a mirror that sends less in that time is left
FORGET_S = 300.0  # then a mirror that did not answer is tried again

T = TypeVar("T")
_silent: dict[
    str, float
] = {}  # mirrors that did not answer, and when that is forgotten; of all repositories of this process
_lock = threading.Lock()


class MirroredRepository:
    """A repository with mirrors, read only. Threads may share it. See the protocol `Repository` for its methods."""

    def __init__(self, reference: Reference, places: Places, options: RegistryOptions) -> None:
        self._registry = reference.registry
        self._options = options
        self._places = (*places.mirrors, places.origin)
        self._origin = places.origin
        self._opened: dict[Place, RegistryRepository | None] = {}
        self._wrong: dict[Digest, set[Place]] = {}  # who has sent something else
        self._gave: dict[Digest, Place] = {}  # who has sent a blob last
        self._opening = threading.Lock()

    @property
    def serves_ranges(self) -> bool | None:
        """Return whether all places that were asked serve ranges; False if one does not, None if that is not known."""
        known = {repository.serves_ranges for repository in list(self._opened.values()) if repository is not None}
        return False if False in known else known == {True} or None

    def close(self) -> None:
        """Close all connections."""
        for repository in self._opened.values():
            if repository is not None:
                repository.close()

    def interrupt(self) -> None:
        """Abort reads in other threads."""
        for repository in list(self._opened.values()):
            if repository is not None:
                repository.interrupt()

    def resolve(self, name: str | Digest) -> Descriptor:
        """Return the manifest or index that a tag or digest names, at the first place that has it."""
        if _is_attached(name):
            return self._open_origin().resolve(name)
        return self._first(lambda repository: repository.resolve(name), by_tag=not isinstance(name, Digest))

    def current(self, name: str | Digest) -> Digest | None:
        """Find which manifest a tag or digest names now, at the first place that has it; None if there is none."""
        if _is_attached(name):
            return self._open_origin().current(name)

        def ask(repository: RegistryRepository) -> Digest:
            """Ask one place; a missing one is asked for elsewhere."""
            digest = repository.current(name)
            if digest is None:
                raise RegistryError("there is none", status=404)
            return digest

        try:
            return self._first(ask, by_tag=not isinstance(name, Digest))
        except RegistryError as err:
            if err.status == 404:
                return None
            raise

    def manifest(self, wanted: Descriptor | Digest) -> bytes:
        """Return a manifest or index, digest checked."""
        return self._first(lambda repository: repository.manifest(wanted))

    def referrers(self, subject: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """List what is attached to `subject`. The origin is asked, as for tags of attachments: see `_is_attached`."""
        return self._open_origin().referrers(subject, artifact_type)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a blob in pieces, not verified. If a place fails, continue at the next."""
        stop = check_range(descriptor, start, end)
        position = start
        for place in self._places:
            if place in self._wrong.get(descriptor.digest, ()) or (repository := self._open(place)) is None:
                continue
            self._gave[descriptor.digest] = place
            try:
                for piece in repository.blob(descriptor, position, stop):
                    position += len(piece)
                    yield piece
                return
            except (RegistryError, DigestMismatch) as err:
                if place is self._origin:
                    raise
                if isinstance(err, DigestMismatch):
                    self.blame(descriptor)
                _report(place, err)

    def blame(self, descriptor: Descriptor) -> bool:
        """Never ask the place again that has sent a blob last: it was something else. Return whether others can be asked."""
        place = self._gave.get(descriptor.digest)
        if place is None or place == self._origin:
            return False
        wrong = self._wrong.setdefault(descriptor.digest, set())
        if place not in wrong:
            wrong.add(place)
            notice(f"mirror {place.registry} has sent something else than {descriptor.digest}; it is asked elsewhere")
        return True

    def _first(self, ask: Callable[[RegistryRepository], T], *, by_tag: bool = False) -> T:
        """Return the answer of the first place that has one. Errors are the origin's."""
        for place in self._places:
            if (by_tag and place.use == DIGEST_ONLY) or (repository := self._open(place)) is None:
                continue
            try:
                return ask(repository)
            except (RootdiskError, OSError) as err:
                if place is self._origin:
                    raise
                if isinstance(err, DigestMismatch):
                    notice(f"mirror {place.registry} has sent something else than it was asked for: {err.message}")
                _report(place, err)
        raise AssertionError("the origin is always asked")

    def _open_origin(self) -> RegistryRepository:
        repository = self._open(self._origin)
        assert repository is not None
        return repository

    def _open(self, place: Place) -> RegistryRepository | None:
        """Open a place at its first use; None if a mirror does not answer."""
        if place is not self._origin and _is_silent(place):
            return None
        with self._opening:
            if place not in self._opened:
                self._opened[place] = self._connect(place)
            return self._opened[place]

    def _connect(self, place: Place) -> RegistryRepository | None:
        is_mirror = place is not self._origin
        if not is_mirror and not place.insecure:
            return RegistryRepository(place.registry, place.repository, self._options)
        tries = [self._options._replace(plain_http=False)]
        if place.insecure:
            tries = [tries[0]._replace(verify_tls=False), tries[0]._replace(plain_http=True)]
        if is_mirror:
            tries = [
                options._replace(
                    connect_timeout_s=ANSWER_S, give_up_s=0.001, read_timeout_s=STALL_S, read_min_bytes=STALL_BYTES
                )
                for options in tries
            ]
        # An origin is waited for as any other; whether it uses TLS is known when it answers.
        patience_s = ANSWER_S if is_mirror else self._options.connect_timeout_s + self._options.read_timeout_s
        answering, why = _answering(place, tries, patience_s)
        if not is_mirror:
            return RegistryRepository(place.registry, place.repository, answering or tries[0])  # its errors say why
        if answering is not None:
            return RegistryRepository(place.registry, place.repository, answering, self._registry)
        debug(f"mirror {place.registry} does not answer")
        if why is not None:
            _report(place, why)
        _forget(place)
        return None


def _is_silent(place: Place) -> bool:
    """Return whether a mirror did not answer some time ago."""
    with _lock:
        return _silent.get(place.registry, 0) > time.monotonic()


def _is_attached(name: str | Digest) -> bool:
    """Return whether a tag names attachments of a digest: a mirror may lack those attached later."""
    return not isinstance(name, Digest) and belongs_to_digest(name)


def _forget(place: Place) -> bool:
    """Do not ask a mirror for some minutes. Return whether it was asked until now."""
    with _lock:
        was_silent = _silent.get(place.registry, 0) > time.monotonic()
        _silent[place.registry] = time.monotonic() + FORGET_S
    return not was_silent


def _report(place: Place, err: Exception) -> None:
    """Name a mirror that stalls or breaks the protocol, and leave it for some minutes; other failures are for --debug."""
    is_broken = isinstance(err, RegistryError) and not err.temporary and not err.status
    if (isinstance(err, Stalled) or is_broken) and _forget(place):
        notice(f"mirror {place.registry} is not asked for {FORGET_S / 60:.0f} minutes: {err}")
    debug(f"mirror {place.registry}: {err}")


def _answering(
    place: Place, tries: Sequence[RegistryOptions], seconds: float
) -> tuple[RegistryOptions | None, RootdiskError | None]:
    """Return with which of `tries` a registry answers within `seconds`, whatever it says; if with none, why the last one failed.

    All are tried at the same time: a server without TLS may wait for more of a handshake. An earlier one of `tries` is preferred
    if it answers within ANSWER_S of another.
    """
    results: queue.SimpleQueue[tuple[int, RootdiskError | None]] = queue.SimpleQueue()
    clients = [RegistryClient(place.registry, place.repository, options) for options in tries]
    # Resolving a name has no timeout of its own, so threads wait for it.
    for number, client in enumerate(clients):
        threading.Thread(target=_ask, args=(number, client, results), daemon=True).start()
    waiting, heard = set(range(len(tries))), set[int]()
    why: RootdiskError | None = None
    deadline = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        while waiting and not (heard and min(heard) < min(waiting)):
            number, why = results.get(timeout=max(0, deadline - time.monotonic()))
            waiting.remove(number)
            if why is None:
                heard.add(number)
                deadline = min(deadline, time.monotonic() + ANSWER_S)
    for client in clients:
        client.interrupt()
        client.close()
    return (tries[min(heard)], None) if heard else (None, why)


def _ask(number: int, client: RegistryClient, results: queue.SimpleQueue[tuple[int, RootdiskError | None]]) -> None:
    """Ask for the API's version, without credentials, and tell why there was no answer; None if there was one."""
    why = None
    try:
        client.session.once("GET", client.url("/v2/"), headers={}).close()
    except RootdiskError as err:
        debug(str(err))
        why = err
    results.put((number, why))
