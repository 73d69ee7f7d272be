"""The commands that only one of the two tools has: the other one names it. A test compares them with the parsers."""

from __future__ import annotations

RUNNER_COMMANDS = frozenset(
    {
        *(
            "boot",
            "run",
            "start",
            "restart",
            "exec",
            "cp",
            "stop",
            "kill",
            "wait",
            "ps",
            "logs",
            "rename",
            "events",
            "stats",
            "snapshot",
            "snapshots",
            "trim",
        ),
        *("images", "rmi", "serve", "login", "logout", "doctor"),
    }
)
IMAGETOOL_COMMANDS = frozenset(
    {
        *(
            "attach",
            "build",
            "cat",
            "clean",
            "copy",
            "diff",
            "discover",
            "disk",
            "doit",
            "explain",
            "export",
            "index",
            "init",
            "ls",
        ),
        *("map", "push", "sbom", "schema", "sign", "signatures", "stat", "tags", "trace"),
    }
)
