"""Docker's and podman's commands and options, and ours for each. Hints of errors and docs/howto/docker.md come from these tables.

An entry says: SAME (the same name and meaning), what to type here, or NOT and why there is none.
"""

from __future__ import annotations

SAME = "same"
NOT = "not there: "

COMMANDS = {
    "attach": "runner logs -f NAME; for a shell: runner exec -it NAME sh",
    "build": NOT + "build the image with docker or buildah, then its disk: imagetool build SOURCE ARTIFACT",
    "builder": NOT + "imagetool prune and doit prune tidy up builds",
    "buildx": NOT + "build the image with docker or buildah, then its disk: imagetool build SOURCE ARTIFACT",
    "checkpoint": "runner snapshot NAME SNAPSHOT, then runner boot --from SNAPSHOT",
    "commit": "runner snapshot --without-memory NAME SNAPSHOT keeps a disk on this host; to publish: imagetool build",
    "compose": NOT + "start each sandbox with runner boot -d, or use an orchestrator",
    "config": NOT + "give settings to each sandbox: runner boot -e, --env-file",
    "container": "the command without container: runner ps, stop, rm, …",
    **dict.fromkeys(("ai", "desktop", "extension", "mcp", "model", "offload"), NOT + "it is a part of Docker Desktop"),
    "debug": "runner exec -it NAME sh",
    "context": NOT + "the runner has no daemon; it works on this host",
    "cp": SAME,
    "create": "runner boot --keep -d, then runner stop",
    "diff": "imagetool diff A B, which compares two disks",
    "events": SAME,
    "exec": SAME,
    "export": "runner cp NAME:/ - > FILE.tar",
    "history": "imagetool inspect ARTIFACT",
    "image": "the command without image: runner images, pull, rmi, prune",
    "images": SAME,
    "import": "imagetool build tar:FILE ARTIFACT",
    "info": "runner doctor",
    "init": "imagetool init SOURCE, for a project that builds a disk",
    "inspect": SAME,
    "kill": SAME,
    "list": "runner ps",
    "load": "imagetool copy oci-archive:FILE:TAG oci:DIR:TAG, then runner boot oci:DIR:TAG",
    "login": SAME,
    "logout": SAME,
    "logs": SAME,
    "ls": "runner ps",
    "manifest": "imagetool index TARGET ARTIFACT…",
    "network": NOT + "a sandbox has its own network: runner boot --network user or none, -p for ports",
    "node": NOT + "rootdisk has no cluster; use an orchestrator",
    "pause": NOT + "runner stop NAME, and runner start NAME to go on from its disk",
    "plugin": NOT + "the runner has no plugins",
    "port": "runner ps",
    "ps": SAME,
    "pull": SAME,
    "push": "imagetool push FROM TO",
    "rename": SAME,
    "restart": SAME,
    "rm": SAME,
    "rmi": SAME,
    "run": SAME,
    "sandbox": "runner run ARTIFACT: every sandbox is a virtual machine",
    "sbom": "imagetool sbom ARTIFACT",
    "save": "imagetool copy ARTIFACT oci-archive:FILE:TAG",
    "scout": NOT + "imagetool attach adds an SBOM to an artifact",
    "search": NOT + "search on the registry's own pages; imagetool tags REPOSITORY lists tags",
    "secret": NOT + "give secrets to each sandbox: runner boot -e NAME, --env-file, --tls-key",
    "service": NOT + "rootdisk has no cluster; use an orchestrator or systemd",
    "stack": NOT + "rootdisk has no cluster; use an orchestrator",
    "start": SAME,
    "stats": SAME,
    "stop": SAME,
    "swarm": NOT + "rootdisk has no cluster; use an orchestrator",
    "system": "runner prune, runner doctor",
    "tag": "imagetool copy ARTIFACT NEW",
    "top": "runner exec NAME ps aux",
    "trust": "imagetool sign ARTIFACT, imagetool signatures ARTIFACT",
    "unpause": NOT + "runner start NAME",
    "update": NOT + "boot a new sandbox with other -m and --cpus",
    "version": "runner --version",
    "volume": NOT + "a volume is a directory of the host: runner boot -v HOST:GUEST",
    "wait": SAME,
}

# Commands of two words that are not the second one alone: docker container stop is docker stop.
_GROUPS = ("container", "image", "system")
PAIRS = {
    "container prune": "runner rm NAME… of those that runner ps -a shows",
    "image ls": "runner images",
    "image list": "runner images",
    "image prune": "runner prune",
    "image rm": "runner rmi",
    "image remove": "runner rmi",
    "system df": "runner images; runner ps --json",
    "system prune": "runner prune; runner rm NAME… of those that runner ps -a shows",
    "volume prune": NOT + "a volume is a directory of the host, which stays",
}

_PROGRAM = dict.fromkeys(
    ("--env", "-e", "--env-file", "--workdir", "-w", "--user", "-u", "--interactive", "-i", "--tty", "-t"), SAME
)
OF_MACHINE = NOT + "a sandbox is a virtual machine: its kernel, devices and limits are its own"
_LISTING = dict.fromkeys(("--filter", "-f", "--format", "--no-trunc", "--quiet", "-q"), SAME)

OPTIONS: dict[str, dict[str, str]] = {
    "run": {
        **_PROGRAM,
        **dict.fromkeys(
            ("--detach", "-d", "--name", "--label", "-l", "--rm", "--memory", "-m", "--cpus", "--publish", "-p"), SAME
        ),
        **dict.fromkeys(("--volume", "-v", "--read-only", "--hostname", "--entrypoint", "--platform"), SAME),
        **dict.fromkeys(("--pull", "--quiet", "-q"), SAME),
        "-h": "--hostname",
        "--network": SAME,
        "--net": "--network",
        "--attach": "the default without -d",
        "-a": "the default without -d",
        "--mount": "-v HOST:GUEST[:ro]",
        "--restart": SAME,
        "--stop-timeout": "runner stop -t SECONDS",
        "--stop-signal": NOT + "the image's stop signal counts",
        "--storage-opt": "--disk-size",
        "--label-file": "--label",
        "--cidfile": "what runner boot -d prints",
        "--sig-proxy": "the default: signals are passed on",
        "--privileged": OF_MACHINE,
        "--cap-add": OF_MACHINE,
        "--cap-drop": "-u USER in the guest; the guest's root has no rights on the host",
        "--security-opt": OF_MACHINE,
        "--device": OF_MACHINE,
        "--device-cgroup-rule": OF_MACHINE,
        "--device-read-bps": OF_MACHINE,
        "--device-read-iops": OF_MACHINE,
        "--device-write-bps": OF_MACHINE,
        "--device-write-iops": OF_MACHINE,
        "--gpus": NOT + "devices of the host are not passed through",
        "--annotation": "--label",
        "--blkio-weight": OF_MACHINE,
        "--blkio-weight-device": OF_MACHINE,
        "--cgroup-parent": OF_MACHINE,
        "--cgroupns": OF_MACHINE,
        "--cpu-count": "--cpus",
        "--cpu-percent": OF_MACHINE,
        "--cpu-period": "--cpus",
        "--cpu-quota": "--cpus",
        "--cpu-rt-period": OF_MACHINE,
        "--cpu-rt-runtime": OF_MACHINE,
        "--cpu-shares": "--cpus",
        "-c": "--cpus",
        "--cpuset-cpus": "taskset -c LIST runner boot …",
        "--cpuset-mems": "numactl runner boot …",
        "--detach-keys": NOT + "close the terminal, or use runner exec",
        "--disable-content-trust": NOT + "digests are always checked",
        "--domainname": "--hostname",
        "--expose": "-p",
        "--group-add": "-u USER:GROUP",
        "--health-cmd": NOT + "run checks with runner exec",
        "--health-interval": NOT + "run checks with runner exec",
        "--health-retries": NOT + "run checks with runner exec",
        "--health-start-interval": NOT + "run checks with runner exec",
        "--health-start-period": NOT + "run checks with runner exec",
        "--health-timeout": NOT + "run checks with runner exec",
        "--no-healthcheck": "the default: there are none",
        "--init": SAME,
        "--io-maxbandwidth": OF_MACHINE,
        "--io-maxiops": OF_MACHINE,
        "--ip": NOT + "the guest is 10.0.2.15 in a network of its own",
        "--ip6": NOT + "the guest's network is its own",
        "--ipc": OF_MACHINE,
        "--isolation": OF_MACHINE,
        "--kernel-memory": "-m",
        "--link": "-p, and the host's address",
        "--link-local-ip": NOT + "the guest is 10.0.2.15 in a network of its own",
        "--log-driver": NOT + "runner logs; in the foreground output goes where you send it",
        "--log-opt": NOT + "logs are bounded at 2 × 8 MiB",
        "--mac-address": NOT + "the guest's network is its own",
        "--memory-reservation": "-m",
        "--memory-swap": NOT + "a guest has no swap; -m is all its memory",
        "--memory-swappiness": NOT + "a guest has no swap; -m is all its memory",
        "--network-alias": NOT + "sandboxes have no common network; publish ports with -p",
        "--net-alias": NOT + "sandboxes have no common network; publish ports with -p",
        "--oom-kill-disable": OF_MACHINE,
        "--oom-score-adj": OF_MACHINE,
        "--pid": OF_MACHINE,
        "--pids-limit": OF_MACHINE,
        "--publish-all": "-p HOST:GUEST for each port",
        "-P": "-p HOST:GUEST for each port",
        "--runtime": "--backend",
        "--sysctl": NOT + "set it in the guest: runner exec -u 0 NAME sysctl -w",
        "--use-api-socket": NOT + "the runner has no daemon",
        "--userns": OF_MACHINE,
        "--uts": OF_MACHINE,
        "--volume-driver": NOT + "a volume is a directory of the host",
        "--volumes-from": "-v for each directory",
        "--tmpfs": SAME,
        "--shm-size": SAME,
        "--add-host": SAME,
        "--dns": SAME,
        "--dns-opt": "--dns-option",
        "--dns-option": SAME,
        "--dns-search": SAME,
        "--ulimit": SAME,
    },
    "exec": {
        **_PROGRAM,
        **dict.fromkeys(("--detach", "-d"), SAME),
        "--privileged": "-u 0",
        "--detach-keys": NOT + "close the terminal",
    },
    "ps": {**_LISTING, **dict.fromkeys(("--all", "-a", "--last", "-n", "--latest", "-l"), SAME), "--size": "runner inspect NAME", "-s": "runner inspect NAME"},
    "logs": {**dict.fromkeys(("--follow", "-f", "--since", "--tail", "-n", "--timestamps", "-t", "--until"), SAME), "--details": "runner inspect NAME"},
    "cp": {"--follow-link": SAME, "-L": SAME, "--quiet": SAME, "-q": SAME, "--archive": NOT + "owners are not kept", "-a": NOT + "owners are not kept"},
    "stop": {"--time": SAME, "--timeout": SAME, "-t": SAME, "--signal": "runner kill -s SIGNAL NAME", "-s": "runner kill -s SIGNAL NAME"},
    "restart": {"--time": SAME, "--timeout": SAME, "-t": SAME, "--signal": "runner kill -s SIGNAL NAME", "-s": "runner kill -s SIGNAL NAME"},
    "kill": {"--signal": SAME, "-s": SAME},
    "rm": {"--force": SAME, "-f": SAME, "--volumes": "the default: nothing of a sandbox stays", "-v": "the default: nothing of a sandbox stays", "--link": NOT + "sandboxes have no links", "-l": NOT + "sandboxes have no links"},
    "start": {"--attach": SAME, "-a": SAME, "--interactive": SAME, "-i": SAME, "--detach-keys": NOT + "close the terminal", "--checkpoint": "runner boot --from SNAPSHOT", "--checkpoint-dir": "runner boot --from SNAPSHOT"},
    "events": dict.fromkeys(("--filter", "-f", "--format", "--since", "--until"), SAME),
    "stats": {
        **dict.fromkeys(("--no-stream", "--format"), SAME),
        **dict.fromkeys(("--all", "-a"), NOT + "a sandbox that has ended uses no memory and no processor"),
        "--no-trunc": "the default",
    },
    "wait": {},
    "rename": {},
    "pull": {"--platform": SAME, "--quiet": SAME, "-q": SAME, "--all-tags": "imagetool tags REPOSITORY, then runner pull each", "-a": "imagetool tags REPOSITORY, then runner pull each", "--disable-content-trust": NOT + "digests are always checked"},
    "images": {**_LISTING, "--digests": SAME, "--all": "the default", "-a": "the default", "--tree": "runner images --json"},
    "rmi": {"--force": SAME, "-f": SAME, "--platform": SAME, "--no-prune": "the default without other names"},
    "inspect": {"--format": SAME, "-f": SAME, "--size": "runner ps --json", "-s": "runner ps --json", "--type": NOT + "a name is a sandbox, a reference an artifact"},
    "login": {"--username": SAME, "-u": SAME, "--password-stdin": SAME, "--password": "--password-stdin", "-p": "--password-stdin"},
    "logout": {},
    "prune": {
        "--force": "the default: it does not ask",
        "-f": "the default: it does not ask",
        "--all": "the default: what no sandbox uses",
        "-a": "the default: what no sandbox uses",
        "--filter": "--older-than DAYS",
        "--volumes": NOT + "a volume is a directory of the host, which stays",
    },
}  # fmt: skip

# Those that docker has before every command.
GLOBAL = {
    "--config": "the variable DOCKER_CONFIG",
    "--context": NOT + "the runner has no daemon; it works on this host",
    "-c": NOT + "the runner has no daemon; it works on this host",
    "--debug": SAME,
    "-D": "--debug",
    "--host": NOT + "the runner has no daemon; it works on this host",
    "-H": NOT + "the runner has no daemon; it works on this host",
    "--log-level": "--debug",
    "--tls": NOT + "the runner has no daemon",
    "--tlscacert": NOT + "the runner has no daemon; --ca-file is for registries",
    "--tlscert": NOT + "the runner has no daemon",
    "--tlskey": NOT + "the runner has no daemon",
    "--tlsverify": NOT + "the runner has no daemon",
    "--version": SAME,
    "-v": SAME,
}

_OURS = {"boot": "run"}


def answer(command: str, word: str) -> str:
    """Name what to type for docker's or podman's command `word`, or for the option `word` of `command`; "" if they have none.

    A command may have two words, as "image prune".
    """
    from runner.podman_words import PODMAN_COMMANDS, PODMAN_OPTIONS  # whose tables are made of this one's words

    if command or word.startswith("-"):
        command = _OURS.get(command, command)
        docker, podman = {**GLOBAL, **OPTIONS.get(command, {})}, PODMAN_OPTIONS.get(command, {})
    else:
        docker, podman = {**COMMANDS, **PAIRS, **_in_groups()}, PODMAN_COMMANDS
    for whose, table in (("docker", docker), ("podman", podman)):
        found = table.get(word, SAME)
        if found.startswith(NOT):
            return f"{whose}'s {word} is not here: {found.removeprefix(NOT)}"
        if found != SAME:
            return f"here {whose}'s {word} is {found}"
    return ""


def _in_groups() -> dict[str, str]:
    """Return the commands of two words whose second word is a command too."""
    alone = {name: f"runner {name}" if found == SAME else found for name, found in COMMANDS.items()}
    return {
        pair: found for group in _GROUPS for name, found in alone.items() if (pair := f"{group} {name}") not in PAIRS
    }
