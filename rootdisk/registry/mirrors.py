"""Read a repository from its mirrors first, then from its origin; registries.conf says where they are.

Each place is asked with its own credentials. A mirror that does not answer within a second is not asked again by this process
for some minutes. A mirror that does not have something is passed over for that; one that sends something else than a digest
names is told apart by the digest, and not asked for that blob again.

Mirrors are told the registry that they stand for (`?ns=registry.example`), as containerd does it. Spegel and Dragonfly need it,
other registries ignore it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rootdisk.errors import DigestMismatch, RegistryError, RootdiskError
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, check_range
from rootdisk.registry.answers import NETWORK_ERRORS
from rootdisk.registry.client import RegistryClient
from rootdisk.registry.configuration import DIGEST_ONLY, Place, Places
from rootdisk.registry.repository import RegistryRepository
from rootdisk.system.debug import debug
from rootdisk.system.notices import notice

ANSWER_S = 1.0  # for a mirror to answer at all
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
    def ranges_ignored(self) -> bool:
        """Return whether a place that was asked ignores Range."""
        return any(repository.ranges_ignored for repository in self._opened.values() if repository is not None)

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
        return self._first(lambda repository: repository.resolve(name), by_tag=not isinstance(name, Digest))

    def current(self, name: str | Digest) -> Digest | None:
        """Find which manifest a tag or digest names now, at the first place that has it; None if there is none."""

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
        """List what is attached to `subject`. The origin is asked: a mirror may not have what was attached later."""
        return self._open_origin().referrers(subject, artifact_type)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a blob in pieces, not verified. If a place fails, go on at the next."""
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
                debug(f"mirror {place.registry}: {err}")

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
                debug(f"mirror {place.registry}: {err}")
        raise AssertionError("the origin is always asked")

    def _open_origin(self) -> RegistryRepository:
        repository = self._open(self._origin)
        assert repository is not None
        return repository

    def _open(self, place: Place) -> RegistryRepository | None:
        """Open a place at its first use; None if a mirror does not answer."""
        with self._opening:
            if place not in self._opened:
                self._opened[place] = self._connect(place)
            return self._opened[place]

    def _connect(self, place: Place) -> RegistryRepository | None:
        is_mirror = place is not self._origin
        if not is_mirror and not place.insecure:
            return RegistryRepository(place.registry, place.repository, self._options)
        with _lock:
            if is_mirror and _silent.get(place.registry, 0) > time.monotonic():
                return None
        tries = [self._options._replace(plain_http=False)]
        if place.insecure:
            tries = [tries[0]._replace(verify_tls=False), tries[0]._replace(plain_http=True)]
        if is_mirror:
            tries = [options._replace(connect_timeout_s=ANSWER_S, give_up_s=0.001) for options in tries]
        # An origin is waited for as any other; whether it uses TLS is known when it answers.
        patience_s = ANSWER_S if is_mirror else self._options.connect_timeout_s + self._options.read_timeout_s
        deadline = time.monotonic() + patience_s
        for options in tries:
            if answers(place, options, max(0.05, deadline - time.monotonic())):
                return RegistryRepository(
                    place.registry, place.repository, options, self._registry if is_mirror else ""
                )
        if not is_mirror:
            return RegistryRepository(place.registry, place.repository, tries[0])  # its errors say why
        debug(f"mirror {place.registry} does not answer")
        with _lock:
            _silent[place.registry] = time.monotonic() + FORGET_S
        return None


def answers(place: Place, options: RegistryOptions, seconds: float) -> bool:
    """Return whether a registry answers within `seconds`, whatever it says."""
    client = RegistryClient(place.registry, place.repository, options)
    heard = threading.Event()

    def ask() -> None:
        """Ask for the API's version, without credentials."""
        try:
            client.session.once("GET", client.url("/v2/"), headers={}).close()
            heard.set()
        except (*NETWORK_ERRORS, RootdiskError) as err:
            debug(f"{place.registry}: {type(err).__name__}")

    # Resolving a name has no time-out of its own, so a thread waits for it.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    client.interrupt()
    client.close()
    return heard.is_set()
