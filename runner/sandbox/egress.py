"""The proxy of a sandbox with --allow: its rules, its record of connections, and the ports that it publishes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from rootdisk.network.rules import parse_rule
from runner.machine import ports
from runner.machine.model import Forward
from runner.network.audit import LOG_MAX_BYTES, LOG_NAME, Audit
from runner.network.proxy import Proxy
from runner.network.rules import Rules, own_hosts
from runner.sandbox.logs import Log
from runner.sandbox.state import Spec


def open_proxy(spec: Spec, folder: Path, hosts: Sequence[bytes]) -> Proxy:
    """Return what decides about the connections of a guest and carries them. `hosts` are lines of --add-host.

    Raises:
        OSError: A port that it publishes is in use.
    """
    rules = Rules(list(map(parse_rule, spec.allow)), own_hosts(hosts))
    published = [(ports.listener(forward), forward.guest) for forward in starmap(Forward, spec.forwards)]
    return Proxy(rules, Audit(Log(folder / LOG_NAME, LOG_MAX_BYTES).write), published)
