"""The commands ps and images: list sandboxes and artifacts as tables, lines or JSON."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rootdisk.cli.rows import write_rows
from rootdisk.cli.table import formatted, shortened, table
from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.sandbox import lookup
from runner.sandbox.state import State, Unreadable
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.store.filling import FillStatus, Silent
    from runner.store.images import Image

REFERENCE_WIDTH = 48
_ANSWER_S = 2.0  # for the server of a disk
_STATES = ("running", "restarting", "exited", "cut off", "unreadable")
Row = State | Unreadable


def ps_command(options: argparse.Namespace) -> int:
    """List sandboxes."""
    last = 1 if options.latest else options.last
    if last is not None and last < 1:
        raise BadInput(f"--last {last}", "list 1 or more")
    is_wanted = _filter(options.filter, _PS_FILTERS)
    list_all = (
        options.all or last is not None or any(text.startswith(("status=", "exited=")) for text in options.filter)
    )
    store = Store.open()
    rows: list[Row] = [
        row
        for row in lookup.all_of(store)
        if (row.running or list_all)
        and (isinstance(row, Unreadable) or not row.name.startswith("."))
        and is_wanted(row)
    ]
    if last is not None:
        rows = sorted(rows, key=lambda row: -row.created if isinstance(row, State) else 0)[:last]
    fills = {} if options.quiet else _fills(store, rows)
    if options.json:
        write_rows([row.to_json() | fill_field(fills.get(row.name)) for row in rows])
    elif options.quiet:
        _print(printable(row.name) for row in rows)
    elif options.format and options.format != "table":
        _print(formatted(options.format, [_ps_fields(row, fills.get(row.name)) for row in rows]))
    else:
        limit = 10_000 if options.no_trunc else REFERENCE_WIDTH
        lines = [_ps_line(row, limit, fills.get(row.name)) for row in rows]
        _print(table(("NAME", "ARTIFACT", "AGE", "STATE", "PORTS"), lines, right=("AGE",)))
    return 0


def images_command(options: argparse.Namespace) -> int:
    """List the artifacts in the store."""
    from runner.store.images import images  # with the artifact's format, which ps does not need

    rows = list(filter(_filter(options.filter, _IMAGE_FILTERS), images(Store.open())))
    full_digest = options.no_trunc or options.digests
    if options.json:
        write_rows([row.to_json() for row in rows])
    elif options.quiet:
        _print(dict.fromkeys(f"sha256:{row.digest}" if full_digest else row.digest[:12] for row in rows))
    elif options.format and options.format != "table":
        _print(formatted(options.format, [_image_fields(row) for row in rows]))
    else:
        limit = 10_000 if options.no_trunc else REFERENCE_WIDTH
        lines = [
            (
                shortened(printable(row.reference) if row.reference else "<none>", limit),
                f"sha256:{row.digest}" if full_digest else row.digest[:12],
                row.platform,
                f"{row.disk_size / (1 << 20):.0f} MiB",
                f"{row.stored_bytes / 1e6:.1f} MB{'' if row.is_complete else ', incomplete'}",
                age(time.time() - row.used),
            )
            for row in rows
        ]
        headers = ("ARTIFACT", "DIGEST", "PLATFORM", "DISK", "STORED", "USED")
        _print(table(headers, lines, right=("DISK", "STORED", "USED")))
    return 0


def age(seconds: float) -> str:
    """Return a time span in its largest unit, for example `3 h`."""
    for name, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds / length)} {name}"
    return f"{max(int(seconds), 0)} s"


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _ps_line(row: Row, limit: int, fill: FillStatus | Silent | None) -> Sequence[str]:
    name = printable(row.name)
    if isinstance(row, Unreadable):
        return name, "", "", "unreadable", row.reason
    reference = shortened(printable(row.spec.reference), limit)
    return name, reference, age(time.time() - row.created), _state(row, fill), _ports(row)


def _fills(store: Store, rows: Iterable[Row]) -> dict[str, FillStatus | Silent]:
    """Ask the servers of disks that are not complete; by the names of sandboxes that use them."""
    if not (store.root / "lazy").exists():
        return {}
    asked: dict[str, FillStatus | Silent | None] = {}  # by disk: a server that hangs is waited for once
    found = ((row.name, fill_of(store, row, asked)) for row in rows)
    return {name: fill for name, fill in found if fill is not None}


def fill_of(
    store: Store, row: Row, asked: dict[str, FillStatus | Silent | None] | None = None
) -> FillStatus | Silent | None:
    """Return how far the disk of a running sandbox is fetched; None if it has been complete from the start.

    `asked` has what the servers of disks have answered already.
    """
    if isinstance(row, Unreadable) or not row.running or not (store.root / "lazy").exists():
        return None
    from rootdisk.oci.documents import Digest
    from runner.store import filling

    asked = {} if asked is None else asked
    disk = row.spec.disk
    if disk not in asked:
        asked[disk] = filling.look(store, Digest("sha256", disk), _ANSWER_S)
    return asked[disk]


def fill_field(fill: FillStatus | Silent | None) -> dict[str, Any]:
    """Return the field of `ps --json` and `inspect`."""
    return {} if fill is None else {"fill": fill.to_json()}


def _state(row: State, fill: FillStatus | Silent | None) -> str:
    if fill is None or fill.is_complete:
        return row.text
    return f"{row.text}, {'waits for its disk' if fill.problem else f'{fill.share:.0%} of its disk'}"


def _ports(row: State) -> str:
    return ", ".join(
        f"{f'[{address}]' if ':' in address else address}:{host}->{guest}/{kind}"
        for kind, address, host, guest in row.spec.forwards
    )


def _ps_fields(row: Row, fill: FillStatus | Silent | None) -> dict[str, Any]:
    """Return the fields that --format can name: docker's, and ours as in --json."""
    if isinstance(row, Unreadable):
        empty = dict.fromkeys(("ID", "Image", "RunningFor", "Ports", "CreatedAt", "Mounts", "Networks", "Command"), "")
        more = {"Names": row.name, "Status": "unreadable", "State": "unreadable", "Labels": {}, "Label": {}}
        return {**row.to_json(), **empty, **more}
    labels = dict(row.spec.labels)
    return {
        **row.to_json(),
        **fill_field(fill),
        "ID": row.name,
        "Names": row.name,
        "Image": row.spec.reference,
        "Command": "",
        "CreatedAt": _stamp(row.created),
        "RunningFor": f"{age(time.time() - row.created)} ago",
        "Ports": _ports(row),
        "State": row.text.partition(" (")[0],
        "Status": _state(row, fill),
        "Labels": labels,
        "Label": labels,
        "Mounts": [host for host, _, _ in row.spec.volumes],
        "Networks": row.spec.network,
    }


def _image_fields(row: Image) -> dict[str, Any]:
    repository, _, tag = row.reference.partition("@")[0].rpartition(":")
    return {
        **row.to_json(),
        "ID": row.digest[:12],
        "Repository": repository or "<none>",
        "Tag": tag or "<none>",
        "Digest": f"sha256:{row.digest}",
        "Size": f"{row.disk_size / (1 << 20):.0f} MiB",
        "CreatedSince": f"{age(time.time() - row.used)} ago",
        "CreatedAt": _stamp(row.used),
    }


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(min(seconds, 253402300799)))


def _label(wanted: str) -> Callable[[Row], bool]:
    name, equals, value = wanted.partition("=")

    def has(row: Row) -> bool:
        """Return whether a row has the label."""
        labels = dict(row.spec.labels) if isinstance(row, State) else {}
        return name in labels and (not equals or labels[name] == value)

    return has


def _status(wanted: str) -> Callable[[Row], bool]:
    if wanted not in _STATES:
        raise BadInput(f"--filter status={printable(wanted, 40)}", f"write one of {', '.join(_STATES)}")
    return lambda row: wanted == ("unreadable" if isinstance(row, Unreadable) else row.text.partition(" (")[0])


def _exited(wanted: str) -> Callable[[Row], bool]:
    if not re.fullmatch("[0-9]{1,3}", wanted):
        raise BadInput(f"--filter exited={printable(wanted, 40)}", "write an exit status")
    return lambda row: isinstance(row, State) and not row.running and row.status == int(wanted)


def _named(pattern: str) -> Callable[[Row], bool]:
    """Search names as docker does, where they begin with a slash that need not be written."""
    try:
        found = re.compile(pattern).search
    except re.error as err:
        raise BadInput(f"--filter name={printable(pattern, 40)}", f"not a regular expression: {err}") from None
    return lambda row: bool(found(row.name) or found(f"/{row.name}"))


_PS_FILTERS: dict[str, Callable[[str], Callable[[Row], bool]]] = {
    "name": _named,
    "id": lambda text: lambda row: text in row.name,
    "status": _status,
    "label": _label,
    "exited": _exited,
    "ancestor": lambda text: lambda row: isinstance(row, State) and _is_of(row.spec.reference, row.spec.artifact, text),
}
_IMAGE_FILTERS: dict[str, Callable[[str], Callable[[Image], bool]]] = {
    "reference": lambda text: (
        lambda row: _is_of(row.reference, f"sha256:{row.digest}", text) or _matches(row.reference, text)
    ),
    "digest": lambda text: lambda row: row.digest.startswith(text.removeprefix("sha256:")),
    "platform": lambda text: lambda row: row.platform == text,
    "dangling": lambda text: lambda row: (not row.reference) == (text.lower() in ("true", "1")),
}


def _is_of(reference: str, digest: str, text: str) -> bool:
    """Return whether `text` names an artifact: by its reference with or without tag, or by the start of its digest."""
    if not text:
        return False
    place = reference.partition("@")[0]
    known = (reference, place, place.rpartition(":")[0])
    return (
        text in known
        or any(f"/{text}" == name[-len(text) - 1 :] for name in known)
        or (
            len(text.removeprefix("sha256:")) >= 8
            and digest.removeprefix("sha256:").startswith(text.removeprefix("sha256:"))
        )
    )


def _matches(reference: str, pattern: str) -> bool:
    import fnmatch  # docker's reference filter takes patterns

    return fnmatch.fnmatchcase(reference, pattern) or fnmatch.fnmatchcase(reference, f"*/{pattern}")


def _filter(texts: Sequence[str], known: Mapping[str, Callable[[str], Callable[[Any], bool]]]) -> Callable[[Any], bool]:
    """Return a function that says whether a row passes the filters KEY=VALUE.

    As in docker, one of the values of a key is enough, but a row must have all labels. BadInput for an unknown key.
    """
    wanted: dict[str, list[Callable[[Any], bool]]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise BadInput(f"--filter {printable(text, 80)!r}", f"write KEY=VALUE; KEY is one of {', '.join(known)}")
        wanted.setdefault(text if key == "label" else key, []).append(known[key](value))
    return lambda row: all(any(passes(row) for passes in alternatives) for alternatives in wanted.values())
