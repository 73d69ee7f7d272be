"""The proxy of a sandbox with --allow: its rules, its record of connections, and the ports that it publishes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.network.rules import parse_rule
from runner.machine import ports
from runner.machine.model import Forward
from runner.network.audit import LOG_MAX_BYTES, LOG_NAME, Audit
from runner.network.proxy import Proxy
from runner.network.rules import Rules, own_hosts
from runner.sandbox.output.logs import Log
from runner.sandbox.state import Spec

if TYPE_CHECKING:
    from runner.network.insertion import SecretInsertion
    from runner.network.secrets import Secrets


def open_proxy(spec: Spec, folder: Path, hosts: Sequence[bytes], secrets: Secrets | None = None) -> Proxy:
    """Return what decides about the connections of a guest and carries them. `hosts` are lines of --add-host.

    Raises:
        OSError: A port that it publishes is in use.
        BadInput: A certificate cannot be read.
    """
    rules = Rules(list(map(parse_rule, spec.allow)), own_hosts(hosts))
    published = [(ports.listener(forward), forward.guest) for forward in starmap(Forward, spec.forwards)]
    audit = Audit(Log(folder / LOG_NAME, LOG_MAX_BYTES).write)
    return Proxy(rules, audit, published, _insertion(secrets, spec.ca_file) if secrets is not None else None)


def _insertion(secrets: Secrets, ca_file: str | None) -> SecretInsertion:
    from runner.network.insertion import SecretInsertion

    if not secrets.server:
        return SecretInsertion(secrets, None)
    from runner.network.intercept import contexts  # with OpenSSL, which no other sandbox needs

    return SecretInsertion(secrets, contexts(secrets.server, ca_file))
