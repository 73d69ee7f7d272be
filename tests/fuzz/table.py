"""The targets: every parser of foreign bytes, and the module of tests/fuzz/targets/ that feeds it."""

from __future__ import annotations

import importlib

from tests.fuzz.target import Target

MODULES: dict[str, tuple[str, ...]] = {
    "texts": ("url", "reference", "challenge", "answer", "token", "proxy", "printable"),
    "documents": ("manifest", "index", "image-config", "artifact-config", "chunk-index", "frame"),
    "places": ("layout", "layout-target", "docker-archive", "oci-archive", "credentials", "helper"),
    "registries": ("registry", "token-service", "registry-target"),
    "channel": ("frames", "router", "session", "program", "cp-out", "cp-tar", "cp-in"),
    "sandboxes": ("state", "slot-record", "records", "name", "qcow2", "grow"),
    "layers": ("tar", "pax", "inflate", "accounts", "certificates", "secrets"),
    "disks": ("ext4",),
    "trust": (
        "bundle",
        "statement",
        "simple-signature",
        "policy",
        "public-key",
        "cosign-key",
        "referrers",
    ),
    "packages": ("dpkg-status", "rpm-header", "rpm-database", "go-program", "verity-tree", "bzimage", "vmlinux"),
    "networks": ("proxy-requests", "proxy-guards", "proxy-answers", "proxy-names"),
    "projects": ("images-toml", "receipt", "environment"),
}
TARGETS = {name: module for module, names in MODULES.items() for name in names}


def load(name: str) -> Target:
    """The target called `name`. Its module loads no more of the project than it needs."""
    found = importlib.import_module(f"tests.fuzz.targets.{TARGETS[name]}").TARGETS
    target: Target = found[name]
    return target
