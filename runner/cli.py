"""The runner's commands. Standard output is data, standard error is talk; only `main` prints errors."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.debug import show
from runner.errors import BadInput, RootdiskError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, NoReturn

FAILED = 125
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
COMMANDS = ("boot", "pull", "inspect", "ps", "logs", "rm", "prune", "doctor")


def _path(text: str) -> Path:
    from pathlib import Path  # here and in `_json`: what most commands need, and --help does not

    return Path(text)


def _json(value: object, indent: int | None = None) -> str:
    import json

    return json.dumps(value, indent=indent)


@functools.cache
def _columns() -> int:
    """As shutil's, which takes longer to load than all of --help to write."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (OSError, ValueError):
        return 80


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=max(_columns() - 2, 20))


def _near(name: str, names: Sequence[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, names, 1)


class _Parser(argparse.ArgumentParser):
    """Errors in our manner, with the nearest command."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']+)'", message)
        near = _near(wrong[1], COMMANDS) if wrong else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise BadInput(message.split(" (choose")[0], hint)


def parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="write results as JSON")
    common.add_argument("--debug", action="store_true", help="say what is done; show tracebacks")
    remote = _Parser(add_help=False)
    remote.add_argument("artifact", metavar="ARTIFACT", help="registry/repository:tag, …@sha256:… or oci:DIR:TAG")
    remote.add_argument("--plain-http", action="store_true", help="speak HTTP to the registry")
    remote.add_argument("--ca-file", type=_path, metavar="FILE", help="certificates to trust beside the system's")
    remote.add_argument("--platform", metavar="OS/ARCH", help="default: this machine's")

    top = _Parser("runner", description="Boots rootdisk artifacts in microVMs.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    boot = commands.add_parser(
        "boot",
        parents=[common, remote],
        help="boot a sandbox; exit with its program's status",
        epilog="Example: runner boot -e NAME=value oci:cache/artifacts/demo:1 -- python3 -c 'print(1)'",
    )
    boot.add_argument("program", nargs="*", metavar="COMMAND", help="in place of the image's command, after --")
    boot.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable")
    boot.add_argument("--env-file", action="append", default=[], type=_path, metavar="FILE", help="NAME=VALUE lines")
    boot.add_argument("--tls-cert", type=_path, metavar="FILE", help="client certificate, as ROOTDISK_TLS_CERT")
    boot.add_argument("--tls-key", type=_path, metavar="FILE", help="its private key, as ROOTDISK_TLS_KEY")
    boot.add_argument("--tls-ca", type=_path, metavar="FILE", help="CA bundle, as ROOTDISK_TLS_CA")
    boot.add_argument("--hostname", help="default: the sandbox's name")
    boot.add_argument("-w", "--workdir", metavar="DIR")
    boot.add_argument("-u", "--user", metavar="USER[:GROUP]")
    boot.add_argument("--entrypoint", metavar="PROGRAM", help="in place of the image's; empty for none")
    boot.add_argument("-m", "--memory", metavar="SIZE", help="as 512m or 2g; default: the artifact's")
    boot.add_argument("--cpus", type=int, metavar="N")
    boot.add_argument("--timeout", type=float, metavar="SECONDS", help="end it then, with status 124")
    boot.add_argument("--name", help="default: made up")
    boot.add_argument("--keep", action="store_true", help="keep the sandbox's directory when it has ended")
    boot.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    boot.add_argument("-t", "--tty", action="store_true", help="give the program a terminal")
    boot.add_argument("--network", choices=("user", "none"), default="user")
    boot.add_argument("--read-only", action="store_true", help="root read-only, with an overlay in memory")
    boot.add_argument("--accel", choices=("kvm", "tcg"), help="default: what works here")
    boot.add_argument("--clone", choices=("overlay", "reflink", "copy"), help="how to copy the disk")
    commands.add_parser("pull", parents=[common, remote], help="fetch an artifact into the store")
    commands.add_parser("inspect", parents=[common, remote], help="say what an artifact is")
    commands.add_parser("ps", parents=[common], help="list sandboxes").add_argument("-a", "--all", action="store_true")
    commands.add_parser("logs", parents=[common], help="a sandbox's console").add_argument("name")
    commands.add_parser("rm", parents=[common], help="remove ended sandboxes").add_argument("name", nargs="+")
    prune = commands.add_parser("prune", parents=[common], help="remove what no sandbox uses from the store")
    prune.add_argument("--older-than", type=float, default=0, metavar="DAYS")
    prune.add_argument("--dry-run", action="store_true")
    commands.add_parser("doctor", parents=[common], help="what this machine can do, and how to mend what it cannot")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 125: the runner itself failed; 130: interrupted; of boot, else the program's own status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]
    if debug:
        show()
    try:
        options = parser().parse_args(arguments)
        return int(globals()[f"_{options.command}"](options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except (RootdiskError, OSError) as err:
        if debug:
            raise
        known = isinstance(err, RootdiskError)
        text = (
            str(err)
            if known
            else f"{getattr(err, 'filename', None) or 'input/output'}: {getattr(err, 'strerror', err)}"
        )
        print(f"runner: {text}", file=sys.stderr)
        return FAILED


def _local(options: argparse.Namespace) -> Any:
    from runner.fetch import pull
    from runner.oci import Platform
    from runner.progress import terminal_progress
    from runner.reference import parse_reference
    from runner.repository import RegistryOptions
    from runner.store import Store

    store = Store.open()
    store.sweep()
    platform = Platform.parse(options.platform) if options.platform else Platform.host()
    registry = RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file)
    with terminal_progress("fetching") as progress:
        return store, pull(store, parse_reference(options.artifact), registry, platform, progress)


def _boot(options: argparse.Namespace) -> int:
    from runner.tsc import Counter

    counter = Counter()  # which measures while the rest is loaded

    from runner import qemu, sandbox
    from runner.oci import Platform

    name = options.name or f"sandbox-{os.urandom(4).hex()}"
    if not NAME.match(name):
        raise BadInput(f"--name {name!r:.80}", "lower-case letters, digits, - _ and . only")
    records = _records(options, name)
    memory = _mebibytes(options.memory) if options.memory else None
    if options.cpus is not None and not 1 <= options.cpus <= 256:
        raise BadInput(f"--cpus {options.cpus}", "1 to 256")
    qemu.program(Platform.parse(options.platform) if options.platform else Platform.host())
    store, local = _local(options)
    return sandbox.run(
        store,
        local,
        sandbox.Options(
            records=tuple(records),
            name=name,
            memory_mib=memory or local.config.memory_mib,
            cpus=options.cpus or local.config.cpus,
            network=options.network == "user",
            timeout_s=options.timeout,
            keep=options.keep,
            interactive=options.interactive,
            terminal=options.tty,
            accelerator=options.accel,
            clone=options.clone,
            debug=options.debug,
        ),
        counter,
    )


def _records(options: argparse.Namespace, name: str) -> list[tuple[str, bytes]]:
    """The slot's records of the command line."""
    records: list[tuple[str, bytes]] = []
    for path in options.env_file:
        for line in _read(path, "--env-file").split(b"\n"):
            line = line.removesuffix(b"\r")
            if line.strip() and not line.lstrip().startswith(b"#"):
                records += _variable(line)
    for text in options.env:
        records += _variable(os.fsencode(text))
    if options.tty and "TERM" in os.environ:
        records.insert(0, ("env", b"TERM=" + os.fsencode(os.environ["TERM"])))
    for key, path in (("tls-ca", options.tls_ca), ("tls-cert", options.tls_cert), ("tls-key", options.tls_key)):
        if path is not None:
            records.append((key, _read(path, f"--{key}")))
    if options.entrypoint is not None:
        records.append(
            ("entrypoint", os.fsencode(options.entrypoint)) if options.entrypoint else ("noentrypoint", b"1")
        )
    records += [("cmd", os.fsencode(word)) for word in options.program]
    for key, value in (("workdir", options.workdir), ("user", options.user), ("hostname", options.hostname or name)):
        if value:
            records.append((key, os.fsencode(value)))
    if options.read_only:
        records.append(("read-only", b"1"))
    return records


def _variable(text: bytes) -> list[tuple[str, bytes]]:
    """NAME=VALUE; or NAME, with this process's value, and nothing where it has none."""
    name, equals, _ = text.partition(b"=")
    if not name:
        raise BadInput(f"-e {os.fsdecode(text)!r:.80}", "write NAME=VALUE or NAME")
    if equals:
        return [("env", text)]
    value = os.environb.get(name)
    return [] if value is None else [("env", name + b"=" + value)]


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as err:
        raise BadInput(f"{option}: cannot read {path}: {err.strerror}") from err


def _mebibytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([mMgG]?)(?:i?[bB])?", text)
    value = int(found[1]) * (1024 if found[2] in "gG" and found[2] else 1) if found else 0
    if not 64 <= value <= 1 << 22:
        raise BadInput(f"--memory {text!r:.40}", "write 512m or 2g; at least 64m")
    return value


def _pull(options: argparse.Namespace) -> int:
    _, local = _local(options)
    counts = {"fetched": local.fetched, "reused": local.reused, "holes": local.holes}
    if options.json:
        print(_json({"digest": str(local.digest), "disk": str(local.disk), **counts}))
    else:
        print(local.digest)
        print(", ".join(f"{value / 1e6:.1f} MB {name}" for name, value in counts.items()), file=sys.stderr)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from runner.artifact import ArtifactConfig, ArtifactManifest
    from runner.fetch import CONFIG_MAX_BYTES
    from runner.oci import Manifest, Platform
    from runner.reference import parse_reference
    from runner.repository import RegistryOptions, open_repository, read_blob, resolve_manifest

    reference = parse_reference(options.artifact)
    platform = Platform.parse(options.platform) if options.platform else Platform.host()
    repository = open_repository(reference, RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file))
    try:
        descriptor, raw = resolve_manifest(repository, reference, platform)
        roles = ArtifactManifest.of(Manifest.parse(raw))
        config = ArtifactConfig.parse(read_blob(repository, roles.config, CONFIG_MAX_BYTES)).to_json()
    finally:
        repository.close()
    print(_json({"digest": str(descriptor.digest), "compressed": roles.disk_bytes, **config}, indent=1))
    return 0


def _ps(options: argparse.Namespace) -> int:
    from runner.store import Store

    rows = [state for _, state in Store.open().states() if state["running"] or options.all]
    if options.json:
        print(_json([{k: row[k] for k in ("name", "artifact", "pid", "created", "running", "keep")} for row in rows]))
        return 0
    print(f"{'NAME':24} {'ARTIFACT':14} {'AGE':>8}  STATE")
    for row in rows:
        age = f"{int(time.time() - row['created'])} s"
        print(f"{row['name']:24} {row['artifact'][7:19]:14} {age:>8}  {'running' if row['running'] else 'ended'}")
    return 0


def _sandbox(name: str) -> Any:
    from runner.store import Store

    found = {state["name"]: (folder, state) for folder, state in Store.open().states()}
    if name not in found:
        near = _near(name, tuple(found))
        raise BadInput(f"no sandbox {name!r:.80}", f"did you mean {near[0]}?" if near else "see runner ps -a")
    return found[name]


def _logs(options: argparse.Namespace) -> int:
    import shutil

    folder, _ = _sandbox(options.name)
    with (folder / "console.log").open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def _rm(options: argparse.Namespace) -> int:
    import shutil

    for name in options.name:
        folder, state = _sandbox(name)
        if state["running"]:
            raise BadInput(f"sandbox {name} runs", "stop it first: Ctrl-C, or a signal to its runner")
        shutil.rmtree(folder)
    return 0


def _prune(options: argparse.Namespace) -> int:
    from runner.store import Store

    removed = Store.open().prune(options.older_than * 86400, options.dry_run)
    if options.json:
        print(_json([{"path": str(path), "bytes": size} for path, size in removed]))
    else:
        verb = "would free" if options.dry_run else "freed"
        print(f"{verb} {sum(size for _, size in removed) / 1e6:.1f} MB in {len(removed)} files")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import shutil

    from runner import accel, qemu
    from runner.oci import Platform
    from runner.store import Store

    rows: list[tuple[str, bool, str]] = []
    try:
        rows.append(("qemu", True, qemu.program(Platform.host())))
    except RootdiskError as err:
        rows.append(("qemu", False, str(err)))
    chosen = accel.choose(None)
    rows.append(("accelerator", chosen.name == "kvm", f"{chosen.name}: {chosen.reason}"))
    try:
        store = Store.open()
        free = shutil.disk_usage(store.root).free
        rows.append(("store", free > 2 << 30, f"{store.root}, {free / 1e9:.1f} GB free"))
    except RootdiskError as err:
        rows.append(("store", False, str(err)))
    if options.json:
        print(_json([{"what": what, "good": good, "text": text} for what, good, text in rows]))
    else:
        for what, good, text in rows:
            print(f"{'ok ' if good else 'no '} {what:12} {text}")
    return 0 if rows[0][1] and rows[2][1] else 1
