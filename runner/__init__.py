"""Fetch, verify, clone and boot rootdisk artifacts. This package needs nothing that only builds need.

    from runner import Sandbox

    with Sandbox.boot("registry.example/demo:1", ["sleep", "infinity"]) as sandbox:
        print(sandbox.exec(["python3", "-c", "print(1 + 1)"]).text)

The names below are loaded at their first use, so importing the package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # loading `typing` would take longer than all the rest; type checkers know the name
if TYPE_CHECKING:
    from rootdisk.errors import BadInput, Busy, DigestMismatch, RegistryError, RootdiskError, TimedOut, Unsupported
    from runner.api.async_process import AsyncProcess
    from runner.api.asynchronous import AsyncSandbox
    from runner.api.process import Process
    from runner.api.results import Damage, LogPiece, Pruned, Pulled, Result, Verified
    from runner.api.sandbox import Sandbox
    from runner.api.store import events, images, prune, pull, remove_snapshot, rmi, snapshots, verify

_HOMES = {
    "runner.api.sandbox": ("Sandbox",),
    "runner.api.asynchronous": ("AsyncSandbox",),
    "runner.api.async_process": ("AsyncProcess",),
    "runner.api.process": ("Process",),
    "runner.api.results": ("Result", "LogPiece", "Pulled", "Pruned", "Verified", "Damage"),
    "runner.api.store": ("pull", "prune", "verify", "images", "rmi", "snapshots", "remove_snapshot", "events"),
    "rootdisk.errors": (
        *("RootdiskError", "BadInput", "Busy", "DigestMismatch", "RegistryError", "TimedOut"),
        "Unsupported",
    ),
}

__all__ = [
    "AsyncProcess",
    "AsyncSandbox",
    "BadInput",
    "Busy",
    "Damage",
    "DigestMismatch",
    "LogPiece",
    "Process",
    "Pruned",
    "Pulled",
    "RegistryError",
    "Result",
    "RootdiskError",
    "Sandbox",
    "TimedOut",
    "Unsupported",
    "Verified",
    "events",
    "images",
    "prune",
    "pull",
    "remove_snapshot",
    "rmi",
    "snapshots",
    "verify",
]


def __getattr__(name: str) -> object:
    """Load a name of the API (PEP 562)."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
