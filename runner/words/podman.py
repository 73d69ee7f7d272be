"""Podman's commands and options that docker does not have, and ours for each: more tables as those of docker."""

from __future__ import annotations

from runner.words.docker import NOT, OF_MACHINE

_ORCHESTRATOR = NOT + "the runner has no pods; start each sandbox with runner boot -d, or use an orchestrator"
_ONE_USER = NOT + "a sandbox is a virtual machine: its users are those of its image"
_NAMED = NOT + "name the sandboxes: runner ps -q lists them"

PODMAN_COMMANDS = {
    **{f"{group} exists": "runner inspect NAME > /dev/null, by its exit status" for group in ("container", "image")},
    "container cleanup": "runner rm NAME",
    "container clone": "runner boot --from SNAPSHOT, after runner snapshot NAME SNAPSHOT",
    "container restore": "runner boot --from SNAPSHOT",
    "container mount": "runner cp NAME:PATH -",
    "image mount": "imagetool ls ARTIFACT, imagetool cat ARTIFACT PATH",
    "image scp": "imagetool copy FROM TO",
    "image sign": "imagetool sign ARTIFACT",
    "image tree": "imagetool inspect ARTIFACT",
    "image untag": "runner rmi NAME, if it has other names too",
    "system reset": "runner rm -f $(runner ps -aq), then runner prune",
    "artifact": "runner pull, runner inspect",
    "auto-update": NOT + "runner pull, then boot a new sandbox",
    "exists": "runner inspect NAME > /dev/null, by its exit status",
    "farm": NOT + "imagetool builds for other platforms: imagetool build --platform",
    "generate": NOT + "runner boot --restart and runner start --all; see runner start --help",
    "healthcheck": NOT + "run checks with runner exec",
    "kube": _ORCHESTRATOR,
    "machine": "each sandbox is a virtual machine: runner boot; runner doctor shows what this host can do",
    "mount": "imagetool ls ARTIFACT, imagetool cat ARTIFACT PATH; runner cp NAME:PATH -",
    "play": _ORCHESTRATOR,
    "pod": _ORCHESTRATOR,
    "quadlet": NOT + "runner boot --restart and runner start --all; see runner start --help",
    "restore": "runner boot --from SNAPSHOT",
    "umount": NOT + "nothing is mounted on this host",
    "unmount": NOT + "nothing is mounted on this host",
    "unshare": NOT + "the runner needs no user namespace of yours",
    "untag": "runner rmi NAME, if it has other names too",
}

_FILTERED = "runner ps -q --filter …, whose names are the arguments"
_CIDFILE = NOT + "name the sandbox: its name is its id"
_CHECKS = NOT + "run checks with runner exec"
_PULLED = {
    **dict.fromkeys(("--retry", "--retry-delay"), "the default: temporary errors are tried again"),
    "--decryption-key": "skopeo copy --decryption-key, and build the decrypted image",
}

_REGISTRY = {
    "--tls-verify": "--ca-file FILE, or --plain-http without TLS",
    "--cert-dir": "--ca-file FILE",
    "--authfile": "the variable DOCKER_CONFIG",
    "--creds": "runner login",
    "--arch": "--platform OS/ARCH",
    "--os": "--platform OS/ARCH",
    "--variant": "--platform OS/ARCH/VARIANT",
}

PODMAN_OPTIONS: dict[str, dict[str, str]] = {
    "run": {
        **_REGISTRY,
        **_PULLED,
        **dict.fromkeys(("--group-entry", "--passwd-entry", "--hostuser"), _ONE_USER),
        **dict.fromkeys(("--cgroups", "--cgroup-conf", "--personality", "--rdt-class", "--seccomp-policy"), OF_MACHINE),
        **dict.fromkeys(("--health-on-failure", "--health-log-destination", "--health-max-log-count"), _CHECKS),
        **dict.fromkeys(("--health-max-log-size", "--health-startup-cmd", "--health-startup-interval"), _CHECKS),
        **dict.fromkeys(("--health-startup-retries", "--health-startup-success", "--health-startup-timeout"), _CHECKS),
        **dict.fromkeys(("--pidfile", "--conmon-pidfile"), "runner inspect NAME, which shows the keeper's pid"),
        "--chrootdirs": "-v HOST:GUEST",
        "--hosts-file": "--add-host NAME:ADDRESS",
        "--init-path": "--entrypoint",
        "--init-ctr": _ORCHESTRATOR,
        "--shm-size-systemd": "--shm-size",
        "--replace": "runner rm -f NAME first",
        "--rmi": "runner rmi ARTIFACT afterwards",
        "--tz": "-e TZ=ZONE",
        "--pod": _ORCHESTRATOR,
        "--env-host": "-e NAME for each variable",
        "--env-merge": "-e NAME=VALUE",
        "--unsetenv": "-e NAME=",
        "--unsetenv-all": "-e NAME= for each variable",
        "--http-proxy": "-e https_proxy and the like",
        "--systemd": "--pid1 for an image whose program is an init",
        "--rootfs": "imagetool build tar:FILE ARTIFACT",
        "--uidmap": _ONE_USER,
        "--gidmap": _ONE_USER,
        "--subuidname": _ONE_USER,
        "--subgidname": _ONE_USER,
        "--passwd": _ONE_USER,
        "--no-hosts": NOT + "--add-host adds to what the guest has",
        "--no-hostname": NOT + "--hostname NAME sets it",
        "--image-volume": "-v HOST:GUEST",
        "--read-only-tmpfs": "--tmpfs PATH for each directory",
        "--requires": _ORCHESTRATOR,
        "--sdnotify": NOT + "runner boot -d returns when the program has started",
        "--preserve-fds": NOT + "descriptors of this host do not reach a virtual machine",
        "--umask": NOT + "set it in the program: sh -c 'umask 022; …'",
    },
    "exec": {"--latest": _NAMED, "-l": _NAMED, "--cidfile": _CIDFILE, "--no-session": "the default", "--preserve-fds": NOT + "descriptors of this host do not reach a virtual machine"},
    "ps": {
        "--sort": "runner ps --json",
        "--noheading": "--format '{{.Names}} {{.Status}}'",
        "--watch": "runner events, or watch runner ps",
        "--external": "the default: the store has only the runner's",
        "--pod": _ORCHESTRATOR,
        **dict.fromkeys(("--ns", "--namespace"), OF_MACHINE),
        "--sync": "the default",
    },
    "images": {"-n": "--format '{{.Repository}}:{{.Tag}}'", "--sort": "runner images --json", "--noheading": "--format '{{.Repository}}:{{.Tag}}'", "--history": "imagetool inspect ARTIFACT"},
    "logs": {"--latest": _NAMED, "-l": _NAMED, "--names": "runner logs of one sandbox at a time", "--color": "the default: as the program has printed"},
    "stop": {"--cidfile": _CIDFILE, "--filter": _FILTERED, "-f": _FILTERED, "-a": "--all, for those with a --restart policy", "--ignore": _NAMED, "-i": _NAMED, "--latest": _NAMED, "-l": _NAMED},
    "kill": {"--cidfile": _CIDFILE, "--all": _NAMED, "-a": _NAMED, "--latest": _NAMED, "-l": _NAMED},
    "restart": {"--cidfile": _CIDFILE, "--filter": _FILTERED, "-f": _FILTERED, "--all": _NAMED, "-a": _NAMED, "--running": _NAMED, "--latest": _NAMED, "-l": _NAMED},
    "rm": {
        **dict.fromkeys(("--all", "-a"), "runner rm -f $(runner ps -aq)"),
        "--depend": NOT + "no sandbox needs another one",
        "--cidfile": _CIDFILE,
        "--ignore": _NAMED, "-i": _NAMED, "--latest": _NAMED, "--time": "runner stop -t SECONDS NAME first", "-t": "runner stop -t SECONDS NAME first",
    },
    "wait": {
        "--condition": "the default: runner wait returns when the sandbox has ended, runner boot -d when its program runs",
        **dict.fromkeys(("--interval", "-i"), NOT + "the runner is told at once"),
        **dict.fromkeys(("--ignore", "--latest", "-l", "--exit-first-match", "--return-on-first"), _NAMED),
    },
    "inspect": dict.fromkeys(("--latest", "-l"), _NAMED),
    "events": {"--stream": "--until NOW, to end", "--no-trunc": "the default"},
    "rmi": {"--all": "runner prune", "-a": "runner prune", "--ignore": "runner images -q lists those there are", "-i": "runner images -q lists those there are"},
    "start": {"--filter": _FILTERED, "-f": _FILTERED, "--latest": _NAMED, "-l": _NAMED},
    "prune": {"--build": "imagetool prune", "--external": "the default: nothing of others is in the store"},
    "pull": {**_REGISTRY, **_PULLED},
    "login": {"--secret": "--password-stdin < FILE", "--verbose": NOT + "--debug shows what is asked", **{name: _REGISTRY[name] for name in ("--tls-verify", "--cert-dir", "--authfile")}, "--get-login": "the file ~/.docker/config.json"},
    "logout": {"--all": "runner logout REGISTRY for each", "-a": "runner logout REGISTRY for each", "--authfile": "the variable DOCKER_CONFIG"},
    "stats": {"--no-reset": "--no-stream", "--interval": "the default: once a second", "-i": "the default: once a second"},
    "cp": {
        "--overwrite": "the default",
        "--pause": NOT + "the sandbox runs on while files are copied; stop it first for a copy of one moment",
        "--extract": "runner cp - NAME:PATH < FILE.tar",
    },
}  # fmt: skip
